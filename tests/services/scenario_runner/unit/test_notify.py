"""systemd is told over a real datagram socket: ready once, the watchdog while the loops live, the stop."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from scenario_runner import posix
from scenario_runner.kcl.config import jvm_environment
from scenario_runner.service import notify
from scenario_runner.service.notify import Notifier

pytestmark = [pytest.mark.unit, pytest.mark.skipif(not posix.AVAILABLE, reason="systemd is one of Linux")]


@dataclass
class Daemon:
    """What systemd is told about."""

    ready: bool = False
    alive: bool = True
    stops: bool = False
    line: str = "role all: not ready"

    def is_ready(self) -> bool:
        return self.ready

    def is_alive(self) -> bool:
        return self.alive

    def is_stopping(self) -> bool:
        return self.stops

    def status(self) -> str:
        return self.line


@pytest.fixture(params=["path", "abstract"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@sr-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address if request.param == "path" else f"\0{address[1:]}")
        receiver.settimeout(30)
        yield address, receiver


def told(receiver: socket.socket) -> list[str]:
    receiver.setblocking(False)
    found = []
    try:
        while True:
            found.append(receiver.recv(4096).decode())
    except BlockingIOError:
        return found


def test_systemd_is_told_what_has_changed_and_the_watchdog_each_time(place: tuple[str, socket.socket]) -> None:
    address, receiver = place
    notifier, daemon = Notifier(address, 10.0), Daemon()
    notifier._tell_once(daemon)
    assert told(receiver) == ["STATUS=role all: not ready", "WATCHDOG=1"]
    daemon.ready, daemon.line = True, "role all:\nready"
    notifier._tell_once(daemon)
    notifier._tell_once(daemon)
    assert told(receiver) == ["READY=1", "STATUS=role all: ready", "WATCHDOG=1", "WATCHDOG=1"]
    daemon.alive = False
    notifier._tell_once(daemon)
    assert told(receiver) == [], "a loop is stuck"
    daemon.stops = True
    notifier._tell_once(daemon)
    notifier.end()
    assert told(receiver) == ["STOPPING=1"]


def test_ready_is_sent_again_until_systemd_has_it(tmp_path: Path) -> None:
    address, daemon = str(tmp_path / "notify"), Daemon(ready=True)
    notifier = Notifier(address)
    notifier._tell_once(daemon)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        notifier._tell_once(daemon)
        assert told(receiver) == ["READY=1", "STATUS=role all: not ready"]


def test_a_thread_tells_on_its_own_at_the_pace_of_the_watchdog(place: tuple[str, socket.socket]) -> None:
    address, receiver = place
    notifier = Notifier(address, 0.1)
    notifier.start(Daemon(ready=True))
    found = [receiver.recv(4096).decode() for _ in range(5)]
    notifier.end()
    assert found == ["READY=1", "STATUS=role all: not ready", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_the_variables_of_systemd_are_taken_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    notifier = Notifier.taken_from(environment)
    assert environment == {"A": "b"}
    assert (notifier.wanted, notifier._watchdog_seconds) == (True, 5.0)


def test_neither_the_jvm_nor_an_engine_inherits_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "5000000")
    assert Notifier.taken_from(os.environ).wanted
    inherited = jvm_environment(os.environ)
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC"}.isdisjoint(inherited)
    child = subprocess.run([sys.executable, "-c", "import os; print(sorted(os.environ))"], capture_output=True,
                           text=True, check=True)  # fmt: skip
    assert "NOTIFY_SOCKET" not in child.stdout


@pytest.mark.parametrize("changes", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}])
def test_a_watchdog_of_another_process_or_of_no_time_is_not_told(changes: dict[str, str]) -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "5000000", **changes}
    assert Notifier.taken_from(environment)._watchdog_seconds == 0


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_without_a_socket_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify.Notifier, "_send", lambda *_: pytest.fail("something was sent"))
    notifier = Notifier.taken_from({"NOTIFY_SOCKET": address} if address else {})
    assert notifier.wanted is False
    notifier.start(Daemon(ready=True))
    notifier.end()


def test_systemd_gives_more_time_for_as_long_as_the_daemon_is_composed(
    place: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, receiver = place
    monkeypatch.setattr(notify, "_PER_MORE_SECONDS", 0.01)
    notifier = Notifier(address)
    with notifier.composing():
        assert [receiver.recv(4096).decode() for _ in range(3)] == ["EXTEND_TIMEOUT_USEC=300000000"] * 3
    for thread in threading.enumerate():
        if thread.name == "notify-start":
            thread.join(10)
    told(receiver)
    time.sleep(0.05)
    assert told(receiver) == [], "the daemon is composed"


def test_a_start_that_hangs_is_given_up_after_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(notify.Notifier, "_send", lambda _, message: sent.append(message) is None)
    hangs = SimpleNamespace(wait=lambda _: False)
    Notifier("/run/x")._ask_for_time(cast("threading.Event", hangs))
    assert len(sent) == 60
