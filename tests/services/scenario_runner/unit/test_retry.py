"""The retry policy: how long it pauses, what is tried again, when it ends, and what it costs whoever never retries."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenario_runner.retry import RetryPolicy, with_retries

pytestmark = pytest.mark.unit

POLICY = RetryPolicy(first_seconds=0.1, most_seconds=2)


class Flaky:
    """Fails some times, then answers."""

    def __init__(self, failures: int, error: type[BaseException] = OSError) -> None:
        self.left, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error(f"failure {self.calls}")
        return "done"


def is_os_error(error: BaseException) -> bool:
    return isinstance(error, OSError)


# --- pauses


def test_pauses_double_up_to_a_bound() -> None:
    policy = RetryPolicy(first_seconds=5, most_seconds=30)
    assert [policy.pause_seconds(failures) for failures in range(1, 6)] == [5, 10, 20, 30, 30]
    assert [policy.pause_us(failures) for failures in (1, 4)] == [5_000_000, 30_000_000]


def test_the_factor_says_how_fast_pauses_grow() -> None:
    assert [replace(POLICY, factor=3).pause_seconds(failures) for failures in (1, 2, 3)] == pytest.approx(
        [0.1, 0.3, 0.9]
    )
    assert replace(POLICY, factor=1).pause_seconds(1000) == 0.1


@given(st.integers(1, 10**9), st.floats(0.001, 10), st.floats(10, 10**6), st.floats(1, 10))
def test_however_often_something_failed_the_pause_keeps_its_bounds(
    failures: int, first: float, most: float, factor: float
) -> None:
    policy = RetryPolicy(first, most, factor)
    assert first <= policy.pause_seconds(failures) <= policy.pause_seconds(failures + 1) <= most


# --- calls


def test_what_fails_for_a_while_is_tried_until_it_succeeds() -> None:
    flaky, pauses = Flaky(5), []
    assert with_retries(flaky, POLICY, is_os_error, wait=pauses.append) == "done"
    assert flaky.calls == 6
    assert pauses == [POLICY.pause_seconds(failures) for failures in range(1, 6)]


def test_with_jitter_pauses_are_spread_at_random_below_their_bounds() -> None:
    longest = [0.0] * 8
    for _ in range(200):
        pauses: list[float] = []
        with_retries(Flaky(8), replace(POLICY, jitter=True), is_os_error, wait=pauses.append)
        assert all(0 <= pause <= min(2, 0.1 * 2**tries) for tries, pause in enumerate(pauses))
        longest = [max(pair) for pair in zip(longest, pauses, strict=True)]
    assert longest[0] > 0.05
    assert longest[6] > 1.5


def test_whoever_asks_is_told_each_failure_and_the_pause_after_it() -> None:
    told: list[tuple[str, float]] = []
    with_retries(
        Flaky(2),
        POLICY,
        is_os_error,
        wait=lambda _: None,
        on_failure=lambda error, pause: told.append((str(error), pause)),
    )
    assert told == [("failure 1", 0.1), ("failure 2", 0.2)]


@pytest.mark.parametrize("failures", [0, 2])
def test_an_error_that_does_not_go_away_is_raised_at_once(failures: int) -> None:
    calls = [OSError("passing")] * failures + [ValueError("lasting")]

    def call() -> None:
        raise calls.pop(0)

    with pytest.raises(ValueError, match="lasting"):
        with_retries(call, POLICY, is_os_error, wait=lambda _: None)
    assert calls == []


def test_what_ends_the_process_is_never_tried_again() -> None:
    flaky = Flaky(1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        with_retries(flaky, POLICY, lambda _: True, wait=lambda _: None)
    assert flaky.calls == 1


def test_when_the_time_is_up_the_last_error_itself_is_raised() -> None:
    flaky, begun = Flaky(10**9), time.monotonic()
    policy = RetryPolicy(first_seconds=0.01, most_seconds=0.05, jitter=True, deadline_seconds=0.2)
    with pytest.raises(OSError, match="failure") as raised:
        with_retries(flaky, policy, is_os_error)
    assert time.monotonic() - begun < 2
    assert flaky.calls > 2
    assert str(raised.value) == f"failure {flaky.calls}"


@pytest.mark.parametrize("tries", [1, 2, 5])
def test_no_more_tries_are_made_than_the_policy_allows(tries: int) -> None:
    flaky, pauses = Flaky(10**9), []
    with pytest.raises(OSError, match=f"failure {tries}"):
        with_retries(flaky, replace(POLICY, most_tries=tries), is_os_error, wait=pauses.append)
    assert (flaky.calls, len(pauses)) == (tries, tries - 1)


def test_a_stop_ends_the_wait_and_raises_the_last_error_without_another_try() -> None:
    flaky, stopping = Flaky(10**9), threading.Event()
    patient = RetryPolicy(first_seconds=3600, most_seconds=3600)
    with pytest.raises(OSError, match="failure 1"):
        with_retries(flaky, patient, is_os_error, wait=stopping.wait, on_failure=lambda _error, _pause: stopping.set())
    assert flaky.calls == 1


def test_whoever_never_retries_does_not_load_the_library() -> None:
    source = (
        "import sys\n"
        "from scenario_runner.retry import RetryPolicy, with_retries\n"
        "with_retries(int, RetryPolicy(1, 1), lambda _: True)\n"
        "sys.exit('tenacity' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], timeout=60, check=False).returncode == 0
