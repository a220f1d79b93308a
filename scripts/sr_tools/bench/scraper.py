"""A scraper of ``/metrics``, as Prometheus would be, and a free port for the listener."""

import http.client
import socket
import threading
import time
from typing import Final, Self

#: A scrape that takes longer has failed; Prometheus waits 10 s unless told otherwise.
_SECONDS: Final = 10.0


def free_port() -> int:
    """A port of this host on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Scraper:
    """Reads ``/metrics`` at a steady pace, as a context.

    Attributes:
        times: Seconds that each whole answer took.
        failed: Scrapes without a whole answer.
        last: Values without labels of the last whole answer.

    Args:
        port: Where the daemon listens.
        seconds: Between two scrapes.
    """

    def __init__(self, port: int, seconds: float) -> None:
        self.times: list[float] = []
        self.failed = 0
        self.last: dict[str, float] = {}
        self._port, self._seconds = port, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            began = time.perf_counter()
            if self._scrape():
                self.times.append(time.perf_counter() - began)
            else:
                self.failed += 1

    def _scrape(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        self.last = plain_values(text)
        return "sr_build_info" in text and answer.status == http.client.OK

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def plain_values(text: str) -> dict[str, float]:
    """Values of the series without labels of an exposition in Prometheus' text format."""
    lines = (line.split(" ") for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
    return {line[0]: float(line[1]) for line in lines}
