"""Work of one examination that is done at the same time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from scenario_runner.artifacts.base import SequenceDigest
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import Refusal

A = TypeVar("A")
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


def map_ahead(pool: ThreadPoolExecutor, function: Callable[[A], T], items: Iterable[A], ahead: int) -> Iterator[T]:
    """Results of a function in the order of its arguments, with some calls under way before they are asked for.

    A pool that others use too is not filled with all calls at once: theirs would wait behind these.

    Args:
        pool: Where.
        function: What to call.
        items: Its arguments; each is taken when its call is handed to the pool.
        ahead: Most calls under way.
    """
    under_way: deque[Future[T]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def or_refusal(digest: Callable[[], SequenceDigest]) -> Found:
    """A digest, or the refusal in its place."""
    try:
        return digest()
    except Refusal as refusal:
        return refusal
