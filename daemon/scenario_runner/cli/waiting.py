"""Waiting for a verdict: ask the authority until there is one, the time is over, or a signal comes."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import typer

from scenario_runner.cli.console import Exit, exit_for_state, print_err
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.retry import RetryPolicy

#: Each pause is a quarter of the time waited so far, so a verdict is seen little later than it came; many commands that
#: wait for hours ask their authority every two seconds each.
_PAUSES: Final = RetryPolicy(first_seconds=0.05, most_seconds=2.0, factor=1.25)


def check_timeout(*, wait: bool, timeout: float | None) -> None:
    """Refuse a timeout of a command that does not wait, and one that is no number.

    Raises:
        UsageError: ``--timeout`` stands without ``--wait``, or is ``nan``.
    """
    if timeout is not None and math.isnan(timeout):
        raise UsageError("--timeout: is not a number of seconds")
    if timeout is not None and not wait:
        raise UsageError("--timeout needs --wait")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM raise ``KeyboardInterrupt``, as SIGINT does."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_for_verdict(ask: Callable[[], Json], timeout: float | None) -> Json:
    """Ask until the state is a verdict. An authority that is away is waited for like a verdict.

    Args:
        ask: Returns a document with the ``state``; raises ``Unavailable`` while the authority is away.
        timeout: Seconds to wait; None for no bound. It is asked at least once.

    Returns:
        The last answer: a verdict, or when the time is over or a signal came what there was instead.

    Raises:
        Unavailable: The authority was away when the time was over.
        typer.Exit: A signal came before the first answer.
    """
    latest: list[Json] = []
    try:
        with interruptible():
            return _ask_until_verdict(ask, timeout, latest)
    except KeyboardInterrupt:
        print_err("interrupted: there is no verdict yet")
        if not latest:
            raise typer.Exit(Exit.WAITING) from None
        return latest[0]


def _ask_until_verdict(ask: Callable[[], Json], timeout: float | None, latest: list[Json]) -> Json:
    """See :func:`wait_for_verdict`; ``latest`` holds the newest answer."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    away: Unavailable | None = None
    asked = 0
    while True:
        try:
            latest[:] = [ask()]
            away = None
        except Unavailable as error:
            if away is None:
                print_err(f"waiting for the authority: {error.detail}")
            away = error
        if away is None and exit_for_state(latest[0]["state"]) is not Exit.WAITING:
            return latest[0]
        left = deadline - time.monotonic()
        if left <= 0 and away is not None:
            raise away
        if left <= 0:
            return latest[0]
        asked += 1
        time.sleep(min(_PAUSES.pause_seconds(asked), left))
