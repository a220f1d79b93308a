"""Processes the records of one shard: validate, admit, and only then checkpoint.

A checkpoint never passes a record that is not durably disposed of. Therefore:

- while the authority is down the processor waits and keeps the shard;
- a record that causes an error becomes a dead letter, so it blocks nothing;
- any other error ends the process with status 70. ``amazon_kclpy`` swallows exceptions and would go on to checkpoint
  records that were not disposed of. The JVM then delivers the same records again.

KCL reads the messages of this process from its stdout, to which only ``amazon_kclpy`` may write.
"""

import binascii
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import structlog

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.bus.batching import bounded_batches
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import REFUSED
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.intake.counting import count_admitted
from scenario_runner.intake.decode import Message
from scenario_runner.intake.spans import trace_admitted
from scenario_runner.intake.validate import dead_letter, validate_message
from scenario_runner.kcl.shard_status import ProcessorState, StatusWriter
from scenario_runner.retry import RetryPolicy, with_retries

FATAL: Final = 70
"""Exit status of a processor that could not go on; KCL then starts another one at the last checkpoint."""

MAX_RECORDS: Final = 500
"""Records of one transaction: more gain nothing on either engine, and each holds the others up."""

MAX_BYTES: Final = 4 << 20
"""Bytes of one transaction: each record that is refused is stored as a dead letter."""

#: A checkpoint is a write to DynamoDB; what is delivered again after a crash is known by its key.
_CHECKPOINT_SECONDS: Final = 1.0
#: While the authority is down. The shard stays leased, so an outage is noticed to be over within two seconds.
_RETRY: Final = RetryPolicy(first_seconds=0.1, most_seconds=2.0)
#: Ten tries take 11 seconds, longer than DynamoDB throttles; then the JVM is replaced and the end is delivered again.
_RETRY_SHARD_END: Final = RetryPolicy(first_seconds=0.1, most_seconds=2.0, most_tries=10)
#: Of a batch of refused records so many are logged each; all of them are in the authority.
_LOGGED_ONE_BY_ONE: Final = 10
#: Milliseconds in a second.
_MILLIS: Final = 1000
_LEASE_LOST: Final = "ShutdownException"
_log = structlog.get_logger("intake")
F = TypeVar("F", bound=Callable[..., None])
Position = tuple[str, int]
"""Sequence number and sub-sequence number of a record."""


class _CheckpointRefusedError(Exception):
    """KCL did not take a checkpoint; ``args[0]`` is its error."""


def die(error: BaseException) -> None:
    """End this process at once, and write the error to stderr if that is possible."""
    try:
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
    finally:
        os._exit(FATAL)


def _exit_on_error(method: F) -> F:
    """End the process when a call of ``amazon_kclpy`` fails: it would swallow the exception and checkpoint."""

    @functools.wraps(method)
    def guarded(self: Any, given: Any) -> None:  # noqa: ANN401 - amazon_kclpy has no types
        try:
            method(self, given)
        except BaseException as error:  # noqa: BLE001 - nothing above this method would stop the checkpoint
            self.die(error)

    return guarded  # type: ignore[return-value]


class ShardProcessor:
    """A record processor for one shard, with the methods that ``amazon_kclpy`` (version 3) calls.

    Args:
        stream: Name of the stream.
        connect: Opens the authority; called until it answers.
        admission: What messages are validated against.
        status: Where the state of this processor is written.
        sleep: Waits some seconds.
        monotonic: Seconds, never going back, the same in every process of the machine.
        die: Ends the process.
    """

    version = 3

    def __init__(
        self,
        stream: str,
        connect: Callable[[], Authority],
        admission: AdmissionPolicy,
        status: StatusWriter,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        die: Callable[[BaseException], None] = die,
    ) -> None:
        self._stream, self._connect, self._admission, self._status = stream, connect, admission, status
        self._sleep, self._monotonic, self.die = sleep, monotonic, die
        self._authority: Authority | None = None
        self._shard_id = ""
        self._records = 0
        self._uncheckpointed: Position | None = None  # the last record that is disposed of, until it is checkpointed
        self._checkpointed_at = 0.0
        self._behind_seconds = self._oldest_at = self._uncheckpointed_at = 0.0  # for the status
        self._ended = False

    # --- the calls of amazon_kclpy

    @_exit_on_error
    def initialize(self, given: Any) -> None:  # noqa: ANN401
        """This worker has the lease of a shard."""
        self._shard_id = given.shard_id
        self._write_status(ProcessorState.WAITING)
        _log.info("consuming a shard", shard_id=self._shard_id, after=given.sequence_number or "its start")
        self._await_authority(self._open)
        self._write_status(ProcessorState.IDLE)

    @_exit_on_error
    def process_records(self, given: Any) -> None:  # noqa: ANN401
        """Dispose of a batch. KCL also calls this without records, and says how far behind the shard is."""
        self._behind_seconds = (given.millis_behind_latest or 0) / _MILLIS
        if given.records:
            self._oldest_at = _arrival_of(given.records[0])
            self._write_status(ProcessorState.ADMITTING)
            for batch in bounded_batches(self._messages(given.records), _size, MAX_RECORDS, MAX_BYTES):
                self._admit([validate_message(message, self._admission) for message, _ in batch])
                self._uncheckpointed = batch[-1][1]
            self._oldest_at = 0.0
            self._uncheckpointed_at = self._uncheckpointed_at or self._monotonic()
        if self._uncheckpointed is not None and self._monotonic() - self._checkpointed_at >= _CHECKPOINT_SECONDS:
            self._checkpoint(given.checkpointer)
        self._write_status(ProcessorState.IDLE, caught_up=not given.records and not given.millis_behind_latest)

    @_exit_on_error
    def lease_lost(self, _given: Any) -> None:  # noqa: ANN401
        """Another worker has the shard. It starts at our last checkpoint and knows by their keys what we admitted."""
        if not self._ended:
            _log.info("lost the lease of a shard", shard_id=self._shard_id, records=self._records)
        self._end()

    @_exit_on_error
    def shard_ended(self, given: Any) -> None:  # noqa: ANN401
        """The shard was split or merged and all its records are disposed of. Its checkpoint lets its children start."""

        def checkpoint() -> None:
            refused = self._try_checkpoint(given.checkpointer, None)
            if refused not in ("", _LEASE_LOST):
                raise _CheckpointRefusedError(refused)

        try:
            with_retries(checkpoint, _RETRY_SHARD_END, lambda error: isinstance(error, _CheckpointRefusedError),
                         wait=self._sleep)  # fmt: skip
        except _CheckpointRefusedError as error:
            raise RuntimeError(f"the end of shard {self._shard_id} could not be checkpointed: {error}") from error
        _log.info("end of a shard", shard_id=self._shard_id, records=self._records)
        self._end()

    @_exit_on_error
    def shutdown_requested(self, given: Any) -> None:  # noqa: ANN401
        """An orderly stop: the last chance to checkpoint."""
        if self._uncheckpointed is not None:
            self._checkpoint(given.checkpointer)
        _log.info("stopping to consume a shard", shard_id=self._shard_id, records=self._records)
        self._end()

    # --- records

    def _messages(self, records: Iterable[Any]) -> Iterator[tuple[Message, Position]]:
        for item in records:
            sequence, sub = item.sequence_number, int(item.sub_sequence_number or 0)
            key = f"kinesis/{self._stream}/{self._shard_id}/{sequence}" + (f"/{sub}" if sub else "")
            try:
                raw = item.binary_data
                message = Message(key, raw, len(raw))
            except (binascii.Error, ValueError, TypeError) as error:
                message = Message(key, b"", 0, f"KCL handed out data that is not base64: {error}")
            yield message, (sequence, sub)

    def _admit(self, admissions: list[Admission]) -> None:
        """Dispose of messages durably, however long the authority takes.

        A batch that the authority fails on is halved until the message that causes the failure is alone.
        """
        assert self._authority is not None
        authority = self._authority
        try:
            admitted = self._await_authority(lambda: authority.admit(admissions))
        except (MemoryError, ConfigurationError):
            raise  # not about any message
        except Exception as error:
            if len(admissions) > 1:
                middle = len(admissions) // 2
                self._admit(admissions[:middle])
                self._admit(admissions[middle:])
                return
            only = admissions[0]
            if only.reason_code == Reason.INTERNAL_ERROR:
                raise  # it is a dead letter already, so the error is not about the message
            _log.critical("admitting a message failed unexpectedly; it is kept as a dead letter",
                          record=only.record_key, exc_info=error)  # fmt: skip
            self._admit([dead_letter(only.record_key, only.raw, only.raw_size, error)])
            return
        self._records += len(admitted)
        count_admitted(admissions, admitted)
        trace_admitted(admissions, admitted)
        self._log_admitted(admitted)

    def _log_admitted(self, admitted: Sequence[Admitted]) -> None:
        counts: dict[str, int] = {}
        for item in admitted:
            counts[item.disposition.value] = counts.get(item.disposition.value, 0) + 1
        refused = [item for item in admitted if item.disposition in REFUSED and not item.repeated]
        for item in refused[:_LOGGED_ONE_BY_ONE]:
            _log.warning("record refused", record=item.record_key, run_id=item.run_id, detail=item.detail,
                         disposition=item.disposition, reason_code=item.reason_code)  # fmt: skip
        repeated = sum(item.repeated for item in admitted)
        _log.info("records disposed of", shard_id=self._shard_id, repeated=repeated, **counts)

    def _open(self) -> None:
        if self._authority is None:
            self._authority = self._connect()

    def _await_authority(self, step: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Run a step, again and again while the authority does not answer; the shard stays leased."""

        def log_failure(error: BaseException, _pause: float) -> None:
            assert isinstance(error, Unavailable)
            self._write_status(ProcessorState.WAITING)
            _log.warning("waiting for the authority; the shard is held, nothing is lost", detail=error.detail,
                         shard_id=self._shard_id)  # fmt: skip

        return with_retries(step, _RETRY, lambda error: isinstance(error, Unavailable), wait=self._sleep,
                            on_failure=log_failure)  # fmt: skip

    # --- checkpoints

    def _checkpoint(self, checkpointer: Any) -> None:  # noqa: ANN401
        refused = self._try_checkpoint(checkpointer, self._uncheckpointed)
        self._checkpointed_at = self._monotonic()
        if refused in ("", _LEASE_LOST):
            self._uncheckpointed, self._uncheckpointed_at = None, 0.0

    def _try_checkpoint(self, checkpointer: Any, at: Position | None) -> str:  # noqa: ANN401
        """Checkpoint at a record, or at the end of the shard; returns KCL's error, or an empty text.

        A checkpoint that KCL refuses loses nothing: the records are delivered again, and their keys are known.
        """
        try:
            checkpointer.checkpoint(*at) if at is not None else checkpointer.checkpoint()
        except Exception as error:
            value = getattr(error, "value", None)  # of amazon_kclpy's CheckpointError
            if value is None or value == "InvalidStateException":
                raise  # the protocol is out of step: only a new process can go on
            level = logging.INFO if value == _LEASE_LOST else logging.WARNING
            _log.log(level, "checkpoint not taken", shard_id=self._shard_id, error=str(value))
            return str(value)
        return ""

    # --- status

    def _write_status(self, state: ProcessorState, *, caught_up: bool = False) -> None:
        self._status.write(
            self._shard_id, state, caught_up=caught_up, records=self._records, at=self._monotonic(),
            behind_seconds=self._behind_seconds, oldest_at=self._oldest_at, uncheckpointed_at=self._uncheckpointed_at,
        )  # fmt: skip

    def _end(self) -> None:
        self._ended = True
        self._write_status(ProcessorState.ENDED)


def _arrival_of(record: Any) -> float:  # noqa: ANN401
    """When a record arrived on the stream, in seconds since the epoch; 0 when KCL does not say."""
    arrived = getattr(record, "approximate_arrival_timestamp", None)
    return float(arrived.timestamp()) if arrived is not None else 0.0


def _size(item: tuple[Message, Position]) -> int:
    return len(item[0].raw)
