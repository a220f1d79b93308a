"""The one retry policy: how long to pause after a failure, and a call that is tried again at that pace.

The caller says which errors may go away by themselves. What is tried again must be safe to run twice.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")
#: Failures after which a pause grows no further: 2**60 times anything is over every bound, 2.0**1024 is an error.
_MOST_DOUBLINGS: Final = 60
#: Microseconds in a second.
_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off: each pause is a multiple of the one before it, up to a bound.

    Attributes:
        first_seconds: Pause after the first failure.
        most_seconds: Longest pause.
        factor: How much longer every pause is than the one before it.
        jitter: Wait a random part of each pause. For many clients of one server: without it they all come back in the
            same moment, and overload it again.
        deadline_seconds: No try begins later than this after the first failure; None for no deadline.
        most_tries: How many tries are made, the first one counted; None for no bound.
    """

    first_seconds: float
    most_seconds: float
    factor: float = 2.0
    jitter: bool = False
    deadline_seconds: float | None = None
    most_tries: int | None = None

    def pause_seconds(self, failures: int) -> float:
        """The pause after so many failures in a row (at least 1), in seconds; with jitter the longest one."""
        return min(self.most_seconds, self.first_seconds * self.factor ** min(failures - 1, _MOST_DOUBLINGS))

    def pause_us(self, failures: int) -> int:
        """The same in microseconds, as rows of the authority count time."""
        return round(self.pause_seconds(failures) * _MICROS)


def _ignore(_failure: BaseException, _pause: float) -> None:
    """Ignore a failure."""


def with_retries(
    call: Callable[[], T],
    policy: RetryPolicy,
    retry_on: Callable[[BaseException], bool],
    *,
    wait: Callable[[float], object] = time.sleep,
    on_failure: Callable[[BaseException, float], None] = _ignore,
) -> T:
    """Call something until it succeeds, or until the policy ends.

    Args:
        call: What to call.
        policy: When to try again, and for how long.
        retry_on: True for an error that may go away by itself.
        wait: Waits some seconds. A true answer ends the retries: pass ``event.wait`` to stop when an event is set.
        on_failure: Called with the error and the pause in seconds before each wait.

    Returns:
        What the call returned.

    Raises:
        BaseException: The error of the last try, when it is none to retry, the policy ended, or the wait was ended.
    """
    try:
        # Not through tenacity, which costs more than most calls and is not even loaded before something fails.
        return call()
    except Exception as error:
        if not retry_on(error):
            raise
        unseen = [error]

    def again() -> T:
        if unseen:
            raise unseen.pop()  # to tenacity the first call is the first try: its failure is paused for and counted
        return call()

    return _tenacity(policy, retry_on, wait, on_failure)(again)


def _tenacity(
    policy: RetryPolicy,
    retry_on: Callable[[BaseException], bool],
    wait: Callable[[float], object],
    on_failure: Callable[[BaseException, float], None],
) -> "tenacity.Retrying":
    """A policy in the terms of tenacity."""
    import tenacity  # noqa: PLC0415 - most processes never retry anything

    def pause(state: tenacity.RetryCallState) -> float:
        longest = policy.pause_seconds(state.attempt_number)
        return random.uniform(0, longest) if policy.jitter else longest  # noqa: S311 - no secret hangs on it

    def report_and_wait(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        assert error is not None
        on_failure(error, state.upcoming_sleep)
        if wait(state.upcoming_sleep):
            raise error

    stops: list[tenacity.stop.stop_base] = []
    if policy.deadline_seconds is not None:
        stops.append(tenacity.stop_before_delay(policy.deadline_seconds))
    if policy.most_tries is not None:
        stops.append(tenacity.stop_after_attempt(policy.most_tries))
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(retry_on),
        wait=pause,
        stop=tenacity.stop_any(*stops),
        before_sleep=report_and_wait,  # waits here: `sleep` is not given the error that an ended wait must raise
        sleep=lambda _seconds: None,
        reraise=True,
    )
