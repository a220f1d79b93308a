"""Splitting a batch into rounds, for effects that must not meet two items with one key at the same time."""

from collections.abc import Hashable, Sequence


def rounds_without_repeats(keys: Sequence[Hashable]) -> list[list[int]]:
    """Split a batch into rounds that hold every key at most once.

    Items with one key are in consecutive rounds in their order, so whoever carries out one round after the other
    carries out those items in order.

    Args:
        keys: The key of each item of the batch.

    Returns:
        Indices into ``keys``, ascending within a round; as many rounds as the most frequent key has items.
    """
    rounds: list[list[int]] = []
    seen: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        number = seen.get(key, 0)
        seen[key] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(index)
    return rounds
