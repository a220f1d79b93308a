"""Notifications to systemd (``Type=notify``): READY, STATUS, WATCHDOG, STOPPING, and the wish for more time.

They go over the socket that ``NOTIFY_SOCKET`` names; without it nothing happens. The variables are taken out of the
environment, so that no engine and no JVM of this daemon can speak for it.
"""

import os
import socket
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Final, Protocol

#: How often the state is compared with what was sent last; also the longest delay of READY and STATUS.
_POLL_SECONDS: Final = 1.0
#: What is asked for while the daemon is composed, which may bring a large schema up to date: as much as the unit gives.
_MORE_SECONDS: Final = 300
#: How often it is asked for: four more times before it is over.
_PER_MORE_SECONDS: Final = 60.0
#: For how long in all: a start that hangs is to be noticed too.
_LONGEST_START_SECONDS: Final = 3600.0
#: The slowest pace of the watchdog: twice within its time, as systemd's documentation recommends.
_PER_WATCHDOG: Final = 2
#: systemd reads its socket at once; a full one is tried again at the next pace.
_SEND_SECONDS: Final = 0.5
#: Microseconds in a second.
_MICROS: Final = 1_000_000
_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Watched(Protocol):
    """The daemon that systemd is told about."""

    def is_ready(self) -> bool:
        """Whether it can work; READY is sent once it can for the first time."""
        ...

    def is_alive(self) -> bool:
        """Whether every loop makes progress; the watchdog is told only while it is true."""
        ...

    def is_stopping(self) -> bool:
        """Whether it stops."""
        ...

    def status(self) -> str:
        """The line that ``systemctl status`` shows."""
        ...


class Notifier:
    """Tells systemd about a daemon.

    Args:
        address: Path of the socket, or an abstract name that begins with ``@``; empty to tell nobody.
        watchdog_seconds: Within how long systemd expects to hear of the watchdog; 0 when it does not.
    """

    def __init__(self, address: str, watchdog_seconds: float = 0.0) -> None:
        self._address, self._watchdog_seconds = address, watchdog_seconds
        self._stopped = threading.Event()
        self._sent: set[str] = set()
        self._status = ""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> "Notifier":
        """The notifier that an environment asks for; its variables are removed."""
        address, usec, pid = (environment.pop(name, "") for name in _VARIABLES)
        ours = not pid or pid == str(os.getpid())
        return cls(address, int(usec) / _MICROS if ours and usec.isdecimal() else 0.0)

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told."""
        return self._address[:1] in ("/", "@")

    @contextmanager
    def composing(self) -> Iterator[None]:
        """Ask for more time than ``TimeoutStartSec``, as long as the daemon is composed."""
        if not self.wanted:
            yield
            return
        composed = threading.Event()
        threading.Thread(target=self._ask_for_time, args=(composed,), name="notify-start", daemon=True).start()
        try:
            yield
        finally:
            composed.set()

    def start(self, watched: Watched) -> None:
        """Tell from now on, in a thread of its own."""
        if self.wanted:
            threading.Thread(target=self._tell, args=(watched,), name="notify", daemon=True).start()

    def end(self) -> None:
        """Tell that the daemon has stopped, and no more."""
        self._stopped.set()
        if self.wanted:
            self._send_once("STOPPING=1")

    def _ask_for_time(self, composed: threading.Event) -> None:
        for _ in range(int(_LONGEST_START_SECONDS / _PER_MORE_SECONDS)):
            self._send(f"EXTEND_TIMEOUT_USEC={_MORE_SECONDS * _MICROS}")
            if composed.wait(_PER_MORE_SECONDS):
                return

    def _tell(self, watched: Watched) -> None:
        pace = min(_POLL_SECONDS, self._watchdog_seconds / _PER_WATCHDOG or _POLL_SECONDS)
        while True:
            with suppress(Exception):  # telling never ends the daemon; systemd does where the watchdog is not told
                self._tell_once(watched)
            if self._stopped.wait(pace):
                return

    def _tell_once(self, watched: Watched) -> None:
        if watched.is_ready():
            self._send_once("READY=1")
        if watched.is_stopping():
            self._send_once("STOPPING=1")
        line = watched.status()
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line
        # Also in a stop: loops that hang then are to be noticed too.
        if self._watchdog_seconds and watched.is_alive():
            self._send("WATCHDOG=1")

    def _send_once(self, message: str) -> None:
        if message not in self._sent and self._send(message):
            self._sent.add(message)

    def _send(self, message: str) -> bool:
        """Send a message; False when systemd did not take it."""
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_SECONDS)
            try:
                sender.sendto(message.replace("\n", " ").encode(), address)
            except OSError:
                return False
        return True
