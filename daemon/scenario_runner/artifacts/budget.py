"""The read budget of one examination of an engine run root: what it may cost, and what ends it early."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from scenario_runner.contracts.errors import ScenarioRunnerError
from scenario_runner.contracts.plan import DEFAULT_BOUNDS, EvidenceBounds
from scenario_runner.contracts.reasons import Reason

#: Operations (a listing's entry, a stat, an open) between two readings of the clock: together about a millisecond.
_OPERATIONS_PER_BEAT: Final = 64
#: Listed entries up to which examinations run side by side. An entry costs a kilobyte, so 20 MB each.
_MANY_ENTRIES: Final = 20_000
#: Held by the one examination of the process that lists more.
_MANY_ENTRIES_LOCK: Final = threading.Lock()
#: How often an examination that waits for this lock reports progress, so that it notices a lost lease or a stop.
_WAITING_BEAT_SECONDS: Final = 0.5
#: How often :attr:`Share.over` is asked once the share's seconds are over; its answer may depend on other runs.
_ASK_EVERY_SECONDS: Final = 0.25


class ReadBudgetExceeded(ScenarioRunnerError):  # noqa: N818 - what happened, not a fault
    """The examination costs more than its share. Nothing was decided: examine again with a larger one."""

    default_reason = Reason.UNAVAILABLE


class ExaminationTooLongError(ScenarioRunnerError):
    """The examination took longer than the policy allows."""

    default_reason = Reason.EVIDENCE_TOO_LARGE


class _CancelledError(ScenarioRunnerError):
    """Another part of the same examination failed, so this one is not needed any more."""

    default_reason = Reason.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Share:
    """Most that one examination may cost while other runs wait for it.

    Attributes:
        hash_bytes: Bytes to digest that are not known by an earlier digest.
        operations: Directory entries listed, files stat'ed and files opened.
        document_bytes: Bytes of documents (flags, indexes, JSON members) that are read and parsed.
        seconds: On a monotonic clock.
        patient: Whether the examination may also wait: for another one of the same evidence, for the lock of large
            documents, for files that are being written. In a batch that would keep other runs waiting.
        over: Called with the seconds since the beginning once ``seconds`` are over; True to end the examination.
        spent_seconds: Seconds that earlier parts of the same examination took; they count for the policy's bound.
    """

    hash_bytes: float = math.inf
    operations: float = math.inf
    document_bytes: float = math.inf
    seconds: float = math.inf
    patient: bool = True
    over: Callable[[float], bool] = lambda _seconds: True
    spent_seconds: float = 0.0


UNLIMITED: Final = Share()
#: The share of one run in a batch. A run of a thousand files costs about 4,000 operations.
BATCH_SHARE: Final = Share(hash_bytes=8 << 20, operations=10_000, document_bytes=1 << 20, seconds=1.0, patient=False)


class ReadBudget:
    """Counts what an examination costs and ends it when that is too much. Charged by every ``RunRoot``.

    A context manager: the examination ends with it. The clock is read and the heartbeat called once in 64 operations,
    and for every document and block of bytes.

    Args:
        heartbeat: Called with the number of bytes hashed since its last call; raises to end the examination (a lost
            lease, a process that stops).
        share: Most that the examination may cost.
        bounds: How large the evidence may be and how long the examination may take, from the run's policy.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        heartbeat: Callable[[int], None] = lambda _bytes: None,
        share: Share = UNLIMITED,
        bounds: EvidenceBounds = DEFAULT_BOUNDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share, self.bounds = share, bounds
        self._heartbeat, self._monotonic = heartbeat, monotonic
        self._began, self._ask_again = monotonic(), share.seconds
        self._hash_bytes = self._operations = self._document_bytes = self._entries = self._hashed = 0
        self._has_lock = False
        self._next_beat = _OPERATIONS_PER_BEAT
        self._cancelled = False

    def __enter__(self) -> Self:
        """The budget itself."""
        return self

    def __exit__(self, *_failure: object) -> None:
        """Release the lock of large listings."""
        if self._has_lock:
            self._has_lock = False
            _MANY_ENTRIES_LOCK.release()

    def entries(self, count: int = 1) -> None:
        """Charge entries of a listing; in the examination's own thread. Raises as :meth:`operations`."""
        self._entries += count
        if self._entries > _MANY_ENTRIES and self.share.patient:
            while not self._has_lock:
                self.beat()
                self._has_lock = _MANY_ENTRIES_LOCK.acquire(timeout=_WAITING_BEAT_SECONDS)
        self.operations(count)

    def operations(self, count: int = 1) -> None:
        """Charge files stat'ed or opened.

        Raises:
            ReadBudgetExceeded: over the share.
            ExaminationTooLongError: over the policy's time.
        """
        self._operations += count
        if self._operations > self.share.operations:
            self._stop(f"more than {self.share.operations} files are to be listed or opened")
        if self._operations >= self._next_beat:
            self._next_beat = self._operations + _OPERATIONS_PER_BEAT
            self.beat()

    def document(self, size: int) -> None:
        """Charge a document before it is read and parsed; raises as :meth:`operations`."""
        self._document_bytes += size
        if self._document_bytes > self.share.document_bytes:
            self._stop(f"documents of more than {self.share.document_bytes} bytes are to be parsed")
        self.beat()

    def hashing(self, size: int) -> None:
        """Charge bytes before they are hashed; raises as :meth:`operations`."""
        self._hash_bytes += size
        if self._hash_bytes > self.share.hash_bytes:
            self._stop(f"{self._hash_bytes} bytes are to be hashed, more than {self.share.hash_bytes}")
        self.beat()

    def beat(self, hashed: int = 0) -> None:
        """Report progress of ``hashed`` bytes, and raise when the examination must end; from any thread.

        Raises:
            ReadBudgetExceeded: over the share's seconds.
            ExaminationTooLongError: over the policy's time.
        """
        if self._cancelled:
            raise _CancelledError("the examination has ended")
        self._hashed += hashed
        self._heartbeat(hashed)
        seconds = self.seconds
        if seconds > self._ask_again:
            self._ask_again = seconds + _ASK_EVERY_SECONDS
            if self.share.over(seconds):
                self._stop(f"it takes longer than {self.share.seconds} s")
        seconds += self.share.spent_seconds
        if seconds > self.bounds.max_look_seconds:
            raise ExaminationTooLongError(
                f"the examination of the evidence was ended after {seconds:.0f} s, the policy's max_look_seconds is "
                f"{self.bounds.max_look_seconds}; {self._hash_bytes} bytes were to be hashed"
            )

    @property
    def hashed(self) -> int:
        """Bytes hashed so far. Threads may lose a block between them: this number is shown, and decides nothing."""
        return self._hashed

    @property
    def to_hash(self) -> int:
        """Bytes to hash, of the files that were listed so far."""
        return self._hash_bytes

    def hashed_before(self, size: int) -> None:
        """Note bytes to hash that an earlier examination hashed."""
        self._hashed += size

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return self._monotonic() - self._began

    def cancel(self) -> None:
        """Make other threads of this examination end at their next beat."""
        self._cancelled = True

    def fits(self, share: Share) -> bool:
        """Whether all that was charged so far, and the time since, is within a share."""
        return (
            self._hash_bytes <= share.hash_bytes
            and self._operations <= share.operations
            and self._document_bytes <= share.document_bytes
            and self.seconds <= share.seconds
        )

    @staticmethod
    def _stop(what: str) -> NoReturn:
        raise ReadBudgetExceeded(what)
