"""Whether a run that the ledger calls READY is READY: the documents agree, and a witness outside the ledger says so.

Witnesses: the control bus, where READY was published with the digest of the facts view (``bus``); the engine's files,
hashed again (``evidence``). That the ledger's documents agree with each other is enough only when an operator says so
(``ledger``).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from scenario_runner.audit.documents import UNREADABLE, PublishedDocuments, PublishedView, manifest_of
from scenario_runner.audit.ends_on_bus import OnBus
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.audit.published import check_form, check_identity
from scenario_runner.authority.values import SignalDraft
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_rendered, rendered_again, sha256_hex
from scenario_runner.contracts.depth import DEPTH, DigestSource, reported_depth
from scenario_runner.contracts.errors import LedgerDrift, RequestRefused, Unavailable
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.states import EventKind, SignalKind
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.ledger.ledger import same_receipt
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.rebuild.bus import BusWitness, Witness
from scenario_runner.rebuild.documents import RunDocuments
from scenario_runner.rebuild.values import Admitted, NotRestoredError, Published, ReadyProof
from scenario_runner.storage.base import ObjectStore

#: Evidence that was examined a moment ago: runs that share it share its part of their facts views. Some 10 MB.
_EXAMINED_KEPT: Final = 50_000

#: Facts views that were found right a moment ago. Some 10 MB.
_RIGHT_KEPT: Final = 500


Examine = Callable[[bytes], Findings]
"""Verifies a facts view against the engine's files."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong with a facts view; ``key`` names the object, where it is another one."""

    code: FindingCode
    detail: str
    key: str = ""
    expected: str = ""
    actual: str = ""


class _Checked(NamedTuple):
    """The bytes of a facts view that were checked, and their digest; nothing else may be examined as this run's."""

    data: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class _RightView:
    """A facts view that was found right, by everything but the part that is its run's own.

    Another run's view with these bytes, of the same plan inputs and bundle hash, is right as well: the checks depend on
    nothing else. So its 20 KB need not be parsed.

    Attributes:
        inputs: Of the plan.
        parts: Its members in their order: rendered, or the name of one that is the run's own.
    """

    inputs: PlanInputs
    parts: tuple[bytes | str, ...]

    @classmethod
    def of(cls, admitted: Admitted, data: bytes, own: Json) -> "_RightView":
        document = parse_rendered(data)
        return cls(
            admitted.inputs,
            tuple(name if name in own else _member(name, document[name]) for name in sorted(document)),
        )

    def view_of(self, own: Json) -> bytes:
        """The facts view of a run with such a part of its own."""
        parts = (part if isinstance(part, bytes) else _member(part, own[part]) for part in self.parts)
        return b"{" + b",".join(parts) + b"}"


class ReadyProver:
    """Proves that runs are READY. Safe for several threads.

    Args:
        store: The ledger's store.
        packs: Interface packs by digest.
        bus: What was published.
        examine: Hashes evidence again; only for ``Witness.EVIDENCE``.
    """

    def __init__(self, store: ObjectStore, packs: PinnedPacks, bus: BusWitness, examine: Examine) -> None:
        self._store, self._packs, self._bus, self._examine = store, packs, bus, examine
        self._documents = PublishedDocuments(store)
        self._examined: dict[tuple[str, str], _Problem | None] = {}
        self._right: dict[str, _RightView] = {}

    def prove(self, admitted: Admitted, documents: RunDocuments) -> ReadyProof:
        """Prove that a run is READY.

        Raises:
            NotRestoredError: why it is not taken for READY.
            Unavailable: the store, the control bus or the engine's files do not answer.
        """
        self._check_depths(admitted)
        view = self._check_facts_view(admitted, documents)
        ready = self._check_ready_signal(admitted, documents)
        return self._witnessed(admitted, view, ready, documents.on_bus)

    # --- the ledger in itself

    def _check_depths(self, admitted: Admitted) -> None:
        """Every output has its depth on record exactly where the pinned policy allows others than ``read``."""
        allowed = admitted.inputs.output_digest_source is not DigestSource.READ
        outputs = _recorded_outputs(admitted)
        if (allowed and not outputs) or any((DEPTH in output) != allowed for output in outputs):
            run_id, wanted = admitted.run_id, "needs" if allowed else "has no"
            detail = f"under its pinned policy each output {wanted} {DEPTH}; RECEIPTS_COMMITTED says otherwise"
            raise self._not(FindingCode.RECORD_DAMAGED, run_id, refs.record_ref(run_id), detail)

    def _check_facts_view(self, admitted: Admitted, documents: RunDocuments) -> "_Checked":
        """Check the facts view against the record, itself, its receipts and the pinned pack."""
        run_id, key = admitted.run_id, refs.facts_view_ref(admitted.run_id)
        committed = next((e for e in admitted.events if e.kind == EventKind.FACTS_VIEW_COMMITTED), None)
        expected = str(committed.details.get("digest", "")) if committed is not None else ""
        right = self._right_view(admitted)
        known = right is not None and documents.facts_view.holds(right)
        data = right if known else documents.facts_view.data
        if data is None:
            raise self._not(FindingCode.FACTS_VIEW_MISSING, run_id, key, "the facts view is not there", expected)
        actual = sha256_hex(data)
        if actual != expected:
            detail = "it is not the facts view that the record tells of"
            raise self._not(FindingCode.FACTS_VIEW_DRIFT, run_id, key, detail, expected, actual)
        problem = None if known else self._problem_of(admitted, data)
        if problem is not None:
            where = problem.key or key
            raise self._not(problem.code, run_id, where, problem.detail, problem.expected, problem.actual)
        return _Checked(data, actual)

    def _right_view(self, admitted: Admitted) -> bytes | None:
        """The facts view that a run has if it is like one that was found right; None when none like it was."""
        right = self._right.get(_bundle_hash(admitted))
        return right.view_of(_own_part(admitted)) if right is not None and right.inputs == admitted.inputs else None

    def _problem_of(self, admitted: Admitted, data: bytes) -> "_Problem | None":
        """What is wrong with a facts view; the part that runs over the same evidence share is examined once for all."""
        own = _own_part(admitted)
        problem = self._problem_in(admitted, data, own)
        if problem is None:
            if len(self._right) >= _RIGHT_KEPT:
                self._right.clear()
            self._right[_bundle_hash(admitted)] = _RightView.of(admitted, data, own)
        return problem

    def _problem_in(self, admitted: Admitted, data: bytes, own: Json) -> "_Problem | None":
        try:
            document = parse_rendered(data)
            wrong = _difference(admitted, document, rendered_again({**document, **own}) == data)
            shared = rendered_again({name: value for name, value in document.items() if name not in own})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return _Problem(FindingCode.FACTS_VIEW_DRIFT, f"it is no facts view: {error}")
        if wrong:
            return _Problem(FindingCode.FACTS_VIEW_DRIFT, wrong)
        key = (sha256_hex(shared), admitted.inputs.pack_digest)
        if key in self._examined:
            with suppress(KeyError):  # another thread has just cleared it
                return self._examined[key]
        problem = self._examine_shared(data, admitted.inputs.pack_digest)
        if len(self._examined) >= _EXAMINED_KEPT:
            self._examined.clear()
        self._examined[key] = problem
        return problem

    def _examine_shared(self, data: bytes, pack_digest: str) -> "_Problem | None":
        found = Findings()
        view = check_form(data, found)
        if view is not None:
            check_identity(view, found)
        if view is None or not found.ok:
            wrong = next(check for check in found.checks if not check["ok"])
            return _Problem(FindingCode.FACTS_VIEW_DRIFT, f"{wrong['check']}: {wrong.get('detail') or 'no'}")
        return self._wrong_gates(view, pack_digest) or self._wrong_receipt(view)

    def _wrong_gates(self, view: PublishedView, digest: str) -> "_Problem | None":
        """The gates that the pinned pack requires for the outputs are those that passed."""
        key = refs.pack_ref(digest)
        try:
            wanted = required_gates(self._packs.get(digest), view.outputs)
        except LedgerDrift as drift:
            return _Problem(FindingCode.PACK_DRIFT, drift.detail, key)
        except RequestRefused as refused:
            return _Problem(FindingCode.FACTS_VIEW_DRIFT, refused.detail)
        except Unavailable:
            if self._store.read(key, MAX_DOCUMENT) is not None:
                return _Problem(FindingCode.PACK_DRIFT, "this release cannot read the pinned interface pack", key)
            return _Problem(FindingCode.PACK_MISSING, "the interface pack of the run is not there", key, digest)
        if list(wanted) == view.gates:
            return None
        detail = "the pinned pack requires other gates"
        return _Problem(FindingCode.FACTS_VIEW_DRIFT, detail, "", ", ".join(wanted), ", ".join(view.gates))

    def _wrong_receipt(self, view: PublishedView) -> "_Problem | None":
        """Every instance receipt of the facts view lies where it says."""
        for receipt in view.document.get("instance_receipts", []):
            key, data = str(receipt.get("artifacts", {}).get("receipt_path", "")), canonical_bytes(receipt)
            code = self._code_of_receipt(key, data)
            if code is not None:
                return _Problem(code, "an instance receipt of the facts view", key, sha256_hex(data))
            problem = self._wrong_manifest(receipt)
            if problem is not None:
                return problem
        return None

    def _wrong_manifest(self, receipt: Json) -> "_Problem | None":
        """The bundle manifest that a receipt names has the digest that the receipt names."""
        manifest = manifest_of(receipt)
        if manifest is None:
            return None
        digest = self._documents.digest_of(manifest.ref) if _is_of_receipts(manifest.ref) else UNREADABLE
        if digest == manifest.digest:
            return None
        code = FindingCode.MANIFEST_DRIFT if digest else FindingCode.MANIFEST_MISSING
        return _Problem(code, "the manifest of an instance receipt", manifest.ref, manifest.digest, digest)

    def _code_of_receipt(self, key: str, data: bytes) -> FindingCode | None:
        """What is wrong with a receipt in the store; None when it is the one of a facts view."""
        if not _is_of_receipts(key):
            return FindingCode.INSTANCE_RECEIPT_DRIFT
        stored = self._documents.read_bytes(key)
        if stored is None:
            return FindingCode.RECEIPT_MISSING
        return None if same_receipt(stored, data) else FindingCode.INSTANCE_RECEIPT_DRIFT

    def _check_ready_signal(self, admitted: Admitted, documents: RunDocuments) -> Json:
        run_id, key, end = admitted.run_id, refs.ready_signal_ref(admitted.run_id), admitted.end.details
        bundle_hash = end["ready"]["bundle_hash"]
        ready = {"run_id": run_id, "facts_view_ref": refs.facts_view_ref(run_id), "bundle_hash": bundle_hash}
        if end["ready"] != ready or end.get("message_id") != ready_message_id(run_id, bundle_hash):
            detail = "the record's READY points at another facts view"
            raise self._not(FindingCode.RECORD_DAMAGED, run_id, refs.record_ref(run_id), detail)
        wanted = rendered_again(ready)
        if documents.ready_signal.holds(wanted):
            return ready
        found = documents.ready_signal.data
        if found is None:
            detail = "there is no ready_signal"
            raise self._not(FindingCode.READY_SIGNAL_MISSING, run_id, key, detail, sha256_hex(wanted))
        detail = "it points at another facts view"
        raise self._not(FindingCode.READY_SIGNAL_DRIFT, run_id, key, detail, sha256_hex(wanted), sha256_hex(found))

    # --- the witness

    def _witnessed(self, admitted: Admitted, view: "_Checked", ready: Json, said: OnBus) -> ReadyProof:
        run_id, message_id, digest = admitted.run_id, admitted.end.details["message_id"], view.digest
        attributes = {"facts_view_digest": digest, "run_id": run_id, **reported_depth(_recorded_outputs(admitted))}
        draft = SignalDraft(message_id, SignalKind.READY, run_id, attributes, rendered_again(ready))
        published = self._bus.end(admitted, draft, said)
        if self._bus.witness is Witness.EVIDENCE:
            self._require_vouched(admitted)
            found = self._examine(view.data)
            if not found.ok:
                wrong = next((check for check in found.checks if not check["ok"]), {"check": "no check was made"})
                detail = f"{wrong['check']}: {wrong.get('detail') or 'no'}"
                raise self._not(FindingCode.READY_CONTRADICTED, run_id, refs.facts_view_ref(run_id), detail)
        return ReadyProof(digest, published, self._supersedes(admitted))

    def _require_vouched(self, admitted: Admitted) -> None:
        """Evidence is examined under a pack that the operator names, not under one that only the ledger has."""
        digest = admitted.inputs.pack_digest
        if digest not in self._packs.vouched:
            detail = (
                f"its interface pack is neither the profile's, {self._packs.current.digest}, nor one that was named"
            )
            key = refs.pack_ref(digest)
            raise self._not(FindingCode.PACK_NOT_VOUCHED, admitted.run_id, key, detail, digest)

    def _supersedes(self, admitted: Admitted) -> Published | None:
        """RUN_SUPERSEDES of a correction: it needs the control bus as its witness wherever READY does."""
        if admitted.supersedes is None:
            return None
        details, attributes = admitted.supersedes, {"run_id": admitted.run_id}
        payload, kind = rendered_again(details["supersedes"]), SignalKind.RUN_SUPERSEDES
        draft = SignalDraft(details["message_id"], kind, admitted.run_id, attributes, payload)
        return self._bus.published(draft, admitted.end.ts_us)

    def _not(
        self, code: FindingCode, run_id: str, key: str, detail: str, expected: str = "", actual: str = ""
    ) -> NotRestoredError:
        place = self._store.locate(key) if key else ""
        return NotRestoredError(LedgerFinding(code, run_id, place, detail, expected, actual))


def _is_of_receipts(key: str) -> bool:
    return key.startswith(f"{refs.PREFIX}/instance_receipts/") and "/../" not in key


def _member(name: str, value: object) -> bytes:
    return rendered_again({name: value})[1:-1]


def _bundle_hash(admitted: Admitted) -> str:
    return str(admitted.end.details["ready"]["bundle_hash"])


def _recorded_outputs(admitted: Admitted) -> list[Json]:
    """What the record says of the outputs of a READY run, with the depth of each where the policy allows several."""
    committed = next((e for e in admitted.events if e.kind == EventKind.RECEIPTS_COMMITTED), None)
    return list(committed.details["outputs"]) if committed is not None else []


def _own_part(admitted: Admitted) -> Json:
    """The part of a facts view that no other run has."""
    run_id = admitted.run_id
    return {
        "run_id": run_id, "pins": admitted.intent.identity(), "plan_ref": refs.plan_ref(run_id),
        "record_ref": refs.record_ref(run_id), "status_ref": refs.status_ref(run_id),
    }  # fmt: skip


def _difference(admitted: Admitted, document: Json, is_the_runs: bool) -> str:  # noqa: FBT001 - one of the checks
    """What of a facts view differs from its run; empty when nothing does."""
    inputs, gates = admitted.inputs, sorted(receipt["gate_id"] for receipt in document["gate_receipts"])
    checks = {
        "its run, pins or refs are not the run's, or it is not canonical": is_the_runs,
        "its outputs are not those of the plan": document["intended_outputs"] == list(inputs.outputs),
        "its gates are not those of the plan": gates == list(inputs.gates),
        "its policy is not that of the plan": document["policy_rev"] == inputs.policy_rev,
        "its bundle_hash is not that of the record": document["bundle_hash"] == _bundle_hash(admitted),
    }
    return next((text for text, holds in checks.items() if not holds), "")


def not_asked(_message_id: str, _run_id: str) -> SearchInconclusive:
    """The answer of a control bus that is not asked, for a verification of which only the evidence counts."""
    return SearchInconclusive("the rebuild asks the control bus by itself")
