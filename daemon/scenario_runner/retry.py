"""The one retry policy: exponential pauses with full jitter, within a budget of time; the last error is raised."""

import time
from collections.abc import Callable

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential


def policy(
    retry_on: type[BaseException] | tuple[type[BaseException], ...],
    *,
    budget_seconds: float,
    first_seconds: float = 0.05,
    most_seconds: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Retrying:
    """How something that may fail for a moment is tried again.

    Args:
        retry_on: Errors that a later try may not meet.
        budget_seconds: No try begins later than this after the first.
        first_seconds: Upper bound of the first pause; it doubles.
        most_seconds: Upper bound of every pause.
        sleep: Pauses.

    Returns:
        A fresh :class:`tenacity.Retrying`; it raises the last error itself when the budget is used up.
    """
    return Retrying(
        retry=retry_if_exception_type(retry_on),
        wait=wait_random_exponential(multiplier=first_seconds, max=most_seconds),
        stop=stop_after_delay(budget_seconds),
        sleep=sleep,
        reraise=True,
    )
