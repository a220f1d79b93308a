"""Engines whose keeper or daemon dies at any moment: one launch at most, and no process is left."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_support import ESCAPE, SALT_VARIABLE, end_of, engine, is_gone, launch_of, processes_of, until, written_pid

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine import keeper_process
from scenario_runner.engine.invoker import Job

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _attempts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SALT_VARIABLE, secrets.token_hex(8))


# --- deaths


def test_nothing_of_an_engine_survives_the_death_of_its_keeper_once_it_is_noticed(tmp_path: Path) -> None:
    program = f"{ESCAPE}\nescape({str(tmp_path / 'pid')!r}, False)\ntime.sleep(600)"
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of())
        pid = written_pid(tmp_path / "pid")
        os.kill(int(job.handle.split("|")[-2]), signal.SIGKILL)
        end = end_of(invoker, job)
        assert is_gone(pid)
        assert processes_of(job.attempt_id) == set()
    assert (end.succeeded, end.stop_code, end.another_attempt) == (False, "KEEPER_LOST", True)


def test_an_engine_dies_with_its_keeper_also_when_nobody_is_there_to_notice(tmp_path: Path) -> None:
    with daemon(tmp_path / "a", "import time; time.sleep(600)") as (process, job):
        process.send_signal(signal.SIGSTOP)
        os.kill(int(job.handle.split("|")[-2]), signal.SIGKILL)
        until(lambda: not processes_of(job.attempt_id), "the engine ends")


DAEMON = """
import os, sys, time
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from engine_support import launch_of, script_engine
invoker = script_engine(Path(sys.argv[1]), Path(sys.argv[2]).read_text())
job = invoker.launch(launch_of())
print(job.handle, flush=True)
time.sleep(600)
"""


@contextmanager
def daemon(folder: Path, program: str) -> Iterator[tuple[subprocess.Popen[str], Job]]:
    source = folder.parent / "program"
    source.write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder), str(source), str(Path(__file__).parents[1])],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        handle = process.stdout.readline().strip()
        yield process, Job(launch_of().attempt_id, handle, 0, 60.0)
    finally:
        process.kill()
        process.communicate()


def test_nothing_of_an_engine_survives_the_death_of_its_daemon(tmp_path: Path) -> None:
    program = f"{ESCAPE}\nescape({str(tmp_path / 'pid')!r}, True)\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)"
    with daemon(tmp_path / "a", program) as (process, job):
        pid = written_pid(tmp_path / "pid")
        process.kill()
        process.wait()
        until(lambda: is_gone(pid) and not processes_of(job.attempt_id), "everything ends")
    with engine(tmp_path / "a", "") as successor:
        assert successor.find(job) == job
        end = end_of(successor, job)
    assert (end.succeeded, end.stop_code, end.another_attempt) == (False, "DAEMON_GONE", True)


def test_the_next_daemon_follows_an_attempt_that_is_just_ending_and_launches_no_second_one(tmp_path: Path) -> None:
    program = f"""
import signal, time
signal.signal(15, signal.SIG_IGN)
print("up", flush=True)
open({str(tmp_path / "pid")!r}, "w").write("1")
time.sleep(600)
"""
    with daemon(tmp_path / "a", program) as (process, job), engine(tmp_path / "a", "print('second')") as successor:
        written_pid(tmp_path / "pid")
        process.kill()
        process.wait()
        assert successor.launch(launch_of()).handle == job.handle
        end = end_of(successor, job)
        assert (end.stop_code, end.stdout) == ("DAEMON_GONE", b"up\n")


def test_another_daemon_can_stop_an_attempt_of_a_daemon_that_hangs(tmp_path: Path) -> None:
    with daemon(tmp_path / "a", "import time; time.sleep(600)") as (process, job), engine(tmp_path / "a", "") as other:
        process.send_signal(signal.SIGSTOP)
        other.stop(job)
        assert processes_of(job.attempt_id) == set()
        assert end_of(other, job).stop_code == "STOPPED"


def test_closing_ends_no_engine_of_another_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path / "a", "import time; time.sleep(600)") as (_, job):
        with engine(tmp_path / "a", "") as other:
            assert other.find(job) == job
        assert processes_of(job.attempt_id) != set()


def test_an_engine_whose_daemon_renews_no_lease_ends(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import time; time.sleep(600)", renew_seconds=1.0) as invoker:
        kept, lost = (invoker.launch(launch_of(number)) for number in (1, 2))
        deadline = time.monotonic() + 20
        while not (ends := invoker.poll([kept, lost])):
            assert time.monotonic() < deadline
            invoker.renew([kept])
            time.sleep(0.05)
        assert set(ends) == {lost.attempt_id}
    assert (ends[lost.attempt_id].stop_code, ends[lost.attempt_id].another_attempt) == ("NOT_RENEWED", True)


def test_a_daemon_that_is_killed_at_any_moment_of_a_launch_leaves_at_most_one_launch_and_no_process(
    tmp_path: Path,
) -> None:
    """The successor asks for the attempt while the keeper of the dead one may just be starting."""
    kills = int(os.environ.get("SR_TEST_ENGINE_KILLS", "12"))
    launches, attempts = tmp_path / "launches", tmp_path / "a"
    program = f"open({str(launches)!r}, 'a').write(__import__('os').environ['SR_ATTEMPT_ID'] + chr(10))\n"
    source = tmp_path / "program"
    source.write_text(f"{program}import time; time.sleep(600)")
    with engine(attempts, f"{program}import time; time.sleep(600)") as successor:
        for number in range(1, kills + 1):
            process = subprocess.Popen(
                [sys.executable, "-c", KILLED, str(attempts), str(source), str(number), str(Path(__file__).parents[1])],
                stdout=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()  # it launches next
            time.sleep(0.08 * number / kills)
            process.kill()
            process.communicate()
            row = Job(launch_of(number).attempt_id, successor.place, 0, 60.0)
            found = successor.find(row)
            if found is not None:
                assert not end_of(successor, found).succeeded
            assert processes_of(row.attempt_id) == set()
    made = launches.read_text().split() if launches.exists() else []
    assert len(made) == len(set(made)) <= kills


KILLED = """
import sys
sys.path[:0] = sys.argv[4:]
from pathlib import Path
from engine_support import launch_of, script_engine
invoker = script_engine(Path(sys.argv[1]), Path(sys.argv[2]).read_text())
launch = launch_of(int(sys.argv[3]))
print("ready", flush=True)
invoker.launch(launch)
__import__("time").sleep(600)
"""


# --- once


def test_an_attempt_is_launched_once_however_often_and_from_however_many_threads(tmp_path: Path) -> None:
    program = f"open({str(tmp_path / 'launches')!r}, 'a').write('x')"
    with engine(tmp_path / "a", program) as invoker:
        jobs: list[Job] = []
        threads = [threading.Thread(target=lambda: jobs.append(invoker.launch(launch_of()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(jobs) == 8
        assert end_of(invoker, jobs[0]).succeeded
        invoker.forget(jobs[0])
        invoker.launch(launch_of())
        end = end_of(invoker, jobs[0])
    assert (tmp_path / "launches").read_text() == "x"
    assert (end.succeeded, end.stdout) == (True, b"")


def test_an_engine_that_ends_before_its_launch_is_answered_is_launched_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever polls sees the end first, and closes the keeper's pipes under the thread that reads its answer."""
    real = keeper_process.wait_readable

    def ended_meanwhile(descriptor: int, deadline: float) -> bool:
        for watch in list(invoker._watches.values()):
            real(watch.pidfd, deadline)
        invoker.poll([])
        assert not invoker._watches
        return real(descriptor, deadline)

    with engine(tmp_path / "a", "pass") as invoker:
        monkeypatch.setattr(keeper_process, "wait_readable", ended_meanwhile)
        assert end_of(invoker, invoker.launch(launch_of())).succeeded


def test_a_keeper_that_another_thread_finds_while_it_is_started_belongs_to_the_daemon_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scenario_runner.engine import subprocess_invoker

    real = subprocess_invoker.start_keeper
    with engine(tmp_path / "a", "import time; time.sleep(600)") as invoker:

        def found_at_once(folder: str, attempt_id: str, lock: int) -> subprocess.Popen[bytes]:
            child = real(folder, attempt_id, lock)
            assert invoker.find(Job(attempt_id, invoker.place, 0, 60.0)) is not None
            return child

        monkeypatch.setattr(subprocess_invoker, "start_keeper", found_at_once)
        job = invoker.launch(launch_of())
        gc.collect()
        assert invoker.poll([job]) == {}
        invoker.close()
        assert invoker.poll([job])[job.attempt_id].stop_code == "STOPPED"


def test_an_attempt_without_a_folder_was_not_launched_on_this_host(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "") as invoker:
        row = Job("e" * 32, invoker.place, 0, 60.0)
        assert invoker.find(row) is None
        assert invoker.poll([row])[row.attempt_id].stop_code == "NOT_FOUND"


def test_an_attempt_of_another_host_is_not_judged_before_it_has_certainly_ended(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "", renew_seconds=30.0, grace_seconds=10.0) as invoker:
        row = Job("e" * 32, "elsewhere|boot|pid:[1]", 0, 60.0)
        for seconds in (0.0, 44.9):
            with pytest.raises(Unavailable, match="elsewhere"):
                invoker.find(row, seconds)
        assert invoker.find(row, 45.1) is None
    with engine(tmp_path / "b", "") as invoker, pytest.raises(Unavailable):
        invoker.find(row, 1e9)


def test_a_folder_that_a_killed_daemon_had_just_made_is_a_failed_launch(tmp_path: Path) -> None:
    from scenario_runner.engine.attempt_folder import AttemptFolder

    with engine(tmp_path / "a", "") as invoker:
        lock = AttemptFolder(str(tmp_path / "a"), "d" * 32).create()
        assert lock is not None
        os.close(lock)
        row = Job("d" * 32, invoker.place, 0, 60.0)
        assert invoker.find(row) == row
        end = invoker.poll([row])[row.attempt_id]
    assert (end.reason_code, end.stop_code, end.another_attempt) == (Reason.ENGINE_LAUNCH_FAILED, "KEEPER_LOST", True)


def test_a_folder_that_was_emptied_under_a_running_engine_leaves_nothing_running(tmp_path: Path) -> None:
    import shutil

    with daemon(tmp_path / "a", "import time; time.sleep(600)") as (_, job), engine(tmp_path / "b", "") as other:
        shutil.rmtree(tmp_path / "a")
        assert other.find(job) is None
        assert processes_of(job.attempt_id) == set()


def test_old_folders_and_those_of_killed_launches_are_removed_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with engine(folder, "") as invoker:
        jobs = [invoker.launch(launch_of(number)) for number in (1, 2)]
        for job in jobs:
            end_of(invoker, job)
    os.utime(folder / jobs[0].attempt_id, (0, 0))
    (folder / ".new-x").mkdir()
    (folder / ".new-x" / "lock").touch()
    os.utime(folder / ".new-x", (time.time() - 61,) * 2)
    (folder / ".new-y").mkdir()  # of a launch that begins now: between the making of the folder and that of its lock
    (folder / ".new-y" / "lock").touch()
    with engine(folder, ""):
        assert set(os.listdir(folder)) == {jobs[1].attempt_id, ".new-y"}
