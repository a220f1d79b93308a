"""A store that goes away, or is another one than before, is waited for: nothing is written in its place, nothing told.

Mounts are simulated by renaming folders: what matters is what the path leads to.
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crashing import log_of, start, until, until_up
from support import ForkedWorld, World

from scenario_runner.posix import fcntl

if TYPE_CHECKING:
    from subprocess import Popen

pytestmark = pytest.mark.integration

SMALL = {"outputs": ["outlet_catalogue"], "members": 3, "member_bytes": 64}
STOP_SECONDS = 10


@contextmanager
def served(world: World) -> Iterator["Popen[bytes]"]:
    """A daemon that is up; killed at the end if it is still running."""
    daemon = start(world, "--log-level", "warning")
    try:
        until_up(daemon)
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.kill()
        daemon.wait()


def stop(daemon: "Popen[bytes]") -> int:
    daemon.send_signal(signal.SIGTERM)
    return daemon.wait(STOP_SECONDS)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def warned(world: World, words: str) -> Callable[[], bool]:
    return lambda: words in log_of(world).read_text("utf-8")


class Away:
    """Something at a path that is moved away, with something else in its place, until it comes back."""

    def __init__(self, path: Path) -> None:
        self.path, self.kept, self.bare = path, path.with_name(path.name + ".mounted"), path.with_name("bare")

    def leave_nothing(self) -> None:
        self.path.rename(self.kept)

    def leave_a_bare_mount_point(self) -> None:
        self.leave_nothing()
        self.path.mkdir()

    def come_back(self) -> None:
        if self.path.exists():
            self.path.rename(self.bare)
        self.kept.rename(self.path)

    def written_meanwhile(self) -> list[str]:
        return files_below(self.bare)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Its daemons are the installed command; other commands run in forks, which start faster."""
    return ForkedWorld(tmp_path / "world")


def ready(world: World, count: int) -> Callable[[], bool]:
    return lambda: len(world.signals("READY")) == count


@pytest.mark.parametrize("how", ["a bare mount point", "nothing at all", "a bare mount point inside"])
def test_a_mount_of_the_object_store_that_is_lost_while_serving_is_waited_for(world: World, how: str) -> None:
    first, second = (world.make_run(key, seed=number, **SMALL) for number, key in enumerate("ab"))
    away = Away(world.ledger if how == "a bare mount point inside" else world.store)
    with served(world) as daemon:
        world.drop(first["request"], "1.json")
        until(ready(world, 1), "the first run is READY")
        away.leave_nothing() if how == "nothing at all" else away.leave_a_bare_mount_point()
        world.drop(second["request"], "2.json")
        until(warned(world, "identity is absent" if "bare" in how else "cannot be opened"), "it is logged")
        assert ready(world, 1)()
        away.come_back()
        until(ready(world, 2), "the second run is READY", 60)
        assert stop(daemon) == 0
    assert away.written_meanwhile() == []
    for made in (first, second):
        assert world.query("verify", made["run_id"])[0] == 0


def test_a_daemon_whose_store_is_away_obeys_sigterm_and_leaves_the_rest_to_the_next(world: World) -> None:
    made = world.make_run("a", **SMALL)
    away = Away(world.store)
    with served(world) as daemon:
        until((world.ledger / ".private/store.json").exists, "the store is known")
        until((world.bus / "requests").is_dir, "the intake is open")
        away.leave_a_bare_mount_point()
        world.drop(made["request"])
        until(warned(world, "identity is absent"), "it is logged")
        assert stop(daemon) == 0
    assert files_below(world.store) == []
    assert world.signals() == []
    away.come_back()
    assert world.serve().returncode in (0, 5), "the run may be put off for a moment still"
    with served(world):
        until(ready(world, 1), "the run is READY")


def test_a_spool_that_is_lost_while_serving_gets_no_signals_in_its_place(world: World) -> None:
    first, second = (world.make_run(key, seed=number, **SMALL) for number, key in enumerate("ab"))
    absent = world.runs / "absent"
    evidence = Path(second["request"]["engine_run_root"])
    evidence.rename(absent)
    away = Away(world.bus)
    with served(world) as daemon:
        world.drop(first["request"], "1.json")
        world.drop(second["request"], "2.json")
        until(ready(world, 1), "the first run is READY")
        until((world.ledger / f"run_status/{second['run_id']}.json").exists, "the second run waits")
        away.leave_a_bare_mount_point()
        absent.rename(evidence)
        until(warned(world, "signals could not be published"), "the signal is owed", 60)
        assert files_below(world.bus) == []
        away.come_back()
        until(ready(world, 2), "the second run is READY", 60)
        assert stop(daemon) == 0
    assert away.written_meanwhile() == []


def test_a_root_that_is_a_link_may_not_be_pointed_elsewhere(world: World, tmp_path: Path) -> None:
    real, other = tmp_path / "real", tmp_path / "other"
    real.mkdir()
    other.mkdir()
    world.store.symlink_to(real)
    made = world.make_run("a", **SMALL)
    with served(world) as daemon:
        until((real / "fraud-platform/sr/.private/store.json").exists, "the store is known")
        world.store.unlink()
        world.store.symlink_to(other)
        world.drop(made["request"])
        until(warned(world, "identity is absent"), "it is logged")
        assert world.signals() == []
        assert stop(daemon) == 0
    assert world.serve().returncode == 5
    assert files_below(other) == []
    world.store.unlink()
    world.store.symlink_to(real)
    with served(world):
        until(ready(world, 1), "the run is READY")


# --- between stop and start -------------------------------------------------------------------------------------------


def identity(folder: Path) -> str:
    return str(json.loads((folder / ".private/store.json").read_bytes())["store_id"])


@pytest.mark.parametrize("which", ["object store", "spool"])
@pytest.mark.parametrize("instead", ["nothing", "a bare mount point", "another store"])
def test_another_store_is_refused_at_the_start_and_by_doctor_until_an_operator_adopts_it(
    world: World, tmp_path: Path, which: str, instead: str
) -> None:
    world.drop(world.make_run("a", **SMALL)["request"])
    assert world.serve().returncode == 0
    store = world.store if which == "object store" else world.bus
    private = world.ledger if which == "object store" else world.bus
    known = identity(private)
    away = Away(store)
    away.leave_nothing()
    if instead != "nothing":
        store.mkdir()
    if instead == "another store":
        other = ForkedWorld(tmp_path / "other")
        assert other.serve().returncode == 0
        store.rmdir()
        shutil.copytree(other.store if which == "object store" else other.bus, store)
    before = files_below(store)
    refused, doctor = world.serve(), world.command("doctor", "--wiring", str(world.wiring), "--json")
    submitted = world.command("submit", "--wiring", str(world.wiring), "-", stdin=b"{}")
    assert (refused.returncode, doctor.returncode) == (5, 5)
    for text in (refused.stderr.decode(), doctor.stdout.decode()):
        assert str(store) in text
        assert known in text
        assert "stores adopt" in text
        if instead == "another store":
            assert identity(private) in text
    assert submitted.returncode != 0
    assert files_below(store) == before
    assert store.exists() == (instead != "nothing")
    if instead == "nothing":
        assert world.command("stores", "adopt", "--wiring", str(world.wiring)).returncode == 5
        assert not store.exists(), "a folder that is not there was not replaced"
        return
    adopted = world.command("stores", "adopt", "--wiring", str(world.wiring), "--json")
    assert adopted.returncode == 0, adopted.stderr
    changed = [item for item in json.loads(adopted.stdout)["stores"] if item["adopted"]]
    assert [(item["where"], item["old"], item["new"]) for item in changed] == [(str(store), known, identity(private))]
    again = json.loads(world.command("stores", "adopt", "--wiring", str(world.wiring), "--json").stdout)
    assert not any(item["adopted"] for item in again["stores"])
    assert world.serve().returncode == 0


def test_submit_and_verify_take_no_bare_mount_point_for_a_store(world: World) -> None:
    made = world.make_run("a", **SMALL)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    request = json.dumps({**made["request"], "run_equivalence_key": "b"}).encode()
    for store in (world.bus, world.store):
        Away(store).leave_a_bare_mount_point()
    assert world.command("submit", "--wiring", str(world.wiring), "-", stdin=request).returncode == 5
    assert world.query("verify", made["run_id"])[0] == 5
    assert (files_below(world.bus), list(world.bus.iterdir()), files_below(world.store)) == ([], [], [])


def test_a_new_authority_learns_the_identity_of_a_store_in_use(world: World) -> None:
    assert world.serve().returncode == 0
    known = identity(world.ledger), identity(world.bus)
    for path in world.root.glob("authority.db*"):
        path.unlink()
    assert world.serve().returncode == 0
    assert (identity(world.ledger), identity(world.bus)) == known
    Away(world.store).leave_a_bare_mount_point()
    assert world.serve().returncode == 5


def test_a_marker_that_is_damaged_is_unavailable_and_named(world: World) -> None:
    assert world.serve().returncode == 0
    marker = world.ledger / ".private/store.json"
    for data in (b"", b"{", b'{"store_id": 7}', b'{"store_id": "../x"}', b"x" * 100_000):
        marker.write_bytes(data)
        refused = world.serve()
        assert refused.returncode == 5
        assert str(marker) in refused.stderr.decode()


def test_a_fresh_profile_makes_its_folders_and_their_parents(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    world.write_profiles(
        object_store_root=str(tmp_path / "new/parent/store"), control_bus_root=str(tmp_path / "new/other/bus"),
        authority_store_dsn=f"sqlite:///{tmp_path}/new/rows/authority.db",
    )  # fmt: skip
    assert world.serve().returncode == 0
    assert (tmp_path / "new/parent/store/fraud-platform/sr/.private/store.json").is_file()
    assert (tmp_path / "new/other/bus/requests").is_dir()


# --- SQLite -----------------------------------------------------------------------------------------------------------


def remove(database: Path) -> None:
    database.unlink()


def replace(database: Path) -> None:
    copy = database.with_name("copy.db")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.rename(database)


def remove_the_log(database: Path) -> None:
    database.with_name(database.name + "-wal").unlink()


@pytest.mark.parametrize("change", [remove, replace, remove_the_log])
def test_a_database_that_is_removed_or_replaced_under_the_daemon_decides_nothing_more(
    world: World, change: Callable[[Path], None]
) -> None:
    first, second = (world.make_run(key, seed=number, **SMALL) for number, key in enumerate("ab"))
    with served(world) as daemon:
        world.drop(first["request"], "1.json")
        until(ready(world, 1), "the first run is READY")
        until(lambda: sent(world) == 1, "the signal is marked as sent")
        change(world.database)
        world.drop(second["request"], "2.json")
        until(warned(world, "removed or replaced under the daemon"), "it is logged")
        assert stop(daemon) == 0
    assert len(world.signals()) == 1
    assert not (world.ledger / f"run_plan/{second['run_id']}.json").exists()
    with served(world):  # a restart takes what is there
        until(ready(world, 2), "the second run is READY")


def sent(world: World) -> int:
    with closing(sqlite3.connect(f"file:{world.database}?mode=ro", uri=True)) as rows:
        return int(rows.execute("SELECT count(*) FROM outbox WHERE sent_us IS NOT NULL").fetchone()[0])


def test_a_database_that_was_moved_away_and_back_is_worked_with_again(world: World) -> None:
    made = world.make_run("a", **SMALL)
    away = world.root / "away"
    away.mkdir()
    with served(world) as daemon:
        until((world.bus / "requests").is_dir, "the intake is open")
        moved = list(world.root.glob("authority.db*"))
        for path in moved:
            path.rename(away / path.name)
        world.drop(made["request"])
        until(warned(world, "removed or replaced under the daemon"), "it is logged")
        assert list(world.root.glob("authority.db*")) == []
        for path in moved:
            (away / path.name).rename(path)
        until(ready(world, 1), "the run is READY")
        assert stop(daemon) == 0
    assert world.query("verify", made["run_id"])[0] == 0


# --- private state, bounded locks -------------------------------------------------------------------------------------


def modes_below(*paths: Path) -> set[int]:
    """Modes of everything that is there; a file may go away meanwhile."""
    found = set()
    for item in [item for path in paths for item in (path, *path.rglob("*"))]:
        with contextlib.suppress(FileNotFoundError):
            found.add(item.stat().st_mode & 0o777)
    return found


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize(("mode", "modes"), [("private", {0o700, 0o600}), ("group", {0o770, 0o660})])
def test_what_sr_creates_has_the_modes_of_its_profile_whatever_the_umask(
    world: World, umask: int, mode: str, modes: set[int]
) -> None:
    world.write_profiles(state_mode=mode)
    world.command("submit", "--wiring", str(world.wiring), "-", stdin=b"{}")
    first, second = (world.make_run(key, seed=number, **SMALL) for number, key in enumerate("ab"))
    old = os.umask(umask)
    try:
        daemon = start(world)
    finally:
        os.umask(old)
    try:
        until((world.bus / "requests").is_dir, "the intake is open")
        state = [world.store, world.bus, *world.root.glob("authority.db*")]
        assert len(state) == 5, "the log of the database and its index are there too"
        assert modes_below(*state) == modes
        world.drop(first["request"], "1.json")
        world.drop({**second["request"], "seed": "x"}, "2.json")
        until(ready(world, 1), "the run is READY")
        until(world.rejected, "the other one is refused")
    finally:
        daemon.kill()
        daemon.wait()
    assert modes_below(world.store, world.signals_folder) == modes
    assert {path.stat().st_mode & 0o777 for path in (world.bus / "rejected").glob("*.reason.json")} <= modes


def test_doctor_warns_of_folders_that_others_can_read_and_leaves_them_as_they_are(world: World) -> None:
    world.store.mkdir(mode=0o755)
    world.store.chmod(0o755)
    done = world.command("doctor", "--wiring", str(world.wiring), "--json")
    assert done.returncode == 0
    (finding,) = [item for item in json.loads(done.stdout)["checks"] if item["check"] == "private state"]
    assert finding["ok"] is True
    assert "warning" in finding["detail"]
    assert str(world.store) in finding["detail"]
    assert world.store.stat().st_mode & 0o777 == 0o755
    world.store.chmod(0o700)
    done = world.command("doctor", "--wiring", str(world.wiring), "--json")
    (finding,) = [item for item in json.loads(done.stdout)["checks"] if item["check"] == "private state"]
    assert "warning" not in finding["detail"]


def waiting_run(world: World, daemon_is_up: Callable[[], object]) -> tuple[str, Path, Path]:
    """A run that waits for evidence, so that its documents have to be replaced later."""
    made = world.make_run("waits", **SMALL)
    evidence = Path(made["request"]["engine_run_root"])
    absent = evidence.with_name("absent")
    evidence.rename(absent)
    world.drop(made["request"], "waits.json")
    daemon_is_up()
    until((world.ledger / f"run_status/{made['run_id']}.json").exists, "it waits")
    return made["run_id"], absent, evidence


@pytest.mark.parametrize("numbers", [range(64), range(100)], ids=["of an earlier release", "every lock there is"])
def test_a_lock_that_somebody_keeps_holds_up_nothing_else_for_long(world: World, numbers: range) -> None:
    other = world.make_run("other", seed=5, **SMALL)
    with served(world) as daemon, ExitStack() as held:
        run_id, absent, evidence = waiting_run(world, lambda: None)
        for number in numbers:
            path = world.ledger / f".private/{number:02d}.lock"
            path.touch(0o644)
            fcntl.flock(held.enter_context(path.open("rb")), fcntl.LOCK_EX)
        absent.rename(evidence)
        world.drop(other["request"], "other.json")
        until(lambda: [item for item in world.signals("READY") if item["payload"]["run_id"] != run_id], "the other", 60)
        if numbers == range(64):
            until(ready(world, 2), "nobody uses those locks any more", 60)
        else:
            until(warned(world, "kept by another process"), "it is logged", 60)
            assert ready(world, 1)()
        assert stop(daemon) == 0


def test_a_database_that_somebody_keeps_locked_is_said_and_the_daemon_obeys_sigterm(world: World) -> None:
    with served(world) as daemon, closing(sqlite3.connect(world.database, isolation_level=None)) as other:
        until((world.bus / "requests").is_dir, "the intake is open")
        other.execute("BEGIN IMMEDIATE")
        world.drop(world.make_run("a", **SMALL)["request"])
        until(warned(world, "by another process"), "it is logged")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(25) == 0
    assert world.signals() == []
