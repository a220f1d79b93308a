"""Leases of worker ids and the supervisor of the JVM, with a small program in the JVM's place: no Java, no stream."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.kcl import health, jvm_log
from scenario_runner.kcl import supervisor as kcl_supervisor
from scenario_runner.kcl.shard_status import ProcessorState, StatusWriter, read_statuses
from scenario_runner.kcl.supervisor import WORKER_CONFIG_VARIABLE, JvmSupervisor, LaunchSpec
from scenario_runner.kcl.worker_ids import (
    SLOT_VARIABLE,
    WorkerIdLease,
    kill_processes,
    lease_worker_id,
    processes_of,
    start_time,
)
from scenario_runner.retry import RetryPolicy

pytestmark = pytest.mark.integration

# A "JVM" that starts one "record processor" (which ignores SIGTERM and writes its status), and ends it at a stop.
JVM = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", os.environ["TEST_CHILD"]])
def stop(*_):
    time.sleep(float(os.environ.get("TEST_DRAIN", "0.2")))
    child.kill()
    child.wait()
    print("INFO Test drained", flush=True)
    time.sleep(30)
signal.signal(signal.SIGTERM, stop)
print("INFO Test up", flush=True)
child.wait()
time.sleep(30)
"""
CHILD = f"""
import json, os, signal, sys, time
from scenario_runner.kcl.shard_status import ProcessorState, StatusWriter
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = json.loads(os.environ[{WORKER_CONFIG_VARIABLE!r}])
reporter = StatusWriter(child["status_folder"], child["generation"])
print(json.dumps({{"event": "hello", "level": "info"}}), file=sys.stderr, flush=True)
while True:
    reporter.write("shard-1", ProcessorState.IDLE, caught_up=True, records=7, at=time.monotonic())
    time.sleep(0.05)
"""


def until(true: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[WorkerIdLease]:
    taken = lease_worker_id(str(tmp_path / "state"), "app", "worker")
    yield taken
    kill_processes(taken.folder)


@contextmanager
def kept(
    slot: WorkerIdLease, program: str = JVM, child: str = CHILD, prepare: Callable[[], None] = lambda: None, **env: str
) -> Iterator[JvmSupervisor]:
    environment = {**os.environ, "TEST_CHILD": child, **env}
    supervisor = JvmSupervisor(slot, LaunchSpec([sys.executable, "-c", program], environment, {"wiring": "w"}), prepare)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def running(slot: WorkerIdLease) -> set[int]:
    return set(processes_of(slot.folder))


# --- worker ids -----------------------------------------------------------------------------------------------------


def test_daemons_on_one_host_take_slots_of_their_own_and_a_restart_takes_the_same(tmp_path: Path) -> None:
    home = str(tmp_path / "state")
    one, two = lease_worker_id(home, "app", "worker"), lease_worker_id(home, "app", "worker")
    assert one.worker_id.endswith(".0")
    assert two.worker_id.endswith(".1")
    one.release()
    again = lease_worker_id(home, "app", "worker")
    assert again.worker_id == one.worker_id
    for slot in (two, again):
        slot.release()


def test_other_applications_and_other_state_folders_have_other_worker_ids(tmp_path: Path) -> None:
    slots = [lease_worker_id(str(tmp_path / a), b, None) for a, b in (("x", "app"), ("y", "app"), ("x", "other"))]
    assert len({slot.worker_id for slot in slots}) == 3
    for slot in slots:
        slot.release()


def test_a_slot_is_not_free_while_the_jvm_of_a_dead_supervisor_runs_and_that_jvm_is_killed(tmp_path: Path) -> None:
    home = str(tmp_path / "state")
    script = (
        "import subprocess, sys, time, os\n"
        "from scenario_runner.kcl.worker_ids import SLOT_VARIABLE, lease_worker_id\n"
        f"slot = lease_worker_id({home!r}, 'app', 'worker')\n"
        "jvm = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=(slot.lock_fd,),\n"
        "                       env={**os.environ, SLOT_VARIABLE: slot.folder}, start_new_session=True)\n"
        "print(jvm.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        jvm = int(supervisor.stdout.readline())
        other = lease_worker_id(home, "app", "worker")
        assert other.worker_id.endswith(".1")
        assert start_time(jvm)
        supervisor.kill()
        supervisor.wait()
        assert start_time(jvm)
        mine = lease_worker_id(home, "app", "worker")
        assert mine.worker_id.endswith(".0")
        until(lambda: not start_time(jvm), "the old JVM is gone")
    for slot in (other, mine):
        slot.release()


def test_a_state_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(Unavailable):
        lease_worker_id(str(tmp_path / "file"), "app", None)


def test_only_processes_with_the_mark_of_the_slot_are_killed(slot: WorkerIdLease) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen(command, env={**os.environ, SLOT_VARIABLE: slot.folder})
    others = subprocess.Popen(command, env={**os.environ, SLOT_VARIABLE: slot.folder + "1"})
    try:
        until(lambda: running(slot) == {ours.pid}, "it is found")
        assert kill_processes(slot.folder) == 1
        assert ours.wait(timeout=10) == -signal.SIGKILL
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


# --- the supervisor -------------------------------------------------------------------------------------------------


def test_the_supervisor_passes_statuses_on_and_leaves_nothing_behind(slot: WorkerIdLease) -> None:
    with kept(slot) as supervisor:
        status = until(lambda: supervisor.statuses().get("shard-1"), "a status")
        assert (status.state, status.records) == (ProcessorState.IDLE, 7)
        assert len(running(slot)) == 2
    assert running(slot) == set()


def test_a_stop_waits_for_the_record_processor_and_not_for_the_jvm(slot: WorkerIdLease) -> None:
    with kept(slot, TEST_DRAIN="2") as supervisor:
        until(supervisor.statuses, "it is up")
        began = time.monotonic()
        supervisor.stop()
        assert 1.5 < time.monotonic() - began < 10
    assert running(slot) == set()


@pytest.mark.parametrize("status", [0, 1, 143])
def test_a_jvm_that_ends_is_started_again_whatever_its_status(
    slot: WorkerIdLease, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kcl_supervisor, "_RETRY", RetryPolicy(first_seconds=0.01, most_seconds=0.1))
    with kept(slot, f"import sys; sys.exit({status})") as supervisor:
        until(lambda: supervisor.failures >= 3, "it was started three times")


def test_a_jvm_that_is_killed_is_started_again_and_its_record_processors_are_gone(slot: WorkerIdLease) -> None:
    with kept(slot) as supervisor:
        until(supervisor.statuses, "it is up")
        before = running(slot)
        for pid in before:
            if os.getpgid(pid) == pid:
                os.kill(pid, signal.SIGKILL)
        until(lambda: supervisor.statuses() and not running(slot) & before and len(running(slot)) == 2, "new ones run")


def test_a_record_processor_that_dies_restarts_the_jvm_at_once(slot: WorkerIdLease) -> None:
    with kept(slot) as supervisor:
        until(supervisor.statuses, "it is up")
        before = running(slot)
        for pid in before:
            if os.getpgid(pid) != pid:
                os.kill(pid, signal.SIGKILL)
        until(
            lambda: supervisor.statuses() and not running(slot) & before and len(running(slot)) == 2, "new ones run", 8
        )


def test_a_record_processor_that_hangs_inside_a_batch_restarts_the_jvm(
    slot: WorkerIdLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(health, "_HUNG_SECONDS", 1.0)
    hangs = CHILD.replace("ProcessorState.IDLE", "ProcessorState.ADMITTING").replace(
        "time.sleep(0.05)", "time.sleep(60)"
    )
    with kept(slot, child=hangs) as supervisor:
        until(supervisor.statuses, "it is up")
        before = running(slot)
        until(lambda: running(slot) and not running(slot) & before, "new ones run")


def test_nothing_starts_before_what_it_needs_is_prepared(slot: WorkerIdLease) -> None:
    failures = [Unavailable("not yet"), Unavailable("not yet")]

    def prepare() -> None:
        assert not running(slot)
        if failures:
            raise failures.pop()

    with kept(slot, prepare=prepare) as supervisor:
        until(supervisor.statuses, "it is up")
        assert failures == []


def test_a_stop_does_not_wait_for_what_cannot_be_prepared(slot: WorkerIdLease) -> None:
    def prepare() -> None:
        raise Unavailable("DynamoDB does not answer")

    with kept(slot, prepare=prepare) as supervisor:
        until(lambda: supervisor.failures >= 2, "it was tried twice")
    assert running(slot) == set()
    assert supervisor.statuses() == {}


def test_the_jvm_gets_sigterm_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    home, mark = str(tmp_path / "state"), tmp_path / "terminated"
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(0)))\n"
        f"pathlib.Path({str(mark) + '.up'!r}).touch()\n"
        "time.sleep(60)\n"
    )
    script = (
        "import os, sys, time\n"
        "from scenario_runner.kcl.supervisor import JvmSupervisor, LaunchSpec\n"
        "from scenario_runner.kcl.worker_ids import lease_worker_id\n"
        f"slot = lease_worker_id({home!r}, 'app', 'worker')\n"
        f"spec = LaunchSpec([sys.executable, '-c', {program!r}], os.environ, {{}})\n"
        "JvmSupervisor(slot, spec, lambda: None).start()\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as supervisor:
        until(Path(f"{mark}.up").exists, "the program runs")
        supervisor.kill()
        until(mark.exists, "the kernel has told it")


def test_statuses_of_another_generation_and_torn_ones_are_left_out(tmp_path: Path) -> None:
    StatusWriter(str(tmp_path), "one").write("a", ProcessorState.IDLE, caught_up=False, records=1, at=1.0)
    StatusWriter(str(tmp_path), "two").write("b", ProcessorState.WAITING, caught_up=False, records=2, at=2.0)
    (tmp_path / "c.json").write_text('{"generation": "two"', "utf-8")
    (tmp_path / "d.json").write_text(json.dumps({"generation": "two"}), "utf-8")
    found = read_statuses(str(tmp_path), "two")
    assert set(found) == {"b"}
    assert (found["b"].state, found["b"].pid) == (ProcessorState.WAITING, os.getpid())
    assert read_statuses(str(tmp_path / "absent"), "two") == {}


# --- logs -----------------------------------------------------------------------------------------------------------


class _BrokenLog:
    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_given: object, **_named: object) -> None:
            raise OSError(5, "Input/output error")

        return fail


def test_what_the_jvm_says_is_read_to_its_end_even_when_it_cannot_be_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jvm_log, "_log", _BrokenLog())
    said = b"INFO Test much\nno level\n" + b'{"event": "e", "level": "info"}\n' * 100
    (tmp_path / "said").write_bytes(said)
    with (tmp_path / "said").open("rb") as lines:
        jvm_log.forward_logs(lines, threading.Event())
        assert lines.tell() == len(said)


def test_a_record_processor_that_cannot_say_why_it_ends_still_ends(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "from scenario_runner.intake.kcl_processor import die; die(ValueError('a defect'))"
    done = subprocess.run([sys.executable, "-c", program], stderr=writer, check=False, timeout=30)
    os.close(writer)
    assert done.returncode == 70
