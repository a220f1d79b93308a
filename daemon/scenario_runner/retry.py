"""The one retry policy: exponential backoff with full jitter inside a budget of time.

Whoever retries says which errors may go away by themselves and how long its caller can wait; what is retried must be
safe to run again. A call that succeeds at once should not come here: the policy costs more than the call.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tenacity


def policy(
    retry_on: Callable[[BaseException], bool],
    *,
    budget_seconds: float,
    first_seconds: float = 0.05,
    most_seconds: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> "tenacity.Retrying":
    """A policy to call something with: ``policy(...)(function, argument)``.

    Args:
        retry_on: True for an error that may go away by itself.
        budget_seconds: No further try begins when this time would have passed before it.
        first_seconds: Longest pause after the first failure; doubled with every further one.
        most_seconds: Longest pause of all.
        sleep: Waits some seconds.

    Returns:
        A policy that raises the last error itself when the budget is spent.
    """
    import tenacity  # noqa: PLC0415 - most processes never retry anything

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(retry_on),
        wait=tenacity.wait_random_exponential(multiplier=first_seconds, max=most_seconds),
        stop=tenacity.stop_before_delay(budget_seconds),
        sleep=sleep,
        reraise=True,
    )
