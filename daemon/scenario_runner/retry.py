"""The one retry policy: exponential pauses with full jitter, within a budget of seconds, then the last error."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import tenacity

FIRST_SECONDS: Final = 0.05
MOST_SECONDS: Final = 2.0


def policy(
    retry_on: Callable[[BaseException], bool],
    *,
    budget_seconds: float,
    first_seconds: float = FIRST_SECONDS,
    most_seconds: float = MOST_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> "tenacity.Retrying":
    """A policy to call things with: ``policy(...)(function, argument)``.

    Args:
        retry_on: Whether an exception is worth another try.
        budget_seconds: No new try begins that would end its pause later than this after the first.
        first_seconds: The first pause lies between nothing and this; it doubles with every try.
        most_seconds: No pause is longer than this.
        sleep: Waits some seconds.

    Returns:
        A tenacity policy that raises the last exception itself once it gives up.
    """
    import tenacity  # noqa: PLC0415 - the embedded default does without it

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(retry_on),
        wait=tenacity.wait_random_exponential(multiplier=first_seconds, max=most_seconds),
        stop=tenacity.stop_before_delay(budget_seconds),
        sleep=sleep,
        reraise=True,
    )
