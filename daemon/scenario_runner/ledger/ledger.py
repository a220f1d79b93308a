"""Writing the ledger: write-once documents with drift checks, projections that only move forward."""

from scenario_runner.authority.base import Owed
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import RunState
from scenario_runner.gates.receipts import FactsView, InstanceReceiptFile
from scenario_runner.ledger.documents import quarantine_document, ready_payload, record_bytes, status_document
from scenario_runner.ledger.schemas import Schemas
from scenario_runner.storage.base import ObjectStore, ObjectTooLargeError

MAX_DOCUMENT = 64 << 20


class Ledger:
    """SR's documents in an object store."""

    def __init__(self, store: ObjectStore, schemas: Schemas) -> None:
        self.store = store
        self._schemas = schemas

    # --- write-once

    def write_once(self, key: str, data: bytes, drift: Reason) -> bool:
        """Create an object, or find the same bytes there; True when this call created it.

        Raises:
            LedgerDrift: other bytes are there; ``drift`` is its reason code.
        """
        if self.store.create(key, data):
            return True
        if self._existing(key, drift) != data:
            raise LedgerDrift(f"{self.store.locate(key)} already exists with other content", drift)
        return False

    def _existing(self, key: str, drift: Reason) -> bytes:
        try:
            stored = self.store.read(key, MAX_DOCUMENT)
        except ObjectTooLargeError as error:
            raise LedgerDrift(error.detail, drift) from error
        if stored is None:
            raise Unavailable(f"{self.store.locate(key)} exists for a create but not for a read")
        return stored.data

    def write_pack(self, digest: str, document: Json) -> None:
        """Keep the interface pack that plans are pinned to."""
        self.write_once(refs.pack_ref(digest), canonical_bytes(document), Reason.PLAN_DRIFT)

    def read_pack(self, digest: str) -> Json | None:
        """A pinned interface pack; None when it was never kept."""
        stored = self.store.read(refs.pack_ref(digest), MAX_DOCUMENT)
        return dict(parse_json(stored.data)) if stored is not None else None

    def write_plan(self, document: Json) -> None:
        """Write run_plan once; drift is ``PLAN_DRIFT``."""
        self._schemas.check("run_plan", document)
        self.write_once(refs.plan_ref(document["run_id"]), canonical_bytes(document), Reason.PLAN_DRIFT)

    def write_receipt(self, receipt: InstanceReceiptFile) -> None:
        """Write a bundle manifest and then its instance receipt, once.

        A receipt for the same scope and digest that was written for another copy of the same engine run (only the
        path of the target differs) is the same receipt.

        Raises:
            LedgerDrift: ``INSTANCE_RECEIPT_DRIFT``: a receipt for the same scope has another digest.
        """
        self._schemas.check("instance_proof_receipt", receipt.document)
        drift = Reason.INSTANCE_RECEIPT_DRIFT
        if receipt.manifest_ref:
            self.write_once(receipt.manifest_ref, receipt.manifest, drift)
        data = canonical_bytes(receipt.document)
        if self.store.create(receipt.ref, data):
            return
        stored = self._existing(receipt.ref, drift)
        if stored != data and _without_path(stored) != _without_path(data):
            raise LedgerDrift(
                f"{self.store.locate(receipt.ref)} already attests {receipt.output_id} with another digest",
                drift,
            )

    def write_facts_view(self, view: FactsView) -> None:
        """Write run_facts_view once; drift is ``FACTS_VIEW_DRIFT``."""
        for item in view.document["locators"]:
            self._schemas.check("engine_output_locator", item)
        for item in view.document["gate_receipts"]:
            self._schemas.check("gate_receipt", item)
        self._schemas.check("run_facts_view", view.document)
        self._schemas.check("run_ready_signal", view.ready)
        self.write_once(refs.facts_view_ref(view.document["run_id"]), view.data, Reason.FACTS_VIEW_DRIFT)

    # --- projections

    def project(self, owed: Owed) -> None:
        """Bring a run's documents up to its rows: record, status, then what READY or QUARANTINED adds."""
        run, events = owed.run, owed.events
        self._project_record(run.run_id, record_bytes(run.run_id, events, run.inputs["policy_rev"]))
        self._project_status(run.run_id, status_document(run.run_id, run.state, run.reason_code, run.updated_us))
        if run.state is RunState.READY:
            data = canonical_bytes(ready_payload(events))
            self.write_once(refs.ready_signal_ref(run.run_id), data, Reason.READY_SIGNAL_DRIFT)
        if run.state is RunState.QUARANTINED:
            document = quarantine_document(run, events[-1])
            self._schemas.check("quarantine_record", document)
            self.write_once(refs.quarantine_ref(run.run_id), canonical_bytes(document), Reason.QUARANTINE_DRIFT)

    def _project_record(self, run_id: str, data: bytes) -> None:
        key = refs.record_ref(run_id)
        if self.store.create(key, data):
            return
        while True:
            stored = self.store.read(key, MAX_DOCUMENT)
            if stored is None:
                raise Unavailable(f"{self.store.locate(key)} disappeared while it was being written")
            if stored.data.startswith(data):
                return
            if not data.startswith(stored.data):
                raise LedgerDrift(f"{self.store.locate(key)} is not a prefix of the run's events", Reason.RECORD_DRIFT)
            if self.store.replace(key, data, stored.version):
                return

    def _project_status(self, run_id: str, document: Json) -> None:
        self._schemas.check("run_status", document)
        key, data = refs.status_ref(run_id), canonical_bytes(document)
        if self.store.create(key, data):
            return
        while True:
            stored = self.store.read(key, MAX_DOCUMENT)
            if stored is None:
                raise Unavailable(f"{self.store.locate(key)} disappeared while it was being written")
            if stored.data == data or _updated_at(stored.data) >= document["updated_at_utc"]:
                return
            if self.store.replace(key, data, stored.version):
                return


def _without_path(data: bytes) -> object:
    try:
        document = parse_json(data)
        return {**document, "target_ref": {**document["target_ref"], "path": ""}}
    except (ValueError, TypeError, KeyError):
        return None


def _updated_at(data: bytes) -> str:
    try:
        return str(parse_json(data)["updated_at_utc"])
    except (ValueError, TypeError, KeyError):
        return ""
