"""Batches of bounded length and size: nothing is lost, and no bound is passed that one item alone keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenario_runner.bus.batching import bounded_batches

pytestmark = pytest.mark.unit


@given(st.lists(st.binary(max_size=12)), st.integers(1, 5), st.integers(1, 20))
def test_batches_hold_everything_in_order_and_keep_their_bounds(items: list[bytes], most: int, most_bytes: int) -> None:
    batches = list(bounded_batches(items, len, most, most_bytes))
    assert [item for batch in batches for item in batch] == items
    assert all(0 < len(batch) <= most for batch in batches)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= most_bytes for batch in batches)


def test_a_batch_is_given_out_before_the_next_is_read() -> None:
    read: list[int] = []
    source = (read.append(number) or number for number in range(9))
    batches = bounded_batches(source, lambda _: 1, 3, 100)
    assert next(batches) == [0, 1, 2]
    assert read == [0, 1, 2, 3]
