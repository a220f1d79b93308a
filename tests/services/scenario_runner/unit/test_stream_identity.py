"""A stream that was deleted and made anew is not read under the leases of the former one, and somebody is told."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner import counters
from scenario_runner.bus.stream import Stream
from scenario_runner.cli.console import exit_for_error
from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable, UsageError
from scenario_runner.intake import kinesis as kinesis_intake
from scenario_runner.intake.base import IntakeLag
from scenario_runner.intake.kinesis import KinesisIntake, _Running
from scenario_runner.kcl import config as kcl_config
from scenario_runner.kcl.lease_table import KclLeaseTable, ShardLease
from scenario_runner.kcl.shard_status import ProcessorState, ShardStatus
from scenario_runner.kcl.stream_identity import adopt_new_stream, check_leases, read_lease_state, record_stream_identity
from scenario_runner.kcl.supervisor import JvmSupervisor

pytestmark = pytest.mark.unit

MONDAY, TUESDAY = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, 0, 0, 0, 1000, tzinfo=UTC)
OPEN, CLOSED = {"StartingSequenceNumber": "1"}, {"StartingSequenceNumber": "1", "EndingSequenceNumber": "2"}


@dataclass
class Kinesis:
    created: datetime = MONDAY
    shards: dict[str, Any] = field(default_factory=lambda: {"shard-0": OPEN})
    gone: bool = False
    status: str = "ACTIVE"
    denied: str = ""

    def describe_stream_summary(self, **_: Any) -> dict[str, Any]:
        if code := self.denied or ("ResourceNotFoundException" if self.gone else ""):
            error: Any = Exception("gone")
            error.response = {"Error": {"Code": code, "Message": "no such stream"}}
            raise error
        return {
            "StreamDescriptionSummary": {
                "StreamARN": "arn:stream/bus", "StreamStatus": self.status, "StreamCreationTimestamp": self.created,
            }
        }  # fmt: skip

    def list_shards(self, **_: Any) -> dict[str, Any]:
        return {"Shards": [{"ShardId": name, "SequenceNumberRange": span} for name, span in self.shards.items()]}


class MemoryTables(KclLeaseTable):
    """KCL's tables in memory."""

    def __init__(self, **leases: ShardLease) -> None:
        super().__init__("app", None, None)
        self.__dict__.update(kept="", held={name.replace("_", "-"): lease for name, lease in leases.items()}, beats=0)

    def disable_leader_election(self) -> None:
        pass

    def stream_identity(self) -> str:
        return str(self.__dict__["kept"])

    def store_stream_identity(self, identity: str) -> None:
        self.__dict__["kept"] = identity

    def leases(self) -> dict[str, ShardLease]:
        return dict(self.__dict__["held"])

    def delete_leases(self, shard_ids: Any) -> None:
        for shard_id in shard_ids:
            del self.__dict__["held"][shard_id]


READING, ENDED = ShardLease("worker", "7", ended=False), ShardLease("worker", "7", ended=True)


def stream_of(kinesis: Kinesis) -> Stream:
    return Stream("bus", connect=lambda *_: kinesis, sleep=lambda _: None)


def test_the_identity_of_a_stream_is_its_arn_and_the_moment_of_its_creation() -> None:
    first, second = stream_of(Kinesis()).identity(), stream_of(Kinesis(TUESDAY)).identity()
    assert first == stream_of(Kinesis()).identity() == "arn:stream/bus@1767571200000"
    assert second == "arn:stream/bus@1767657600001"


@pytest.mark.parametrize("lease", [READING, ENDED])
def test_leases_about_a_former_stream_are_refused(lease: ShardLease) -> None:
    kinesis, tables = Kinesis(shards={"shard-0": CLOSED, "shard-1": OPEN}), MemoryTables(shard_0=lease)
    stream = stream_of(kinesis)
    record_stream_identity(stream, tables)
    assert check_leases(stream, tables).problem == ""
    kinesis.created = TUESDAY
    for ask in (check_leases, record_stream_identity):
        with pytest.raises(ConfigurationError, match="made anew") as refused:
            ask(stream, tables)
        assert "stream adopt" in refused.value.remedy
        assert "kinesis_application_name" in refused.value.remedy
    assert exit_for_error(refused.value) == 2


def test_an_ended_lease_of_an_open_shard_is_another_streams_also_where_nothing_was_noted() -> None:
    with pytest.raises(ConfigurationError, match="shard-0 ended by its lease and is open"):
        check_leases(stream_of(Kinesis()), MemoryTables(shard_0=ENDED))
    assert check_leases(stream_of(Kinesis(shards={"shard-0": CLOSED})), MemoryTables(shard_0=ENDED)).problem == ""


def test_without_leases_there_is_nothing_to_decide_and_the_new_stream_is_noted() -> None:
    kinesis, tables = Kinesis(), MemoryTables()
    stream = stream_of(kinesis)
    record_stream_identity(stream, tables)
    kinesis.created = TUESDAY
    record_stream_identity(stream, tables)
    assert tables.stream_identity() == stream.identity()


def test_adopting_forgets_the_leases_and_knows_the_new_stream() -> None:
    kinesis, tables = Kinesis(), MemoryTables(shard_0=ENDED, shard_1=READING)
    stream, waited = stream_of(kinesis), list[float]()
    assert adopt_new_stream(stream, tables, waited.append).problem
    assert waited, "running daemons are looked for"
    assert (tables.leases(), tables.stream_identity()) == ({}, stream.identity())
    assert adopt_new_stream(stream, tables, waited.append).problem == ""
    assert len(waited) == 1


def test_a_sound_state_is_left_alone() -> None:
    tables = MemoryTables(shard_0=READING)
    assert adopt_new_stream(stream_of(Kinesis()), tables, lambda _: None).problem == ""
    assert tables.leases() == {"shard-0": READING}


def test_nothing_is_adopted_under_a_running_daemon() -> None:
    kinesis, tables = Kinesis(), MemoryTables(shard_0=ENDED, shard_1=READING)

    def renew(_seconds: float) -> None:
        tables.__dict__["held"]["shard-1"] = ShardLease("worker", "8", ended=False)

    with pytest.raises(UsageError, match="worker"):
        adopt_new_stream(stream_of(kinesis), tables, renew)
    assert len(tables.leases()) == 2


# --- when a daemon starts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["a stream that is being deleted", "leases of a former stream"])
def test_a_stream_that_must_not_be_read_is_refused_before_a_worker_id_is_leased(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    kinesis, tables = Kinesis(), MemoryTables(shard_0=READING)
    if wrong == "leases of a former stream":
        record_stream_identity(stream_of(Kinesis(TUESDAY)), tables)
    else:
        kinesis.status = "DELETING"
    monkeypatch.setattr(kcl_config, "find_java", lambda _environ: "java")
    monkeypatch.setattr(kcl_config, "find_jars", lambda: "jars")
    monkeypatch.setattr(kinesis_intake, "lease_worker_id", lambda *_: pytest.fail("a worker id was leased"))
    wiring: Any = SimpleNamespace(kinesis_timing="production", kinesis_state_dir="", kinesis_application="",
                                  kinesis_worker_id="")  # fmt: skip
    with pytest.raises(ScenarioRunnerError, match="DELETING" if "deleted" in wrong else "made anew"):
        KinesisIntake(wiring, stream_of(kinesis), tables, {}, {}).open()


@pytest.mark.parametrize("code", ["AccessDeniedException", "UnrecognizedClientException"])
def test_a_denied_start_is_an_outage_for_a_daemon_and_a_wrong_configuration_for_a_command(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(kcl_config, "find_java", lambda _environ: "java")
    monkeypatch.setattr(kcl_config, "find_jars", lambda: "jars")
    stream = stream_of(Kinesis(denied=code))
    wiring: Any = SimpleNamespace(kinesis_timing="production")
    with pytest.raises(Unavailable, match=code):
        KinesisIntake(wiring, stream, MemoryTables(), {}, {}).open()
    with pytest.raises(ConfigurationError, match=code):
        stream.check()
    with pytest.raises(ConfigurationError, match="does not exist"):
        KinesisIntake(wiring, stream_of(Kinesis(gone=True)), MemoryTables(), {}, {}).open()


def test_an_intake_that_is_not_open_takes_nothing_is_empty_and_may_be_closed() -> None:
    wiring: Any = SimpleNamespace(kinesis_timing="production")
    intake = KinesisIntake(wiring, stream_of(Kinesis(gone=True)), MemoryTables(), {}, {})
    assert (intake.step(), intake.empty()) == (0, True)
    intake.close()


@pytest.mark.parametrize(("failures", "records", "gives_up"), [(2, 0, False), (3, 0, True), (3, 1, False)])
def test_three_starts_in_a_row_that_failed_are_an_outage_unless_records_were_disposed_of(
    failures: int, records: int, gives_up: bool
) -> None:
    intake = opened(Kinesis(), MemoryTables(shard_0=READING), [0.0])
    report = ShardStatus("g", "shard-0", 1, ProcessorState.IDLE, caught_up=True, records=records, at=0.0)
    supervisor: Any = SimpleNamespace(statuses=lambda: {"shard-0": report}, failures=failures)
    running: Any = intake._running
    intake._running = _Running(running.worker, supervisor)
    if gives_up:
        with pytest.raises(Unavailable, match="does not come up"):
            intake.step()
    else:
        assert intake.step() == records


# --- while a daemon serves --------------------------------------------------------------------------------------------


def opened(kinesis: Kinesis, tables: KclLeaseTable, clock: list[float]) -> KinesisIntake:
    """An intake that is open, as far as the stream and the leases go: without a JVM."""
    made: Any = KinesisIntake(
        SimpleNamespace(kinesis_timing="production"), stream_of(kinesis), tables, {}, {}, lambda: clock[0]
    )  # type: ignore[arg-type]
    report = ShardStatus("g", "shard-0", 1, ProcessorState.IDLE, caught_up=True, records=0, at=0.0)
    supervisor: Any = SimpleNamespace(statuses=lambda: {"shard-0": report}, failures=0)
    worker: Any = SimpleNamespace(worker_id="worker")
    made._running = _Running(worker, supervisor)
    made._identity, made._next_identity_check = made._stream.identity(), 30.0
    return made  # type: ignore[no-any-return]


def test_a_stream_that_is_made_anew_under_a_running_daemon_stops_it() -> None:
    kinesis, clock = Kinesis(), [0.0]
    intake = opened(kinesis, MemoryTables(shard_0=READING), clock)
    assert intake.step() == 0
    kinesis.gone, clock[0] = True, 31.0
    assert intake.step() == 0, "a stream that is away may come back"
    kinesis.gone, kinesis.created, clock[0] = False, TUESDAY, 62.0
    with pytest.raises(ConfigurationError, match="made anew"):
        intake.step()


def test_the_stream_is_asked_now_and_then_only() -> None:
    kinesis, clock = Kinesis(), [0.0]
    intake = opened(kinesis, MemoryTables(shard_0=READING), clock)
    kinesis.created, clock[0] = TUESDAY, 29.0
    assert intake.step() == 0


@pytest.mark.parametrize("change", ["the stream", "the lease"])
def test_nobody_says_that_everything_was_read_of_another_stream(change: str) -> None:
    kinesis, tables = Kinesis(), MemoryTables(shard_0=READING)
    intake = opened(kinesis, tables, [1.0])
    assert intake.empty()
    if change == "the stream":
        kinesis.created = TUESDAY
    else:
        tables.__dict__["held"]["shard-0"] = ENDED
    again = opened(kinesis, tables, [1.0])
    again._identity = intake._identity
    with pytest.raises(ConfigurationError, match="made anew"):
        again.empty()


def test_dynamodb_that_comes_late_is_waited_for_and_then_asked_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = MemoryTables(shard_0=ENDED)
    intake = opened(Kinesis(), tables, [0.0])

    def away(_self: KclLeaseTable) -> None:
        raise Unavailable("not yet")

    monkeypatch.setattr(MemoryTables, "disable_leader_election", away)
    with pytest.raises(Unavailable):
        intake._prepare()
    monkeypatch.undo()
    slot: Any = SimpleNamespace(folder="/nowhere", status_folder="/nowhere", worker_id="w", lock_fd=-1)
    supervisor = JvmSupervisor(slot, SimpleNamespace(), intake._prepare)  # type: ignore[arg-type]
    supervisor.start()
    supervisor._thread.join(10)
    with pytest.raises(ConfigurationError, match="made anew"):
        supervisor.statuses()


def test_the_state_is_read_leases_first_so_a_shard_that_ends_meanwhile_is_no_contradiction() -> None:
    order: list[str] = []

    class Ordered(MemoryTables):
        def leases(self) -> dict[str, ShardLease]:
            order.append("leases")
            return super().leases()

    class Shards(Kinesis):
        def list_shards(self, **_: Any) -> dict[str, Any]:
            order.append("shards")
            return super().list_shards()

    read_lease_state(stream_of(Shards()), Ordered())
    assert order == ["leases", "shards"]


# --- whether everything was read


CAUGHT_UP = ShardStatus("g", "shard-0", 1, ProcessorState.IDLE, caught_up=True, records=0, at=0.0)
OURS, FREE, OTHERS = (ShardLease(owner, "7", ended=False) for owner in ("worker", "", "another"))


def drained(
    status: ShardStatus | None, lease: ShardLease | None, shards: dict[str, Any] | None = None
) -> tuple[KinesisIntake, MemoryTables, list[float]]:
    """An open intake of a stream of one shard, with what its processor and the lease table say of it."""
    tables, clock = MemoryTables(), [1.0]
    tables.__dict__["held"].update({"shard-0": lease} if lease is not None else {})
    intake = opened(Kinesis(shards=shards or {"shard-0": OPEN}), tables, clock)
    running: Any = intake._running
    running.supervisor.statuses = lambda: {} if status is None else {"shard-0": status}
    return intake, tables, clock


@pytest.mark.parametrize(
    ("status", "lease", "read"),
    [
        (CAUGHT_UP, OURS, True),
        (CAUGHT_UP, FREE, True),
        (replace(CAUGHT_UP, caught_up=False), OURS, False),
        (replace(CAUGHT_UP, state=ProcessorState.ADMITTING), OURS, False),
        (replace(CAUGHT_UP, state=ProcessorState.WAITING), OURS, False),
        (replace(CAUGHT_UP, state=ProcessorState.ENDED, caught_up=False), OURS, False),
        (None, OURS, False),
        (None, FREE, False),
        (CAUGHT_UP, None, False),
        (None, None, False),
    ],
    ids=["ours", "nobody's", "not at the tip", "admitting", "waiting", "lost", "no status", "nobody's and unread",
         "no lease", "nothing"],
)  # fmt: skip
def test_a_shard_of_ours_is_read_when_its_processor_is_idle_at_the_tip(
    status: ShardStatus | None, lease: ShardLease | None, read: bool
) -> None:
    intake, _, _ = drained(status, lease)
    assert intake.empty() is read


def test_an_ended_shard_is_read_and_a_new_one_without_a_lease_is_not() -> None:
    ended = replace(CAUGHT_UP, state=ProcessorState.ENDED, caught_up=False)
    assert drained(ended, ENDED, {"shard-0": CLOSED})[0].empty() is True
    assert drained(None, ENDED, {"shard-0": CLOSED})[0].empty() is True
    assert drained(ended, ENDED, {"shard-0": CLOSED, "shard-1": OPEN})[0].empty() is False


def test_a_shard_of_another_worker_is_read_when_its_lease_was_seen_to_be_renewed() -> None:
    intake, tables, clock = drained(None, OTHERS)
    held = tables.__dict__["held"]

    def look() -> bool:
        clock[0] += 1.0
        return intake.empty()

    assert look() is False, "seen for the first time"
    assert look() is False, "not renewed since: that worker may be dead"
    held["shard-0"] = ShardLease("a third", "8", ended=False)
    assert look() is False, "another owner, seen for the first time"
    held["shard-0"] = ShardLease("a third", "9", ended=False)
    assert look() is True
    running: Any = intake._running
    running.supervisor.statuses = lambda: {"shard-0": replace(CAUGHT_UP, state=ProcessorState.ADMITTING)}
    assert look() is False, "a processor of ours is still at it"


def test_the_lease_table_is_read_at_most_twice_a_second_and_until_then_nothing_is_said_to_be_read() -> None:
    intake, _, clock = drained(CAUGHT_UP, OURS)
    assert intake.empty() is True
    clock[0] += 0.4
    assert intake.empty() is False
    clock[0] += 0.1
    assert intake.empty() is True


def test_an_intake_that_is_not_open_does_nothing_and_has_nothing() -> None:
    intake, _, _ = drained(CAUGHT_UP, OURS)
    closed: Any = intake
    closed._running = None
    assert (intake.step(), intake.empty()) == (0, True)
    intake.close()


def test_records_are_counted_once_and_a_jvm_that_never_comes_up_is_an_outage_only_when_nothing_was_read() -> None:
    intake, _, _ = drained(replace(CAUGHT_UP, records=3), OURS)
    assert (intake.step(), intake.step()) == (3, 0)
    running: Any = intake._running
    running.supervisor.statuses = lambda: {"shard-0": replace(CAUGHT_UP, pid=2, records=2)}
    running.supervisor.failures = 3
    assert intake.step() == 2, "a processor that was started anew counts from nothing"
    with pytest.raises(Unavailable, match="does not come up"):
        intake.step()
    running.supervisor.failures = 2
    assert intake.step() == 0


# --- what shard workers count -----------------------------------------------------------------------------------------


def test_what_shard_workers_have_counted_is_counted_once_by_their_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_counts", {})
    intake = opened(Kinesis(), MemoryTables(shard_0=READING), [0.0])
    running: Any = intake._running
    statuses: dict[str, ShardStatus] = {}
    intake._running = _Running(running.worker, SimpleNamespace(statuses=lambda: statuses, failures=0))  # type: ignore[arg-type]
    for pid, value in ((1, 2.0), (1, 5.0), (1, 5.0), (2, 1.0)):  # the second process begins anew
        statuses["shard-0"] = replace(CAUGHT_UP, pid=pid, counts=[("sr_runs_rejected_total", "AUTH_DENIED", value)])
        intake.step()
    assert counters.counted() == {"sr_runs_rejected_total{AUTH_DENIED}": 6}


def test_the_lag_of_a_shard_is_that_of_its_last_read_and_of_the_record_in_hand() -> None:
    now, wall = 1000.0, 1_700_000_000.0
    status = replace(CAUGHT_UP, behind_seconds=3.0, oldest_at=wall - 7.0, uncheckpointed_at=998.5)
    silent = now - CAUGHT_UP.at
    assert kinesis_intake._lag(status, now, wall) == IntakeLag("shard-0", 3.0, 7.0, 1.5, silent)
    assert kinesis_intake._lag(CAUGHT_UP, now, wall) == IntakeLag("shard-0", 0.0, 0.0, 0.0, silent)
    at_work = replace(CAUGHT_UP, state=ProcessorState.ADMITTING)
    assert kinesis_intake._lag(at_work, now, wall).busy
