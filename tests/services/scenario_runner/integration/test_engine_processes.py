"""Engines as real processes: each way to end, each way to leave something behind, and each death around them."""

from __future__ import annotations

import gc
import json
import os
import secrets
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import (
    ESCAPE,
    SALT_VARIABLE,
    end_of,
    engine,
    is_gone,
    launch_of,
    processes_of,
    script_engine,
    state_of,
    until,
    written_pid,
)

from scenario_runner.contracts.errors import ConfigurationError, EngineRefusal
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.command import parse_command
from scenario_runner.engine.invoker import Job, LaunchFailed
from scenario_runner.engine.subprocess_invoker import KEPT_BYTES, SubprocessInvoker, SubprocessSettings

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _attempts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SALT_VARIABLE, secrets.token_hex(8))


# --- the ways to end


def test_an_engine_that_ends_with_zero_has_succeeded(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import sys; print('out'); print('err', file=sys.stderr)") as invoker:
        job = invoker.launch(launch_of())
        end = end_of(invoker, job)
    assert (end.succeeded, end.reason_code, end.exit_code, end.stop_code) == (True, None, 0, "")
    assert (end.stdout, end.stderr) == (b"out\n", b"err\n")
    assert not end.another_attempt


def test_the_exit_status_of_an_engine_is_its_end(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "raise SystemExit(3)") as invoker:
        end = end_of(invoker, invoker.launch(launch_of()))
    assert (end.succeeded, end.reason_code, end.exit_code) == (False, Reason.ENGINE_EXIT_NONZERO, 3)
    assert not end.another_attempt


def test_an_engine_that_is_killed_by_somebody_ends_with_the_signal(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import os; os.kill(os.getpid(), 9)") as invoker:
        end = end_of(invoker, invoker.launch(launch_of()))
    assert (end.reason_code, end.exit_code, end.stop_code) == (Reason.ENGINE_EXIT_NONZERO, -9, "")
    assert "signal 9" in end.detail


def test_an_engine_that_somebody_ended_is_not_at_fault(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)") as invoker:
        end = end_of(invoker, invoker.launch(launch_of()))
    assert (end.exit_code, end.stop_code, end.another_attempt) == (-15, "", True)


@pytest.mark.parametrize(("status", "cause"), [(143, "STOPPED"), (0, "")])
def test_an_engine_that_fails_while_its_stop_is_wanted_was_stopped(tmp_path: Path, status: int, cause: str) -> None:
    """As under systemd, which signals the keeper and the engine of a service in one go."""
    program = f"import os, signal; os.kill(os.getppid(), signal.SIGSTOP); os._exit({status})"
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of())
        keeper = int(job.handle.split("|")[-2])
        until(lambda: state_of(keeper) == "T", "it is stopped")
        until(lambda: processes_of(job.attempt_id) == {keeper}, "the engine ends")
        os.kill(keeper, signal.SIGTERM)
        os.kill(keeper, signal.SIGCONT)
        end = end_of(invoker, job)
    assert (end.stop_code, end.exit_code, end.succeeded) == (cause, status, not status)


def test_a_keeper_that_fails_says_why(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import os; os.mkdir('result.json')") as invoker:
        end = end_of(invoker, invoker.launch(launch_of()))
    assert (end.stop_code, end.another_attempt) == ("KEEPER_LOST", True)
    assert "IsADirectoryError" in end.detail


def test_an_engine_that_takes_too_long_ends_with_a_timeout_also_when_it_exits_with_zero(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(600)"
    )
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of(timeout_seconds=0.5))
        end = end_of(invoker, job)
    assert (end.succeeded, end.reason_code, end.stop_code) == (False, Reason.ENGINE_TIMEOUT, "TIMEOUT")
    assert (end.exit_code, end.stdout) == (0, b"up\n")
    assert processes_of(job.attempt_id) == set()


@pytest.mark.parametrize("command", ["/no/such/engine", "no-such-engine", "/etc/passwd", "/tmp"])
def test_a_command_that_cannot_be_executed_is_certainly_not_launched(tmp_path: Path, command: str) -> None:
    settings = SubprocessSettings(str(tmp_path / "a"), parse_command([command], "test"))
    invoker = SubprocessInvoker(settings)
    for _ in range(2):  # the second time its folder is found
        with pytest.raises(LaunchFailed, match=command) as failed:
            invoker.launch(launch_of())
        assert failed.value.reason is Reason.ENGINE_LAUNCH_FAILED
    row = Job(launch_of().attempt_id, invoker.place, 0, 1)
    found = invoker.find(row)
    assert found is not None
    assert invoker.poll([found])[found.attempt_id].reason_code is Reason.ENGINE_LAUNCH_FAILED
    assert processes_of(row.attempt_id) == set()


def test_a_working_directory_that_is_not_there_is_a_failed_launch(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "", cwd="/no/such/folder") as invoker, pytest.raises(LaunchFailed, match="/no/such"):
        invoker.launch(launch_of())


def test_a_command_that_cannot_be_rendered_leaves_no_trace(tmp_path: Path) -> None:
    command = parse_command([sys.executable, "{invocation_path}"], "test")
    invoker = SubprocessInvoker(SubprocessSettings(str(tmp_path / "a"), command))
    with pytest.raises(EngineRefusal, match="begins with '-'"):
        invoker.launch(launch_of(invocation_path="-rf"))
    assert os.listdir(tmp_path / "a") == []


# --- what an engine is given


def test_an_engine_gets_its_arguments_its_folder_and_nothing_else_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("ALLOWED", "yes")
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    program = """
import json, os, sys
fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
       and os.path.exists(f"/proc/self/fd/{fd}")}
print(json.dumps([dict(os.environ), fds, os.getcwd(), os.readlink("/proc/self/fd/0"), os.getsid(0) == os.getpid(),
                  __import__("signal").getsignal(13) == 0]))
"""
    with engine(tmp_path / "a", program, allow_list=("ALLOWED", "ABSENT"), cwd=str(tmp_path)) as invoker:
        launch = launch_of()
        end = end_of(invoker, invoker.launch(launch))
    os.close(inherited)
    environment, fds, cwd, stdin, leads_session, _ = json.loads(end.stdout)
    environment.pop("LC_CTYPE", None)  # Python sets it for itself
    assert environment == {
        "ALLOWED": "yes", "SR_ENGINE_INVOCATION_JSON": launch.invocation.decode(),
        "SR_ENGINE_INVOCATION_PATH": launch.invocation_path, "SR_ENGINE_RUN_ROOT": launch.engine_run_root,
        "SR_ATTEMPT_ID": launch.attempt_id, "TRACEPARENT": launch.traceparent,
    }  # fmt: skip
    assert (fds, cwd, stdin, leads_session) == ({}, str(tmp_path), "/dev/null", True)


def test_an_engine_ignores_and_blocks_no_signal(tmp_path: Path) -> None:
    command = parse_command(["/bin/grep", "-E", "SigIgn|SigBlk", "/proc/self/status"], "test")
    invoker = SubprocessInvoker(SubprocessSettings(str(tmp_path / "a"), command))
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        end = end_of(invoker, invoker.launch(launch_of()))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    assert [line.split()[1].strip(b"0") for line in end.stdout.splitlines()] == [b"", b""]


def test_what_is_kept_of_an_attempt_is_private(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "print(1)") as invoker:
        job = invoker.launch(launch_of())
        end_of(invoker, job)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*")}
    assert modes.pop(job.attempt_id) == 0o700
    assert set(modes) >= {"lock", "keeper", "result.json", "stdout.log", "stderr.log"}
    assert set(modes.values()) == {0o600}


def test_a_folder_into_which_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(ConfigurationError, match="others may write"):
        script_engine(tmp_path / "a", "")


# --- output


def test_endless_output_is_kept_at_both_ends_and_fills_no_memory(tmp_path: Path) -> None:
    program = """
import os, sys
print("first", flush=True)
block = b"x" * 65535 + b"\\n"
for _ in range(2000):
    os.write(1, block)
os.write(2, block)
print("last", flush=True)
"""
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of())
        keeper, peak = int(job.handle.split("|")[-2]), 0
        while not (ends := invoker.poll([job])):
            peak = max(peak, resident_kib(keeper))
            time.sleep(0.001)
        end = ends[job.attempt_id]
    left_out = 6 + 2000 * 65536 + 5 - 2 * KEPT_BYTES
    assert end.stdout.startswith(b"first\nxxx")
    assert end.stdout.endswith(b"\nlast\n")
    assert f"\n[scenario-runner: {left_out} bytes left out]\n".encode() in end.stdout
    assert len(end.stdout) < 2 * KEPT_BYTES + 100
    assert len(end.stderr) == 65536
    assert 0 < peak < 32 * 1024


def resident_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


# --- what an engine leaves behind


@pytest.mark.parametrize("clear", [False, True])
def test_what_forks_twice_and_ignores_sigterm_does_not_outlive_an_engine_that_succeeded(
    tmp_path: Path, *, clear: bool
) -> None:
    program = f"{ESCAPE}\nescape({str(tmp_path / 'pid')!r}, {clear})\nwait({str(tmp_path / 'pid')!r})"
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of())
        end = end_of(invoker, job)
        assert is_gone(written_pid(tmp_path / "pid"))
    assert (end.succeeded, end.exit_code, end.stop_code) == (True, 0, "")
    assert processes_of(job.attempt_id) == set()


def test_nothing_outlives_a_timeout(tmp_path: Path) -> None:
    program = f"{ESCAPE}\nescape({str(tmp_path / 'pid')!r}, True)\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)"
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of(timeout_seconds=1.0))
        end = end_of(invoker, job)
        assert is_gone(written_pid(tmp_path / "pid"))
    assert (end.reason_code, end.exit_code) == (Reason.ENGINE_TIMEOUT, -9)


def test_a_tree_that_forks_faster_than_it_is_killed_ends(tmp_path: Path) -> None:
    program = """
import os, time
for _ in range(4):
    os.fork()
deadline = time.monotonic() + 600
while time.monotonic() < deadline:
    if not os.fork():
        time.sleep(0.05)
        os.setsid()
        os._exit(0) if os.fork() else time.sleep(0.1)
        os._exit(0)
    time.sleep(0.005)
    while True:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]: break
        except ChildProcessError:
            break
"""
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of())
        until(lambda: len(processes_of(job.attempt_id)) > 10, "it forks")
        invoker.stop(job)
        assert processes_of(job.attempt_id) == set()


# --- stop


def test_stop_ends_everything_before_it_returns_and_may_be_repeated(tmp_path: Path) -> None:
    program = f"{ESCAPE}\nescape({str(tmp_path / 'pid')!r}, True)\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)"
    with engine(tmp_path / "a", program) as invoker:
        job = invoker.launch(launch_of())
        pid = written_pid(tmp_path / "pid")
        invoker.stop(job)
        assert is_gone(pid)
        assert processes_of(job.attempt_id) == set()
        invoker.stop(job)
        end = end_of(invoker, job)
    assert (end.succeeded, end.stop_code, end.another_attempt) == (False, "STOPPED", True)


def test_an_engine_that_is_stopped_by_a_signal_still_ends_in_order(tmp_path: Path) -> None:
    program = """
import os, signal, sys
def end(*_):
    print("in order", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    with engine(tmp_path / "a", program, grace_seconds=10.0) as invoker:
        job = invoker.launch(launch_of())
        until(lambda: "T" in {state_of(pid) for pid in processes_of(job.attempt_id)}, "it stops itself")
        invoker.stop(job)
        end = end_of(invoker, job)
    assert (end.stop_code, end.exit_code, end.stdout) == ("STOPPED", 5, b"in order\n")


def test_stop_of_an_attempt_that_was_never_launched_does_nothing(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "") as invoker:
        invoker.stop(Job("f" * 32, invoker.place, 0, 1))


def test_a_stop_after_the_end_does_not_change_the_end(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "raise SystemExit(3)") as invoker:
        job = invoker.launch(launch_of())
        end = end_of(invoker, job)
        invoker.stop(job)
        assert invoker.poll([job]) == {job.attempt_id: end}


def test_a_keeper_that_hangs_is_killed_with_everything_of_its_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scenario_runner.engine import subprocess_invoker

    monkeypatch.setattr(subprocess_invoker, "_MARGIN_SECONDS", 0.2)
    program = f"{ESCAPE}\nescape({str(tmp_path / 'pid')!r}, False)\ntime.sleep(600)"
    with engine(tmp_path / "a", program, grace_seconds=0.1) as invoker:
        job = invoker.launch(launch_of())
        pid = written_pid(tmp_path / "pid")
        os.kill(int(job.handle.split("|")[-2]), signal.SIGSTOP)
        invoker.stop(job)
        assert is_gone(pid)
        assert processes_of(job.attempt_id) == set()
        assert end_of(invoker, job).stop_code == "KEEPER_LOST"


def test_close_ends_every_engine(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import time; time.sleep(600)") as invoker:
        jobs = [invoker.launch(launch_of(number)) for number in range(5)]
        invoker.close()
        assert [processes_of(job.attempt_id) for job in jobs] == [set()] * 5
        assert {end.stop_code for end in invoker.poll(jobs).values()} == {"STOPPED"}


# --- many


def test_fifty_engines_at_once_cost_one_call_to_follow_and_leave_no_descriptor(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import sys; sys.stdin.read(); import time; time.sleep(600)") as invoker:
        gc.collect()  # closes what earlier tests have left to it
        before = len(os.listdir("/proc/self/fd"))
        jobs = [invoker.launch(launch_of(number)) for number in range(50)]
        began = time.process_time()
        for _ in range(100):
            assert invoker.poll(jobs) == {}
        assert (time.process_time() - began) / 100 < 0.005
        assert threading.active_count() == 1 or not [t for t in threading.enumerate() if "engine" in t.name]
        invoker.close()
        assert len(invoker.poll(jobs)) == 50
        assert len(os.listdir("/proc/self/fd")) == before
        assert [job for job in jobs if processes_of(job.attempt_id)] == []


def test_an_engine_that_runs_takes_no_time_of_its_keeper(tmp_path: Path) -> None:
    with engine(tmp_path / "a", "import time; time.sleep(600)") as invoker:
        job = invoker.launch(launch_of())
        keeper = int(job.handle.split("|")[-2])
        switches = [context_switches(keeper)]
        time.sleep(0.5)
        switches.append(context_switches(keeper))
        assert switches[1] - switches[0] <= 2


def context_switches(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def test_a_keeper_that_takes_no_launch_is_a_failed_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scenario_runner.engine import subprocess_invoker

    start, hand_over, started = subprocess_invoker.start_keeper, subprocess_invoker.hand_over, []

    def remembered(*given: Any) -> subprocess.Popen[bytes]:
        started.append(start(*given))
        return started[-1]

    def dead(*given: Any) -> str | None:
        started[-1].kill()
        started[-1].wait()
        return hand_over(*given)

    monkeypatch.setattr(subprocess_invoker, "start_keeper", remembered)
    monkeypatch.setattr(subprocess_invoker, "hand_over", dead)
    with engine(tmp_path / "a", "") as invoker:
        with pytest.raises(LaunchFailed, match="before it had taken the launch"):
            invoker.launch(launch_of())
        with pytest.raises(LaunchFailed, match="before it had taken the launch"):
            invoker.launch(replace(launch_of()))
