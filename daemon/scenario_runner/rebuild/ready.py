"""Whether a run that the ledger calls READY is READY: the documents agree, and a witness outside the ledger says so.

Witnesses: the control bus, where READY was published with the digest of the facts view (``bus``); the engine's files,
hashed again (``evidence``). That the ledger's documents agree with each other is enough only when an operator says so
(``ledger``).
"""

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Final

import orjson

from scenario_runner.audit.documents import PublishedDocuments, PublishedView
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.audit.published import check_form, check_identity
from scenario_runner.authority.values import SignalDraft
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.bus.envelope import envelope
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, sha256_hex
from scenario_runner.contracts.errors import LedgerDrift, RequestRefused, Unavailable
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.states import REPEATED_BY, EventKind, SignalKind
from scenario_runner.contracts.times import parse_instant, to_micros
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.ledger.ledger import same_receipt
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.rebuild.documents import RunDocuments
from scenario_runner.rebuild.restore import Admitted, NotRestoredError, ReadyProof
from scenario_runner.storage.base import ObjectStore

#: Receipts that were compared a moment ago: runs over the same evidence share them. Some 20 MB.
_RECEIPTS_KEPT: Final = 50_000


class Witness(StrEnum):
    """Who must agree with the ledger that a run is READY."""

    BUS = "bus"
    EVIDENCE = "evidence"
    LEDGER = "ledger"


ReadFirst = Callable[[str, tuple[int, ...]], tuple[bytes, int] | None]
"""Bytes of the envelope of a message id on the control bus, in the first of some emissions that is there, with the
emission; None when it is in none of them."""

Examine = Callable[[bytes], Findings]
"""Verifies a facts view against the engine's files."""


class ReadyProver:
    """Proves that runs are READY. Safe for several threads.

    Args:
        store: The ledger's store.
        packs: Interface packs by digest.
        topic: The control topic.
        witness: Who must agree.
        read_first: Reads the control bus; None where it cannot be asked.
        examine: Hashes evidence again; only for ``Witness.EVIDENCE``.
    """

    def __init__(
        self,
        store: ObjectStore,
        packs: PinnedPacks,
        topic: str,
        witness: Witness,
        read_first: ReadFirst | None,
        examine: Examine,
    ) -> None:
        self._store, self._packs, self._topic = store, packs, topic
        self._witness, self._read_first, self._examine = witness, read_first, examine
        self._documents = PublishedDocuments(store)
        self._stored_receipt = lru_cache(_RECEIPTS_KEPT)(self._receipt_holds)
        self._gates = lru_cache(1000)(self._required_gates)

    def prove(self, admitted: Admitted, documents: RunDocuments) -> ReadyProof:
        """Prove that a run is READY.

        Raises:
            NotRestoredError: why it is not taken for READY.
            Unavailable: the store, the control bus or the engine's files do not answer.
        """
        view = self._facts_view(admitted, documents)
        ready = self._ready_signal(admitted, documents, view)
        self._check_gates(admitted, view)
        self._check_receipts(view)
        return self._witnessed(admitted, view, ready)

    # --- the ledger in itself

    def _facts_view(self, admitted: Admitted, documents: RunDocuments) -> PublishedView:
        run_id, key, data = admitted.run_id, refs.facts_view_ref(admitted.run_id), documents.facts_view
        committed = next((e for e in admitted.events if e.kind == EventKind.FACTS_VIEW_COMMITTED), None)
        expected = str(committed.details.get("digest", "")) if committed is not None else ""
        if data is None:
            raise self._not(FindingCode.FACTS_VIEW_MISSING, run_id, key, "the facts view is not there", expected)
        actual = sha256_hex(data)
        if actual != expected:
            detail = "it is not the facts view that the record tells of"
            raise self._not(FindingCode.FACTS_VIEW_DRIFT, run_id, key, detail, expected, actual)
        found = Findings()
        view = check_form(data, found)
        if view is not None:
            check_identity(view, found)
            self._compare_with_admission(admitted, view, found)
        if view is None or not found.ok:
            wrong = next(check for check in found.checks if not check["ok"])
            detail = f"{wrong['check']}: {wrong.get('detail') or 'no'}"
            raise self._not(FindingCode.FACTS_VIEW_DRIFT, run_id, key, detail, expected, actual)
        return view

    @staticmethod
    def _compare_with_admission(admitted: Admitted, view: PublishedView, found: Findings) -> None:
        document, inputs = view.document, admitted.inputs
        found.expect("pins are those of the request", ok=document["pins"] == admitted.intent.identity())
        found.expect("outputs are those of the plan", ok=view.outputs == list(inputs.outputs))
        found.expect("gates are those of the plan", ok=view.gates == list(inputs.gates))
        found.expect("policy is that of the plan", ok=document["policy_rev"] == inputs.policy_rev)

    def _ready_signal(self, admitted: Admitted, documents: RunDocuments, view: PublishedView) -> Json:
        run_id, key = admitted.run_id, refs.ready_signal_ref(admitted.run_id)
        bundle_hash = view.document["bundle_hash"]
        ready = {"run_id": run_id, "facts_view_ref": refs.facts_view_ref(run_id), "bundle_hash": bundle_hash}
        end = admitted.end.details
        if end.get("ready") != ready or end.get("message_id") != ready_message_id(run_id, bundle_hash):
            detail = "the record's READY points at another facts view"
            raise self._not(FindingCode.RECORD_DAMAGED, run_id, refs.record_ref(run_id), detail)
        wanted = canonical_bytes(ready)
        if documents.ready_signal is None:
            detail = "there is no ready_signal"
            raise self._not(FindingCode.READY_SIGNAL_MISSING, run_id, key, detail, sha256_hex(wanted))
        if documents.ready_signal != wanted:
            detail, actual = "it points at another facts view", sha256_hex(documents.ready_signal)
            raise self._not(FindingCode.READY_SIGNAL_DRIFT, run_id, key, detail, sha256_hex(wanted), actual)
        return ready

    def _check_gates(self, admitted: Admitted, view: PublishedView) -> None:
        """The gates that the pinned pack requires for the outputs are those that passed."""
        run_id, digest = admitted.run_id, admitted.inputs.pack_digest
        try:
            wanted = self._gates(digest, tuple(view.outputs))
        except LedgerDrift as drift:
            raise self._not(FindingCode.PACK_DRIFT, run_id, refs.pack_ref(digest), drift.detail) from drift
        except RequestRefused as refused:
            raise self._not(FindingCode.PLAN_DRIFT, run_id, refs.plan_ref(run_id), refused.detail) from refused
        except Unavailable:
            if self._store.read(refs.pack_ref(digest), MAX_DOCUMENT) is not None:
                raise  # this release cannot read it
            detail = "the interface pack that the run was pinned to is not there"
            raise self._not(FindingCode.PACK_MISSING, run_id, refs.pack_ref(digest), detail, digest) from None
        if list(wanted) != view.gates:
            raise self._not(
                FindingCode.PLAN_DRIFT, run_id, refs.plan_ref(run_id), "the pinned pack requires other gates",
                ", ".join(wanted), ", ".join(view.gates),
            )  # fmt: skip

    def _required_gates(self, digest: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        return required_gates(self._packs.get(digest), outputs)

    def _check_receipts(self, view: PublishedView) -> None:
        for receipt in view.document.get("instance_receipts", []):
            key, data = str(receipt.get("artifacts", {}).get("receipt_path", "")), canonical_bytes(receipt)
            problem = self._stored_receipt(key, data)
            if problem is not None:
                raise self._not(problem, view.run_id, key, "an instance receipt of the facts view", sha256_hex(data))

    def _receipt_holds(self, key: str, data: bytes) -> FindingCode | None:
        """What is wrong with a receipt in the store; None when it is the one of a facts view."""
        if not key.startswith(f"{refs.PREFIX}/instance_receipts/") or "/../" in key:
            return FindingCode.INSTANCE_RECEIPT_DRIFT
        stored = self._documents.read_bytes(key)
        if stored is None:
            return FindingCode.RECEIPT_MISSING
        return None if same_receipt(stored, data) else FindingCode.INSTANCE_RECEIPT_DRIFT

    # --- the witness

    def _witnessed(self, admitted: Admitted, view: PublishedView, ready: Json) -> ReadyProof:
        run_id, message_id = admitted.run_id, admitted.end.details["message_id"]
        draft = SignalDraft(
            message_id, SignalKind.READY, run_id, {"facts_view_digest": view.digest}, canonical_bytes(ready)
        )
        proof = ReadyProof(view.digest, draft, admitted.end.ts_us)
        seen = None if self._read_first is None else self._read_first(message_id, _emissions(admitted))
        if seen is not None:  # whoever must agree: what is on the bus must not say anything else
            proof = self._on_the_bus(proof, *seen)
        elif self._witness is Witness.BUS:
            detail = f"READY, message {message_id}, is not on the control bus"
            raise self._not(FindingCode.READY_NOT_WITNESSED, run_id, refs.record_ref(run_id), detail)
        if self._witness is Witness.EVIDENCE:
            found = self._examine(view.data)
            if not found.ok:
                wrong = next((check for check in found.checks if not check["ok"]), {"check": "no check was made"})
                detail = f"{wrong['check']}: {wrong.get('detail') or 'no'}"
                raise self._not(FindingCode.READY_CONTRADICTED, run_id, refs.facts_view_ref(run_id), detail)
        return proof

    def _on_the_bus(self, proof: ReadyProof, data: bytes, emission: int) -> ReadyProof:
        """The signal as it was published; nothing but its time and more attributes may differ from what is expected."""
        draft, run_id = proof.draft, proof.draft.partition_key
        kind = REPEATED_BY[draft.kind] if emission else draft.kind
        try:
            found = orjson.loads(data)
            published_us = to_micros(parse_instant(found["published_at_utc"]))
            attributes = {str(name): str(value) for name, value in found["attributes"].items() if name != "kind"}
            wanted = envelope(
                self._topic, draft.message_id, published_us, {**attributes, **draft.attributes, "kind": kind.value},
                run_id, orjson.loads(draft.payload),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            detail = f"what is published as message {draft.message_id} is no envelope: {error}"
            raise self._not(FindingCode.READY_CONTRADICTED, run_id, refs.record_ref(run_id), detail) from error
        if data != wanted:
            detail = f"message {draft.message_id} was published with another content"
            raise self._not(
                FindingCode.READY_CONTRADICTED, run_id, refs.record_ref(run_id), detail, sha256_hex(wanted),
                sha256_hex(data),
            )  # fmt: skip
        if emission:
            return proof  # its attributes are those of the repetition
        published = SignalDraft(draft.message_id, draft.kind, draft.partition_key, attributes, draft.payload)
        return ReadyProof(proof.facts_view_digest, published, published_us)

    def _not(
        self, code: FindingCode, run_id: str, key: str, detail: str, expected: str = "", actual: str = ""
    ) -> NotRestoredError:
        place = self._store.locate(key) if key else ""
        return NotRestoredError(LedgerFinding(code, run_id, place, detail, expected, actual))


def _emissions(admitted: Admitted) -> tuple[int, ...]:
    """Numbers of the emissions of READY that the record tells of."""
    published = [e.details["emission"] for e in admitted.events if e.kind == EventKind.REEMIT_PUBLISHED]
    return (0, *published)


def not_asked(_message_id: str, _run_id: str) -> SearchInconclusive:
    """The answer of a control bus that is not asked, for a verification of which only the evidence counts."""
    return SearchInconclusive("the rebuild asks the control bus by itself")
