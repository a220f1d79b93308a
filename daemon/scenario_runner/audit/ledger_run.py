"""The documents of one run against its rows: each is rendered again from the rows, and must be there byte for byte."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from scenario_runner.audit.documents import PublishedDocuments, manifest_of
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.authority.values import RunRow, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json, sha256_hex
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import plan_document, plan_inputs_from_document
from scenario_runner.contracts.states import FINAL_STATES, RunState
from scenario_runner.contracts.times import MICROS, format_micros
from scenario_runner.ledger.documents import (
    ending,
    quarantine_document,
    ready_payload,
    record_bytes,
    status_document,
    supersession_document,
)
from scenario_runner.ledger.ledger import same_receipt
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.storage.base import ListedObject, ObjectStore, UnreadableObjectError

#: Longer than any relay takes that runs: documents that are owed for longer are delivered by nobody.
_FRESH_US: Final = 600 * MICROS
#: Receipts that were compared a moment ago: runs over the same evidence share them. Some 20 MB.
_RECEIPTS_KEPT: Final = 50_000
#: States in which a run has been examined, so that its plan was written.
_PLANNED: Final = FINAL_STATES | {RunState.WAITING_EVIDENCE}


@dataclass(frozen=True, slots=True)
class _Missing:
    code: FindingCode
    drift: FindingCode


_RECORD: Final = _Missing(FindingCode.RECORD_MISSING, FindingCode.RECORD_DRIFT)
_PLAN: Final = _Missing(FindingCode.PLAN_MISSING, FindingCode.PLAN_DRIFT)
_STATUS: Final = _Missing(FindingCode.STATUS_MISSING, FindingCode.STATUS_DRIFT)
_VIEW: Final = _Missing(FindingCode.FACTS_VIEW_MISSING, FindingCode.FACTS_VIEW_DRIFT)
_READY: Final = _Missing(FindingCode.READY_SIGNAL_MISSING, FindingCode.READY_SIGNAL_DRIFT)
_RECEIPT: Final = _Missing(FindingCode.RECEIPT_MISSING, FindingCode.INSTANCE_RECEIPT_DRIFT)
_MANIFEST: Final = _Missing(FindingCode.MANIFEST_MISSING, FindingCode.MANIFEST_DRIFT)
_QUARANTINE: Final = _Missing(FindingCode.QUARANTINE_MISSING, FindingCode.QUARANTINE_DRIFT)
_SUPERSESSION: Final = _Missing(FindingCode.SUPERSESSION_MISSING, FindingCode.SUPERSESSION_DRIFT)


class RunCheck:
    """Checks runs. Safe for several threads.

    Args:
        store: The ledger's store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._documents = PublishedDocuments(store)
        self._receipt = lru_cache(_RECEIPTS_KEPT)(self._stored_receipt)
        self._manifest = lru_cache(_RECEIPTS_KEPT)(self._documents.digest_of)

    def check(
        self, row: RunRow, events: tuple[StoredEvent, ...], listed: Mapping[str, ListedObject], now_us: int
    ) -> list[LedgerFinding]:
        """What is wrong with a run.

        Args:
            row: The run.
            events: Its events, as the authority has them.
            listed: Objects of the run as they were listed, by folder.
            now_us: Now, in microseconds since the epoch.

        Raises:
            Unavailable: the store does not answer.
        """
        found = _Found(row.run_id, self._store)
        if [event.seq for event in events[: row.event_seq]] != list(range(1, row.event_seq + 1)):
            found.add(
                FindingCode.EVENT_GAP, refs.record_ref(row.run_id), "the authority's events have gaps",
                str(row.event_seq), str(len(events)),
            )  # fmt: skip
            return found.items
        events = events[: row.event_seq]
        self._check_plan(row, found)
        if row.projected_seq < row.event_seq:
            self._check_owed(row, events, found, now_us)
        else:
            record = record_bytes(row.run_id, events, row.inputs["policy_rev"])
            self._compare(found, refs.record_ref(row.run_id), record, _RECORD)
            status = status_document(row.run_id, row.state, row.reason_code, _status_us(row, events))
            self._compare(found, refs.status_ref(row.run_id), canonical_bytes(status), _STATUS)
            self._check_end(row, events, found)
        if row.state is RunState.READY:
            self._check_view(row, found)  # written before the run was READY, whatever is owed since then
        self._check_contradictions(row, events, listed, found)
        return found.items

    def _check_plan(self, row: RunRow, found: "_Found") -> None:
        if row.state in _PLANNED:
            intent = intent_from_document(row.run_id, row.run_equivalence_key, row.intent)
            plan = plan_document(intent, plan_inputs_from_document(row.inputs), row.admitted_us)
            self._compare(found, refs.plan_ref(row.run_id), canonical_bytes(plan), _PLAN)

    def _check_owed(self, row: RunRow, events: tuple[StoredEvent, ...], found: "_Found", now_us: int) -> None:
        """Documents that are owed: the record continues as the rows do, and somebody delivers them."""
        key = refs.record_ref(row.run_id)
        record = record_bytes(row.run_id, events, row.inputs["policy_rev"])
        stored = self._read(key)
        if stored is not None and not record.startswith(stored):
            detail = "it is not the beginning of the run's events"
            found.add(FindingCode.RECORD_DRIFT, key, detail, sha256_hex(record), sha256_hex(stored))
        if row.state in _PLANNED and now_us - events[-1].ts_us > _FRESH_US:
            why = f": {row.relay_error}" if row.relay_error else ""
            detail = f"its documents are owed since {format_micros(events[-1].ts_us)}{why}"
            found.add(FindingCode.DOCUMENTS_OWED, key, detail, str(row.event_seq), str(row.projected_seq))

    def _check_end(self, row: RunRow, events: tuple[StoredEvent, ...], found: "_Found") -> None:
        if row.state is RunState.QUARANTINED:
            wanted = canonical_bytes(quarantine_document(row, events))
            self._compare(found, refs.quarantine_ref(row.run_id), wanted, _QUARANTINE)
        if row.state is not RunState.READY:
            return
        self._compare(found, refs.ready_signal_ref(row.run_id), canonical_bytes(ready_payload(events)), _READY)
        supersession = supersession_document(events)
        if supersession is not None:
            self._compare(found, refs.supersession_ref(row.run_id), canonical_bytes(supersession), _SUPERSESSION)

    def _check_view(self, row: RunRow, found: "_Found") -> None:
        key = refs.facts_view_ref(row.run_id)
        stored = self._read(key)
        if self._judge(found, key, row.facts_view_digest, stored, _VIEW) and stored is not None:
            for receipt in parse_json(stored).get("instance_receipts", []):
                self._check_receipt(receipt, found)

    def _check_receipt(self, receipt: Json, found: "_Found") -> None:
        key, data = str(receipt["artifacts"]["receipt_path"]), canonical_bytes(receipt)
        stored = self._receipt(key)
        if stored is None or not same_receipt(stored, data):
            actual = None if stored is None else sha256_hex(stored)
            found.add(
                _RECEIPT.code if stored is None else _RECEIPT.drift, key, "the facts view names this receipt",
                sha256_hex(data), actual or "",
            )  # fmt: skip
        manifest = manifest_of(receipt)
        if manifest is not None:
            digest = self._manifest(manifest.ref)
            if digest != manifest.digest:
                code = _MANIFEST.drift if digest else _MANIFEST.code
                found.add(code, manifest.ref, "the receipt names this manifest", manifest.digest, digest)

    def _stored_receipt(self, key: str) -> bytes | None:
        return self._documents.read_bytes(key)

    @staticmethod
    def _check_contradictions(
        row: RunRow, events: tuple[StoredEvent, ...], listed: Mapping[str, ListedObject], found: "_Found"
    ) -> None:
        """Objects that only a run of another end has."""
        ends: tuple[tuple[str, RunState, FindingCode, Callable[[str], str]], ...] = (
            ("ready_signal", RunState.READY, FindingCode.READY_SIGNAL_DRIFT, refs.ready_signal_ref),
            ("quarantine", RunState.QUARANTINED, FindingCode.QUARANTINE_DRIFT, refs.quarantine_ref),
        )
        for folder, state, code, ref in ends:
            if folder in listed and row.state is not state:
                detail = f"the run is {row.state}, and only one that is {state} has such an object"
                found.add(code, ref(row.run_id), detail, "no object", "an object")
        if "supersession" in listed and supersession_document(events) is None:
            detail, key = "only a READY correction has such an object", refs.supersession_ref(row.run_id)
            found.add(FindingCode.SUPERSESSION_DRIFT, key, detail, "no object", "an object")

    # --- comparing

    def _read(self, key: str) -> bytes | None:
        try:
            stored = self._store.read(key, MAX_DOCUMENT)
        except UnreadableObjectError:
            return b""
        return None if stored is None else stored.data

    def _compare(self, found: "_Found", key: str, wanted: bytes, codes: _Missing) -> None:
        self._judge(found, key, sha256_hex(wanted), self._read(key), codes)

    @staticmethod
    def _judge(found: "_Found", key: str, expected: str, stored: bytes | None, codes: _Missing) -> bool:
        if stored is None:
            found.add(codes.code, key, "the document is not there", expected)
            return False
        actual = sha256_hex(stored)
        if actual != expected:
            found.add(codes.drift, key, "it has other bytes than the rows give", expected, actual)
        return actual == expected


class _Found:
    """Findings about one run."""

    def __init__(self, run_id: str, store: ObjectStore) -> None:
        self.run_id, self._store = run_id, store
        self.items: list[LedgerFinding] = []

    def add(self, code: FindingCode, key: str, detail: str, expected: str = "", actual: str = "") -> None:
        """Note something that does not hold."""
        place = self._store.locate(key)
        self.items.append(LedgerFinding(code, self.run_id, place, detail, expected, actual))


def _status_us(row: RunRow, events: tuple[StoredEvent, ...]) -> int:
    """Time of the status: of the end of a run, whatever its record tells of afterwards."""
    return ending(events).ts_us if row.state in FINAL_STATES else row.updated_us
