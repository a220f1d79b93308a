"""The record processor alone: what it checkpoints, and that it never checkpoints what is not disposed of."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.intake import validate
from scenario_runner.intake.kcl_processor import MAX_BYTES, MAX_RECORDS, ShardProcessor
from scenario_runner.kcl.shard_status import ProcessorState

pytestmark = pytest.mark.unit


class CheckpointError(Exception):
    """As amazon_kclpy's."""

    def __init__(self, value: str) -> None:
        self.value = value


@dataclass
class Record:
    sequence_number: str
    data: bytes
    sub_sequence_number: int = 0

    @property
    def binary_data(self) -> bytes:
        return base64.b64decode(base64.b64encode(self.data))


@dataclass
class Checkpointer:
    errors: list[str] = field(default_factory=list)
    taken: list[tuple[Any, ...]] = field(default_factory=list)

    def checkpoint(self, *at: Any) -> None:
        if self.errors:
            raise CheckpointError(self.errors.pop(0))
        self.taken.append(at)


@dataclass
class Rows:
    """An authority that fails as told: errors by call, or by record key."""

    failures: list[Exception] = field(default_factory=list)
    poison: dict[str, Exception] = field(default_factory=dict)
    batches: list[list[Admission]] = field(default_factory=list)

    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        if self.failures:
            raise self.failures.pop(0)
        for record in records:
            if record.record_key in self.poison and record.reason_code != Reason.INTERNAL_ERROR:
                raise self.poison[record.record_key]
        self.batches.append(list(records))
        return [Admitted(item.record_key, item.disposition or Disposition.ACCEPTED, item.reason_code, item.detail,
                         item.run_id, repeated=False) for item in records]  # fmt: skip


@dataclass
class Shard:
    """One processor with everything around it."""

    rows: Rows = field(default_factory=Rows)
    checkpointer: Checkpointer = field(default_factory=Checkpointer)
    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    told: list[tuple[ProcessorState, bool]] = field(default_factory=list)
    died: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.processor = ShardProcessor(
            "bus", lambda: self.rows, RULES, self, self.slept.append, lambda: self.now, self.died.append
        )  # type: ignore[arg-type]
        self.processor.initialize(SimpleNamespace(shard_id="shard-1", sequence_number="TRIM_HORIZON"))

    def write(self, _shard_id: str, doing: ProcessorState, *, caught_up: bool, **_: Any) -> None:
        self.told.append((doing, caught_up))

    def give(self, *records: Record, behind: int = 0) -> None:
        self.processor.process_records(
            SimpleNamespace(records=list(records), millis_behind_latest=behind, checkpointer=self.checkpointer)
        )

    @property
    def keys(self) -> list[str]:
        return [item.record_key for batch in self.rows.batches for item in batch]


RULES: Any = SimpleNamespace(topic="t", record_limit=1 << 20)


@pytest.fixture
def shard() -> Shard:
    return Shard()


def junk(number: int, size: int = 0) -> Record:
    return Record(str(number), b"x" * size + str(number).encode())


def test_a_checkpoint_follows_the_last_record_that_was_disposed_of(shard: Shard) -> None:
    shard.give(junk(1), junk(2), Record("3", b"three", 7))
    assert shard.keys == ["kinesis/bus/shard-1/1", "kinesis/bus/shard-1/2", "kinesis/bus/shard-1/3/7"]
    assert shard.checkpointer.taken == [("3", 7)]
    assert shard.died == []


def test_records_that_one_producer_packed_together_have_keys_of_their_own(shard: Shard) -> None:
    shard.give(*(Record("9", b"same", sub) for sub in range(4)))
    assert len(set(shard.keys)) == 4


def test_a_record_that_cannot_be_read_is_a_dead_letter_with_its_bytes(shard: Shard) -> None:
    shard.give(Record("1", b"\xff\x00"), Record("2", b"[" * 100_000))
    (batch,) = shard.rows.batches
    assert [item.disposition for item in batch] == [Disposition.REJECTED] * 2
    assert batch[0].raw == b"\xff\x00"
    assert shard.checkpointer.taken == [("2", 0)]


def test_data_that_is_not_base64_is_a_dead_letter_too(shard: Shard) -> None:
    class Torn(Record):
        @property
        def binary_data(self) -> bytes:
            raise ValueError("Incorrect padding")

    shard.give(Torn("1", b""), junk(2))
    assert [item.reason_code for item in shard.rows.batches[0]] == ["RECORD_UNREADABLE", "RECORD_NOT_JSON"]


def test_a_record_whose_validation_fails_is_kept_and_does_not_block(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = validate._validate

    def failing(message: Any, *more: Any) -> Admission:
        if message.key.endswith("/2"):
            raise RuntimeError("a defect")
        return real(message, *more)

    monkeypatch.setattr(validate, "_validate", failing)
    shard.give(junk(1), junk(2), junk(3))
    (batch,) = shard.rows.batches
    assert [item.reason_code for item in batch] == ["RECORD_NOT_JSON", "INTERNAL_ERROR", "RECORD_NOT_JSON"]
    assert batch[1].raw == b"2"
    assert shard.died == []


def test_a_record_that_breaks_the_authority_is_singled_out(shard: Shard) -> None:
    shard.rows.poison["kinesis/bus/shard-1/5"] = ValueError("no such text can be stored")
    shard.give(*(junk(number) for number in range(1, 9)))
    assert sorted(shard.keys) == [f"kinesis/bus/shard-1/{number}" for number in range(1, 9)]
    bad = [item for batch in shard.rows.batches for item in batch if item.reason_code == "INTERNAL_ERROR"]
    assert [item.record_key for item in bad] == ["kinesis/bus/shard-1/5"]
    assert shard.checkpointer.taken == [("8", 0)]


def test_an_authority_that_is_down_is_waited_for_and_nothing_is_checkpointed_meanwhile() -> None:
    shard = Shard(Rows(failures=[Unavailable("locked")] * 6))
    shard.give(junk(1))
    assert shard.keys == ["kinesis/bus/shard-1/1"]
    assert len(shard.slept) == 6
    assert max(shard.slept) <= 2.0
    assert (ProcessorState.WAITING, False) in shard.told
    assert shard.checkpointer.taken == [("1", 0)]


@pytest.mark.parametrize("error", [RuntimeError("a defect"), MemoryError(), KeyboardInterrupt()])
def test_anything_else_ends_the_process_before_a_checkpoint(error: BaseException) -> None:
    shard = Shard()
    shard.rows.admit = lambda _: (_ for _ in ()).throw(error)  # type: ignore[method-assign,assignment]
    shard.give(junk(1))
    assert shard.died == [error]
    assert shard.checkpointer.taken == []


def test_an_authority_that_refuses_to_be_used_ends_the_process_and_blames_no_record() -> None:
    refused = ConfigurationError("the DSN", "a pooler shares its sessions", "use pool_mode = session")
    shard = Shard(Rows(failures=[refused]))
    shard.give(junk(1), junk(2))
    assert shard.died == [refused]
    assert shard.rows.batches == []
    assert shard.checkpointer.taken == []


def test_large_batches_are_split_by_count_and_by_bytes(shard: Shard) -> None:
    shard.give(*(junk(number) for number in range(MAX_RECORDS * 2 + 1)))
    assert [len(batch) for batch in shard.rows.batches] == [MAX_RECORDS, MAX_RECORDS, 1]
    shard.rows.batches.clear()
    shard.give(*(junk(number, MAX_BYTES // 4) for number in range(9)))
    assert all(sum(len(item.raw) for item in batch) <= MAX_BYTES for batch in shard.rows.batches)
    assert sum(map(len, shard.rows.batches)) == 9


def test_checkpoints_are_taken_once_a_second_and_none_is_forgotten(shard: Shard) -> None:
    shard.give(junk(1))
    shard.give(junk(2))
    shard.give()
    assert shard.checkpointer.taken == [("1", 0)]
    shard.now += 1.5
    shard.give()
    assert shard.checkpointer.taken == [("1", 0), ("2", 0)]
    shard.now += 1.5
    shard.give()
    assert len(shard.checkpointer.taken) == 2


def test_a_stop_checkpoints_what_is_still_owed(shard: Shard) -> None:
    shard.give(junk(1))
    shard.give(junk(2))
    shard.processor.shutdown_requested(SimpleNamespace(checkpointer=shard.checkpointer))
    assert shard.checkpointer.taken[-1] == ("2", 0)


def test_a_refused_checkpoint_is_taken_later_and_a_lost_lease_is_left_alone(shard: Shard) -> None:
    shard.checkpointer.errors = ["ThrottlingException"]
    shard.give(junk(1))
    shard.now += 1.5
    shard.give()
    assert shard.checkpointer.taken == [("1", 0)]
    shard.checkpointer.errors = ["ShutdownException"]
    shard.now += 1.5
    shard.give(junk(2))
    shard.now += 1.5
    shard.give()
    assert shard.checkpointer.taken == [("1", 0)]
    assert shard.died == []


def test_a_protocol_that_is_out_of_step_ends_the_process(shard: Shard) -> None:
    shard.checkpointer.errors = ["InvalidStateException"]
    shard.give(junk(1))
    assert len(shard.died) == 1


def test_an_error_that_is_not_one_of_a_checkpoint_ends_the_process(shard: Shard) -> None:
    def checkpoint(*_at: Any) -> None:
        raise OSError("the pipe to the JVM is broken")

    shard.checkpointer.checkpoint = checkpoint  # type: ignore[method-assign]
    shard.give(junk(1))
    assert [str(error) for error in shard.died] == ["the pipe to the JVM is broken"]


def test_the_end_of_a_shard_is_checkpointed_however_often_that_is_refused(shard: Shard) -> None:
    shard.checkpointer.errors = ["ThrottlingException", "KinesisClientLibDependencyException"]
    shard.processor.shard_ended(SimpleNamespace(checkpointer=shard.checkpointer))
    assert shard.checkpointer.taken == [()]
    assert shard.told[-1] == (ProcessorState.ENDED, False)


def test_the_end_of_a_shard_that_cannot_be_checkpointed_ends_the_process(shard: Shard) -> None:
    shard.checkpointer.errors = ["ThrottlingException"] * 100
    shard.processor.shard_ended(SimpleNamespace(checkpointer=shard.checkpointer))
    assert len(shard.died) == 1


def test_only_an_empty_read_at_the_tip_counts_as_caught_up(shard: Shard) -> None:
    shard.give(junk(1))
    shard.give(behind=500)
    shard.give()
    assert [caught_up for _, caught_up in shard.told[-2:]] == [False, True]
    assert shard.told[-3][1] is False


def test_a_lost_lease_is_never_checkpointed(shard: Shard) -> None:
    shard.give(junk(1))
    shard.give(junk(2))
    shard.processor.lease_lost(SimpleNamespace())
    assert shard.checkpointer.taken == [("1", 0)]
