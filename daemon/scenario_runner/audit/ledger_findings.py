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
    TERMINAL_NOT_WITNESSED = "TERMINAL_NOT_WITNESSED"
    STATE_CONTRADICTED = "STATE_CONTRADICTED"
    MANIFEST_MISSING = "MANIFEST_MISSING"
    MANIFEST_DRIFT = "MANIFEST_DRIFT"
    PACK_NOT_VOUCHED = "PACK_NOT_VOUCHED"
    SIGNAL_UNREADABLE = "SIGNAL_UNREADABLE"
    SIGNAL_WITHOUT_RUN = "SIGNAL_WITHOUT_RUN"


_RESTORE = "Restore the object from a backup or an older version."
_TOGETHER = (
    "Record and status are older than the object, or somebody wrote one of them. Restore the newest versions of all of "
    "them that agree; move the object away only if you know that it is nobody's."
)
_ANEW = "rebuild into another empty database"
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
    FindingCode.PLAN_NOT_ALLOWED: "Rebuild with the roots, allow-list and policy that the run was admitted under, and "
    "name its pack with --catalogue and --gate-map; else its request must come again under another key.",
    FindingCode.STATUS_MISSING: _RESTORE,
    FindingCode.STATUS_DRIFT: f"Find out which is true, the record or the status. {_RESTORE}",
    FindingCode.FACTS_VIEW_MISSING: _RESTORE,
    FindingCode.FACTS_VIEW_DRIFT: _RESTORE,
    FindingCode.READY_SIGNAL_MISSING: _RESTORE,
    FindingCode.READY_SIGNAL_DRIFT: _TOGETHER,
    FindingCode.RECEIPT_MISSING: _RESTORE,
    FindingCode.INSTANCE_RECEIPT_DRIFT: _RESTORE,
    FindingCode.QUARANTINE_MISSING: _RESTORE,
    FindingCode.QUARANTINE_DRIFT: _TOGETHER,
    FindingCode.PACK_MISSING: f"{_RESTORE} Or start a daemon of the release that pinned it: it writes its pack anew.",
    FindingCode.PACK_DRIFT: _MOVE_AWAY,
    FindingCode.READY_NOT_WITNESSED: f"Restore READY's file in the spool, and {_ANEW}; or do so with --witness "
    "evidence: then the engine's files are hashed again.",
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
    f"does. Put right what is found about the other run, and {_ANEW}.",
    FindingCode.TERMINAL_NOT_WITNESSED: f"Restore TERMINAL's file in the spool, and {_ANEW}. If it was never "
    "published, do so with --witness evidence, which takes the ledger's word for runs that are not READY; reemit then "
    "publishes it.",
    FindingCode.STATE_CONTRADICTED: "The run ended, and its record does not say how. Look at its signals in the spool, "
    f"restore the newest versions of its record, status, ready_signal and quarantine object, and {_ANEW}.",
    FindingCode.MANIFEST_MISSING: _RESTORE,
    FindingCode.MANIFEST_DRIFT: _RESTORE,
    FindingCode.PACK_NOT_VOUCHED: f"Name the files of that pack with --catalogue and --gate-map, and {_ANEW}. On a "
    "spool --witness bus needs no pack.",
    FindingCode.SIGNAL_UNREADABLE: "A file of the control bus may be the end of any run that is on its way, so these "
    "stay out. Restore the file, whose name is the message id of its signal; move it away only if you know that it is "
    f"no signal. Then {_ANEW}.",
    FindingCode.SIGNAL_WITHOUT_RUN: "Readers may have acted on the signal, whose file in the spool names the run. The "
    "ledger lost the run's objects, or somebody else wrote the file. Restore the run's objects from a backup or an "
    f"older version, and {_ANEW}; move the file away only if you know that the run never was.",
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
