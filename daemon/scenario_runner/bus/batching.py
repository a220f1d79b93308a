"""Splitting a sequence into batches that a service or a transaction can take."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def bounded_batches(
    items: Iterable[T], size_of: Callable[[T], int], most_items: int, most_bytes: int
) -> Iterator[list[T]]:
    """Split items into batches of bounded length and size, in order.

    Args:
        items: What to split; consumed as far as the batches are.
        size_of: Size of an item in bytes.
        most_items: Most items of a batch.
        most_bytes: Most bytes of a batch; an item that is larger makes a batch of its own.

    Returns:
        Batches, none of them empty.
    """
    batch: list[T] = []
    batch_bytes = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == most_items or batch_bytes + size > most_bytes):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(item)
        batch_bytes += size
    if batch:
        yield batch
