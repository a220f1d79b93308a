"""Effects of many lifecycles performed together: what runs share, and what the failure of one does to the others."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from test_execution import BROKE, Engine, attempt_row, forced, over
from test_lifecycle import CONFLICT, INPUTS, INTENT, MISSING, NOW, PACK, claim, passed

from scenario_runner.artifacts.budget import BATCH_SHARE, UNLIMITED, Share
from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.errors import LeaseLostError, LedgerDrift, SequenceError, Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import RunState
from scenario_runner.evidence.examiner import ExaminationDeferred
from scenario_runner.evidence.findings import Finding
from scenario_runner.evidence.key import EvidenceKey, evidence_key
from scenario_runner.runs import batch
from scenario_runner.runs.batch import RunDriver
from scenario_runner.runs.effects import Effect, FindJob, PrepareLaunch, WriteReceipts
from scenario_runner.runs.member import Member
from scenario_runner.runs.transitions import retry_later

pytestmark = pytest.mark.unit

DRIFT = LedgerDrift("other bytes", Reason.PLAN_DRIFT, place="/x", expected="a", actual="b")
AWAY = Unavailable("the store is away")


def runs(*names: str, root: str = "/engine/run") -> list[Claim]:
    intents = [Intent(**{**vars_of(INTENT), "run_id": name * 32, "engine_run_root": root}) for name in names]
    return [claim(intent) for intent in intents]


def vars_of(intent: Intent) -> dict[str, Any]:
    return {name: getattr(intent, name) for name in Intent.__dataclass_fields__}


class Place:
    """An authority, a ledger, an examiner and leases that do what a test says, and remember what was asked of them."""

    def __init__(self) -> None:
        self.finding: Finding = passed()
        self.failures: dict[tuple[str, str], Exception] = {}
        self.lost: set[str] = set()
        self.asked: list[tuple[str, list[str]]] = []
        self.committed: list[Transition] = []
        self.released: list[str] = []
        self.packs_away: set[str] = set()
        me: Any = self
        self.driver = RunDriver(me, me, me, me)

    def _each(self, step: str, run_ids: Sequence[str]) -> list[Any]:
        self.asked.append((step, [run_id[:1] for run_id in run_ids]))
        if (step, "all") in self.failures:
            raise self.failures[step, "all"]
        return [self.failures.get((step, run_id[:1])) for run_id in run_ids]

    # authority
    def now_us(self) -> int:
        self._each("clock", [])
        return NOW

    def commit(self, transitions: Sequence[Transition]) -> list[LeaseLostError | None]:
        losses = self._each("commit", [item.claim.run_id for item in transitions])
        self.committed += [item for item, lost in zip(transitions, losses, strict=True) if lost is None]
        return losses

    # ledger
    def write_plans(self, plans: Sequence[Any]) -> list[Any]:
        return self._each("plans", [plan["run_id"] for plan in plans])

    def check_facts_view(self, view: Any) -> None:
        (failure,) = self._each("check", [view.document["run_id"]])
        if failure is not None:
            raise failure

    def receipts_in_place(self, _receipts: Any) -> bool:
        return False

    def write_receipts(self, receipts: Sequence[Any]) -> list[Any]:
        return self._each("receipts", [str(item.output_id) for item in receipts])

    def write_facts_views(self, views: Sequence[Any]) -> list[Any]:
        return self._each("views", [view.document["run_id"] for view in views])

    # examiner
    def key_of(self, intent: Intent, inputs: PlanInputs) -> EvidenceKey:
        if intent.run_id[:1] in self.packs_away:
            raise AWAY
        return evidence_key(intent.engine_run_root, PACK, intent.tokens(), inputs.gates, inputs.outputs, inputs.bounds)

    def examine(self, key: EvidenceKey, heartbeat: Callable[[], None], _share: Share, _run_id: str) -> Finding:
        (failure,) = self._each("examine", [key.root.rsplit("/", 1)[-1]])
        if failure is not None:
            raise failure
        heartbeat()
        return self.finding

    # leases
    def check(self, run: Claim) -> None:
        if run.run_id[:1] in self.lost:
            raise LeaseLostError("it ran out")

    def release(self, run: Claim) -> None:
        self.released.append(run.run_id[:1])

    def states(self) -> dict[str, RunState]:
        return {item.claim.run_id[:1]: item.to_state for item in self.committed if not item.keep_lease}

    def steps(self, step: str) -> list[list[str]]:
        return [who for name, who in self.asked if name == step]


@pytest.fixture
def place() -> Place:
    return Place()


def test_runs_with_equal_evidence_share_one_examination_and_one_check_and_every_effect_is_performed_once(
    place: Place,
) -> None:
    assert place.driver.drive(runs("a", "b", "c")) == []
    assert place.states() == dict.fromkeys("abc", RunState.READY)
    together = ["a", "b", "c"]
    for step in ("plans", "views"):
        assert place.steps(step) == [together]
    assert place.steps("commit") == [together, together], "the passes, then the verdicts"
    assert place.steps("receipts") == [["o", "o", "o"]]
    assert (len(place.steps("examine")), place.steps("check")) == (1, [["a"]])
    assert sorted(place.released) == together


def test_runs_with_other_evidence_share_nothing(place: Place) -> None:
    place.driver.drive([*runs("a"), *runs("b", root="/engine/other")])
    assert (len(place.steps("examine")), place.steps("check")) == (2, [["a"], ["b"]])


@pytest.mark.parametrize("step", ["plans", "views"])
@pytest.mark.parametrize(("failure", "state"), [(DRIFT, RunState.QUARANTINED), (AWAY, RunState.VERIFYING)])
def test_the_failure_of_one_run_is_no_other_ones(place: Place, step: str, failure: Exception, state: RunState) -> None:
    place.failures[step, "b"] = failure
    place.driver.drive(runs("a", "b", "c"))
    assert place.states() == {"a": RunState.READY, "b": state, "c": RunState.READY}


def test_a_receipt_that_cannot_be_written_is_its_runs_failure(place: Place) -> None:
    place.failures["receipts", "o"] = DRIFT
    place.driver.drive(runs("a"))
    assert place.states() == {"a": RunState.QUARANTINED}
    assert place.steps("views") == []


def test_nothing_of_a_run_goes_on_before_its_plan_is_in_place_whatever_the_evidence_says(place: Place) -> None:
    for finding in (passed(), MISSING, CONFLICT):
        place.finding, place.failures = finding, {("plans", "a"): AWAY}
        place.driver.drive(runs("a"))
        assert place.committed[-1].to_state is RunState.VERIFYING
        assert place.committed[-1].last_error == "the store is away"
    assert place.steps("views") == []


def test_a_plan_that_failed_is_no_reason_to_commit_without_a_lease(place: Place) -> None:
    place.failures["plans", "a"], place.lost = DRIFT, {"a"}
    place.driver.drive(runs("a"))
    assert place.committed == []


def test_the_next_run_of_a_group_is_examined_for_when_the_first_loses_its_lease(place: Place) -> None:
    real = place.write_plans

    def write_plans(plans: Sequence[Any]) -> list[Any]:
        place.lost = {"a", "b"}  # from now on
        return real(plans)

    place.write_plans = write_plans  # type: ignore[method-assign]
    place.driver.drive(runs("a", "b", "c", "d"))
    assert len(place.steps("examine")) == 3
    assert place.states() == {"c": RunState.READY, "d": RunState.READY}
    assert sorted(place.released) == ["a", "b", "c", "d"]


def test_a_run_whose_lease_ran_out_before_its_plan_writes_nothing(place: Place) -> None:
    place.lost = {"a"}
    place.driver.drive(runs("a", "b"))
    assert (place.steps("plans"), place.steps("views")) == ([["b"]], [["b"]])
    assert place.states() == {"b": RunState.READY}
    assert sorted(place.released) == ["a", "b"]


def test_a_run_whose_lease_ran_out_meanwhile_writes_nothing_more(place: Place) -> None:
    real = place.commit

    def commit(transitions: Sequence[Transition]) -> list[LeaseLostError | None]:
        place.lost = {"a"}
        return real(transitions)

    place.commit = commit  # type: ignore[method-assign]
    place.driver.drive(runs("a", "b"))
    assert place.steps("views") == [["b"]]
    assert place.states() == {"b": RunState.READY}


def test_a_run_whose_passes_another_worker_recorded_writes_nothing_more(place: Place) -> None:
    place.failures["commit", "a"] = LeaseLostError("another worker")
    place.driver.drive(runs("a", "b"))
    assert place.steps("views") == [["b"]]
    assert place.states() == {"b": RunState.READY}


def test_all_of_a_group_are_deferred_together_and_keep_their_leases(place: Place) -> None:
    key = place.key_of(INTENT, INPUTS)
    place.failures["examine", "r"] = ExaminationDeferred(key)
    deferred = place.driver.drive([*runs("a", "b"), *runs("c", root="/engine/other")], BATCH_SHARE)
    assert [(item.claim.run_id[:1], item.evidence) for item in deferred] == [("a", key), ("b", key)]
    assert place.released == ["c"]
    assert place.states() == {"c": RunState.READY}


def test_a_plan_that_failed_outweighs_a_deferral(place: Place) -> None:
    place.failures |= {("examine", "r"): ExaminationDeferred(place.key_of(INTENT, INPUTS)), ("plans", "a"): DRIFT}
    assert place.driver.drive(runs("a"), BATCH_SHARE) == []
    assert place.states() == {"a": RunState.QUARANTINED}


def test_a_pinned_pack_that_cannot_be_read_puts_off_the_runs_that_need_it(place: Place) -> None:
    place.packs_away = {"b"}
    place.driver.drive(runs("a", "b"))
    assert place.states() == {"a": RunState.READY, "b": RunState.VERIFYING}


@pytest.mark.parametrize("step", ["examine", "check"])
def test_a_defect_puts_off_the_runs_that_it_is_about(place: Place, step: str) -> None:
    place.failures[step, "r" if step == "examine" else "a"] = KeyError("a defect")
    place.driver.drive([*runs("a"), *runs("b", root="/engine/other")])
    assert place.states() == {"a": RunState.VERIFYING, "b": RunState.READY}


@pytest.mark.parametrize("step", ["examine", "check"])
def test_a_wrong_order_of_steps_stops_the_worker_and_gives_no_lease_back_as_if_all_were_well(
    place: Place, step: str
) -> None:
    place.failures[step, "r" if step == "examine" else "a"] = SequenceError("ours")
    with pytest.raises(SequenceError):
        place.driver.drive([*runs("a"), *runs("b", root="/engine/other")])
    assert place.committed == []
    assert sorted(place.released) == ["a", "b"], "they are not renewed any more"


def test_a_defect_of_a_whole_stage_puts_its_runs_off_and_stops_no_daemon(place: Place) -> None:
    place.failures["plans", "all"] = KeyError("a defect")
    place.driver.drive(runs("a", "b"))
    assert place.states() == {"a": RunState.VERIFYING, "b": RunState.VERIFYING}
    assert all("a defect" in item.last_error for item in place.committed)


def test_a_refusal_of_a_whole_stage_is_no_verdict_about_its_runs(place: Place) -> None:
    place.failures["plans", "all"] = DRIFT
    with pytest.raises(LedgerDrift):
        place.driver.drive(runs("a", "b"))
    assert place.committed == []


def test_an_effect_that_nothing_performs_is_a_wrong_order_of_steps(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> Iterator[object]:
        yield object()

    monkeypatch.setattr(batch, "lifecycle", unknown)
    with pytest.raises(SequenceError, match="no performer"):
        place.driver.drive(runs("a"))


@pytest.mark.parametrize("step", ["clock", "commit"])
def test_an_authority_that_does_not_answer_is_no_outcome(place: Place, step: str) -> None:
    place.failures[step, "all"] = AWAY
    place.driver.drive(runs("a", "b"), BATCH_SHARE)
    assert place.committed == []
    assert sorted(place.released) == ["a", "b"]


@pytest.mark.parametrize(
    ("share", "now_us", "state"),
    [(BATCH_SHARE, NOW - 1, RunState.WAITING_EVIDENCE), (BATCH_SHARE, NOW, RunState.FAILED),
     (UNLIMITED, NOW - 1, RunState.FAILED)],
    ids=["batch, claimed before the deadline", "batch, claimed at the deadline", "deferred run, examined after it"],
)  # fmt: skip
def test_a_batch_is_examined_when_it_is_claimed_and_a_deferred_run_when_its_turn_comes(
    place: Place, share: Share, now_us: int, state: RunState
) -> None:
    place.finding = MISSING
    place.driver.drive([claim(now_us=now_us, deadline_us=NOW)], share)
    assert place.committed[-1].to_state is state


def test_one_receipt_of_several_that_cannot_be_written_is_its_runs_failure(place: Place) -> None:
    """The run waits with its facts view, and with READY, until every receipt is in place."""
    receipts: Any = tuple(SimpleNamespace(output_id=name) for name in "opq")
    place.failures["receipts", "p"] = DRIFT
    answers: list[Any] = []

    def steps() -> Generator[Effect, Any, Transition]:
        try:
            answers.append((yield WriteReceipts(receipts)))
        except LedgerDrift as failure:
            answers.append(failure)
        return retry_later(claim(), NOW + 1, "")

    member = Member(claim(), steps())
    member.resume(None)
    place.driver.advance(member)
    assert answers == [DRIFT]


def test_the_end_of_a_run_is_logged_as_such_also_when_it_is_that_of_its_engine(place: Place) -> None:
    end = Engine(BROKE).live(forced(state=RunState.EXECUTING, attempts=(over(1), over(2))))
    assert end.to_state is RunState.FAILED
    assert end.attempt is not None
    with capture_logs() as logs:
        assert place.driver.finish(Member(end.claim, iter(()), transition=end))  # type: ignore[arg-type]
    assert [(line["event"], line["state"]) for line in logs] == [("run ended", RunState.FAILED)]


def test_nothing_is_asked_for_no_runs(place: Place) -> None:
    assert place.driver.drive([]) == []
    place.lost = {"a"}
    place.driver.drive(runs("a"))
    asked = [step for step, _ in place.asked]
    assert asked == ["clock", "examine"], "the time of the examination, and nothing of effects that nobody waits for"


def engine_runs() -> list[Claim]:
    """One whose engine is to be launched after its plan, and one whose engine may be running already."""
    launched = forced(state=RunState.EXECUTING, attempts=(attempt_row(),))
    return [forced(), replace(launched, run_id="e" * 32)]


def test_runs_whose_engine_is_next_are_handed_over_with_their_leases_and_the_others_go_on(place: Place) -> None:
    handed: list[Member] = []
    place.driver.hand_over_to(handed.append)
    assert place.driver.drive([*engine_runs(), *runs("b")]) == []
    assert [type(member.effect) for member in handed] == [FindJob, PrepareLaunch]
    assert place.states() == {"b": RunState.READY}
    assert place.released == ["b"]


def test_runs_that_need_an_engine_wait_for_a_daemon_that_has_one(place: Place) -> None:
    place.driver.drive([*engine_runs(), *runs("b")])
    ends = {item.claim.run_id[:1]: item for item in place.committed if not item.keep_lease}
    assert {name: item.retries for name, item in ends.items()} == {INTENT.run_id[:1]: 1, "e": 1, "b": 0}
    assert all("configures no engine" in ends[name].last_error for name in ends.keys() - {"b"})
