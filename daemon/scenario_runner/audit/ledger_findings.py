"""What can be wrong with objects of the ledger: a closed list of codes, each with its remedy."""

from dataclasses import dataclass
from enum import StrEnum

from scenario_runner.contracts.canonical import Json


class FindingCode(StrEnum):
    """What is wrong with an object, or with what is known of a run. New codes are appended, none is renamed."""

    RECORD_MISSING = "RECORD_MISSING"
    RECORD_DAMAGED = "RECORD_DAMAGED"
    RECORD_DRIFT = "RECORD_DRIFT"
    ADMISSION_UNKNOWN = "ADMISSION_UNKNOWN"
    ADMISSION_DRIFT = "ADMISSION_DRIFT"
    PLAN_MISSING = "PLAN_MISSING"
    PLAN_DRIFT = "PLAN_DRIFT"
    PLAN_NOT_ALLOWED = "PLAN_NOT_ALLOWED"
    STATUS_MISSING = "STATUS_MISSING"
    STATUS_DRIFT = "STATUS_DRIFT"
    FACTS_VIEW_MISSING = "FACTS_VIEW_MISSING"
    FACTS_VIEW_DRIFT = "FACTS_VIEW_DRIFT"
    READY_SIGNAL_MISSING = "READY_SIGNAL_MISSING"
    READY_SIGNAL_DRIFT = "READY_SIGNAL_DRIFT"
    RECEIPT_MISSING = "RECEIPT_MISSING"
    INSTANCE_RECEIPT_DRIFT = "INSTANCE_RECEIPT_DRIFT"
    QUARANTINE_MISSING = "QUARANTINE_MISSING"
    QUARANTINE_DRIFT = "QUARANTINE_DRIFT"
    PACK_MISSING = "PACK_MISSING"
    PACK_DRIFT = "PACK_DRIFT"
    READY_NOT_WITNESSED = "READY_NOT_WITNESSED"
    READY_CONTRADICTED = "READY_CONTRADICTED"
    ATTEMPT_UNKNOWN = "ATTEMPT_UNKNOWN"
    RUN_UNKNOWN = "RUN_UNKNOWN"
    RUN_EXISTS = "RUN_EXISTS"
    EVENT_GAP = "EVENT_GAP"
    DOCUMENTS_OWED = "DOCUMENTS_OWED"
    FOREIGN_OBJECT = "FOREIGN_OBJECT"
    TEMPORARY_LEFT = "TEMPORARY_LEFT"
    SUPERSESSION_MISSING = "SUPERSESSION_MISSING"
    SUPERSESSION_DRIFT = "SUPERSESSION_DRIFT"
    SUPERSESSION_ONE_SIDED = "SUPERSESSION_ONE_SIDED"


_RESTORE = "Restore the object from a backup or an older version."
_MOVE_AWAY = "Find out who wrote it, then move it away; a daemon writes the run's own document when it starts next."

REMEDIES: dict[FindingCode, str] = {
    FindingCode.RECORD_MISSING: f"{_RESTORE} Where the authority knows the run, a daemon cannot: its documents are "
    "written only while they are owed.",
    FindingCode.RECORD_DAMAGED: _RESTORE,
    FindingCode.RECORD_DRIFT: "Compare it with what explain --json says of the run; restore the version that goes on.",
    FindingCode.ADMISSION_UNKNOWN: "An older release wrote this record, without the request. Restore the run's rows "
    "from a backup of the database.",
    FindingCode.ADMISSION_DRIFT: f"The record contradicts itself, so somebody else wrote it. {_RESTORE}",
    FindingCode.PLAN_MISSING: _RESTORE,
    FindingCode.PLAN_DRIFT: _RESTORE,
    FindingCode.PLAN_NOT_ALLOWED: "Rebuild with the pack, roots and policy that the run was admitted under; else its "
    "request must come again under another key.",
    FindingCode.STATUS_MISSING: _RESTORE,
    FindingCode.STATUS_DRIFT: f"Find out which is true, the record or the status. {_RESTORE}",
    FindingCode.FACTS_VIEW_MISSING: _RESTORE,
    FindingCode.FACTS_VIEW_DRIFT: _RESTORE,
    FindingCode.READY_SIGNAL_MISSING: _RESTORE,
    FindingCode.READY_SIGNAL_DRIFT: _RESTORE,
    FindingCode.RECEIPT_MISSING: _RESTORE,
    FindingCode.INSTANCE_RECEIPT_DRIFT: _RESTORE,
    FindingCode.QUARANTINE_MISSING: _RESTORE,
    FindingCode.QUARANTINE_DRIFT: _RESTORE,
    FindingCode.PACK_MISSING: f"{_RESTORE} Or start a daemon of the release that pinned it: it writes its pack anew.",
    FindingCode.PACK_DRIFT: _MOVE_AWAY,
    FindingCode.READY_NOT_WITNESSED: "Restore READY's file in the spool, or rebuild with --witness evidence: then the "
    "engine's files are hashed again.",
    FindingCode.READY_CONTRADICTED: "The control bus or the evidence says something else than the ledger. Find out "
    "who wrote the ledger's documents of this run.",
    FindingCode.ATTEMPT_UNKNOWN: "An engine may still run for it. Wait until it has ended, see to its outputs, and "
    "send the request again under another key.",
    FindingCode.RUN_UNKNOWN: "The authority does not know the run: it was rebuilt without it, or is another run's, "
    "or somebody else wrote the object. Move it away if it is nobody's.",
    FindingCode.RUN_EXISTS: "Another process admitted the run meanwhile. Stop every daemon, and rebuild into an empty "
    "database.",
    FindingCode.EVENT_GAP: "Rows of the authority are lost. Stop every daemon and restore the database from a backup, "
    "or rebuild it from the ledger.",
    FindingCode.DOCUMENTS_OWED: "Start a daemon with the role relay. When one runs, put right what the detail says.",
    FindingCode.FOREIGN_OBJECT: "No document of SR has this name. Move it away if nobody needs it.",
    FindingCode.TEMPORARY_LEFT: "A killed process left it. A daemon removes it when it starts.",
    FindingCode.SUPERSESSION_MISSING: _RESTORE,
    FindingCode.SUPERSESSION_DRIFT: _MOVE_AWAY,
    FindingCode.SUPERSESSION_ONE_SIDED: "A correction and the run that it supersedes come back together, or neither "
    "does. Put right what is found about the other run, and rebuild into another empty database.",
}


@dataclass(frozen=True, slots=True)
class LedgerFinding:
    """Something that does not hold together.

    Attributes:
        run_id: The run that it is about; empty when it is about none.
        object: Where the object is, for a person.
        expected: What belongs there: a digest, a value, or a sentence; empty where there is nothing to say.
        actual: What is there; empty when nothing is.
        detail: What is wrong, for a person.
    """

    code: FindingCode
    run_id: str
    object: str
    detail: str
    expected: str = ""
    actual: str = ""

    def document(self) -> Json:
        """As JSON."""
        return {
            "code": self.code.value, "run_id": self.run_id or None, "object": self.object, "detail": self.detail,
            "expected": self.expected or None, "actual": self.actual or None, "remedy": REMEDIES[self.code],
        }  # fmt: skip
