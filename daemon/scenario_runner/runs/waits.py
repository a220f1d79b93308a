"""When a run whose evidence is missing is examined again, and when it has waited for long enough. Pure.

======================================  ================================================================
the run                                 is examined again
======================================  ================================================================
misses something new                    after 1, 2, 4, ... 60 s
misses the same as before               likewise; from the eighth minute on after an eighth of the time that
                                        this has been so, ten minutes at most
misses its whole root for a minute      at its deadline; until then its root is looked at in rounds
                                        (:mod:`~scenario_runner.runs.absent_roots`)
======================================  ================================================================

None waits beyond its deadline, and each is due at once when somebody says that its evidence has come
(:mod:`scenario_runner.authority.arrivals`). ADR 0039 has the figures.
"""

import zlib
from typing import Final

from scenario_runner.authority.values import Claim, Event, Transition
from scenario_runner.contracts.canonical import canonical_sha256
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.contracts.times import MICROS
from scenario_runner.evidence.findings import Finding
from scenario_runner.retry import RetryPolicy
from scenario_runner.runs.decisions import later_than, negative, resumed
from scenario_runner.runs.effects import Examined
from scenario_runner.runs.transitions import waiting

#: Evidence of a young wait is noticed a minute after it arrives at most.
_WAIT_FOR_EVIDENCE: Final = RetryPolicy(first_seconds=1, most_seconds=60)
#: From the eighth minute on, evidence is noticed late by an eighth of the time that nothing new was found at most.
_QUIET_SHARE: Final = 8
#: And ten minutes after it arrives at most, however long its run has waited.
_MOST_QUIET_US: Final = 600 * MICROS
#: Looks of runs that wait for so long are brought together, a minute earlier at most.
_SHARED_US: Final = 60 * MICROS
#: For so long a run whose root is absent is examined itself: most roots come a moment after their requests.
_ROUNDS_AFTER_US: Final = 60 * MICROS
MOST_ROOT_BYTES: Final = 2000
"""Of a root that is looked at in rounds: an index of PostgreSQL holds no value of more than 2,704 bytes."""


def waiting_or_failed(claim: Claim, now_us: int, examined: Examined, root: str) -> Transition:
    """Evidence is missing: examine again later, or FAILED when the deadline had passed before the examination began.

    The deadline is compared with the beginning: evidence that arrived while other runs were examined is not too late.

    Args:
        claim: The run.
        now_us: The database's clock.
        examined: What was found missing.
        root: Its engine run root.
    """
    finding = examined.finding
    if examined.began_us >= claim.deadline_us:
        code = Reason.EVIDENCE_MISSING_DEADLINE
        return negative(claim, now_us, RunState.FAILED, code, finding.detail, finding.report)
    digest = canonical_sha256(finding.report)
    if digest == claim.report_digest:
        return _still_waiting(claim, now_us, finding, digest, root)
    due_us = min(claim.deadline_us, now_us + _WAIT_FOR_EVIDENCE.pause_us(claim.wakes + 1))
    code = finding.reason or Reason.EVIDENCE_MISSING
    details = {"reason_code": code.value, "detail": finding.detail, "report": finding.report}
    events = (*resumed(claim), Event(EventKind.EVIDENCE_MISSING, RunState.WAITING_EVIDENCE, details))
    found = (*finding.report["gates"], *finding.report["outputs"])
    missing = tuple(str(item["missing"]) for item in found if item.get("missing"))
    return waiting(claim, due_us, later_than(claim, now_us), events, digest, missing)


def _still_waiting(claim: Claim, now_us: int, finding: Finding, digest: str, root: str) -> Transition:
    """Nothing new was found, so there is no event. The longer that has been so, the later it is examined again.

    A run whose root is absent is examined at its deadline: until then its root is looked at in rounds.
    """
    quiet_us = now_us - claim.updated_us
    if finding.root_absent and quiet_us >= _ROUNDS_AFTER_US and len(root.encode()) <= MOST_ROOT_BYTES:
        return waiting(claim, claim.deadline_us, claim.updated_us, (), digest, absent_root=root)
    pause_us = _WAIT_FOR_EVIDENCE.pause_us(claim.wakes + 1)
    long_pause_us = min(quiet_us // _QUIET_SHARE, _MOST_QUIET_US)
    due_us = now_us + pause_us
    if long_pause_us > pause_us:
        due_us = max(due_us, _shared_moment(now_us + long_pause_us, root + digest))
    return waiting(claim, min(claim.deadline_us, due_us), claim.updated_us, (), digest)


def _shared_moment(at_us: int, what: str) -> int:
    """The last moment until a time that is shared by all runs that lack the same: one a minute.

    They are then claimed in one batch, and share its examination.
    """
    phase_us = zlib.crc32(what.encode()) * MICROS % _SHARED_US
    return at_us - (at_us - phase_us) % _SHARED_US
