"""Work of one examination that is done at the same time."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from scenario_runner.artifacts.base import SequenceDigest
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import Refusal

T = TypeVar("T")
Found = SequenceDigest | Refusal


def in_parallel(pool: ThreadPoolExecutor, budget: ReadBudget, jobs: Iterable[Callable[[], T]]) -> list[T]:
    """Do jobs on a pool; the failure of one ends all of them.

    Args:
        pool: Where.
        budget: Of the examination; cancelled when it ends early, so that other threads end at their next beat.
        jobs: What to do.

    Returns:
        The result of each job.
    """
    futures = [pool.submit(job) for job in jobs]
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            raise failures[0]
    except BaseException:
        budget.cancel()
        for future in futures:
            future.cancel()
        raise
    return [future.result() for future in futures]


def or_refusal(digest: Callable[[], SequenceDigest]) -> Found:
    """A digest, or the refusal in its place."""
    try:
        return digest()
    except Refusal as refusal:
        return refusal
