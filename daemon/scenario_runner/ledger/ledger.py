"""Writing the ledger: write-once documents with drift checks, projections that only move forward.

Everything is written in batches: the runs of a batch share round trips and directory fsyncs, never each other's fate.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from scenario_runner.authority.base import ProjectionTask
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json, sha256_hex
from scenario_runner.contracts.documents import RunStatus
from scenario_runner.contracts.errors import LedgerDrift, SequenceError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import TERMINAL, RunState
from scenario_runner.gates.receipts import FactsView, InstanceReceiptFile
from scenario_runner.ledger.documents import quarantine_document, ready_payload, record_bytes, status_document
from scenario_runner.ledger.schemas import Schemas
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

MAX_DOCUMENT: Final = 64 << 20
"""Most bytes that are read of a document of our own: far more than any holds, and little enough for memory."""

_REPLACE_TRIES: Final = 20
"""How often a replace may find that another writer was faster; more than the relays that share one ledger."""

Same = Callable[[Any, Any], bool]
Step = Callable[[bytes, bytes], bool]


WriteOnce = tuple[str, bytes, Reason]
"""An object to write once: key, bytes, and the reason code when other bytes are there."""

Projection = tuple[str, bytes, bool]
"""A document that follows the rows: key, bytes, and whether an earlier one was written before."""

Failure = LedgerDrift | Unavailable
_MET_KEPT: Final = 50_000


class Ledger:
    """SR's documents in an object store.

    Args:
        store: The object store.
        schemas: What documents must satisfy.
        remember_seconds: How long a write-once object that was written or compared is believed to be still the same.
            It is only ever believed to hold what was meant to be written: other bytes are compared with the store.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        store: ObjectStore,
        schemas: Schemas,
        remember_seconds: float = 0.0,
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.store = store
        self._schemas = schemas
        self._remember_seconds, self._monotonic = remember_seconds, monotonic
        self._met: OrderedDict[str, tuple[str, float]] = OrderedDict()

    # --- write-once

    def write_once(self, key: str, data: bytes, drift: Reason) -> None:
        """Create an object, or find the same bytes there.

        Raises:
            LedgerDrift: other bytes are there; ``drift`` is its reason code.
        """
        failure = self.write_many_once([(key, data, drift)])[0]
        if failure is not None:
            raise failure

    def write_many_once(self, items: Sequence[WriteOnce], same: Same = operator.eq) -> list[Failure | None]:
        """Write many objects once; in the place of each, None or why it failed.

        Objects that this process has met before are read and compared (unless that was a moment ago); others are
        created, and read back only when they turn out to exist.

        Args:
            items: What to write; equal keys with equal bytes may repeat.
            same: Whether the stored bytes count as the given ones.
        """
        distinct = list(dict.fromkeys(items))
        outcomes = dict(zip(distinct, self._write_distinct(distinct, same), strict=True))
        return [outcomes[item] for item in items]

    def _write_distinct(self, items: Sequence[WriteOnce], same: Same) -> list[Failure | None]:
        results: list[Failure | None] = [None] * len(items)
        new = {key: place for place, (key, _, _) in enumerate(items) if key not in self._met}
        created = self.store.create_many([(key, items[place][1]) for key, place in new.items()])
        fresh = set()
        for place, made in zip(new.values(), created, strict=True):
            if isinstance(made, Unavailable):
                results[place] = made
            elif made:
                fresh.add(place)
        for place, (key, data, drift) in enumerate(items):
            if results[place] is None and place not in fresh:
                if self._remembered(key, data):
                    continue
                results[place] = self._compare(key, data, drift, same)
            if results[place] is None:
                self._remember(key, data)
        return results

    def _remembered(self, key: str, data: bytes) -> bool:
        """True when the object was seen to hold just these bytes a moment ago."""
        digest, seen = self._met.get(key, ("", 0.0))
        return self._monotonic() - seen < self._remember_seconds and digest == sha256_hex(data)

    def _remember(self, key: str, data: bytes) -> None:
        """A hint only: what is forgotten is created again, found, and compared."""
        self._met[key] = (sha256_hex(data) if self._remember_seconds else "", self._monotonic())
        while len(self._met) > _MET_KEPT:
            self._met.popitem(last=False)

    def _compare(self, key: str, data: bytes, drift: Reason, same: Same) -> Failure | None:
        try:
            stored = self.store.read(key, MAX_DOCUMENT)
            if stored is None and self.store.create(key, data):
                return None  # it was removed since; it is there again
        except UnreadableObjectError as error:
            return self._drift(key, drift, sha256_hex(data), "", error.detail)
        except Unavailable as error:
            return error
        if stored is None:
            return Unavailable(f"{self.store.locate(key)} exists for a create but not for a read")
        if not same(stored.data, data):
            return self._drift(key, drift, sha256_hex(data), sha256_hex(stored.data), "already exists with other bytes")
        return None

    def _drift(self, key: str, reason: Reason, expected: str, actual: str, problem: str) -> LedgerDrift:
        """What is wrong with an object of ours, naming it and both digests."""
        place = self.store.locate(key)
        found = f"sha256 {actual} is there" if actual else "no readable object is there"
        detail = f"{place}: {problem.removeprefix(place).strip()}; {found}, sha256 {expected} belongs there"
        return LedgerDrift(detail, reason, place=place, expected=expected, actual=actual)

    def write_pack(self, digest: str, document: Json) -> None:
        """Keep the interface pack that plans are pinned to; drift is ``PACK_DRIFT``."""
        self.write_once(refs.pack_ref(digest), canonical_bytes(document), Reason.PACK_DRIFT)

    def read_pack(self, digest: str) -> Json | None:
        """A pinned interface pack; None when it is not there.

        Args:
            digest: sha256 of the pack's bytes. Nothing else makes an object that pack.

        Raises:
            LedgerDrift: ``PACK_DRIFT``: something else is there.
        """
        key = refs.pack_ref(digest)
        try:
            stored = self.store.read(key, MAX_DOCUMENT)
        except UnreadableObjectError as error:
            raise self._drift(key, Reason.PACK_DRIFT, digest, "", error.detail) from error
        if stored is None:
            return None
        actual = sha256_hex(stored.data)
        if actual != digest:
            raise self._drift(key, Reason.PACK_DRIFT, digest, actual, "is not the interface pack of its name")
        return dict(parse_json(stored.data))

    def write_plans(self, documents: Sequence[Json]) -> list[Failure | None]:
        """Write run_plan documents once; drift is ``PLAN_DRIFT``."""
        for document in documents:
            self._schemas.check("run_plan", document)
        return self.write_many_once(
            [(refs.plan_ref(item["run_id"]), canonical_bytes(item), Reason.PLAN_DRIFT) for item in documents]
        )

    def check_facts_view(self, view: FactsView) -> None:
        """Check a facts view, with the receipts and locators in it, before anything of it is written.

        Raises:
            LedgerDrift: ``LOCATOR_SCHEMA_INVALID`` or ``RECEIPT_SCHEMA_INVALID``.
        """
        self._schemas.check("run_facts_view", view.document)
        self._schemas.check("run_ready_signal", view.ready)

    def write_receipts(self, receipts: Sequence[InstanceReceiptFile]) -> list[Failure | None]:
        """Write bundle manifests once, and then the instance receipts of those that are in place.

        Drift is ``INSTANCE_RECEIPT_DRIFT``.

        A receipt for the same scope and digest that was written for another copy of the same engine run (only the
        path of the target differs) is the same receipt.
        """
        drift = Reason.INSTANCE_RECEIPT_DRIFT
        results: list[Failure | None] = [None] * len(receipts)
        manifests = {
            place: (item.manifest_ref, item.manifest, drift) for place, item in enumerate(receipts) if item.manifest_ref
        }
        for place, failure in zip(manifests, self.write_many_once(list(manifests.values())), strict=True):
            results[place] = failure
        attested = {
            place: (item.ref, item.data, drift) for place, item in enumerate(receipts) if results[place] is None
        }
        for place, failure in zip(attested, self.write_many_once(list(attested.values()), same_receipt), strict=True):
            results[place] = failure
        return results

    def remembers(self, receipts: Sequence[InstanceReceiptFile]) -> bool:
        """True when just these receipts were seen in place a moment ago: there is nothing to write."""
        return all(
            self._remembered(item.ref, item.data)
            and (not item.manifest_ref or self._remembered(item.manifest_ref, item.manifest))
            for item in receipts
        )

    def write_facts_views(self, views: Sequence[FactsView]) -> list[Failure | None]:
        """Write run_facts_view documents once; drift is ``FACTS_VIEW_DRIFT``."""
        return self.write_many_once(
            [(refs.facts_view_ref(view.document["run_id"]), view.data, Reason.FACTS_VIEW_DRIFT) for view in views]
        )

    # --- projections

    def project_many(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        """Bring documents up to their rows: records, statuses, then what READY and QUARANTINED add."""
        results: list[Failure | None] = [None] * len(owed)
        for stage in (self._project_records, self._project_statuses, self._project_finals):
            places = [place for place, failure in enumerate(results) if failure is None]
            for place, failure in zip(places, stage([owed[place] for place in places]), strict=True):
                results[place] = failure
        return results

    def _project_records(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        return self._move_forward(
            [
                (
                    refs.record_ref(item.run.run_id),
                    record_bytes(item.run.run_id, item.events, item.run.inputs["policy_rev"]),
                    item.run.projected_seq > 0,
                )
                for item in owed
            ],
            _record_step,
        )

    def _project_statuses(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        documents = []
        for item in owed:
            run = item.run
            document = status_document(run.run_id, run.state, run.reason_code, run.updated_us)
            self._schemas.check("run_status", document)
            documents.append((refs.status_ref(run.run_id), canonical_bytes(document), run.projected_seq > 0))
        return self._move_forward(documents, _status_step)

    def _project_finals(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        finals: dict[int, WriteOnce] = {}
        for place, item in enumerate(owed):
            run = item.run
            if run.state is RunState.READY:
                data = canonical_bytes(ready_payload(item.events))
                finals[place] = (refs.ready_signal_ref(run.run_id), data, Reason.READY_SIGNAL_DRIFT)
            elif run.state is RunState.QUARANTINED:
                document = quarantine_document(run, item.events[-1])
                self._schemas.check("quarantine_record", document)
                finals[place] = (refs.quarantine_ref(run.run_id), canonical_bytes(document), Reason.QUARANTINE_DRIFT)
        results: list[Failure | None] = [None] * len(owed)
        for place, failure in zip(finals, self.write_many_once(list(finals.values())), strict=True):
            results[place] = failure
        return results

    def _move_forward(self, items: Sequence[Projection], step: Step) -> list[Failure | None]:
        """Write projections: create those that are new, replace those that the new bytes are ahead of."""
        results: list[Failure | None] = []
        creations = iter(self.store.create_many([(key, data) for key, data, there in items if not there]))
        for key, data, there in items:
            made = False if there else next(creations)
            try:
                if isinstance(made, Unavailable):
                    raise made
                if not made:
                    self._replace_older(key, data, step)
                results.append(None)
            except (LedgerDrift, Unavailable) as failure:
                results.append(failure)
        return results

    def _replace_older(self, key: str, data: bytes, step: Step) -> None:
        for _ in range(_REPLACE_TRIES):
            try:
                stored = self.store.read(key, MAX_DOCUMENT)
                if stored is None:
                    if self.store.create(key, data):
                        return  # it was removed since; it is there again
                    raise Unavailable(f"{self.store.locate(key)} exists for a create but not for a read")
                if not self._ahead(key, stored.data, data, step) or self.store.replace(key, data, stored.version):
                    return
            except UnreadableObjectError as error:
                raise self._drift(key, Reason.RECORD_DRIFT, sha256_hex(data), "", error.detail) from error
        raise Unavailable(f"{self.store.locate(key)} was changed by others at each of {_REPLACE_TRIES} tries")

    def _ahead(self, key: str, stored: bytes, data: bytes, step: Step) -> bool:
        try:
            return step(stored, data)
        except ValueError as error:
            actual = sha256_hex(stored)
            raise self._drift(key, Reason.RECORD_DRIFT, sha256_hex(data), actual, str(error)) from error


def _record_step(stored: bytes, data: bytes) -> bool:
    """True when ``data`` continues the stored record; ValueError when they differ."""
    if stored.startswith(data):
        return False
    if data.startswith(stored):
        return True
    raise ValueError("is not a prefix of the run's events; restore it")


def _status_step(stored: bytes, data: bytes) -> bool:
    """True when ``data`` is the later status; ValueError when a final one would be replaced, or comes too early."""
    if stored == data:
        return False
    new = RunStatus.model_validate(parse_json(data))
    try:
        old = RunStatus.model_validate(parse_json(stored))
    except ValueError:
        old = None
    if old is None or old.run_id != new.run_id:
        raise ValueError("is no status of this run; move it away")
    if old.state in TERMINAL:
        raise ValueError("holds another final status; find out which is true, and move it away if it is ours")
    ahead = old.updated_at_utc < new.updated_at_utc
    if not ahead and new.state in TERMINAL:
        raise ValueError("holds a status that is not the run's final one; move it away")
    return ahead


def same_receipt(stored: bytes, data: bytes) -> bool:
    """True when a stored instance receipt has the given bytes, or would have but for the path of its target.

    Args:
        stored: What lies in the store: anything.
        data: A receipt of ours.
    """
    return stored == data or _with_path_of(stored, data) == data


def _with_path_of(stored: bytes, data: bytes) -> bytes:
    """A stored receipt in our form with our path; empty when it is not canonical, or no receipt."""
    path = parse_json(data)["target_ref"]["path"]
    try:
        document = parse_json(stored)
        if canonical_bytes(document) != stored or not isinstance(document["target_ref"]["path"], str):
            return b""
        return canonical_bytes({**document, "target_ref": {**document["target_ref"], "path": path}})
    except (ValueError, TypeError, KeyError, SequenceError):
        return b""
