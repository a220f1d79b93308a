"""Rolling out a release: a newer schema, the statements of the release before, and the lock of production."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from commands_support import commands
from crashing import start, until, until_up
from support import World, need_posix

from scenario_runner.authority.statements import load_migrations, parse_statements

pytestmark = pytest.mark.integration

FORMER = Path(__file__).resolve().parents[1] / "former"
STATEMENTS = parse_statements((FORMER / "sqlite.sql").read_text("utf-8"))
NEWEST = load_migrations("sqlite")[-1][0]


@pytest.fixture(autouse=True)
def _posix() -> None:
    need_posix()


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_of_the_release_before_can_be_prepared_on_the_schema_of_today(name: str) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for _, _, migration in load_migrations("sqlite"):
            connection.executescript(migration)
        given = dict.fromkeys(re.findall(r":([a-z_0-9]+)", STATEMENTS[name]))
        if STATEMENTS[name].split(None, 1)[0] != "PRAGMA":
            connection.execute(f"EXPLAIN {STATEMENTS[name]}", given)


def made_newer(world: World) -> None:
    """What the start of a release of the future leaves: another table, further columns, another number."""
    with closing(sqlite3.connect(world.database)) as connection:
        for table in ("runs", "outbox", "intake_records", "daemons"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN of_the_future TEXT NOT NULL DEFAULT ''")
        connection.execute("CREATE TABLE of_the_future (id INTEGER PRIMARY KEY)")
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")
        connection.commit()


def test_a_newer_schema_refuses_an_older_daemon_with_one_sentence_and_one_that_runs_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    first, second = (world.make_run(key, outputs=["outlet_catalogue"], members=2) for key in ("first", "second"))
    daemon = start(world)
    try:
        until_up(daemon)
        world.drop(first["request"], "first.json")
        until(lambda: len(world.signals("READY")) == 1, "the first run is READY", 60)
        made_newer(world)
        world.drop(second["request"], "second.json")
        until(lambda: len(world.signals("READY")) == 2, "the second run is READY", 60)
        for command in ("serve", "status"):
            more = ("--policy", str(world.policy)) if command == "serve" else (first["run_id"],)
            refused = world.command(command, *more, "--wiring", str(world.wiring))
            assert refused.returncode == 2, refused
            (line,) = [text for text in refused.stderr.decode().splitlines() if text.startswith("error: ")]
            assert f"its schema is version {NEWEST + 1}, this release knows {NEWEST}" in line
            assert line.endswith("Remedy: install the newer release")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0
    finally:
        daemon.kill()
        daemon.wait()


def test_the_lock_of_production_holds_for_serve_run_and_doctor_and_nothing_is_made(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run("one", outputs=["outlet_catalogue"], members=2)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(made["request"]), "utf-8")
    world.write_profiles(profile_class="production", kinesis_timing="fast")
    given = ("--wiring", str(world.wiring), "--policy", str(world.policy))
    keys = ("object_store_root", "authority_store_dsn", "control_bus_kind", "auth_mode", "kinesis_timing")
    for command in (("serve",), ("run", str(request))):
        done = world.command(*command, *given)
        (line,) = [text for text in done.stderr.decode().splitlines() if "error: " in text]
        assert (done.returncode, "CONFIGURATION_INVALID" in line) == (2, True)
        assert all(f") {key} " in line for key in keys), line
    assert not world.database.exists()
    assert not world.store.exists()
    done = world.command("doctor", *given, "--json")
    (finding,) = [item for item in json.loads(done.stdout)["checks"] if item["check"] == "profile class"]
    assert (done.returncode, finding["ok"]) == (2, False)
    assert all(key in finding["detail"] for key in keys)
    world.write_profiles(profile_class="smoke")
    assert world.serve().returncode == 0


#: Commands that write elsewhere than to a request's own way: each with arguments that it would go on with.
WRITING = {
    "reemit": ("0" * 32, "--reason", "r"),
    "dead-letter redrive": ("1", "--why", "w"),
    "runs wake": ("0" * 32, "--reason", "r"),
    "quarantine ack": ("0" * 32, "--reason", "r"),
    "retention run": (),
    "scrub": (),
    "authority rebuild": ("--reason", "r"),
    "stores adopt": (),
    "stream adopt": (),
}
MANY_AT_ONCE = {
    "reemit": ("--state", "READY", "--since", "2026-01-01T00:00:00Z", "--reason", "r", "--dry-run"),
    "dead-letter redrive": ("--reason", "AUTH_DENIED", "--yes", "--why", "w"),
}
#: Those that the lock does not bind, and those that other tests hold.
OTHERS = {
    "serve", "run", "doctor", "submit", "plan", "status", "explain", "watch", "daemons", "verify", "healthcheck",
    "runs list", "dead-letter list", "dead-letter show", "quarantine list", "quarantine show", "retention plan",
    "policy digest", "contracts export", "ledger check", "evidence arrived",
}  # fmt: skip


def test_every_command_is_one_that_the_lock_binds_or_one_that_looks() -> None:
    assert {name for name, _ in commands()} == {*WRITING, *OTHERS}


def test_the_lock_of_production_holds_for_every_command_that_writes(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.write_profiles(profile_class="smoke")
    assert world.serve().returncode == 0
    world.write_profiles(profile_class="production")
    before = world.database.read_bytes()
    for name, arguments in [*WRITING.items(), *MANY_AT_ONCE.items()]:
        given = ("--wiring", str(world.wiring))
        if name in ("dead-letter redrive", "retention run", "authority rebuild"):
            given += ("--policy", str(world.policy))
        done = world.command(*name.split(), *arguments, *given)
        said = done.stderr.decode()
        assert (done.returncode, ") authority_store_dsn is SQLite" in said) == (2, True), (name, said)
    assert world.database.read_bytes() == before


def test_the_lock_of_production_holds_for_producers_in_what_submitting_touches(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run("one", outputs=["outlet_catalogue"], members=2)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(made["request"]), "utf-8")
    world.write_profiles(profile_class="production")
    root = str(made["request"]["engine_run_root"])
    for source in (("submit", str(request)), ("submit", "--jsonl", str(request)), ("evidence", "arrived", root)):
        done = world.command(*source, "--wiring", str(world.wiring))
        said = done.stderr.decode()
        assert (done.returncode, "(1) control_bus_kind is a spool" in said, "(2)" in said) == (2, True, False), said
    assert not world.bus.exists()
    assert world.command("submit", str(request), "--print", "--wiring", str(world.wiring)).returncode == 0
