"""The ledger: SR's documents in an object store.

Write-once documents are compared with what is there (:mod:`~scenario_runner.ledger.write_once`); projections only move
forward (:mod:`~scenario_runner.ledger.projections`). Everything is written in batches: the runs of a batch share round
trips and directory fsyncs; the failure of one does not affect the others.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from scenario_runner.authority.values import ProjectionTask, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json, sha256_hex
from scenario_runner.contracts.errors import SequenceError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import FINAL_STATES, RunState
from scenario_runner.gates.receipts import FactsView, InstanceReceiptFile
from scenario_runner.ledger.documents import (
    ending,
    quarantine_document,
    ready_payload,
    record_bytes,
    status_document,
    supersession_document,
)
from scenario_runner.ledger.projections import Projection, project, record_step, status_step
from scenario_runner.ledger.schemas import Schemas
from scenario_runner.ledger.write_once import MAX_DOCUMENT, Failure, WriteOnce, WriteOnceObjects, drift_of
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

A = TypeVar("A")
B = TypeVar("B")
_log = structlog.get_logger("ledger")


class Ledger:
    """SR's documents in an object store.

    Args:
        store: The object store.
        schemas: What documents must satisfy.
        cache_ttl_seconds: See :class:`~scenario_runner.ledger.write_once.WriteOnceObjects`.
        monotonic: Seconds, never going back.
        pool: Threads that read and replace objects; None to do so in the calling thread.
    """

    def __init__(
        self,
        store: ObjectStore,
        schemas: Schemas,
        cache_ttl_seconds: float = 0.0,
        monotonic: Callable[[], float] = lambda: 0.0,
        pool: Executor | None = None,
    ) -> None:
        self.store = store
        self._pool = pool
        self._schemas = schemas
        self._objects = WriteOnceObjects(store, cache_ttl_seconds, monotonic)

    # --- write-once documents

    def write_pack(self, digest: str, document: Json) -> None:
        """Keep the interface pack that plans are pinned to.

        Raises:
            LedgerDrift: ``PACK_DRIFT``: other bytes are there.
            Unavailable: the store does not answer.
        """
        (failure,) = self._objects.write([(refs.pack_ref(digest), canonical_bytes(document), Reason.PACK_DRIFT)])
        if failure is not None:
            raise failure

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
            raise drift_of(self.store, key, Reason.PACK_DRIFT, digest, "", error.detail) from error
        if stored is None:
            return None
        actual = sha256_hex(stored.data)
        if actual != digest:
            problem = "is not the interface pack of its name"
            raise drift_of(self.store, key, Reason.PACK_DRIFT, digest, actual, problem)
        return dict(parse_json(stored.data))

    def write_plans(self, documents: Sequence[Json]) -> list[Failure | None]:
        """Write run_plan documents once; drift is ``PLAN_DRIFT``."""
        for document in documents:
            self._schemas.check("run_plan", document)
        return self._objects.write(
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
        """Write bundle manifests once, and then the instance receipts of those whose manifest is in place.

        A receipt for the same scope and digest that was written for another copy of the same engine run (only the
        path of the target differs) is the same receipt. Drift is ``INSTANCE_RECEIPT_DRIFT``.
        """
        drift = Reason.INSTANCE_RECEIPT_DRIFT
        results: list[Failure | None] = [None] * len(receipts)
        with_manifest = [number for number, item in enumerate(receipts) if item.manifest_ref]
        manifests = [(receipts[number].manifest_ref, receipts[number].manifest, drift) for number in with_manifest]
        for number, failure in zip(with_manifest, self._objects.write(manifests), strict=True):
            results[number] = failure
        ready = [number for number, failure in enumerate(results) if failure is None]
        documents = [(receipts[number].ref, receipts[number].data, drift) for number in ready]
        for number, failure in zip(ready, self._objects.write(documents, same_receipt), strict=True):
            results[number] = failure
        return results

    def receipts_in_place(self, receipts: Sequence[InstanceReceiptFile]) -> bool:
        """True when all of these receipts and manifests were seen in place a moment ago: there is nothing to write."""
        return all(
            self._objects.cached(item.ref, item.data)
            and (not item.manifest_ref or self._objects.cached(item.manifest_ref, item.manifest))
            for item in receipts
        )

    def write_facts_views(self, views: Sequence[FactsView]) -> list[Failure | None]:
        """Write run_facts_view documents once; drift is ``FACTS_VIEW_DRIFT``."""
        return self._objects.write(
            [(refs.facts_view_ref(view.document["run_id"]), view.data, Reason.FACTS_VIEW_DRIFT) for view in views]
        )

    def write_attempt_logs(self, run_id: str, attempt_no: int, stdout: bytes, stderr: bytes) -> dict[str, str]:
        """Write what an attempt of an engine wrote once.

        Logs decide nothing: where something else lies in their place, they are left out, which is logged.

        Returns:
            ``stdout_ref`` and ``stderr_ref``; empty when the attempt wrote nothing, or nothing could be kept.

        Raises:
            Unavailable: the store does not answer.
        """
        if not stdout and not stderr:
            return {}
        wanted = {"stdout": stdout, "stderr": stderr}
        keys = {stream: refs.attempt_log_ref(run_id, attempt_no, stream) for stream in wanted}
        drift = Reason.ATTEMPT_LOG_DRIFT
        results = self._objects.write([(keys[stream], data, drift) for stream, data in wanted.items()])
        for failure in results:
            if isinstance(failure, Unavailable):
                raise failure
        drifted = [failure for failure in results if failure is not None]
        for failure in drifted:
            _log.warning("logs of an attempt are not kept", run_id=run_id, detail=failure.detail)
        return {} if drifted else {f"{stream}_ref": key for stream, key in keys.items()}

    # --- projections

    def project_many(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        """Bring documents up to their rows: records, then statuses, then what READY and QUARANTINED add.

        A run whose record cannot be written gets no status, and so on: a status never says more than the record.
        """
        results = self._project_records(owed)
        # Of a run that has ended and was projected then, only the record can be behind: it tells of re-emits. Its
        # status and what READY and QUARANTINED add never change again.
        complete = [_was_final(item) for item in owed]
        for stage in (self._project_statuses, self._write_finals):
            numbers = [number for number, failure in enumerate(results) if failure is None and not complete[number]]
            for number, failure in zip(numbers, stage([owed[number] for number in numbers]), strict=True):
                results[number] = failure
        return results

    def compare_facts_views(self, expected: Sequence[tuple[str, str]]) -> list[Failure | None]:
        """Read facts views and compare them with what the authority announced.

        Args:
            expected: Run id and sha256 of the facts view of each.

        Returns:
            One result each: None when that very facts view is there; ``FACTS_VIEW_MISSING`` or ``FACTS_VIEW_DRIFT``; or
            ``Unavailable``: the store did not say.
        """
        return self._map(self._compare_facts_view, expected)

    def _compare_facts_view(self, expected: tuple[str, str]) -> Failure | None:
        run_id, digest = expected
        key = refs.facts_view_ref(run_id)
        try:
            stored = self.store.read(key, MAX_DOCUMENT)
        except UnreadableObjectError as error:
            return drift_of(self.store, key, Reason.FACTS_VIEW_DRIFT, digest, "", error.detail)
        except Unavailable as error:
            return error
        if stored is None:
            problem = "the facts view is not there: restore it"
            return drift_of(self.store, key, Reason.FACTS_VIEW_MISSING, digest, "", problem)
        actual = sha256_hex(stored.data)
        if actual != digest:
            problem = "is not the facts view that READY announced: restore it"
            return drift_of(self.store, key, Reason.FACTS_VIEW_DRIFT, digest, actual, problem)
        return None

    def _map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Apply a function to each item, in parallel where there is a pool: each waits for the store."""
        return list(self._pool.map(function, items) if self._pool is not None else map(function, items))

    def _project_records(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        return project(self.store, [_record(item) for item in owed], record_step, self._map)

    def _project_statuses(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        documents: list[Projection] = []
        for item in owed:
            run = item.run
            document = status_document(run.run_id, run.state, run.reason_code, run.updated_us)
            self._schemas.check("run_status", document)
            documents.append((refs.status_ref(run.run_id), canonical_bytes(document), run.projected_seq > 0))
        return project(self.store, documents, status_step, self._map)

    def _write_finals(self, owed: Sequence[ProjectionTask]) -> list[Failure | None]:
        finals: list[tuple[int, WriteOnce]] = []
        for number, item in enumerate(owed):
            run = item.run
            if run.state is RunState.READY:
                data = canonical_bytes(ready_payload(item.events))
                finals.append((number, (refs.ready_signal_ref(run.run_id), data, Reason.READY_SIGNAL_DRIFT)))
                finals += [(number, final) for final in self._supersession(run.run_id, item.events)]
            elif run.state is RunState.QUARANTINED:
                document = quarantine_document(run, item.events)
                self._schemas.check("quarantine_record", document)
                data = canonical_bytes(document)
                finals.append((number, (refs.quarantine_ref(run.run_id), data, Reason.QUARANTINE_DRIFT)))
        results: list[Failure | None] = [None] * len(owed)
        failures = self._objects.write([item for _, item in finals])
        for (number, _), failure in zip(finals, failures, strict=True):
            results[number] = results[number] or failure
        return results

    def _supersession(self, run_id: str, events: tuple[StoredEvent, ...]) -> list[WriteOnce]:
        """The supersession object of a READY run that supersedes another, which is there before RUN_SUPERSEDES is."""
        document = supersession_document(events)
        if document is None:
            return []
        self._schemas.check("run_supersedes_signal", document)
        return [(refs.supersession_ref(run_id), canonical_bytes(document), Reason.SUPERSESSION_DRIFT)]


def _was_final(item: ProjectionTask) -> bool:
    """True when a run's documents were written after it had ended."""
    return item.run.state in FINAL_STATES and item.run.projected_seq >= ending(item.events).seq


def _record(item: ProjectionTask) -> Projection:
    run = item.run
    data = record_bytes(run.run_id, item.events, run.inputs["policy_rev"])
    return refs.record_ref(run.run_id), data, run.projected_seq > 0


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
