"""Slots and the keeper of the JVM, with a small program in the JVM's place: no Java, no stream."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.kcl import supervisor as kcl_supervisor
from scenario_runner.kcl.shard_status import Doing, Reporter, read_reports
from scenario_runner.kcl.supervisor import CHILD_VARIABLE, Keeper, Recipe
from scenario_runner.kcl.worker_ids import SLOT_VARIABLE, Slot, kill_processes, processes_of, start_time, take_slot

pytestmark = pytest.mark.integration

# A "JVM" that starts one "record processor" (which ignores SIGTERM and reports), and ends it when told to stop.
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
from scenario_runner.kcl.shard_status import Doing, Reporter
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = json.loads(os.environ[{CHILD_VARIABLE!r}])
reporter = Reporter(child["reports"], child["generation"])
print(json.dumps({{"event": "hello", "level": "info"}}), file=sys.stderr, flush=True)
while True:
    reporter.write("shard-1", Doing.IDLE, caught_up=True, records=7, at=time.monotonic())
    time.sleep(0.05)
"""


def until(true: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    taken = take_slot(str(tmp_path / "state"), "app", "worker")
    yield taken
    kill_processes(taken.folder)


@contextmanager
def kept(
    slot: Slot, program: str = JVM, child: str = CHILD, prepare: Callable[[], bool] = lambda: True, **env: str
) -> Iterator[Keeper]:
    environment = {**os.environ, "TEST_CHILD": child, **env}
    keeper = Keeper(slot, Recipe([sys.executable, "-c", program], environment, {"wiring": "w"}), prepare)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def running(slot: Slot) -> set[int]:
    return set(processes_of(slot.folder))


# --- slots ----------------------------------------------------------------------------------------------------------


def test_daemons_on_one_host_take_slots_of_their_own_and_a_restart_takes_the_same(tmp_path: Path) -> None:
    home = str(tmp_path / "state")
    one, two = take_slot(home, "app", "worker"), take_slot(home, "app", "worker")
    assert one.worker_id.endswith(".0")
    assert two.worker_id.endswith(".1")
    one.release()
    again = take_slot(home, "app", "worker")
    assert again.worker_id == one.worker_id
    for slot in (two, again):
        slot.release()


def test_other_applications_and_other_state_folders_have_other_worker_ids(tmp_path: Path) -> None:
    slots = [take_slot(str(tmp_path / a), b, None) for a, b in (("x", "app"), ("y", "app"), ("x", "other"))]
    assert len({slot.worker_id for slot in slots}) == 3
    for slot in slots:
        slot.release()


def test_a_slot_is_not_free_while_the_jvm_of_a_dead_supervisor_runs_and_that_jvm_is_killed(tmp_path: Path) -> None:
    home = str(tmp_path / "state")
    script = (
        "import subprocess, sys, time, os\n"
        "from scenario_runner.kcl.worker_ids import SLOT_VARIABLE, take_slot\n"
        f"slot = take_slot({home!r}, 'app', 'worker')\n"
        "jvm = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=(slot.lock_fd,),\n"
        "                       env={**os.environ, SLOT_VARIABLE: slot.folder}, start_new_session=True)\n"
        "print(jvm.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        jvm = int(supervisor.stdout.readline())
        other = take_slot(home, "app", "worker")
        assert other.worker_id.endswith(".1")
        assert start_time(jvm)
        supervisor.kill()
        supervisor.wait()
        assert start_time(jvm)
        mine = take_slot(home, "app", "worker")
        assert mine.worker_id.endswith(".0")
        until(lambda: not start_time(jvm), "the old JVM is gone")
    for slot in (other, mine):
        slot.release()


def test_a_state_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(Unavailable):
        take_slot(str(tmp_path / "file"), "app", None)


def test_only_processes_with_the_mark_of_the_slot_are_killed(slot: Slot) -> None:
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


# --- the keeper -----------------------------------------------------------------------------------------------------


def test_the_keeper_passes_reports_on_and_leaves_nothing_behind(slot: Slot) -> None:
    with kept(slot) as keeper:
        report = until(lambda: keeper.reports().get("shard-1"), "a report")
        assert (report.doing, report.records) == (Doing.IDLE, 7)
        assert len(running(slot)) == 2
    assert running(slot) == set()


def test_a_stop_waits_for_the_record_processor_and_not_for_the_jvm(slot: Slot) -> None:
    with kept(slot, TEST_DRAIN="2") as keeper:
        until(keeper.reports, "it is up")
        began = time.monotonic()
        keeper.stop()
        assert 1.5 < time.monotonic() - began < 10
    assert running(slot) == set()


@pytest.mark.parametrize("status", [0, 1, 143])
def test_a_jvm_that_ends_is_started_again_whatever_its_status(
    slot: Slot, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kcl_supervisor, "_FIRST_PAUSE_SECONDS", 0.01)
    with kept(slot, f"import sys; sys.exit({status})") as keeper:
        until(lambda: keeper.failures >= 3, "it was started three times")


def test_a_jvm_that_is_killed_is_started_again_and_its_record_processors_are_gone(slot: Slot) -> None:
    with kept(slot) as keeper:
        until(keeper.reports, "it is up")
        before = running(slot)
        for pid in before:
            if os.getpgid(pid) == pid:
                os.kill(pid, signal.SIGKILL)
        until(lambda: keeper.reports() and not running(slot) & before and len(running(slot)) == 2, "new ones run")


def test_a_record_processor_that_dies_restarts_the_jvm_at_once(slot: Slot) -> None:
    with kept(slot) as keeper:
        until(keeper.reports, "it is up")
        before = running(slot)
        for pid in before:
            if os.getpgid(pid) != pid:
                os.kill(pid, signal.SIGKILL)
        until(lambda: keeper.reports() and not running(slot) & before and len(running(slot)) == 2, "new ones run", 8)


def test_a_record_processor_that_hangs_inside_a_batch_restarts_the_jvm(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kcl_supervisor, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(kcl_supervisor, "_HUNG_SECONDS", 1.0)
    hangs = CHILD.replace("Doing.IDLE", "Doing.ADMITTING").replace("time.sleep(0.05)", "time.sleep(60)")
    with kept(slot, child=hangs) as keeper:
        until(keeper.reports, "it is up")
        before = running(slot)
        until(lambda: running(slot) and not running(slot) & before, "new ones run")


def test_nothing_starts_before_what_it_needs_is_prepared(slot: Slot) -> None:
    answers = iter([False, False, True])
    with kept(slot, prepare=lambda: next(answers)) as keeper:
        until(keeper.reports, "it is up")
        assert next(answers, None) is None


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
        "from scenario_runner.kcl.supervisor import Keeper, Recipe\n"
        "from scenario_runner.kcl.worker_ids import take_slot\n"
        f"slot = take_slot({home!r}, 'app', 'worker')\n"
        f"Keeper(slot, Recipe([sys.executable, '-c', {program!r}], os.environ, {{}}), lambda: True).start()\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as supervisor:
        until(Path(f"{mark}.up").exists, "the program runs")
        supervisor.kill()
        until(mark.exists, "the kernel has told it")


def test_reports_of_another_generation_and_torn_ones_are_left_out(tmp_path: Path) -> None:
    Reporter(str(tmp_path), "one").write("a", Doing.IDLE, caught_up=False, records=1, at=1.0)
    Reporter(str(tmp_path), "two").write("b", Doing.WAITING, caught_up=False, records=2, at=2.0)
    (tmp_path / "c.json").write_text('{"generation": "two"', "utf-8")
    (tmp_path / "d.json").write_text(json.dumps({"generation": "two"}), "utf-8")
    found = read_reports(str(tmp_path), "two")
    assert set(found) == {"b"}
    assert (found["b"].doing, found["b"].pid) == (Doing.WAITING, os.getpid())
    assert read_reports(str(tmp_path / "absent"), "two") == {}


# --- logs -----------------------------------------------------------------------------------------------------------


class _BrokenLog:
    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_given: object, **_named: object) -> None:
            raise OSError(5, "Input/output error")

        return fail


def test_what_the_jvm_says_is_read_to_its_end_even_when_it_cannot_be_logged(
    slot: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(slot, Recipe([], {}, {}), lambda: True)
    monkeypatch.setattr(kcl_supervisor, "_log", _BrokenLog())
    said = b"INFO Test much\nno level\n" + b'{"event": "e", "level": "info"}\n' * 100
    (tmp_path / "said").write_bytes(said)
    with (tmp_path / "said").open("rb") as lines:
        keeper._pump(lines)
        assert lines.tell() == len(said)


def test_a_record_processor_that_cannot_say_why_it_ends_still_ends(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "from scenario_runner.intake.kcl_processor import die; die(ValueError('a defect'))"
    done = subprocess.run([sys.executable, "-c", program], stderr=writer, check=False, timeout=30)
    os.close(writer)
    assert done.returncode == 70
