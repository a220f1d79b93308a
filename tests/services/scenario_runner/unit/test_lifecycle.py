"""The order of one run's steps, held without a store or a database: answers in, effects and a transition out."""

import dataclasses
from typing import Any

import pytest
from structlog.testing import capture_logs

from scenario_runner.artifacts.base import FileDigest
from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import (
    ConfigurationError,
    EvidenceMissing,
    EvidenceRefused,
    EvidenceSaysNo,
    LeaseLostError,
    LedgerDrift,
    Refusal,
    SequenceError,
    Unavailable,
)
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState, SignalKind, Strategy
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.evidence.examiner import ExaminationDeferred
from scenario_runner.evidence.findings import Finding, Outcome, refused_without_report
from scenario_runner.evidence.key import evidence_key
from scenario_runner.gates.laws import GatePaths, Measurement, Members
from scenario_runner.gates.receipts import make_attestation
from scenario_runner.gates.verified_set import VerifiedSet
from scenario_runner.interface_pack.loader import build_pack
from scenario_runner.runs.effects import (
    Attest,
    Attested,
    Effect,
    Examined,
    FindReceipts,
    FindSuperseded,
    PlanAndExamine,
    ReadClock,
    RecordProgress,
    WriteFactsView,
    WritePlan,
    WriteReceipts,
)
from scenario_runner.runs.lifecycle import lifecycle

pytestmark = pytest.mark.unit

D = "d" * 64
SECOND = 1_000_000
ADMITTED, NOW = 1_000 * SECOND, 2_000 * SECOND
INTENT = Intent(
    "1" * 32, "key", "a" * 64, "b" * 64, 7, "baseline", (), "2026-01-01", "2026-01-02", (), Strategy.AUTO, "/engine/run"
)
INPUTS = PlanInputs(D, {"policy_id": "p", "revision": "r1"}, Strategy.AUTO, ("one",), ("g",), ("one",), 3600, 3)
PACK = build_pack(
    {"outputs": [{"output_id": "one", "path_template": "one.json", "scope": "scope_seed"}]},
    {
        "gates": [
            {
                "gate_id": "g", "scope": "fingerprint", "passed_flag_path_template": "g/_passed.flag",
                "bundle_root_template": "g/", "authorizes_outputs": ["one"],
                "verification_method": {
                    "kind": "sha256_bundle_digest", "digest_field": "sha256_hex", "ordering": "ascii_lex"
                },
            }
        ]
    },
)  # fmt: skip


def claim(intent: Intent = INTENT, inputs: PlanInputs = INPUTS, **row: Any) -> Claim:
    found: dict[str, Any] = {
        "run_id": intent.run_id, "run_equivalence_key": "key", "epoch": 1, "owner": "w", "state": RunState.VERIFYING,
        "intent": intent.document(), "inputs": inputs.document(), "admitted_us": ADMITTED,
        "deadline_us": ADMITTED + 3600 * SECOND, "updated_us": ADMITTED + 1, "wakes": 0, "retries": 0,
        "report_digest": "", "now_us": NOW,
    }  # fmt: skip
    return Claim(**{**found, **row})


def passed(pack: Any = PACK) -> Finding:
    made = VerifiedSet(pack, ("g",), ("one",))
    members = Members(D, ("g/x",), (), (), frozenset())
    made.admit_gate("g", GatePaths("g/_passed.flag", "g", ""), members, Measurement(D, {}, 1, 10))
    made.admit_output("one", "one.json", [FileDigest("one.json", 3, D)])
    return Finding(
        Outcome.PASS, None, "", {"outcome": "PASS", "gates": [{"gate_id": "g"}], "outputs": []}, made.finish()
    )


def attested(effect: Attest) -> Attested:
    assert effect.finding.verified is not None
    return Attested(make_attestation(effect.finding.verified, effect.key), {"gates": []}, "passes", {"outputs": []})


#: What ends the record of a run whose receipts are in place.
READY_EVENTS = (
    EventKind.FACTS_VIEW_COMMITTED, EventKind.GOV_BUNDLE_HASH, EventKind.GOV_REEMIT_KEY, EventKind.RUN_READY,
)  # fmt: skip


class World:
    """Answers effects, and raises in the place of those that ``fail`` names.

    Args:
        finding: What the examination finds.
        in_place: Whether the receipts were seen in place a moment ago.
        began_us: When the examination began.
        fail: What is raised in the place of the answer to a kind of effect.
        failing_for: How often.
    """

    def __init__(
        self,
        finding: Finding,
        *,
        in_place: bool = False,
        began_us: int = NOW,
        fail: dict[type, Exception] | None = None,
        failing_for: int = 1,
    ) -> None:
        self.finding, self.in_place, self.began_us = finding, in_place, began_us
        self.fail = {kind: [failure] * failing_for for kind, failure in (fail or {}).items()}
        self.asked: list[Effect] = []

    def answer(self, effect: Effect) -> Any:
        if isinstance(effect, PlanAndExamine):
            return Examined(self.finding, self.began_us)
        if isinstance(effect, Attest):
            return attested(effect)
        if isinstance(effect, FindReceipts):
            return self.in_place
        if isinstance(effect, FindSuperseded):
            return RunState.FAILED
        if isinstance(effect, ReadClock):
            return NOW
        return effect.transition.claim_after if isinstance(effect, RecordProgress) else None

    def live(self, run: Claim) -> Transition:
        """Drive one lifecycle to its end."""
        steps = lifecycle(run)
        effect = next(steps)
        try:
            while True:
                self.asked.append(effect)
                failures = self.fail.get(type(effect))
                failure = failures.pop() if failures else None
                effect = steps.throw(failure) if failure is not None else steps.send(self.answer(effect))
        except StopIteration as end:
            transition = end.value
            assert isinstance(transition, Transition)
            return transition

    @property
    def kinds(self) -> list[type]:
        return [type(effect) for effect in self.asked]


TO_READY = [
    PlanAndExamine, Attest, FindReceipts, ReadClock, RecordProgress, WriteReceipts, WriteFactsView, ReadClock,
]  # fmt: skip


def events(transition: Transition) -> list[EventKind]:
    return [event.kind for event in transition.events]


def test_the_way_to_ready() -> None:
    world = World(passed())
    end = world.live(claim())
    assert world.kinds == TO_READY
    assert (end.to_state, end.due_us, end.keep_lease, end.reason_code) == (RunState.READY, None, False, "")
    assert events(end) == [EventKind.RECEIPTS_COMMITTED, *READY_EVENTS]
    (progress,) = [effect.transition for effect in world.asked if isinstance(effect, RecordProgress)]
    assert (progress.to_state, progress.keep_lease, events(progress)) == (
        RunState.VERIFYING, True, [EventKind.GATES_PASSED]
    )  # fmt: skip
    (view,) = [effect.view for effect in world.asked if isinstance(effect, WriteFactsView)]
    assert end.signal is not None
    assert (end.signal.kind, end.signal.message_id) == (SignalKind.READY, view.message_id)
    assert end.signal.attributes == {"facts_view_digest": view.digest, "run_id": end.claim.run_id}
    assert end.facts_view_digest == view.digest
    assert end.claim.updated_us == progress.at_us < end.at_us


def test_the_plan_and_the_receipts_that_are_written_are_the_runs() -> None:
    world = World(passed())
    world.live(claim())
    (first, *_) = world.asked
    assert isinstance(first, PlanAndExamine)
    assert first.plan["run_id"] == INTENT.run_id
    assert (first.intent, first.inputs) == (INTENT, INPUTS)
    found = next(effect for effect in world.asked if isinstance(effect, FindReceipts))
    written = next(effect for effect in world.asked if isinstance(effect, WriteReceipts))
    assert [item.output_id for item in written.receipts] == ["one"]
    assert written.receipts == found.receipts


def test_passes_that_are_on_record_are_not_recorded_again() -> None:
    world = World(passed())
    end = world.live(claim(report_digest="passes"))
    assert world.kinds == [kind for kind in TO_READY if kind is not RecordProgress][:3] + TO_READY[5:]
    assert events(end) == [EventKind.RECEIPTS_COMMITTED, *READY_EVENTS]


def test_a_correction_asks_for_the_end_of_the_run_it_supersedes_and_tells_both_records_with_its_ready() -> None:
    world, old = World(passed()), "2" * 32
    end = world.live(claim(supersession=Supersession(old, "late data", "LATE")))
    assert world.kinds == [*TO_READY[:-1], FindSuperseded, ReadClock]
    assert events(end)[-2:] == [EventKind.RUN_READY, EventKind.SUPERSEDES]
    made = end.superseding
    assert made is not None
    assert (made.old_run_id, made.event.kind, made.event.state) == (old, EventKind.SUPERSEDED_BY, RunState.FAILED)
    payload = {
        "old_run_id": old, "new_run_id": end.claim.run_id, "purpose": "late data", "reason_code": "LATE",
        "old_facts_view_ref": "",
        "new_facts_view_ref": f"fraud-platform/sr/run_facts_view/{end.claim.run_id}.json",
    }  # fmt: skip
    assert made.signal.payload == canonical_bytes(payload), "a run that was not READY has no facts view"
    assert made.event.details["superseded_by"] == end.events[-1].details["supersedes"] == payload
    assert (made.signal.kind, made.signal.attributes) == (SignalKind.RUN_SUPERSEDES, {"run_id": end.claim.run_id})


@pytest.mark.parametrize("finding", ["missing", "no"])
def test_a_correction_with_another_end_supersedes_nothing(finding: str) -> None:
    world = World(MISSING if finding == "missing" else SAYS_NO, began_us=ADMITTED + 7200 * SECOND)
    end = world.live(claim(supersession=Supersession("2" * 32, "late data")))
    assert (end.to_state, end.superseding) == (RunState.FAILED, None)
    assert FindSuperseded not in world.kinds


def test_a_correction_is_tried_again_when_the_authority_does_not_say_how_the_other_run_ended() -> None:
    world = World(passed(), fail={FindSuperseded: Unavailable("away")})
    end = world.live(claim(supersession=Supersession("2" * 32, "late data")))
    assert (end.to_state, end.retries, end.superseding) == (RunState.VERIFYING, 1, None)


def test_receipts_that_were_seen_in_place_are_not_written_and_the_passes_come_with_the_verdict() -> None:
    world = World(passed(), in_place=True)
    end = world.live(claim())
    assert world.kinds == [PlanAndExamine, Attest, FindReceipts, WriteFactsView, ReadClock]
    assert events(end) == [
        EventKind.GATES_PASSED, EventKind.RECEIPTS_COMMITTED, *READY_EVENTS,
    ]  # fmt: skip


def test_a_run_that_waited_puts_on_record_that_it_goes_on_once() -> None:
    waited = claim(state=RunState.WAITING_EVIDENCE, wakes=3)
    world = World(passed())
    end = world.live(waited)
    (progress,) = [effect.transition for effect in world.asked if isinstance(effect, RecordProgress)]
    assert events(progress) == [EventKind.VERIFICATION_STARTED, EventKind.GATES_PASSED]
    assert EventKind.VERIFICATION_STARTED not in events(end)
    assert events(World(passed(), in_place=True).live(waited))[:2] == [
        EventKind.VERIFICATION_STARTED, EventKind.GATES_PASSED,
    ]  # fmt: skip


MISSING = refused_without_report(Outcome.MISSING, EvidenceMissing("a flag is not there", path="g/_passed.flag"))
SAYS_NO = refused_without_report(Outcome.FAIL, EvidenceSaysNo("the flag says FAIL"))
CONFLICT = refused_without_report(Outcome.CONFLICT, EvidenceRefused("it contradicts itself", Reason.EVIDENCE_CONFLICT))


@pytest.mark.parametrize(
    ("finding", "began_us", "state", "code"),
    [
        (MISSING, NOW, RunState.WAITING_EVIDENCE, ""),
        (MISSING, ADMITTED + 3600 * SECOND - 1, RunState.WAITING_EVIDENCE, ""),
        (MISSING, ADMITTED + 3600 * SECOND, RunState.FAILED, "EVIDENCE_MISSING_DEADLINE"),
        (SAYS_NO, NOW, RunState.FAILED, "GATE_FAIL"),
        (CONFLICT, NOW, RunState.QUARANTINED, "EVIDENCE_CONFLICT"),
        (dataclasses.replace(passed(), verified=None), NOW, RunState.QUARANTINED, "INTERNAL_ERROR"),
    ],
    ids=["missing", "a moment before the deadline", "at the deadline", "says no", "conflict", "pass without a set"],
)
def test_evidence_that_has_not_passed_writes_nothing_more(
    finding: Finding, began_us: int, state: RunState, code: str
) -> None:
    world = World(finding, began_us=began_us)
    end = world.live(claim())
    assert world.kinds == [PlanAndExamine, ReadClock]
    assert (end.to_state, end.reason_code, end.keep_lease) == (state, code, False)
    if state is not RunState.WAITING_EVIDENCE:
        assert end.signal is not None
        assert end.signal.kind is SignalKind.TERMINAL
        assert end.events[-1].details["report"] == finding.report


def test_a_wait_names_the_paths_that_are_missing_and_no_others() -> None:
    gates = [{"gate_id": "g", "outcome": "PASS"}, {"gate_id": "h", "outcome": "MISSING", "missing": "h/_passed.flag"}]
    outputs = [{"output_id": "o", "outcome": "MISSING", "missing": "o.json"}, {"output_id": "p", "outcome": "PASS"}]
    finding = dataclasses.replace(MISSING, report={"outcome": "MISSING", "gates": gates, "outputs": outputs})
    assert World(finding).live(claim()).missing == ("h/_passed.flag", "o.json")


def test_a_wait_that_finds_nothing_new_records_nothing_and_is_longer_each_time_up_to_a_minute() -> None:
    first = World(MISSING).live(claim())
    assert (events(first), first.due_us, first.wakes) == ([EventKind.EVIDENCE_MISSING], NOW + SECOND, 1)
    row = {"report_digest": first.report_digest, "updated_us": NOW - 60 * SECOND}
    again = claim(state=RunState.WAITING_EVIDENCE, wakes=4, **row)
    second = World(MISSING).live(again)
    assert (second.events, second.at_us, second.due_us) == ((), again.updated_us, NOW + 16 * SECOND)
    last = World(MISSING).live(dataclasses.replace(again, wakes=40))
    assert last.due_us == NOW + 60 * SECOND
    near = World(MISSING).live(dataclasses.replace(again, wakes=40, deadline_us=NOW + SECOND))
    assert near.due_us == NOW + SECOND, "the deadline is not slept through"


@pytest.mark.parametrize("pinned", [False, True])
def test_a_run_whose_root_stays_absent_names_it(pinned: bool) -> None:
    intent = dataclasses.replace(INTENT, engine_run_root="" if pinned else "/engine/run")
    inputs = dataclasses.replace(INPUTS, engine_run_root="/engine/pinned")
    finding = dataclasses.replace(MISSING, root_absent=True)
    first = World(finding).live(claim(intent, inputs))
    row = {"report_digest": first.report_digest, "updated_us": NOW - 3600 * SECOND}
    found = World(finding).live(claim(intent, inputs, state=RunState.WAITING_EVIDENCE, **row))
    assert found.absent_root == ("/engine/pinned" if pinned else "/engine/run")


DRIFT = LedgerDrift("other bytes", Reason.FACTS_VIEW_DRIFT, place="/ledger/x", expected=D, actual="e" * 64)
BEFORE: dict[type, list[type]] = {
    PlanAndExamine: [], Attest: TO_READY[:1], RecordProgress: TO_READY[:4], WriteReceipts: TO_READY[:5],
    WriteFactsView: TO_READY[:6],
}  # fmt: skip


@pytest.mark.parametrize("kind", BEFORE, ids=lambda kind: kind.__name__)
def test_drift_of_our_own_object_ends_the_run_wherever_it_is_met_and_writes_nothing_more(kind: type) -> None:
    world = World(passed(), fail={kind: DRIFT})
    end = world.live(claim())
    assert world.kinds == [*BEFORE[kind], kind, ReadClock]
    assert (end.to_state, end.reason_code) == (RunState.QUARANTINED, "FACTS_VIEW_DRIFT")
    report = end.events[-1].details["report"]
    assert report["drift"] == {"object": "/ledger/x", "expected": D, "actual": "e" * 64}
    assert ("gates" in report) is (kind is not PlanAndExamine)


def test_progress_whose_commit_was_not_answered_is_committed_once_more() -> None:
    world = World(passed(), fail={RecordProgress: Unavailable("the answer was lost")})
    end = world.live(claim())
    first, second = (effect.transition for effect in world.asked if isinstance(effect, RecordProgress))
    assert first == second
    assert (end.to_state, end.claim.report_digest) == (RunState.READY, "passes")


def test_a_run_without_instance_receipts_puts_its_passes_on_record_before_its_facts_view() -> None:
    pack = build_pack(
        {"outputs": [{"output_id": "one", "path_template": "one.json", "scope": "scope_global"}]}, PACK.document
    )
    world = World(passed(pack))
    assert world.live(claim()).to_state is RunState.READY
    assert world.kinds == [PlanAndExamine, Attest, ReadClock, RecordProgress, WriteFactsView, ReadClock]


@pytest.mark.parametrize("kind", BEFORE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("failure", [Unavailable("the store is away"), KeyError("a defect")], ids=["outage", "defect"])
def test_infrastructure_that_fails_and_defects_are_retries_and_never_a_verdict(kind: type, failure: Exception) -> None:
    world = World(passed(), fail={kind: failure}, failing_for=2)
    end = world.live(claim(retries=2))
    again = [kind] if kind is RecordProgress and isinstance(failure, Unavailable) else []
    assert world.kinds == [*BEFORE[kind], kind, *again, ReadClock]
    assert (end.to_state, end.due_us, end.retries) == (RunState.VERIFYING, NOW + 4 * SECOND, 3)
    assert (end.events, end.signal) == ((), None)
    assert ("the store is away" if isinstance(failure, Unavailable) else "KeyError") in end.last_error


def test_a_run_that_a_newer_release_admitted_is_put_off_before_its_plan_is_written() -> None:
    world = World(passed())
    run = claim()
    end = world.live(dataclasses.replace(run, inputs=run.inputs | {"key_of_tomorrow": 1}))
    assert world.kinds == [ReadClock]
    assert (end.to_state, end.retries, end.events, end.signal) == (RunState.VERIFYING, 1, (), None)
    assert "admitted by a newer release" in end.last_error


@pytest.mark.parametrize("kind", BEFORE, ids=lambda kind: kind.__name__)
def test_a_wrong_configuration_is_a_retry_and_is_not_reported_as_a_defect(kind: type) -> None:
    failure = ConfigurationError("the credentials", "hold half a key", "write the other half")
    with capture_logs() as logs:
        end = World(passed(), fail={kind: failure}, failing_for=2).live(claim())
    assert (end.to_state, end.retries, end.last_error) == (RunState.VERIFYING, 1, failure.detail)
    assert [(line["log_level"], line["detail"]) for line in logs] == [("error", failure.detail)]


@pytest.mark.parametrize("kind", [*BEFORE, ReadClock], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "failure",
    [LeaseLostError("another worker"), SequenceError("our order"), ExaminationDeferred(evidence_key(
        "/r", PACK, INTENT.tokens(), ("g",), ("one",), INPUTS.bounds))],
    ids=["lease lost", "sequence error", "deferred"],
)  # fmt: skip
def test_what_nobody_may_commit_after_ends_the_lifecycle_without_a_transition(kind: type, failure: Exception) -> None:
    world = World(passed(), fail={kind: failure})
    with pytest.raises(type(failure)):
        world.live(claim())
    assert world.kinds[-1] is kind, "nothing was asked for afterwards"


def test_a_run_whose_clock_cannot_be_read_comes_to_nothing() -> None:
    world = World(passed(), fail={WriteFactsView: Unavailable("away")})
    world.fail[ReadClock] = [Unavailable("the authority is away")]
    with pytest.raises(Unavailable):
        world.live(claim(report_digest="passes"))


def test_refused_evidence_that_comes_as_an_exception_is_a_verdict() -> None:
    end = World(passed(), fail={PlanAndExamine: Refusal("odd", Reason.EVIDENCE_MALFORMED)}).live(claim())
    assert (end.to_state, end.reason_code) == (RunState.QUARANTINED, "EVIDENCE_MALFORMED")


def test_a_run_without_any_root_is_not_examined() -> None:
    world = World(passed())
    end = world.live(claim(dataclasses.replace(INTENT, engine_run_root="")))
    assert world.kinds == [WritePlan, ReadClock]
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "ENGINE_ROOT_MISSING")


@pytest.mark.parametrize("behind", [0, 5], ids=["at the time of the last event", "before it"])
def test_what_is_put_on_record_is_later_than_what_is_there_though_the_clock_was_set_back(behind: int) -> None:
    run = claim(updated_us=NOW + behind)
    for finding in (MISSING, SAYS_NO, CONFLICT):
        assert World(finding).live(run).at_us == NOW + behind + 1
    assert World(passed()).live(run).at_us == NOW + behind + 2, "the passes first"
