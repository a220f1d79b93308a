"""Daemons on S3 and Postgres under load, and when what they do counts as delivered."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crashing import log_of, start, until, until_up
from parity_support import ParityWorld

if TYPE_CHECKING:
    import subprocess


@contextmanager
def running(*worlds: ParityWorld, count: int = 1) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Daemons that are up; ended by SIGTERM, which they must answer with 0, or killed when the test fails."""
    daemons = [start(world) for world in worlds for _ in range(count)]
    try:
        until_up(*daemons)
        yield daemons
        for daemon in daemons:
            daemon.send_signal(signal.SIGTERM)
        assert [daemon.wait(timeout=30) for daemon in daemons] == [0] * len(daemons), log_of(worlds[0]).read_text()
    finally:
        for daemon in daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()


def until_published(world: ParityWorld, count: int, seconds: float = 60) -> None:
    """Wait for so many signals; the log says why when they do not come."""
    try:
        until(lambda: world.published() >= count, f"{count} signals are on the stream", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; {world.published()} there; {log_of(world).read_text()[-3000:]}") from error


def until_sent(world: ParityWorld, count: int, seconds: float = 60) -> None:
    """Wait until so many signals are on the stream and nothing is owed any more."""
    until_published(world, count, seconds)
    owed = "SELECT count(*) FROM outbox WHERE sent_us IS NULL"
    until(lambda: world.sql(owed) == [(0,)], "every signal is marked sent", seconds, pause=0.1)


def state_of(world: ParityWorld, made: dict[str, Any]) -> str:
    rows = world.sql(f"SELECT state FROM runs WHERE run_id = '{made['run_id']}'")
    return rows[0][0] if rows else ""
