"""Two daemons on one profile: nothing is done twice, nothing is lost, whoever is killed, stopped or told to end."""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from crashing import (
    Moment,
    Scenery,
    drained,
    evidence,
    is_locked,
    is_stopped,
    launch,
    log_of,
    make_load,
    serve_arguments,
    start,
    until,
    until_up,
)
from invariants import Watch, check, paths_of
from support import COMMAND, World

pytestmark = pytest.mark.integration

SPOOL = "scenario_runner.intake.spool_files:"
INTAKE, ROWS = "scenario_runner.intake.spool:", "scenario_runner.authority.sqlite:SqliteAuthority."
LEDGER = "scenario_runner.ledger.ledger:Ledger."
PUBLISHER = "scenario_runner.bus.spool:SpoolPublisher."
SHORT_LEASE = {"lease_seconds": 2, "poll_seconds": 0.05}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenery, dict[str, Any]]:
    """More than a hundred requests over four engine runs, some of them twice, and what one daemon makes of them."""
    folder = tmp_path_factory.mktemp("load")
    scenery = make_load(folder / "maker", worlds=4, keys=26)
    world = scenery.world(folder / "fault-free")
    scenery.drop(world)
    drained(world)
    assert scenery.violations(world, killed=False) == []
    return scenery, evidence(world)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenery, dict[str, Any]]:
    """Six requests over two engine runs, and what one daemon makes of them."""
    folder = tmp_path_factory.mktemp("few")
    scenery = make_load(folder / "maker", worlds=2, keys=3)
    world = scenery.world(folder / "fault-free")
    scenery.drop(world)
    drained(world)
    return scenery, evidence(world)


@contextmanager
def ended(*daemons: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Whatever happens, no daemon is left behind."""
    try:
        yield
    finally:
        for daemon in daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()


def end(world: World, *daemons: "subprocess.Popen[bytes]") -> None:
    """SIGTERM once they are up, and every daemon must exit 0."""
    until_up(*daemons)
    for daemon in daemons:
        daemon.send_signal(signal.SIGTERM)
    assert [daemon.wait(timeout=30) for daemon in daemons] == [0] * len(daemons), log_of(world).read_text()[-3000:]


def published(world: World) -> int:
    return len(os.listdir(world.signals_folder)) if world.signals_folder.is_dir() else 0


def wanted(expected: dict[str, Any]) -> int:
    return sum(key.startswith("READY ") for key in expected)


def until_published(world: World, count: int) -> None:
    """Wait for so many signals; the log says why when they do not come."""
    try:
        until(lambda: published(world) >= count, f"{count} signals are on the stream", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}; {published(world)} there; {log_of(world).read_text()[-3000:]}") from error


def until_settled(world: World, expected: dict[str, Any], seconds: float = 60) -> None:
    """Wait until every signal is on the stream and marked so."""
    until_published(world, wanted(expected))
    unsent = "SELECT count(*) FROM outbox WHERE sent_us IS NULL"
    until(lambda: query(world, unsent) == [(0,)], "every signal is marked sent", seconds)


def query(world: World, statement: str) -> list[Any]:
    with closing(sqlite3.connect(world.database, timeout=15)) as connection:
        return connection.execute(statement).fetchall()


def assert_as_if_alone(
    scenery: Scenery, expected: dict[str, Any], world: World, watch: Watch, *, killed: bool = False
) -> None:
    """No invariant is broken and every effect is that of one undisturbed daemon, once."""
    assert scenery.violations(world, watch, killed=killed) == []
    actual = evidence(world)
    assert {key for key in actual if actual[key] != expected.get(key)} == set()
    assert actual.keys() == expected.keys()
    owed = query(world, "SELECT run_id, count(*) FROM outbox WHERE kind = 'READY' GROUP BY run_id")
    assert {count for _, count in owed} == {1}
    assert len(owed) == published(world) == wanted(expected)
    assert query(world, "SELECT count(*) FROM intake_records") == [(len(scenery.records),)]


# ---------------------------------------------------------------- sharing


def test_two_daemons_share_a_load_and_double_nothing(load: tuple[Scenery, dict[str, Any]], tmp_path: Path) -> None:
    scenery, expected = load
    world = scenery.world(tmp_path / "world", **SHORT_LEASE)
    watch = Watch(paths_of(world))
    daemons = start(world), start(world)
    with ended(*daemons):
        until_up(*daemons)
        scenery.drop(world)  # while they run: both see every record
        until_published(world, 1)
        watch.look()
        until_settled(world, expected)
        end(world, *daemons)
    assert_as_if_alone(scenery, expected, world, watch)


def test_two_daemons_that_start_at_once_on_a_new_profile_share_a_load(
    load: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = load
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    watch = Watch(paths_of(world))
    daemons = start(world, "--until-idle"), start(world, "--until-idle")
    with ended(*daemons):
        codes = [daemon.wait(timeout=60) for daemon in daemons]
    assert codes == [0, 0], log_of(world).read_text()[-3000:]
    assert_as_if_alone(scenery, expected, world, watch)


def test_a_daemon_waits_for_another_one_that_is_making_the_database(
    few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = few
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    with closing(sqlite3.connect(world.database, isolation_level=None)) as maker:
        maker.execute("BEGIN IMMEDIATE")
        daemon = start(world, "--until-idle")
        with ended(daemon):
            time.sleep(1.5)
            maker.execute("ROLLBACK")
            assert daemon.wait(timeout=60) == 0, log_of(world).read_text()
    assert_as_if_alone(scenery, expected, world, Watch(paths_of(world)))


def test_three_daemons_on_one_key_accept_one_request(few: tuple[Scenery, dict[str, Any]], tmp_path: Path) -> None:
    scenery, _ = few
    request = json.loads(next(iter(scenery.records.values())))
    asked = [{**request, "notes": str(n)} | ({"seed": 1000 + n} if n % 4 == 3 else {}) for n in range(40)]
    world = scenery.world(tmp_path / "world", **SHORT_LEASE)
    daemons = start(world), start(world), start(world)
    with ended(*daemons):
        until_up(*daemons)
        refused = [number for number, document in enumerate(asked) if document["seed"] >= 1000]
        for number in sorted(range(len(asked)), key=lambda number: number in refused):
            if number == refused[0]:  # one of the others is the run by then
                until(lambda: query(world, "SELECT 1 FROM runs"), "a request is admitted", 60)
            world.drop(asked[number], f"{number % 3}-{number}.json")
        until(lambda: published(world) >= 1 + len(refused), "READY and every refusal", 60)
        end(world, *daemons)
    dropped = [json.dumps(document).encode() for document in asked]
    assert check(paths_of(world), dropped=dropped, before=scenery.photo) == []
    counts = dict(query(world, "SELECT disposition, count(*) FROM intake_records GROUP BY disposition"))
    assert counts == {"ACCEPTED": 1, "DUPLICATE": 29, "CONFLICT": 10}


def test_two_intakes_that_put_one_record_away_at_once_leave_it_once(
    few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, _ = few
    world, data = scenery.world(tmp_path / "world"), list(scenery.records.values())[1]
    world.drop(data, "request.json")
    # Intakes alone: a stopped daemon's other loops could hold SQLite's write lock, an outage for the other one.
    intake = ("--role", "intake", "--until-idle")
    one = launch(world, Moment(INTAKE + "SpoolConsumer._move"), *intake, action="stop")
    with ended(one):
        until(lambda: is_stopped(one), "one has admitted the record")
        moment = Moment("scenario_runner.storage.renames:rename_new", match="/consumed")
        other = launch(world, moment, *intake, action="stop")
        with ended(other):
            until(lambda: is_stopped(other), "the other has taken it over, knows it, and is about to move it")
            one.send_signal(signal.SIGCONT)
            until((world.bus / "consumed/request.json").exists, "the first one moves it")
            other.send_signal(signal.SIGCONT)
            assert [one.wait(timeout=60), other.wait(timeout=60)] == [0, 0]
    drained(world)
    assert check(paths_of(world), dropped=[data]) == []


def test_an_intake_that_opened_a_record_while_another_put_it_away_does_not_count_it_again(
    few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, _ = few
    world, data = scenery.world(tmp_path / "world"), list(scenery.records.values())[1]
    world.drop(data, "request.json")
    late = launch(world, Moment("os:fstat", match="/request.json"), "--until-idle", action="stop")
    with ended(late):
        until(lambda: is_stopped(late), "one has opened the record")
        drained(world)
        late.send_signal(signal.SIGCONT)
        assert late.wait(timeout=60) == 0
    assert check(paths_of(world), dropped=[data]) == []


def test_a_record_dropped_under_a_name_that_is_being_put_away_is_not_lost(
    few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, _ = few
    first, second = list(scenery.records.values())[1:3]
    world = scenery.world(tmp_path / "world")
    world.drop(first, "request.json")
    admitted = Moment(ROWS + "admit", "after", after_result=True)
    with launch(world, admitted, "--until-idle", action="stop") as daemon, ended(daemon):
        until(lambda: is_stopped(daemon), "the first record is admitted")
        world.drop(second, "request.json")
        daemon.send_signal(signal.SIGCONT)
        assert daemon.wait(timeout=60) == 0
    drained(world)
    assert check(paths_of(world), dropped=[first, second]) == []


# ---------------------------------------------------------------- one of two is killed, or stopped past its lease


@pytest.mark.parametrize("reaped", [True, False])
def test_when_one_of_two_daemons_is_killed_midway_the_other_finishes_within_lease_and_poll(
    reaped: bool, load: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = load
    world, mark = scenery.world(tmp_path / "world", **SHORT_LEASE), tmp_path / "mark"
    scenery.drop(world)
    watch = Watch(paths_of(world))
    victim = launch(world, Moment(PUBLISHER + "publish", "after"), action="hang", mark=mark)
    with ended(victim):
        until(mark.exists, "signals are published and not yet marked sent")
        with start(world) as other, ended(other):
            until_up(other)
            victim.kill()
            if reaped:
                victim.wait()
            watch.look()
            until_settled(world, expected, seconds=8)  # lease + poll, and a busy machine
            end(world, other)
    assert_as_if_alone(scenery, expected, world, watch, killed=True)


@pytest.mark.parametrize(
    "point", ["commit", "claim", "claim_projections", "mark_projected", "claim_signals", "mark_sent"]
)
def test_another_daemon_takes_over_from_one_killed_at(
    point: str, few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = few
    world = scenery.world(tmp_path / "world", **SHORT_LEASE)
    scenery.drop(world)
    watch = Watch(paths_of(world))
    after = point.startswith("claim")
    moment = Moment(ROWS + point, "after" if after else "before", after_result=after)
    with launch(world, moment) as victim, ended(victim):
        assert victim.wait(timeout=60) == -signal.SIGKILL
    watch.look()
    with start(world) as other, ended(other):
        until_settled(world, expected)
        end(world, other)
    assert_as_if_alone(scenery, expected, world, watch, killed=True)


STOPPED: dict[str, tuple[Moment, bool]] = {  # the moment, and whether another daemon drives the runs once more
    "before it claims records": (Moment(SPOOL + "claim"), False),
    "after it claimed records": (Moment(SPOOL + "claim", "after"), False),
    "before it reads a record": (Moment(SPOOL + "read"), False),
    "before it puts a record away": (Moment(INTAKE + "SpoolConsumer._move"), False),
    "after it put a record away": (Moment(INTAKE + "SpoolConsumer._move", "after"), False),
    "before it writes plans": (Moment(LEDGER + "write_plans", match="run_id"), True),
    "before it writes receipts": (Moment(LEDGER + "write_receipts", match="output_id"), True),
    "before it writes facts views": (Moment(LEDGER + "write_facts_views", match="FactsView"), True),
    "before it decides": (Moment(ROWS + "commit"), True),
    "before it projects statuses": (Moment(LEDGER + "_project_statuses"), False),
    "before it marks projections": (Moment(ROWS + "mark_projected"), False),
    "before it publishes": (Moment(PUBLISHER + "publish"), False),
    "before it marks signals sent": (Moment(ROWS + "mark_sent"), False),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_daemon_stopped_past_its_lease_and_continued_breaks_nothing(
    name: str, few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    moment, driven_again = STOPPED[name]
    assert taken_over_and_continued(few, moment, tmp_path, "relay") == (2 if driven_again else 1)


@pytest.mark.parametrize("name", [name for name, (_, driven_again) in STOPPED.items() if driven_again])
def test_a_daemon_whose_lease_ended_by_another_clock_is_fenced_by_its_epoch(
    name: str, few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    assert taken_over_and_continued(few, STOPPED[name][0], tmp_path, "lease") == 2


def taken_over_and_continued(few: tuple[Scenery, dict[str, Any]], moment: Moment, folder: Path, over: str) -> int:
    """Stop a daemon, let another one do all the work, continue the first; returns the highest lease epoch."""
    scenery, expected = few
    world, stopped = stopped_at(scenery, moment, folder)
    watch = Watch(paths_of(world))
    watch.look()
    other = start(world)
    with ended(stopped, other):
        pass_time(world, over)
        until_settled(world, expected)
        watch.look()
        stopped.send_signal(signal.SIGCONT)
        end(world, stopped, other)
    assert_as_if_alone(scenery, expected, world, watch)
    return int(query(world, "SELECT max(lease_epoch) FROM runs")[0][0])


def stopped_at(scenery: Scenery, moment: Moment, folder: Path) -> tuple[World, "subprocess.Popen[bytes]"]:
    """A world whose daemon stopped itself (SIGSTOP) at a moment, holding no lock of the database."""
    for attempt in range(8):
        world = scenery.world(folder / f"world-{attempt}", **SHORT_LEASE)
        scenery.drop(world)
        daemon = launch(world, moment, action="stop")
        until(lambda daemon=daemon: is_stopped(daemon), f"{moment} comes")
        if not is_locked(world.database):
            return world, daemon
        with ended(daemon):
            pass
    raise AssertionError("the daemon always stopped with the database locked")


def pass_time(world: World, over: str) -> None:
    """Let leases run out now: those of the relay, which last half a minute whatever the profile says, or all."""
    with closing(sqlite3.connect(world.database, timeout=15)) as connection, connection:
        connection.execute("UPDATE runs SET relay_until_us = 0")
        connection.execute("UPDATE outbox SET lease_until_us = 0")
        if over == "lease":
            connection.execute("UPDATE runs SET lease_until_us = 0")


# ---------------------------------------------------------------- an orderly end


def test_a_first_sigterm_drains_and_loses_nothing(load: tuple[Scenery, dict[str, Any]], tmp_path: Path) -> None:
    scenery, expected = load
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    watch = Watch(paths_of(world))
    with start(world) as daemon, ended(daemon):
        until_published(world, 1)
        end(world, daemon)
    watch.look()
    assert query(world, "SELECT run_id FROM runs WHERE lease_owner <> '' AND lease_until_us > 0") == []
    assert query(world, "SELECT run_id FROM outbox WHERE sent_us IS NULL") == []
    drained(world)
    assert_as_if_alone(scenery, expected, world, watch)


def test_a_sigterm_at_any_moment_of_the_start_loses_nothing(
    few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = few
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    watch = Watch(paths_of(world))
    for tenth in range(1, 7):
        with start(world) as daemon, ended(daemon):
            time.sleep(tenth / 10)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(timeout=30) in (0, -signal.SIGTERM), log_of(world).read_text()[-3000:]
        watch.look()
    drained(world)
    assert_as_if_alone(scenery, expected, world, watch, killed=True)


def test_a_second_sigterm_stops_at_once_and_loses_nothing(few: tuple[Scenery, dict[str, Any]], tmp_path: Path) -> None:
    scenery, expected = few
    world, mark = scenery.world(tmp_path / "world"), tmp_path / "mark"
    scenery.drop(world)
    watch = Watch(paths_of(world))
    with launch(world, Moment(ROWS + "commit"), action="hang", mark=mark) as daemon, ended(daemon):
        until(mark.exists, "a run is in flight")
        daemon.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # what is in flight may finish
            daemon.wait(timeout=0.7)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=3) == 143
    watch.look()
    drained(world)
    assert_as_if_alone(scenery, expected, world, watch, killed=True)


def test_daemons_that_are_replaced_one_after_the_other_under_load_lose_and_double_nothing(
    load: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    """A rolling update, twice: a new daemon starts beside the old ones, then one of them is told to end."""
    scenery, expected = load
    world, watch = scenery.world(tmp_path / "world", **SHORT_LEASE), Watch(paths_of(scenery.world(tmp_path / "world")))
    records = list(scenery.records.items())
    share = -(-len(records) // 5)
    daemons = [start(world), start(world)]
    try:
        until_up(*daemons)
        for turn in range(4):
            for name, data in records[turn * share : (turn + 1) * share]:
                world.drop(data, name)
            daemons.append(start(world))
            until_up(daemons[-1])
            old = daemons.pop(0)
            old.send_signal(signal.SIGTERM)
            for name, data in records[4 * share :][turn::4]:  # while it drains
                world.drop(data, name)
            assert old.wait(timeout=30) == 0, log_of(world).read_text()[-3000:]
            watch.look()
        until_settled(world, expected)
        end(world, *daemons)
    finally:
        for daemon in daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()
    assert_as_if_alone(scenery, expected, world, watch)


def test_a_first_sigterm_while_an_idle_daemon_ends_is_a_first_one(
    few: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, _ = few
    world = scenery.world(tmp_path / "world")
    with launch(world, Moment(ROWS + "close"), "--until-idle", action="stop") as daemon, ended(daemon):
        until(lambda: is_stopped(daemon), "it is idle and ends")
        daemon.send_signal(signal.SIGTERM)
        daemon.send_signal(signal.SIGCONT)
        assert daemon.wait(timeout=10) == 0


def test_a_sigterm_while_two_daemons_work_leaves_all_to_the_next_start(
    load: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = load
    world = scenery.world(tmp_path / "world", **SHORT_LEASE)
    scenery.drop(world)
    watch = Watch(paths_of(world))
    daemons = start(world), start(world)
    with ended(*daemons):
        until_published(world, 1)
        end(world, *daemons)
    watch.look()
    next_start = subprocess.run(
        [COMMAND, *serve_arguments(world, "--until-idle")], capture_output=True, timeout=60, check=False
    )
    assert next_start.returncode == 0, next_start.stderr.decode()
    assert_as_if_alone(scenery, expected, world, watch)
