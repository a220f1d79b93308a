"""Daemons on S3 and Postgres that are killed, replaced and cut off under load: nothing is lost and nothing doubled.

Needs ``SR_TEST_S3_BUCKET`` and ``SR_TEST_PG_DSN``. Postgres is restarted on a server of the tests' own.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from crashing import drained, evidence, log_of, start, until, until_up
from fault_proxy import Fault, cut_body, delay, reset_after, reset_before, short_body, status, status_after
from invariants import Watch
from invariants_world import files_below
from parity_fixtures import dsn, engines, no_faults_left, spot, world  # noqa: F401
from parity_load_support import running, state_of, until_published, until_sent
from parity_support import EngineRuns, ParityScenery, ParityWorld, fault_free, make_parity_load, schema_in
from postgres_support import Proxy, Server, given_dsn, with_parameters
from s3_support import Spot

pytestmark = pytest.mark.parity


SOON = 20
"""Seconds after which, when faults have ended, everything must be delivered: less than a lease of the relay lasts."""


@pytest.fixture(scope="module")
def load(spot: Spot, tmp_path_factory: pytest.TempPathFactory) -> ParityScenery:
    """Thirty requests and some duplicates over three engine runs, and what they come to without any fault."""
    folder = tmp_path_factory.mktemp("load")
    engines = EngineRuns(spot, "engine-load", folder)
    small = ["s3_candidate_set_1A", "iso_country_reference"]
    scenery = make_parity_load(engines, worlds=3, keys=10, outputs=small)
    with schema_in(given_dsn()) as dsn:
        world = ParityWorld(folder / "fault-free", spot, engines, dsn)
        found = fault_free(scenery, world)
    assert found.wanted() == 30
    return found


def as_if_nothing_had_happened(
    scenery: ParityScenery, world: ParityWorld, watch: Watch | None = None, *, killed: bool = False
) -> None:
    """The invariants hold, nothing is lost, nothing is doubled, and every effect is that of a run without faults."""
    assert scenery.violations(world, watch, killed=killed) == []
    actual = evidence(world)
    assert {key for key in actual if actual[key] != scenery.expected.get(key)} == set()
    assert actual.keys() == scenery.expected.keys()
    assert world.published() == scenery.wanted()
    owed = world.sql("SELECT run_id, count(*) FROM outbox WHERE kind = 'READY' GROUP BY run_id")
    assert Counter(count for _, count in owed) == {1: scenery.wanted()}
    assert world.sql("SELECT count(*) FROM intake_records") == [(len(scenery.records),)]


def scenery_world(scenery: ParityScenery, root: Path, dsn: str, own_dsn: str = "", **wiring: Any) -> ParityWorld:
    return ParityWorld(root, scenery.engines.spot, scenery.engines, dsn, own_dsn, **wiring)


def drop_all(records: Iterable[tuple[str, bytes]], world: ParityWorld) -> None:
    for name, data in records:
        world.drop(data, name)


def drop_slowly(scenery: ParityScenery, world: ParityWorld, seconds: float) -> threading.Thread:
    """Drop every record, evenly over some time."""

    def work() -> None:
        for name, data in scenery.records.items():
            world.drop(data, name)
            time.sleep(seconds / len(scenery.records))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# ---------------------------------------------------------------- many daemons, and daemons that die


def test_two_daemons_on_one_postgres_and_s3_double_nothing_and_lose_nothing(
    load: ParityScenery, dsn: str, tmp_path: Path
) -> None:
    world = scenery_world(load, tmp_path / "world", dsn)
    watch = Watch(world.paths())
    with running(world, count=2):
        load.drop(world)
        until_published(world, 1)
        watch.look()
        until_sent(world, load.wanted())
    as_if_nothing_had_happened(load, world, watch)


def test_daemons_that_are_replaced_under_load_while_the_schema_changes_lose_and_double_nothing(
    load: ParityScenery, dsn: str, tmp_path: Path
) -> None:
    """A rolling update: each new daemon starts beside the old ones, and the schema gains what a newer release adds."""
    world = scenery_world(load, tmp_path / "world", dsn)
    watch = Watch(world.paths())
    records = list(load.records.items())
    daemons = [start(world), start(world)]
    try:
        until_up(*daemons)
        for turn in range(3):
            for name, data in records[turn::3]:
                world.drop(data, name)
            if turn < 2:
                daemons.append(start(world))
                until_up(daemons[-1])
            else:  # the last release of all adds its columns; who runs goes on
                for table in ("runs", "outbox", "intake_records", "run_events", "daemons"):
                    world.sql(f"ALTER TABLE {table} ADD COLUMN of_the_future text NOT NULL DEFAULT ''")
            old = daemons.pop(0)
            old.send_signal(signal.SIGTERM)
            assert old.wait(timeout=30) == 0, log_of(world).read_text()[-3000:]
            watch.look()
        until_sent(world, load.wanted())
        for daemon in daemons:
            daemon.send_signal(signal.SIGTERM)
        assert [daemon.wait(timeout=30) for daemon in daemons] == [0]
    finally:
        for daemon in daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()
    as_if_nothing_had_happened(load, world, watch)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_daemon_killed_at_random_moments_publishes_what_one_without_faults_does(
    seed: int, load: ParityScenery, dsn: str, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    world = scenery_world(load, tmp_path / "world", dsn)
    load.drop(world)
    watch = Watch(world.paths())
    for _ in range(5):
        before = progress(world)
        with start(world) as daemon:
            until(lambda before=before: progress(world) != before or world.published() == load.wanted(), "it works")
            time.sleep(chance.uniform(0, 0.25))
            daemon.kill()
        watch.look()
    drained(world)
    as_if_nothing_had_happened(load, world, watch, killed=True)


def progress(world: ParityWorld) -> tuple[Any, ...]:
    """Grows with what is done: records, events, objects asked for, signals."""
    with suppress(psycopg.Error):
        return (*world.sql("SELECT count(*), coalesce(max(seq), 0) FROM run_events"), world.published())
    return (world.published(),)


# ---------------------------------------------------------------- S3 fails at random during load


S3_FAULTS: dict[str, Callable[[], list[Fault]]] = {
    "throttled: 503 SlowDown": lambda: [status(503)],
    "internal errors: 500": lambda: [status(500)],
    "resets before the server hears": lambda: [reset_before()],
    "answers lost, so that retries see 412": lambda: [reset_after(), status_after(500)],
    "bodies reset midway or shorter than announced": lambda: [cut_body(), short_body()],
    "access denied: 403": lambda: [status(403)],
    "conflicts of conditional writes: 409": lambda: [status(409)],
    "slow answers": lambda: [delay(0.3)],
    "all of them": lambda: [status(503), status(500), reset_before(), reset_after(), status_after(503), cut_body(),
                            short_body(), status(403), delay(0.1)],
}  # fmt: skip


@pytest.mark.parametrize("fault", S3_FAULTS)
def test_s3_that_fails_at_random_during_load_loses_and_doubles_nothing(
    fault: str, load: ParityScenery, dsn: str, tmp_path: Path
) -> None:
    world = scenery_world(load, tmp_path / "world", dsn)
    watch = Watch(world.paths())
    faults = S3_FAULTS[fault]()
    with running(world):
        rules = [
            world.spot.proxy.add(
                one,
                "PUT" if one.name == "409" else "",
                key=world_keys(world),
                times=20 if one.name == "403" else None,  # a denial is not tried again within a call, but as a run
                chance=0.15 / len(faults) + 0.02,
            )
            for one in faults
        ]
        load.drop(world)
        until_published(world, 10, 90)
        watch.look()
        until_published(world, load.wanted() - 3, 90)
        world.spot.proxy.clear()
        until_sent(world, load.wanted())
    assert sum(rule.hits for rule in rules) >= 5, [(rule.fault.name, rule.hits) for rule in rules]
    as_if_nothing_had_happened(load, world, watch)


def world_keys(world: ParityWorld) -> str:
    """Keys that daemons of a world ask for: its ledger, and its engine runs."""
    return f"/{world.name}(/|$)|/{world.engines.name}(/|$)"


def test_s3_that_is_away_for_a_while_is_waited_for(load: ParityScenery, dsn: str, tmp_path: Path) -> None:
    """Every request is answered with 503 for seconds: no run ends because of it, and all go on when it is back."""
    world = scenery_world(load, tmp_path / "world", dsn)
    watch = Watch(world.paths())
    with running(world):
        dropping = drop_slowly(load, world, 3)
        until_published(world, 1)
        world.spot.proxy.add(status(503), key=world_keys(world), times=None)
        time.sleep(3)
        at_most = world.published()
        assert at_most < load.wanted()
        world.spot.proxy.clear()
        dropping.join()
        until_sent(world, load.wanted())
    as_if_nothing_had_happened(load, world, watch)


def test_access_that_is_denied_for_good_is_no_outcome_of_a_run(world: ParityWorld, engines: EngineRuns) -> None:
    made = engines.make("denied", seed=30, outputs=["s3_candidate_set_1A"])
    with running(world):
        world.spot.proxy.add(status(403), key=f"/{engines.name}/", times=None)
        world.drop(made["request"])
        until(lambda: "access is denied" in last_error(world, made), "the denial is on the run", 20, pause=0.1)
        assert state_of(world, made) in ("PLANNED", "VERIFYING")
        assert world.published() == 0
        world.spot.proxy.clear()
        until_sent(world, 1, 20)
    assert state_of(world, made) == "READY"
    assert world.checked() == []


def test_a_bucket_that_was_emptied_is_waited_for_and_refused_at_the_next_start(
    world: ParityWorld, engines: EngineRuns
) -> None:
    made = [engines.make(f"emptied-{seed}", seed=seed, outputs=["s3_candidate_set_1A"]) for seed in (31, 32)]
    with running(world):
        world.drop(made[0]["request"], "1.json")
        until_sent(world, 1)
        kept = {key: (world.mirror.folder / key).read_bytes() for key in files_below(world.store)}
        for key in kept:
            world.spot.remove(f"{world.name}/{key}")
        time.sleep(1.1)  # the marker is read again after a second
        world.drop(made[1]["request"], "2.json")
        until(lambda: "identity is absent" in last_error(world, made[1]), "the run is put off", 20, pause=0.1)
        assert files_below(world.store) == []
        assert world.published() == 1
    assert world.serve().returncode == 5
    doctor = world.command("doctor", "--wiring", str(world.wiring))
    assert (doctor.returncode, b"stores adopt" in doctor.stdout) == (5, True)
    assert files_below(world.store) == [], "neither a start nor doctor writes to it"
    world.spot.put_all({f"{world.name}/{key}": data for key, data in kept.items()})
    with running(world):
        until_sent(world, 2)
    assert [world.query("verify", item["run_id"])[0] for item in made] == [0, 0]
    assert world.checked() == []


@pytest.mark.parametrize(
    ("operation", "permission"), [("PUT", "s3:PutObject"), ("GET", "s3:GetObject"), ("LIST", "s3:ListBucket")]
)
def test_doctor_names_the_permission_that_a_bucket_denies(world: ParityWorld, operation: str, permission: str) -> None:
    arguments = ("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    assert world.command(*arguments).returncode == 0
    world.spot.proxy.add(status(403), operation, times=None)
    denied = world.command(*arguments)
    world.spot.proxy.clear()
    assert denied.returncode == 2, denied.stdout
    failed = [item for item in json.loads(denied.stdout)["checks"] if not item["ok"]]
    assert {item["check"] for item in failed} == {f"permission {permission}"}
    assert all(f"grant {permission}" in item["remedy"] for item in failed)


def last_error(world: ParityWorld, made: dict[str, Any]) -> str:
    rows = world.sql(f"SELECT last_error FROM runs WHERE run_id = '{made['run_id']}'")
    return rows[0][0] if rows else ""


# ---------------------------------------------------------------- Postgres fails during load


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of the tests' own, that may be stopped; only processes die here, so nothing needs to be flushed."""
    given_dsn()
    made = Server("fsync = off", "max_connections = 30", "superuser_reserved_connections = 3")
    yield made
    made.remove()


@pytest.fixture
def own(server: Server) -> Iterator[str]:
    """A schema on the server of the tests' own."""
    with schema_in(server.dsn) as made:
        yield made


def test_postgres_that_crashes_during_load_loses_and_doubles_nothing(
    load: ParityScenery, server: Server, own: str, tmp_path: Path
) -> None:
    world = scenery_world(load, tmp_path / "world", own)
    watch = Watch(world.paths())
    with running(world):
        dropping = drop_slowly(load, world, 4)
        for _ in range(3):
            done = world.published()
            until(lambda done=done: world.published() > done, "the daemon works")
            server.stop("immediate")
            server.start()
            watch.look()
        dropping.join()
        until_sent(world, load.wanted(), SOON)
    as_if_nothing_had_happened(load, world, watch)


def test_after_an_outage_of_postgres_nothing_is_lost_and_work_resumes_within_five_seconds(
    load: ParityScenery, server: Server, own: str, tmp_path: Path
) -> None:
    world = scenery_world(load, tmp_path / "world", own)
    watch = Watch(world.paths())
    with running(world) as (daemon,):
        dropping = drop_slowly(load, world, 10)
        until_published(world, 3)
        watch.look()
        server.stop("immediate")
        down = world.published()
        time.sleep(8)
        assert daemon.poll() is None, "it waits"
        assert world.published() < load.wanted()
        server.start()
        back = time.monotonic()
        until(lambda: world.published() > down, "signals come again", 5)
        resumed = time.monotonic() - back
        dropping.join()
        until_sent(world, load.wanted(), SOON)
    print(f"\nresumed {resumed:.1f} s after the server's return")
    as_if_nothing_had_happened(load, world, watch)


def test_connections_cut_during_commits_lose_and_double_nothing(load: ParityScenery, dsn: str, tmp_path: Path) -> None:
    proxy = Proxy(dsn)
    world = scenery_world(load, tmp_path / "world", proxy.dsn, dsn)
    watch = Watch(world.paths())
    chance, over, began = random.Random(5), threading.Event(), time.monotonic()

    def cut() -> None:
        # Less often as time passes: a machine that is busy needs longer than the first pauses to connect at all.
        while not over.wait(chance.uniform(0.02, 0.15) * (1 + (time.monotonic() - began) / 10)):
            chance.choice([proxy.lose_answer, proxy.cut_after_request])()

    with running(world):
        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            dropping = drop_slowly(load, world, 3)
            until_published(world, 10, 90)
            watch.look()
            until_published(world, load.wanted() - 2, 90)
        finally:
            over.set()
            cutter.join()
        dropping.join()
        until_sent(world, load.wanted(), SOON)
    proxy.close()
    assert proxy.lost >= 10
    as_if_nothing_had_happened(load, world, watch)


def test_postgres_that_is_read_only_for_a_moment_loses_and_doubles_nothing(
    load: ParityScenery, server: Server, own: str, tmp_path: Path
) -> None:
    world = scenery_world(load, tmp_path / "world", own)
    watch = Watch(world.paths())

    def read_only(value: str) -> None:
        with psycopg.connect(server.dsn, autocommit=True, options="-cdefault_transaction_read_only=off") as admin:
            admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")  # type: ignore[call-overload]
            admin.execute("SELECT pg_reload_conf()")

    try:
        with running(world):
            dropping = drop_slowly(load, world, 3)
            until_published(world, 3)
            read_only("on")
            time.sleep(1)
            stuck = world.published()
            time.sleep(3)
            assert world.published() <= stuck + 1, "nothing can be decided now"
            read_only("off")
            dropping.join()
            until_sent(world, load.wanted(), SOON)
    finally:
        read_only("off")
    as_if_nothing_had_happened(load, world, watch)


def test_postgres_with_too_many_connections_loses_and_doubles_nothing(
    load: ParityScenery, server: Server, own: str, tmp_path: Path
) -> None:
    """All connections are cut and taken by others for some seconds; those of an administrator are reserved."""
    user = f"daemon_{os.urandom(4).hex()}"
    with psycopg.connect(own, autocommit=True) as admin, ExitStack() as taken:
        schema = admin.execute("SELECT current_schema()").fetchone()
        assert schema is not None
        admin.execute(f"CREATE ROLE {user} LOGIN")  # type: ignore[call-overload]
        admin.execute(f"GRANT ALL ON SCHEMA {schema[0]} TO {user}")  # type: ignore[call-overload]
        theirs = with_parameters(own, user=user)
        world = scenery_world(load, tmp_path / "world", theirs, own)
        watch = Watch(world.paths())
        records = list(load.records.items())
        half = len(records) // 2
        with running(world):
            drop_all(records[:half], world)
            until_published(world, 3)
            of_the_daemon = f"FROM pg_stat_activity WHERE usename = '{user}' AND application_name <> 'thief'"

            def without_connections() -> bool:
                admin.execute(f"SELECT pg_terminate_backend(pid) {of_the_daemon}")  # type: ignore[call-overload]
                with suppress(psycopg.OperationalError):
                    while True:
                        taken.enter_context(psycopg.connect(with_parameters(theirs, application_name="thief")))
                return admin.execute(f"SELECT 1 {of_the_daemon}").fetchone() is None  # type: ignore[call-overload]

            until(without_connections, "all connections are taken from the daemon")
            drop_all(records[half:], world)
            counts = [-1, world.published()]
            while counts[-1] != counts[-2]:  # what it had claimed before still goes out
                time.sleep(1)
                counts.append(world.published())
            time.sleep(2)
            assert counts[-1] == world.published() < load.wanted(), "nothing can be decided now"
            taken.close()
            until_sent(world, load.wanted(), SOON)
        as_if_nothing_had_happened(load, world, watch)
        admin.execute(f"REASSIGN OWNED BY {user} TO CURRENT_USER; DROP OWNED BY {user}; DROP ROLE {user}")  # type: ignore[call-overload]
