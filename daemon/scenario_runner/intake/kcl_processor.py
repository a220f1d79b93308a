"""What happens to the records of one shard: judge, admit, and only then checkpoint.

The rule: a checkpoint never passes a record that is not durably disposed of. So an authority that is down is waited
for, with the shard held; a record that nobody can make sense of is put away as a dead letter, so it never blocks; and
whatever else goes wrong ends the process (70), because ``amazon_kclpy`` swallows exceptions and would go on to
checkpoint records that nobody has seen. The JVM then hands the same records out again.

KCL reads the messages of this process on its stdout, which only ``amazon_kclpy`` may write to.
"""

import binascii
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import structlog

from scenario_runner.authority.base import Admission, Admitted, Authority
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.intake.decode import Record
from scenario_runner.intake.judge import Rules, dead_letter, judge
from scenario_runner.kcl.shard_status import Doing, Reporter

FATAL: Final = 70
"""Exit status of a processor that could not go on; KCL then starts another one at the last checkpoint."""
MAX_RECORDS: Final = 500
MAX_BYTES: Final = 4 << 20
"""Bounds of one transaction."""
_CHECKPOINT_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_MOST_PAUSE_SECONDS: Final = 2.0
_CHECKPOINT_TRIES: Final = 10
_TOLD_ONE_BY_ONE: Final = 10
_LOST: Final = "ShutdownException"
_REFUSED: Final = (Disposition.REJECTED, Disposition.CONFLICT)
_log = structlog.get_logger("intake")
F = TypeVar("F", bound=Callable[..., None])


def die(error: BaseException) -> None:
    """End this process at once, saying why on stderr if that can be written."""
    try:
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
    finally:
        os._exit(FATAL)


def _or_die(method: F) -> F:
    @functools.wraps(method)
    def guarded(self: Any, given: Any) -> None:  # noqa: ANN401 - amazon_kclpy has no types
        try:
            method(self, given)
        except BaseException as error:  # noqa: BLE001 - see the module: nobody above would stop the checkpoint
            self.die(error)

    return guarded  # type: ignore[return-value]


class ShardProcessor:
    """A record processor as ``amazon_kclpy`` wants it (version 3), for one shard.

    Args:
        stream: The stream's name.
        connect: Opens the authority; tried until it answers.
        rules: What records are judged by.
        reporter: Where to tell what this processor does.
        sleep: Pauses.
        monotonic: Seconds, never going back, the same in every process of the machine.
        die: Ends the process.
    """

    version = 3

    def __init__(
        self,
        stream: str,
        connect: Callable[[], Authority],
        rules: Rules,
        reporter: Reporter,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        die: Callable[[BaseException], None] = die,
    ) -> None:
        self._stream, self._connect, self._rules, self._reporter = stream, connect, rules, reporter
        self._sleep, self._monotonic, self.die = sleep, monotonic, die
        self._authority: Authority | None = None
        self._shard_id = ""
        self._records = 0
        self._owed: tuple[str, int] | None = None  # disposed of, and not checkpointed yet
        self._checkpointed = 0.0
        self._ended = False

    # --- the calls of amazon_kclpy

    @_or_die
    def initialize(self, given: Any) -> None:  # noqa: ANN401
        """The lease of a shard is ours."""
        self._shard_id = given.shard_id
        self._tell(Doing.WAITING)
        _log.info("consuming a shard", shard_id=self._shard_id, after=given.sequence_number or "its start")
        self._patiently(self._open)
        self._tell(Doing.IDLE)

    @_or_die
    def process_records(self, given: Any) -> None:  # noqa: ANN401
        """Dispose of a batch; also called with none, which says how far behind we are."""
        if given.records:
            self._tell(Doing.ADMITTING)
            for batch in _batches(self._decoded(given.records)):
                self._admit([self._judged(record) for record, _ in batch])
                self._owed = batch[-1][1]
        if self._owed is not None and self._monotonic() - self._checkpointed >= _CHECKPOINT_SECONDS:
            self._checkpoint(given.checkpointer)
        self._tell(Doing.IDLE, caught_up=not given.records and not given.millis_behind_latest)

    @_or_die
    def lease_lost(self, _given: Any) -> None:  # noqa: ANN401
        """Another worker has the shard: it begins at our last checkpoint, and what it sees again it knows."""
        if not self._ended:
            _log.info("lost the lease of a shard", shard_id=self._shard_id, records=self._records)
        self._end()

    @_or_die
    def shard_ended(self, given: Any) -> None:  # noqa: ANN401
        """The shard was split or merged and all of it is disposed of: its children may begin."""
        for attempt in range(_CHECKPOINT_TRIES):
            error = self._try_checkpoint(given.checkpointer, None)
            if error in ("", _LOST):
                _log.info("end of a shard", shard_id=self._shard_id, records=self._records)
                self._end()
                return
            self._sleep(min(_MOST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt))
        raise RuntimeError(f"the end of shard {self._shard_id} could not be checkpointed: {error}")

    @_or_die
    def shutdown_requested(self, given: Any) -> None:  # noqa: ANN401
        """An orderly stop: the last chance to checkpoint."""
        if self._owed is not None:
            self._checkpoint(given.checkpointer)
        _log.info("stopping to consume a shard", shard_id=self._shard_id, records=self._records)
        self._end()

    # --- records

    def _decoded(self, records: Sequence[Any]) -> Iterator[tuple[Record, tuple[str, int]]]:
        for item in records:
            sequence, sub = item.sequence_number, int(item.sub_sequence_number or 0)
            key = f"kinesis/{self._stream}/{self._shard_id}/{sequence}" + (f"/{sub}" if sub else "")
            try:
                raw = item.binary_data
                record = Record(key, raw, len(raw))
            except (binascii.Error, ValueError, TypeError) as error:
                record = Record(key, b"", 0, f"KCL handed out data that is not base64: {error}")
            yield record, (sequence, sub)

    def _judged(self, record: Record) -> Admission:
        try:
            return judge(record, self._rules)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a record that breaks the judge must not block those after it
            _log.critical("a record broke the judge; it is kept as a dead letter", record=record.key, exc_info=error)
            return dead_letter(record.key, record.raw, record.size, error)

    def _admit(self, admissions: list[Admission]) -> None:
        """Dispose of records durably, however long the authority needs; bad ones are singled out."""
        assert self._authority is not None
        authority = self._authority
        try:
            admitted = self._patiently(lambda: authority.admit(admissions))
        except (MemoryError, ConfigurationError):
            raise
        except Exception as error:
            if len(admissions) > 1:
                middle = len(admissions) // 2
                self._admit(admissions[:middle])
                self._admit(admissions[middle:])
                return
            only = admissions[0]
            if only.reason_code == Reason.INTERNAL_ERROR:
                raise
            _log.critical("a record broke the authority; it is kept as a dead letter", record=only.record_key,
                          exc_info=error)  # fmt: skip
            self._admit([dead_letter(only.record_key, only.raw, only.raw_size, error)])
            return
        self._records += len(admitted)
        self._log_admitted(admitted)

    def _log_admitted(self, admitted: Sequence[Admitted]) -> None:
        counts: dict[str, int] = {}
        told = 0
        for item in admitted:
            counts[item.disposition.value] = counts.get(item.disposition.value, 0) + 1
            if item.disposition in _REFUSED and not item.repeated and told < _TOLD_ONE_BY_ONE:
                told += 1
                _log.warning("record refused", record=item.record_key, run_id=item.run_id, detail=item.detail,
                             disposition=item.disposition, reason_code=item.reason_code)  # fmt: skip
        repeated = sum(item.repeated for item in admitted)
        _log.info("records disposed of", shard_id=self._shard_id, repeated=repeated, **counts)

    # --- patience

    def _open(self) -> None:
        if self._authority is None:
            self._authority = self._connect()

    def _patiently(self, step: Callable[[], Any]) -> Any:  # noqa: ANN401
        """A step, again and again while infrastructure does not answer; the shard stays ours."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return step()
            except Unavailable as error:
                self._tell(Doing.WAITING)
                _log.warning("waiting for the authority; the shard is held, nothing is lost", detail=error.detail,
                             shard_id=self._shard_id)  # fmt: skip
            self._sleep(pause)
            pause = min(_MOST_PAUSE_SECONDS, pause * 2)

    def _checkpoint(self, checkpointer: Any) -> None:  # noqa: ANN401
        error = self._try_checkpoint(checkpointer, self._owed)
        self._checkpointed = self._monotonic()
        if not error or error == _LOST:
            self._owed = None

    def _try_checkpoint(self, checkpointer: Any, at: tuple[str, int] | None) -> str:  # noqa: ANN401
        """Checkpoint; what KCL refuses is no loss: the records are known, and are told apart when they come again."""
        try:
            checkpointer.checkpoint(*at) if at is not None else checkpointer.checkpoint()
        except Exception as error:
            value = getattr(error, "value", None)  # of amazon_kclpy's CheckpointError
            if value is None or value == "InvalidStateException":
                raise
            _log.log(20 if value == _LOST else 30, "checkpoint not taken", shard_id=self._shard_id, error=str(value))
            return str(value)
        return ""

    def _tell(self, doing: Doing, *, caught_up: bool = False) -> None:
        self._reporter.write(self._shard_id, doing, caught_up=caught_up, records=self._records, at=self._monotonic())

    def _end(self) -> None:
        self._ended = True
        self._tell(Doing.ENDED)


def _batches(
    records: Iterator[tuple[Record, tuple[str, int]]],
) -> Iterator[list[tuple[Record, tuple[str, int]]]]:
    """Records in transactions of bounded size, in order."""
    batch: list[tuple[Record, tuple[str, int]]] = []
    size = 0
    for item in records:
        if batch and (len(batch) == MAX_RECORDS or size + len(item[0].raw) > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[0].raw)
    if batch:
        yield batch
