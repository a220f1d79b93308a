"""What an examination may cost, counted with a clock that is moved by hand."""

import threading
from collections.abc import Callable

import pytest

from scenario_runner.artifacts.budget import (
    BATCH_SHARE,
    ExaminationTooLongError,
    ReadBudget,
    ReadBudgetExceeded,
    Share,
)
from scenario_runner.contracts.errors import ScenarioRunnerError
from scenario_runner.contracts.plan import EvidenceBounds

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_everything_within_the_share_passes_and_everything_beyond_is_too_much() -> None:
    share = Share(hash_bytes=10, operations=100, document_bytes=20, patient=False)
    budget = ReadBudget(share=share)
    budget.hashing(10)
    budget.document(20)
    budget.operations(50)
    budget.entries(50)
    for charge in (budget.hashing, budget.document, budget.operations, budget.entries):
        with pytest.raises(ReadBudgetExceeded):
            charge(1)


def test_a_share_of_seconds_is_noticed_while_only_operations_are_charged() -> None:
    clock = Clock()
    budget = ReadBudget(share=Share(seconds=1.0), monotonic=clock)
    for _ in range(1000):
        budget.operations()
    clock.now = 1.5
    with pytest.raises(ReadBudgetExceeded):
        _charge_often(budget.operations)


def test_a_turn_ends_only_when_who_is_asked_says_so_and_the_question_is_not_put_for_every_beat() -> None:
    clock, asked = Clock(), list[float]()

    def over(seconds: float) -> bool:
        asked.append(seconds)
        return seconds > 8

    budget = ReadBudget(share=Share(seconds=5.0, over=over), monotonic=clock)
    for step in range(80):
        clock.now = step / 10
        budget.beat()
    assert 5 < len(asked) < 15
    assert min(asked) > 5
    clock.now = 9.0
    with pytest.raises(ReadBudgetExceeded):
        budget.beat()


def test_the_policys_time_covers_all_turns_of_an_examination() -> None:
    clock = Clock()
    budget = ReadBudget(share=Share(spent_seconds=50.0), bounds=EvidenceBounds(max_look_seconds=60), monotonic=clock)
    clock.now = 9.0
    budget.beat()
    clock.now = 11.0
    with pytest.raises(ExaminationTooLongError, match="max_look_seconds is 60"):
        budget.beat()


def test_the_heartbeat_is_felt_while_files_are_only_listed_and_opened() -> None:
    class GoneError(ScenarioRunnerError):
        pass

    def heartbeat(_hashed: int) -> None:
        raise GoneError("the lease is lost")

    for charge in ("operations", "entries"):
        budget = ReadBudget(heartbeat)
        with pytest.raises(GoneError):
            _charge_often(getattr(budget, charge))


def _charge_often(charge: Callable[[], None]) -> None:
    for _ in range(1000):
        charge()


def test_the_clock_is_not_asked_for_every_operation() -> None:
    beats: list[int] = []
    budget = ReadBudget(beats.append)
    for _ in range(10_000):
        budget.operations()
    assert 100 <= len(beats) <= 200


def test_what_other_threads_do_for_a_cancelled_examination_ends() -> None:
    budget = ReadBudget()
    budget.cancel()
    with pytest.raises(ScenarioRunnerError):
        budget.beat()


def test_whether_an_examination_would_have_fitted_into_a_batch_is_known_afterwards() -> None:
    clock = Clock()
    budget = ReadBudget(monotonic=clock)
    budget.operations(100)
    budget.document(1000)
    assert budget.fits(BATCH_SHARE)
    clock.now = 2.0
    assert not budget.fits(BATCH_SHARE)
    large = ReadBudget()
    large.hashing(1 << 30)
    assert not large.fits(BATCH_SHARE)


def test_examinations_of_very_many_files_go_one_at_a_time() -> None:
    """Their names, identities and digests are in memory all at once."""
    second_has_its_turn = threading.Event()

    def second() -> None:
        with ReadBudget() as budget:
            budget.entries(1_000_000)
            second_has_its_turn.set()

    thread = threading.Thread(target=second)
    with ReadBudget() as budget:
        budget.entries(1_000_000)
        budget.entries(1_000_000)
        thread.start()
        assert not second_has_its_turn.wait(0.1)
        with ReadBudget() as few:
            few.entries(1000)
    assert second_has_its_turn.wait(10)
    thread.join()
