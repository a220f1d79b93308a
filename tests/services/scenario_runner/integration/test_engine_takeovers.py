"""Attempts between two daemons of a host: what one has given up the other cannot launch, however late it comes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import SALT_VARIABLE, end_of, launch_of, processes_of, script_engine, until

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine import descriptors, keeper, subprocess_invoker
from scenario_runner.engine.invoker import Job, LaunchFailed
from scenario_runner.posix import resource
from scenario_runner.procfs import state_and_start_time
from scenario_runner.runs.effects import FindJob
from scenario_runner.runs.engine_effects import EngineEffects

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration
WRITES = "open({!r}, 'w').close()"


@pytest.fixture(autouse=True)
def _attempts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SALT_VARIABLE, secrets.token_hex(8))


def row_of(invoker: subprocess_invoker.SubprocessInvoker) -> Job:
    return Job(launch_of().attempt_id, invoker.place, 0, 60.0)


def test_an_attempt_that_was_given_up_is_launched_by_nobody_however_late(tmp_path: Path) -> None:
    """The daemon that had put it on record was stopped just before the launch, and goes on now."""
    written = tmp_path / "launched"
    late = script_engine(tmp_path / "a", WRITES.format(str(written)))
    other = script_engine(tmp_path / "a", WRITES.format(str(written)))
    assert other.find(row_of(other)) is None
    assert other.find(row_of(other)) is None, "and it stays so"
    with pytest.raises(LaunchFailed, match="given up") as failed:
        late.launch(launch_of())
    assert failed.value.another_attempt
    assert late.find(row_of(late)) is None
    assert late.poll([row_of(late)])[launch_of().attempt_id].another_attempt
    assert not written.exists()
    assert processes_of(launch_of().attempt_id) == set()


def test_an_attempt_that_cannot_be_given_up_is_not_judged(tmp_path: Path) -> None:
    invoker = script_engine(tmp_path / "a", "")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("a file in the place of the folder")
    with pytest.raises(Unavailable, match="given up"):
        invoker.find(row_of(invoker))


def test_nothing_is_started_after_the_lease_has_ended_under_which_it_was_launched(tmp_path: Path) -> None:
    written = tmp_path / "launched"
    invoker = script_engine(tmp_path / "a", WRITES.format(str(written)))
    with pytest.raises(LaunchFailed, match="lease") as failed:
        invoker.launch(launch_of(start_by=time.monotonic()))
    assert failed.value.another_attempt
    other = script_engine(tmp_path / "a", "")
    found = other.find(row_of(other))
    assert found is not None
    end = end_of(other, found)
    assert (end.reason_code, end.stop_code, end.another_attempt) == (Reason.ENGINE_LAUNCH_FAILED, "NOT_RENEWED", True)
    assert not written.exists()
    intime = launch_of(2, start_by=time.monotonic() + 60)
    assert end_of(invoker, invoker.launch(intime)).succeeded


def test_a_keeper_waits_for_its_launch_a_bounded_time() -> None:
    """Whoever took the run over follows the keeper; its daemon may be stopped for ever in the middle of the launch."""
    program = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('keeper', sys.argv[1]);"
        "k = u.module_from_spec(s); s.loader.exec_module(k); k._SPEC_SECONDS = 0.1; print(k._read_spec())"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, str(keeper.__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.read() == b"None\n"
    assert keeper._SPEC_SECONDS > subprocess_invoker._START_SECONDS


def test_an_engine_that_stops_its_keeper_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_START_SECONDS", "_MARGIN_SECONDS"):
        monkeypatch.setattr(subprocess_invoker, name, 0.5)
    program = "import os, signal, time; os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)"
    invoker = script_engine(tmp_path / "a", program, grace_seconds=0.1)
    job = invoker.launch(launch_of(timeout_seconds=0.3))
    pid = int(job.handle.split("|")[-2])
    until(lambda: state_and_start_time(pid)[0] == "T", "the keeper is stopped")
    end = end_of(invoker, job)
    assert (end.succeeded, end.stop_code) == (False, "KEEPER_LOST")
    assert processes_of(job.attempt_id) == set()


def test_a_folder_that_cannot_be_read_does_not_hide_the_ends_of_the_others(tmp_path: Path) -> None:
    invoker = script_engine(tmp_path / "a", "")
    jobs = [invoker.launch(launch_of(number)) for number in (1, 2)]
    for job in jobs:
        end_of(invoker, job)
    (tmp_path / "a" / jobs[0].attempt_id / "lock").unlink()
    assert list(invoker.poll(jobs)) == [jobs[1].attempt_id]
    with pytest.raises(Unavailable):
        invoker.poll(jobs[:1])


def test_a_folder_of_attempts_that_was_removed_is_made_again(tmp_path: Path) -> None:
    invoker = script_engine(tmp_path / "a", "")
    shutil.rmtree(tmp_path / "a")
    assert end_of(invoker, invoker.launch(launch_of())).succeeded
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o700


def test_no_engine_is_launched_without_descriptors_to_follow_it_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon without any could not even answer its control bus; the run waits, and no attempt is counted."""
    invoker = script_engine(tmp_path / "a", "")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard, "it has taken what it may have"
    invoker.require_room()
    used = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(descriptors, "_RESERVED", 32)
    monkeypatch.setattr(descriptors, "_RESERVED_SHARE", 1)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 32 - 3, hard))
        with pytest.raises(Unavailable, match="files are open"):
            invoker.require_room()
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 32 + 3, hard))
        invoker.require_room()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_engine_may_have_as_many_files_open_as_its_daemon_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "INHERITED", 321)
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    invoker = script_engine(tmp_path / "a", program)
    assert end_of(invoker, invoker.launch(launch_of())).stdout == b"321\n"


def test_a_keeper_that_cannot_be_seen_holds_nobody_up(tmp_path: Path) -> None:
    """As where a daemon was stopped between the folder and the keeper, or the keeper runs in another container."""
    from scenario_runner.engine.attempt_folder import AttemptFolder

    invoker = script_engine(tmp_path / "a", "")
    lock = AttemptFolder(str(tmp_path / "a"), launch_of().attempt_id).create()
    assert lock is not None
    began = time.monotonic()
    with pytest.raises(Unavailable, match="being started"):
        invoker.find(row_of(invoker))
    assert time.monotonic() - began < subprocess_invoker._START_SECONDS / 2
    os.close(lock)
    assert invoker.find(row_of(invoker)) is not None


def test_a_backend_says_nothing_of_an_attempt_of_another_one(tmp_path: Path) -> None:
    """The profile was changed while the engine runs: to call it lost would launch a second engine beside it."""
    nothing: Any = None
    invoker = script_engine(tmp_path / "a", "", renew_seconds=1.0)
    effects = EngineEffects(invoker, nothing, nothing, nothing, nothing, 60.0)
    task = Job(launch_of().attempt_id, "arn:aws:ecs:eu-west-1:123456789012:task/c/1", 0, 60.0)
    claim: Any = None
    assert effects.perform(FindJob(task, "subprocess"), claim, 1e9) is None, "what the check is there for"
    with pytest.raises(Unavailable, match=r"'ecs'.*may run"):
        effects.perform(FindJob(task, "ecs"), claim, 1e9)
