"""What is away is told as away: never as absent, never as done, and never by ending the daemon."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from authority_support import START, WAIT, Clock, asking, claim_one, commit, retried
from support import COMMAND, ForkedWorld, World

from scenario_runner.authority.connect import sqlite_path
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.cli import doctor
from scenario_runner.service import owner

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("tail", ["/x/a.db?mode=ro", "/x/a.db#one", ":memory:", "", "/x/"])
def test_a_dsn_that_would_name_a_new_empty_file_names_none(tail: str) -> None:
    assert sqlite_path(f"sqlite:///{tail}") is None
    assert sqlite_path("sqlite:////x/a.db") == "/x/a.db"


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_store_that_is_gone_is_unavailable_and_not_a_run_that_nobody_knows(tmp_path: Path, instead: str) -> None:
    world = ForkedWorld(tmp_path / "world")
    made = world.make_run("one", outputs=["outlet_catalogue"], members=3, member_bytes=64)
    world.drop(made["request"])
    world.serve()
    assert world.query("verify", made["run_id"])[0] == 0
    shutil.move(world.store, tmp_path / "elsewhere")
    if instead == "a file":
        world.store.write_bytes(b"")
    assert world.query("verify", made["run_id"])[0] == 5


def test_a_run_that_is_put_off_by_an_outage_is_pending_whenever_it_is_due(tmp_path: Path) -> None:
    authority = SqliteAuthority(str(tmp_path / "a.db"), Clock())
    authority.admit([asking("k")])
    claim = claim_one(authority)
    assert authority.pending().postponed is False
    commit(authority, retried(claim, START + WAIT, "the store is away"))
    assert (authority.pending().runs, authority.pending().postponed) == (False, True)
    authority.close()


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        name = f"host|{owner._machine()}|{other.pid}|{owner.start_time(other.pid)}|token"
        real = owner._read
        with monkeypatch.context() as hidden:
            hidden.setattr(owner, "_read", lambda path: "?" if f"/{other.pid}/" in path else real(path))
            assert owner.is_dead(name) is False
        assert owner.is_dead(name) is False
        other.kill()
        other.wait()
        assert owner.is_dead(name) is True


def _hiding(*paths: str) -> Any:
    real = owner._read
    return lambda path: "?" if path in paths else real(path)


_BOOT_ID, _MACHINE_ID = "/proc/sys/kernel/random/boot_id", "/etc/machine-id"


def test_a_dead_process_is_recognised_although_the_boot_id_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    read = _hiding(_BOOT_ID)
    monkeypatch.setattr(owner, "_read", lambda path: "f" * 32 if path == _MACHINE_ID else read(path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        name = f"host|{owner._machine()}|{other.pid}|{owner.start_time(other.pid)}|token"
        assert owner.is_dead(name) is False
        other.kill()
        other.wait()
        assert owner.is_dead(name) is True


@pytest.mark.parametrize(
    ("change", "dead"), [("nothing", True), ("a second", True), ("the clock was set", False), ("another host", False),
                         ("another space", False), ("a boot id", False)]
)  # fmt: skip
def test_in_doubt_whether_an_owner_was_of_this_machine_it_counts_as_alive(
    monkeypatch: pytest.MonkeyPatch, change: str, dead: bool
) -> None:
    read = _hiding(_BOOT_ID)
    monkeypatch.setattr(owner, "_read", lambda path: "f" * 32 if path == _MACHINE_ID else read(path))
    ids, booted, space = re.split("[@.]", owner._machine())
    machine = {
        "nothing": f"{ids}@{booted}.{space}",
        "a second": f"{ids}@{int(booted) + 1}.{space}",
        "the clock was set": f"{ids}@{int(booted) - 60}.{space}",
        "another host": f"{'0' * 32}@{booted}.{space}",
        "another space": f"{ids}@{booted}.1{space}",
        "a boot id": f"6ccff243-f4a7-4088-ab32-6c4adad0968f.{space}",
    }[change]
    assert owner.is_dead(f"host|{machine}|{2**22 + 1}|1|token") is dead


def test_where_nothing_tells_the_machine_no_owner_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_read", _hiding(_BOOT_ID, _MACHINE_ID))
    assert not owner.can_tell_dead_owners()
    assert owner.is_dead(f"host|{owner._machine()}|{2**22 + 1}|1|token") is False


def _without(*paths: str) -> list[str]:
    """A command that hides files from what follows; the test is skipped where that is not allowed."""
    hide = " && ".join(f"mount --bind /dev/null {path}" for path in paths)
    command = ["unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespace may be made here (unshare --mount): nothing can be hidden from the daemon")
    return command


@pytest.mark.parametrize(("hidden", "lease_seconds"), [((_BOOT_ID,), 3600), ((_BOOT_ID, _MACHINE_ID), 2)])
def test_the_next_start_takes_over_from_a_killed_daemon_or_says_that_the_lease_must_run_out(
    tmp_path: Path, hidden: tuple[str, ...], lease_seconds: int
) -> None:
    world = World(tmp_path / "world")
    world.write_profiles(lease_seconds=lease_seconds)
    without = _without(*hidden)
    if not Path(_MACHINE_ID).is_file():
        pytest.skip("this machine has no /etc/machine-id")
    arguments = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy)]
    program = (
        "import os, signal, sys\n"
        "from scenario_runner.authority.sqlite import SqliteAuthority\n"
        "SqliteAuthority.commit = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from scenario_runner.cli.main import main\n"
        "main()\n"
    )
    world.drop(world.make_run("one", outputs=["outlet_catalogue"])["request"])
    killed = subprocess.run([*without, sys.executable, "-c", program, *arguments[1:]], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    done = subprocess.run([*without, *arguments, "--until-idle"], capture_output=True, check=False, timeout=60)
    assert (done.returncode, len(world.signals("READY"))) == (0, 1)
    assert (b"cannot be recognised" in done.stderr) is (_MACHINE_ID in hidden)


def test_what_a_driver_says_on_many_lines_is_one_line_of_doctor_and_serve(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    world.write_profiles(authority_store_dsn="postgresql://sr:secret@127.0.0.1:1,127.0.0.2:1/sr")
    both = ("--wiring", str(world.wiring), "--policy", str(world.policy))
    done = world.command("doctor", *both)
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (5, b"")
    assert all(line.startswith(("ok    ", "FAIL  ")) for line in lines)
    failed, *others = [line for line in lines if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in others] == ["FAIL  object store", "FAIL  control bus"]
    assert all("the authority, which knows" in line for line in others), "nothing is written that nobody vouches for"
    assert "Connection refused" in failed
    assert failed.endswith("check that the server runs, and host and port of the DSN; "
                           "make it reachable, then run doctor again")  # fmt: skip
    served = world.serve()
    assert served.returncode == 5
    [line] = served.stderr.decode().splitlines()
    assert line.startswith("error: UNAVAILABLE: ")
    assert "\\n" not in failed + line


def test_an_error_that_nobody_thought_of_is_one_finding_of_doctor_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_given: object) -> None:
        raise LookupError("of some\nlibrary")

    monkeypatch.setattr(doctor, "require_makeable", connect)
    world = ForkedWorld(tmp_path / "world")
    done = world.command("doctor", "--wiring", str(world.wiring), "--json")
    found = {item["check"]: item for item in json.loads(done.stdout)["checks"]}
    assert (done.returncode, found["authority"]["detail"]) == (70, "LookupError: of some library")
    assert found["engine roots"]["ok"]
