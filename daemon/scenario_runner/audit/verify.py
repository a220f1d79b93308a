"""Verification of a READY run as a careful downstream reader does it: trust nothing, recompute everything.

It reads the object store, the control bus and the engine's files, and never reuses a digest. What the run was required
to show comes from the operator or from the rows of the authority, never from the ledger alone.
"""

from collections.abc import Callable

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.audit.depths import check_depth
from scenario_runner.audit.documents import PublishedDocuments
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.published import ReadSignal, check_form, check_identity, check_ready, check_status
from scenario_runner.audit.recomputed import EvidenceCheck
from scenario_runner.audit.required import Known, Named, check_pinned, check_plan, check_policy, choose_pack
from scenario_runner.audit.supersession import check_supersession, ends_of
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.storage.base import ObjectStore


class Verifier:
    """Verifies facts views.

    Args:
        store: The object store.
        packs: The current interface pack and pinned ones.
        artifacts: Reader of engine run roots, without digest reuse.
        topic: The control topic.
        read_signal: Reads a signal from the control bus.
        progress: Called with the bytes hashed so far, and those to hash of the files listed so far.
        known: What the authority knows of a run.
        named: What the operator named.
        evidence: Recomputes the evidence, where that is done in another way than by ``artifacts`` for each facts view.
    """

    def __init__(
        self,
        store: ObjectStore,
        packs: PinnedPacks,
        artifacts: Artifacts,
        topic: str,
        read_signal: ReadSignal,
        progress: Callable[[int, int], None],
        known: Known,
        named: Named,
        evidence: EvidenceCheck | None = None,
    ) -> None:
        self._documents = PublishedDocuments(store)
        self._evidence = evidence or EvidenceCheck(artifacts, self._documents, progress)
        self._packs, self._topic, self._read_signal = packs, topic, read_signal
        self._known, self._named = known, named

    def verify(self, data: bytes) -> tuple[str, Findings]:
        """Verify the bytes of a facts view.

        Returns:
            Its run id (empty when the bytes are no facts view) and the checks. A check that fails does not end the
            list, unless what follows needs what it checks.

        Raises:
            Unavailable: the store, the control bus or an engine run root does not answer.
        """
        found, documents = Findings(), self._documents
        view = check_form(data, found)
        if view is None:
            return "", found
        row = self._known(view.run_id)
        check_identity(view, found)
        envelope = check_ready(view, documents, self._topic, self._read_signal, found)
        check_status(view, documents, found)
        check_supersession(view.run_id, documents, self._read_signal, ends_of(documents, view.run_id), found)
        check_pinned(row, view, documents, found)
        check_policy(row, view, self._named, found)
        check_depth(row, view.run_id, documents, envelope.attributes if envelope else None, found)
        pack = choose_pack(row, view.run_id, self._packs, self._named, documents, found)
        if pack is None:
            return view.run_id, found
        gates = check_plan(view, pack, documents, found)
        if gates is not None:
            self._evidence.check(view, pack, gates, found)
        return view.run_id, found
