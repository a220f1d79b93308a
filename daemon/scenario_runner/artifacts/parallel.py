"""Digests of one examination, taken at the same time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from scenario_runner.artifacts.base import SequenceDigest
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import Refusal

A = TypeVar("A")
R = TypeVar("R")
Found = SequenceDigest | Refusal


def digest_in_parallel(
    pool: ThreadPoolExecutor, budget: ReadBudget, jobs: Iterable[tuple[int, Callable[[], SequenceDigest]]]
) -> list[tuple[int, Found]]:
    """Take digests on a pool; a refusal takes the place of its digest, any other failure ends all of them.

    Args:
        pool: Where.
        budget: Of the examination; cancelled when it ends early, so that other threads end at their next beat.
        jobs: The index of each digest, and the function that takes it.

    Returns:
        Index and digest or refusal of each job.
    """
    futures = [(index, pool.submit(_or_refusal, job)) for index, job in jobs]
    try:
        done, _ = wait([future for _, future in futures], return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            raise failures[0]
    except BaseException:
        budget.cancel()
        for _, future in futures:
            future.cancel()
        raise
    return [(index, future.result()) for index, future in futures]


def map_ahead(pool: ThreadPoolExecutor, function: Callable[[A], R], items: Iterable[A], ahead: int) -> Iterator[R]:
    """Results of a function in the order of its arguments, with some calls under way before they are asked for.

    A pool that others use too is not filled with all calls at once: theirs would wait behind these.

    Args:
        pool: Where.
        function: What to call.
        items: Its arguments; each is taken when its call is handed to the pool.
        ahead: Most calls under way.
    """
    under_way: deque[Future[R]] = deque()
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


def _or_refusal(job: Callable[[], SequenceDigest]) -> Found:
    try:
        return job()
    except Refusal as refusal:
        return refusal
