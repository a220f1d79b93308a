"""The size of a batch follows the pace of the last one."""

import pytest

from scenario_runner.service.batch_size import BatchSize

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("runs", "seconds", "next_size"),
    [
        (8, 0.02, 64),
        (64, 0.2, 64),
        (64, 3.6, 17),
        (64, 14.0, 8),
        (8, 1.7, 8),
        (20, 0.8, 25),
        (1, 600.0, 8),
        (1, 0.0, 64),
    ],
    ids=[
        "quick", "quick and full", "57 ms a run", "25 ms an S3 call", "slow and small", "between", "one for minutes",
        "no time at all",
    ],
)  # fmt: skip
def test_the_next_batch_holds_what_takes_about_a_second(runs: int, seconds: float, next_size: int) -> None:
    size = BatchSize()
    size.drove(runs, seconds)
    assert size.runs == next_size


def test_the_first_batch_is_small() -> None:
    assert BatchSize().runs == 8
