"""A daemon that is watched: health, readiness, metrics, systemd, the list of daemons; through the installed command."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support import World, need_posix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 120
#: A daemon whose intake hangs in its second step: what a dead mount does to it.
HANGS = """
import sys, threading
from scenario_runner.cli.main import main
from scenario_runner.intake.spool import SpoolConsumer
step, steps = SpoolConsumer.step, []
def hang(self):
    steps.append(1)
    if len(steps) > 1:
        threading.Event().wait()
    return step(self)
SpoolConsumer.step = hang
sys.argv[0] = "scenario-runner"
main()
"""
#: A daemon whose costly examinations hang: every one is costly, and its evidence lies in a dead mount.
HANGS_IN_BULK = """
import sys, threading
from scenario_runner.cli.main import main
from scenario_runner.evidence.examiner import ExaminationDeferred, Examiner
def hang(self, key, heartbeat, share, run_id=""):
    if share.patient:
        threading.Event().wait()
    raise ExaminationDeferred(key)
Examiner.examine = hang
sys.argv[0] = "scenario-runner"
main()
"""
#: A daemon whose relay always has more to deliver: another one admits as fast as this one delivers.
DELIVERS_FOR_EVER = """
import sys, time
from scenario_runner.cli.main import main
from scenario_runner.relay.relay import Relay
def step(self):
    time.sleep(0.02)
    return 1
Relay.step = step
sys.argv[0] = "scenario-runner"
main()
"""
#: A daemon whose minutes are short.
SHORT_MINUTES = """
import sys
from scenario_runner.cli.main import main
from scenario_runner.service import minute_log
minute_log._EVERY_SECONDS = 0.1
sys.argv[0] = "scenario-runner"
main()
"""
#: A daemon whose intake takes its time to open, as long as a file lies there.
OPENS_SLOWLY = """
import os, sys, time
from scenario_runner.cli.main import main
from scenario_runner.intake.spool import SpoolConsumer
opened = SpoolConsumer.open
def open_slowly(self):
    while os.path.exists(os.environ["SLOW"]):
        time.sleep(0.02)
    opened(self)
SpoolConsumer.open = open_slowly
sys.argv[0] = "scenario-runner"
main()
"""


@pytest.fixture(autouse=True)
def _posix() -> None:
    need_posix()


def until(found: Callable[[], Any]) -> Any:
    """What a question answers once it answers something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := found()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return answer


@dataclass
class Served:
    """A daemon that listens."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        """An answer; a host under load may make the listener lose its patience, and then it is asked again."""
        return until(lambda: self._get(path))  # type: ignore[no-any-return]

    def _get(self, path: str) -> tuple[int, bytes] | None:
        try:
            return self._ask(path)
        except (ConnectionError, http.client.HTTPException):
            assert self.process.poll() is None, self.log.read_text("utf-8")
            return None

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    def check(self, path: str) -> tuple[int, dict[str, Any]]:
        status, body = self.get(path)
        return status, json.loads(body)

    def value(self, name: str) -> float | None:
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return None

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def serving(
    world: World, command: list[str] | None = None, *more: str, shutdown_seconds: int = 20, **env: str
) -> Iterator[Served]:
    """A daemon that listens on a free port, which its log names."""
    log = world.root / "log"
    keys = {"health_listen": 0, "shutdown_seconds": shutdown_seconds}
    world.write_profiles(**keys, **({"health_stuck_seconds": 2} if command else {}))
    program = command or [os.path.join(os.path.dirname(sys.executable), "scenario-runner")]
    arguments = [*program, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), *more]
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, stderr=file, start_new_session=True, env={**os.environ, **env})
    try:
        yield Served(process, until(lambda: port_of(log, process)), log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def port_of(log: Path, process: subprocess.Popen[bytes]) -> int:
    for line in log.read_text("utf-8").splitlines():
        if '"port"' in line:
            return int(json.loads(line)["port"])
    assert process.poll() is None, log.read_text("utf-8")
    return 0


def test_a_daemon_says_that_it_is_alive_and_ready_and_what_it_did(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run("one", outputs=["outlet_catalogue"], members=3, member_bytes=64)
    with serving(world) as served:
        until(lambda: served.check("/readyz")[0] == 200)
        loops = {"main", "intake", "runner", "roots", "relay", "renewal", "housekeeping"}
        until(lambda: set(served.check("/healthz")[1]["checks"]) == loops)
        status, health = served.check("/healthz")
        assert (status, health["status"], health["stuck"]) == (200, "ok", [])
        assert set(served.check("/readyz")[1]["checks"]) == {"authority", "store", "bus"}
        assert served.value("sr_runs_ready_total") == 0
        world.drop(made["request"])
        world.drop(b"no request", "bad.json")
        until(lambda: served.value("sr_runs_ready_total") == 1)
        until(lambda: served.value('sr_runs_rejected_total{reason="RECORD_NOT_JSON"}') == 1)
        assert served.value("sr_runs_accepted_total") == 1
        assert served.value('sr_run_requests_total{kind="RUN_REQUEST"}') == 1
        assert served.value("sr_ready_commit_latency_seconds_count") == 1
        assert (served.value("sr_verification_bytes_total") or 0) > 0
        assert served.value("sr_ready") == 1
        for arguments in (["--url", served.url], ["--url", served.url, "--ready"]):
            assert world.command("healthcheck", *arguments).returncode == 0
        assert served.stop() == 0
        assert world.command("healthcheck", "--url", served.url).returncode == 1


def test_nothing_listens_where_no_address_is_given(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    done = world.serve("--log-level", "info")
    assert done.returncode == 0
    assert b"listening" not in done.stderr
    asked = world.command("healthcheck", "--wiring", str(world.wiring))
    assert (asked.returncode, b"health_listen" in asked.stderr) == (2, True)


def test_an_address_that_is_taken_refuses_the_start(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        world.write_profiles(health_listen=taken.getsockname()[1])
        done = world.serve()
    assert (done.returncode, b"key 'health_listen'" in done.stderr) == (2, True)


def test_a_loop_that_hangs_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    with serving(world, [sys.executable, "-c", HANGS]) as served:
        _, health = until(lambda: (found := served.check("/healthz"))[0] == 503 and found)
        assert (health["status"], health["stuck"]) == ("stuck", ["intake"])
        assert health["checks"]["intake"]["seconds_since_progress"] > 2
        assert health["checks"]["runner"]["ok"] is True
        asked = world.command("healthcheck", "--url", served.url)
        assert (asked.returncode, asked.stdout.startswith(b"stuck: intake: no progress for ")) == (1, True)
        until(lambda: (served.value('sr_loop_heartbeat_age_seconds{loop="intake"}') or 0) > 2)
        until(lambda: served.check("/readyz")[0] == 200)  # its stores are usable all the same


def test_an_examination_that_hangs_is_named_with_its_run_and_makes_a_daemon_unhealthy(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run("one", outputs=["outlet_catalogue"], members=3, member_bytes=64)
    with serving(world, [sys.executable, "-c", HANGS_IN_BULK]) as served:
        until(lambda: served.check("/readyz")[0] == 200)
        world.drop(made["request"])
        _, health = until(lambda: (found := served.check("/healthz"))[0] == 503 and found)
        (worker,) = health["stuck"]
        assert worker.startswith("bulk:")
        assert health["checks"][worker]["detail"] == f"run {made['run_id']}"
        assert health["checks"]["runner"]["ok"] is True
        asked = world.command("healthcheck", "--url", served.url)
        assert asked.stdout.startswith(f"stuck: {worker}: run {made['run_id']}: no progress for ".encode())
        until(lambda: (served.value('sr_loop_heartbeat_age_seconds{loop="bulk"}') or 0) > 2)


def test_doctor_says_what_a_listener_answers_and_whether_the_address_can_be_bound(tmp_path: Path) -> None:
    def checks(*expected: int) -> dict[str, Any]:
        done = world.command("doctor", "--wiring", str(world.wiring), "--json")
        assert done.returncode in expected, done.stdout
        found = [item for item in json.loads(done.stdout)["checks"] if item["check"] == "health listener"]
        return dict(found[0]) if found else {}

    world = World(tmp_path / "world")
    assert checks(0) == {}
    with serving(world, [sys.executable, "-c", HANGS]) as served:
        world.write_profiles(health_listen=served.port)
        until(lambda: served.check("/healthz")[0] == 503)
        found = checks(1)
        assert (found["ok"], found["endpoint"]) == (False, f"127.0.0.1:{served.port}")
        assert "/healthz says stuck: intake: no progress for" in found["detail"]
        assert "/readyz says ready" in found["detail"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        world.write_profiles(health_listen=taken.getsockname()[1])
        taken.close()
        assert "can be bound" in checks(0)["detail"]
    world.write_profiles(health_listen="192.0.2.1:8077")  # of no host
    assert (checks(2)["ok"], "key 'health_listen'" in checks(2)["detail"]) == (False, True)


def test_a_stop_ends_within_its_budget_while_there_is_always_more_to_deliver(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    with serving(world, [sys.executable, "-c", DELIVERS_FOR_EVER], shutdown_seconds=1) as served:
        until(lambda: served.check("/readyz")[0] == 200)
        assert served.stop() == 0, "else it is ended as one that hangs, with 5"
        assert '"event": "stopped"' in served.log.read_text("utf-8")


@pytest.mark.parametrize("name", ["store", "bus"])
def test_what_is_gone_makes_a_daemon_unready_and_not_unhealthy(tmp_path: Path, name: str) -> None:
    world = World(tmp_path / "world")
    folder = {"store": world.store, "bus": world.bus}[name]
    with serving(world) as served:
        until(lambda: served.check("/readyz")[0] == 200)
        folder.rename(tmp_path / "elsewhere")
        _, found = until(lambda: (answer := served.check("/readyz"))[0] == 503 and answer)
        assert found["status"] == "not ready"
        assert [check for check, state in found["checks"].items() if not state["ok"]] == [name]
        assert served.check("/healthz")[0] == 200
        if folder.exists():
            shutil.rmtree(folder)
        (tmp_path / "elsewhere").rename(folder)
        until(lambda: served.check("/readyz")[0] == 200)


def test_a_daemon_without_work_logs_what_is_gone_for_as_long_as_it_is_and_its_metrics_each_minute(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "world")
    world.drop(world.make_run()["request"])

    def logged(served: Served, event: str) -> list[dict[str, Any]]:
        text = served.log.read_text("utf-8")
        lines = [json.loads(line) for line in text[: text.rindex("\n")].splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"].startswith(event)]

    with serving(world, [sys.executable, "-c", SHORT_MINUTES]) as served:
        until(lambda: any(line["gauges"]["sr_ready"] for line in logged(served, "metrics of")))
        until(lambda: sum(line["counts"]["sr_runs_ready_total"] for line in logged(served, "metrics of")) == 1)
        assert logged(served, "a probe") == []
        world.store.rename(tmp_path / "elsewhere")
        until(lambda: len(logged(served, "a probe failed")) > 3)
        first, *later = logged(served, "a probe failed")
        assert (first["check"], first["seconds"]) == ("store", 0)
        assert {line["check"] for line in later} == {"store"}
        assert logged(served, "metrics of")[-1]["gauges"]["sr_ready"] == 0
        if world.store.exists():
            shutil.rmtree(world.store)
        (tmp_path / "elsewhere").rename(world.store)
        (over,) = until(lambda: logged(served, "a probe passes again"))
        assert over["check"] == "store"
        until(lambda: logged(served, "metrics of")[-1]["gauges"]["sr_ready"] == 1)
        assert served.stop() == 0


def test_a_daemon_is_not_ready_before_its_loops_run(tmp_path: Path) -> None:
    """A start that fails ends a daemon; one that was ready waits for what is gone."""
    world, slow = World(tmp_path / "world"), tmp_path / "slow"
    slow.touch()
    with serving(world, [sys.executable, "-c", OPENS_SLOWLY], SLOW=str(slow)) as served:
        _, found = until(lambda: (answer := served.check("/readyz"))[1]["checks"]["bus"]["ok"] and answer)
        assert (served.check("/readyz")[0], found["status"], found["draining"]) == (503, "starting", False)
        assert served.check("/healthz")[0] == 200
        slow.unlink()
        until(lambda: served.check("/readyz")[0] == 200)


def test_a_daemon_that_drains_is_not_ready_and_answers_to_the_end(tmp_path: Path) -> None:
    """The intake hangs, so that the drain lasts."""
    world = World(tmp_path / "world")
    with serving(world, [sys.executable, "-c", HANGS]) as served:
        until(lambda: served.check("/readyz")[0] == 200)
        until(lambda: served.check("/healthz")[0] == 503)
        served.process.terminate()
        _, found = until(lambda: (answer := served.check("/readyz"))[0] == 503 and answer)
        assert (found["status"], found["draining"]) == ("draining", True)
        until(lambda: served.value("sr_ready") == 0)


def test_daemons_are_listed_while_they_run_and_a_killed_one_after_that_too(tmp_path: Path) -> None:
    world = World(tmp_path / "world")

    def daemons() -> list[dict[str, Any]]:
        done = world.command("daemons", "--wiring", str(world.wiring), "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["daemons"])

    assert daemons() == []
    with serving(world, None, "--role", "relay") as served:
        (item,) = until(daemons)
        assert (item["role"], item["state"], item["host"]) == ("relay", "RUNNING", socket.gethostname())
        assert f"|{served.process.pid}|" in item["owner"]
        lines = world.command("daemons", "--wiring", str(world.wiring), "--jsonl").stdout.splitlines()
        assert [json.loads(line)["owner"] for line in lines] == [item["owner"]]
        assert b"RUNNING" in world.command("daemons", "--wiring", str(world.wiring)).stdout
        assert served.stop() == 0
        assert daemons() == []
    with serving(world) as served:
        until(daemons)
        served.process.kill()
        served.process.wait()
        assert len(daemons()) == 1


def test_systemd_is_told_by_the_installed_command(tmp_path: Path) -> None:
    world, address = World(tmp_path / "world"), str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(PATIENCE_SECONDS)
        told: set[str] = set()

        def hear(message: str) -> bool:
            while message not in told:
                told.add(receiver.recv(4096).decode())
            return True

        with serving(world, NOTIFY_SOCKET=address, WATCHDOG_USEC="1000000") as served:
            assert hear("READY=1")
            assert hear("STATUS=role all: ready")
            assert hear("WATCHDOG=1")
            assert served.stop() == 0
            assert hear("STOPPING=1")


def test_a_daemon_whose_loop_hangs_no_longer_tells_the_watchdog(tmp_path: Path) -> None:
    world, address = World(tmp_path / "world"), str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        with serving(world, [sys.executable, "-c", HANGS], NOTIFY_SOCKET=address, WATCHDOG_USEC="200000") as served:
            until(lambda: served.check("/healthz")[0] == 503)
            receiver.setblocking(False)
            try:
                while True:
                    receiver.recv(4096)
            except BlockingIOError:
                pass
            receiver.settimeout(1.0)
            heard = []
            try:
                while True:
                    heard.append(receiver.recv(4096).decode())
            except TimeoutError:
                pass
            # One may have been on its way when the answer was red.
            assert heard.count("WATCHDOG=1") <= 1
