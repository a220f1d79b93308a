"""The retry policy: what is tried again, how often, for how long, and what it costs whoever never retries."""

import subprocess
import sys
import time

import pytest

pytest.importorskip("tenacity")

from scenario_runner.retry import policy

pytestmark = pytest.mark.unit


class Flaky:
    """Fails some times, then answers."""

    def __init__(self, failures: int, error: type[Exception] = OSError) -> None:
        self.left, self.error, self.calls = failures, error, 0

    def __call__(self, answer: str = "done") -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error(f"failure {self.calls}")
        return answer


def is_os_error(error: BaseException) -> bool:
    return isinstance(error, OSError)


def test_what_fails_for_a_while_is_tried_until_it_succeeds() -> None:
    flaky, pauses = Flaky(5), []
    assert policy(is_os_error, budget_seconds=60, sleep=pauses.append)(flaky, "answer") == "answer"
    assert (flaky.calls, len(pauses)) == (6, 5)


def test_pauses_grow_up_to_a_bound_and_are_spread_at_random() -> None:
    longest = [0.0] * 8
    for _ in range(200):
        pauses: list[float] = []
        policy(is_os_error, budget_seconds=1e6, first_seconds=0.1, most_seconds=2, sleep=pauses.append)(Flaky(8))
        assert all(0 <= pause <= min(2, 0.1 * 2**tries) for tries, pause in enumerate(pauses))
        longest = [max(pair) for pair in zip(longest, pauses, strict=True)]
    assert longest == sorted(longest) or longest[-1] > 1
    assert longest[0] > 0.05
    assert longest[6] > 1.5


def test_an_error_that_does_not_go_away_is_raised_at_once() -> None:
    flaky = Flaky(1, ValueError)
    with pytest.raises(ValueError, match="failure 1"):
        policy(is_os_error, budget_seconds=60, sleep=lambda _: None)(flaky)


def test_when_the_time_is_up_the_last_error_itself_is_raised() -> None:
    flaky, begun = Flaky(10**9), time.monotonic()
    with pytest.raises(OSError, match="failure") as raised:
        policy(is_os_error, budget_seconds=0.2, first_seconds=0.01, most_seconds=0.05)(flaky)
    assert time.monotonic() - begun < 2
    assert flaky.calls > 2
    assert str(raised.value) == f"failure {flaky.calls}"


def test_whoever_never_retries_does_not_load_the_library() -> None:
    source = "import sys, scenario_runner.retry; sys.exit('tenacity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], timeout=60, check=False).returncode == 0
