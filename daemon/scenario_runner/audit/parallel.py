"""Applying a function to items of any number in parallel, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(pool: Executor | None, function: Callable[[A], B], items: Iterable[A], window: int) -> Iterator[B]:
    """Apply a function in parallel to items of any number; results in their order, at most ``window`` ahead.

    Without a pool it is applied in the calling thread: where nothing is waited for, handing over costs more.
    """
    if pool is None:
        for item in items:  # and not map: it would take a StopIteration of the function for the end
            yield function(item)
        return
    source, running = iter(items), deque[Future[B]]()
    try:
        for item in islice(source, window):
            running.append(pool.submit(function, item))
        while running:
            result = running.popleft().result()
            for item in islice(source, 1):
                running.append(pool.submit(function, item))
            yield result
    finally:
        for future in running:
            future.cancel()
