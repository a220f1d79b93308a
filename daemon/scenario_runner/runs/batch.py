"""Driving claimed runs a batch at a time: equal effects of many lifecycles are performed together.

Runs of a batch share round trips, directory fsyncs, examinations and commits; the failure of one does not affect the
others. Nothing is decided here: each run gets the result that its lifecycle gets alone, and a property test checks it.
What is shared is shared under keys that hold everything that the shared value depends on: the evidence key for an
examination, the attestation key for an attestation.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from scenario_runner.artifacts.budget import UNLIMITED, Share
from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.canonical import Json, canonical_part, canonical_sha256
from scenario_runner.contracts.errors import LeaseLostError, ScenarioRunnerError, SequenceError, Unavailable
from scenario_runner.contracts.states import FINAL_STATES, RunState
from scenario_runner.counters import count
from scenario_runner.evidence.examiner import Examiner
from scenario_runner.evidence.findings import Finding
from scenario_runner.evidence.key import EvidenceKey
from scenario_runner.gates.receipts import facts_view, make_attestation
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.runs.counting import count_lost_lease, count_transition
from scenario_runner.runs.effects import (
    ENGINE_BEGINS,
    Attest,
    Attested,
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
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.lifecycle import Lifecycle, lifecycle
from scenario_runner.runs.member import Answer, Member
from scenario_runner.runs.spans import trace_transition
from scenario_runner.tracing import SpanName, is_on, now_ns, traceparent_of

NOTHING_NEW: Final = "runs.examined_in_vain"
"""Counter of examinations that found what the one before them had found: evidence is still missing."""
#: Batches whose plans are written at a time: the runner drives one or two, and the bulk pool a few small ones.
_PLAN_WRITERS: Final = 4
_log = structlog.get_logger("runs")

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Deferred:
    """A run, still under lease, whose examination is to be repeated with a patient share.

    Attributes:
        evidence: What is to be examined; runs with equal keys share an examination.
    """

    claim: Claim
    evidence: EvidenceKey


Performer = Callable[[Sequence[Member]], Sequence[Answer]]


class RunDriver:
    """Drives claimed runs.

    Args:
        authority: Where transitions are committed.
        ledger: Where documents are written.
        examiner: Examines evidence.
        leases: Leases of this process.
        examination_pool: Threads that examine the evidence of several runs at the same time, where it lies behind a
            network; None examines one after the other.
        launch_retries: How many launches of a run's engine may fail before its run does.
    """

    def __init__(
        self,
        authority: Authority,
        ledger: Ledger,
        examiner: Examiner,
        leases: Leases,
        examination_pool: ThreadPoolExecutor | None = None,
        launch_retries: int = 0,
    ) -> None:
        self._authority, self._ledger, self._examiner, self._leases = authority, ledger, examiner, leases
        self._examination_pool, self._launch_retries = examination_pool, launch_retries
        self._plan_pool = ThreadPoolExecutor(_PLAN_WRITERS, thread_name_prefix="plan")
        self._hand_over: Callable[[Member], None] | None = None

    def hand_over_to(self, lane: Callable[[Member], None]) -> None:
        """Hand runs whose next effect is one of the engine to a lane of their own, which calls :meth:`advance`."""
        self._hand_over = lane

    def drive(self, claims: Sequence[Claim], share: Share = UNLIMITED) -> list[Deferred]:
        """Drive runs as far as they go now, commit their transitions and give their leases back.

        Args:
            claims: Runs under lease.
            share: Most that the examination of one run may cost.

        Returns:
            Runs whose examination costs more: still under lease, to be driven again with another share.

        Raises:
            SequenceError: our own order of steps is wrong; nothing more is committed, and the leases run out.
        """
        try:
            return self._drive(claims, share)
        except BaseException:
            for claim in claims:
                self._leases.release(claim)
            raise

    def _drive(self, claims: Sequence[Claim], share: Share) -> list[Deferred]:
        members = [Member(claim, self._lifecycle(claim)) for claim in claims]
        for member in members:
            member.resume(None)
        members = [member for member in members if not self._is_handed_over(member)]
        performers = self._performers(share)
        while waiting := {type(member.effect) for member in members if member.effect is not None}:
            if waiting - performers.keys():
                raise SequenceError(f"no performer for {waiting - performers.keys()}")
            for kind, perform in performers.items():
                self._perform([member for member in members if type(member.effect) is kind], perform)
            members = [member for member in members if not self._is_handed_over(member)]
        self._commit([member for member in members if member.deferred is None])
        return [Deferred(member.claim, member.deferred) for member in members if member.deferred is not None]

    def _lifecycle(self, claim: Claim) -> Lifecycle:
        traceparent = traceparent_of(claim.run_id, SpanName.PUBLISH_READY) or claim.traceparent
        return lifecycle(claim, self._launch_retries, traceparent)

    def _performers(self, share: Share) -> dict[type, Performer]:
        """Who performs which effect, in the order of a lifecycle, so that runs stay together."""
        refused = ENGINE_BEGINS if self._hand_over is None else ()
        return {
            WritePlan: self._write_plans,
            PlanAndExamine: partial(self._plan_and_examine, share),
            **dict.fromkeys(refused, self._refuse_engine),
            Attest: self._attest,
            FindReceipts: self._find_receipts,
            ReadClock: self._read_clock,
            RecordProgress: self._record_progress,
            WriteReceipts: self._write_receipts,
            WriteFactsView: self._write_facts_views,
            FindSuperseded: self._find_superseded,
        }

    def _is_handed_over(self, member: Member) -> bool:
        """Hand a run over when its engine is next."""
        if self._hand_over is None or not isinstance(member.effect, ENGINE_BEGINS):
            return False
        self._hand_over(member)
        return True

    def advance(self, member: Member) -> None:
        """Perform the effect of one run that is driven alone, and let it go on.

        Raises:
            SequenceError: our own order of steps is wrong.
        """
        self._perform([member], self._performers(UNLIMITED)[type(member.effect)])

    def finish(self, member: Member) -> bool:
        """Commit the transition of one run that is driven alone, if it has one, and give its lease back.

        Returns:
            Whether a transition was committed.
        """
        return self._commit([member]) > 0

    @staticmethod
    def _perform(waiting: list[Member], perform: Performer) -> None:
        if not waiting:
            return
        answers: Sequence[Answer]
        try:
            answers = perform(waiting)
        except Unavailable as failure:
            answers = [failure] * len(waiting)
        except ScenarioRunnerError:
            raise  # a verdict belongs to one run; it must not become one about all of them
        except Exception as defect:  # noqa: BLE001 - each lifecycle logs it and has its run tried again
            answers = [defect] * len(waiting)
        for member, answer in zip(waiting, answers, strict=True):
            member.resume(answer)

    @staticmethod
    def _refuse_engine(members: Sequence[Member]) -> Sequence[Answer]:
        detail = "the profile of this daemon configures no engine; the run waits for a daemon that has one"
        return [Unavailable(detail)] * len(members)

    # --- performers: members that wait for one kind of effect in, one answer for each out

    def _write_plans(self, members: Sequence[Member]) -> Sequence[Answer]:
        def write(members: Sequence[Member]) -> Sequence[Answer]:
            return self._ledger.write_plans([_plan_of(member) for member in members])

        return self._under_lease(members, write)

    def _plan_and_examine(self, share: Share, members: Sequence[Member]) -> Sequence[Answer]:
        """Write the plans beside the examination; what is wrong with a plan goes before what was found."""
        writing = self._plan_pool.submit(self._write_plans, members)
        try:
            findings = self._examine(share, members)
        finally:
            wait([writing])  # nothing more is written for a run before its plan is in place or has failed
        return [wrong or found for wrong, found in zip(writing.result(), findings, strict=True)]

    def _examine(self, share: Share, members: Sequence[Member]) -> Sequence[Answer]:
        # A batch is examined when it is claimed; a run that was deferred has waited for its turn since.
        began_us = self._authority.now_us() if share.patient else max(member.claim.now_us for member in members)
        findings = self._examine_all(members, share)
        return [Examined(finding, began_us) if isinstance(finding, Finding) else finding for finding in findings]

    def _examine_all(self, members: Sequence[Member], share: Share) -> list[Answer]:
        """Findings of all members; members with equal evidence keys share one examination."""
        answers: dict[int, Answer] = {}
        groups: dict[EvidenceKey, list[int]] = {}
        for number, member in enumerate(members):
            effect = _effect(member, PlanAndExamine)
            key = _caught(partial(self._examiner.key_of, effect.intent, effect.inputs))
            if isinstance(key, EvidenceKey):
                groups.setdefault(key, []).append(number)
            else:
                answers[number] = key

        def examine_group(group: tuple[EvidenceKey, list[int]]) -> list[Answer]:
            key, numbers = group
            began_ns = now_ns()
            found = self._examine_group(key, [members[number].claim for number in numbers], share)
            if is_on():
                for number in numbers:
                    members[number].examined_ns = began_ns, now_ns()
            return found

        together = self._examination_pool is not None and not share.patient
        found = (self._examination_pool.map if together and self._examination_pool else map)(
            examine_group, groups.items()
        )
        for numbers, findings in zip(groups.values(), found, strict=True):
            answers.update(zip(numbers, findings, strict=True))
        return [answers[number] for number in range(len(members))]

    def _examine_group(self, key: EvidenceKey, claims: Sequence[Claim], share: Share) -> list[Answer]:
        """Examine for the first of some runs, or for the next one when the first loses its lease meanwhile."""
        answers: list[Answer] = []
        for claim in claims:
            examine = partial(self._examiner.examine, key, partial(self._leases.check, claim), share, claim.run_id)
            answers.append(_caught(examine))
            if not isinstance(answers[-1], LeaseLostError):
                break
        return answers + [answers[-1]] * (len(claims) - len(answers))

    def _attest(self, members: Sequence[Member]) -> Sequence[Answer]:
        """Attestations; members with the same finding and equal attestation keys share one."""
        made: dict[Any, Answer] = {}
        answers = []
        for member in members:
            member.attesting_ns = now_ns()
            effect = _effect(member, Attest)
            key = id(effect.finding), effect.key  # the effects keep their findings alive, so an id is not used twice
            if key not in made:
                made[key] = _caught(partial(self._attest_one, effect))
            answers.append(made[key])
        return answers

    def _attest_one(self, effect: Attest) -> Attested:
        finding = effect.finding
        assert finding.verified is not None
        attestation = make_attestation(finding.verified, effect.key)
        # One check stands for all runs that share the attestation: their facts views differ in the run's id and pins.
        self._ledger.check_facts_view(facts_view(attestation, effect.intent))
        receipts = canonical_part({item.output_id: item.ref for item in attestation.receipts})
        passed = {"gates": canonical_part(finding.report["gates"]), "receipts": receipts}
        committed = {"outputs": canonical_part(finding.report["outputs"]), "receipts": receipts}
        return Attested(attestation, passed, canonical_sha256(passed), committed)

    def _find_receipts(self, members: Sequence[Member]) -> Sequence[Answer]:
        return [self._ledger.receipts_in_place(_effect(member, FindReceipts).receipts) for member in members]

    def _read_clock(self, members: Sequence[Member]) -> Sequence[Answer]:
        return [self._authority.now_us()] * len(members)

    def _record_progress(self, members: Sequence[Member]) -> Sequence[Answer]:
        transitions = [_effect(member, RecordProgress).transition for member in members]
        losses = self._authority.commit(transitions)
        for made, lost in zip(transitions, losses, strict=True):
            if lost is None:
                count_transition(made)
        return [lost or made.claim_after for made, lost in zip(transitions, losses, strict=True)]

    def _write_receipts(self, members: Sequence[Member]) -> Sequence[Answer]:
        def write(members: Sequence[Member]) -> list[Answer]:
            wanted = [_effect(member, WriteReceipts).receipts for member in members]
            failures = iter(self._ledger.write_receipts([receipt for receipts in wanted for receipt in receipts]))
            each = [[next(failures) for _ in receipts] for receipts in wanted]
            return [next((failure for failure in found if failure is not None), None) for found in each]

        return self._under_lease(members, write)

    def _write_facts_views(self, members: Sequence[Member]) -> Sequence[Answer]:
        def write(members: Sequence[Member]) -> Sequence[Answer]:
            return self._ledger.write_facts_views([_effect(member, WriteFactsView).view for member in members])

        return self._under_lease(members, write)

    def _find_superseded(self, members: Sequence[Member]) -> Sequence[Answer]:
        return [_caught(partial(self._final_state, _effect(member, FindSuperseded).run_id)) for member in members]

    def _final_state(self, run_id: str) -> RunState:
        run = self._authority.run(run_id)
        if run is None or run.state not in FINAL_STATES:  # a correction is admitted only of a run that has ended
            raise Unavailable(f"the superseded run {run_id} is not in the authority, or has not ended")
        return run.state

    def _under_lease(self, members: Sequence[Member], write: Performer) -> list[Answer]:
        """Write for the members whose lease is still valid; in the place of each other one, the loss of its lease.

        A worker that was stopped for longer than its lease (SIGSTOP, a long pause) finds out here, before it writes.
        """
        answers: list[Answer] = [_caught(partial(self._leases.check, member.claim)) for member in members]
        held = [number for number, lost in enumerate(answers) if lost is None]
        if held:
            written = write([members[number] for number in held])
            for number, answer in zip(held, written, strict=True):
                answers[number] = answer
        return answers

    # --- the end

    def _commit(self, members: Sequence[Member]) -> int:
        """Commit transitions and give the leases back; returns how many were committed."""
        ending = [(member, member.transition) for member in members if member.transition is not None]
        losses: Sequence[LeaseLostError | None] = ()
        try:
            losses = self._authority.commit([transition for _, transition in ending]) if ending else []
        except Unavailable as error:
            _log.warning("transitions could not be committed; their leases will run out", detail=error.detail)
        else:
            for (member, transition), lost in zip(ending, losses, strict=True):
                _log_transition(transition, lost)
                if lost is None:
                    count_transition(transition)
                    trace_transition(member)
                else:
                    count_lost_lease()
        finally:
            for member in members:
                self._leases.release(member.claim)
        return sum(lost is None for lost in losses)


def _plan_of(member: Member) -> Json:
    assert isinstance(member.effect, WritePlan | PlanAndExamine)
    return member.effect.plan


def _effect(member: Member, kind: type[E]) -> E:
    """The effect that a member waits for, as its type."""
    assert isinstance(member.effect, kind)
    return member.effect


def _caught(step: Callable[[], Answer]) -> Answer:
    """The result of a step for one run, or the exception that is raised in its lifecycle and in no other."""
    try:
        return step()
    except SequenceError:
        raise  # our own order of steps is wrong: no run of the batch can be trusted to it
    except Exception as failure:  # noqa: BLE001 - the lifecycle handles it
        return failure


def _log_transition(transition: Transition, lost: LeaseLostError | None) -> None:
    log = _log.bind(run_id=transition.claim.run_id)
    if lost is not None:
        log.warning("lease lost", detail=lost.detail)
    elif transition.retries > transition.claim.retries:
        log.warning(
            "infrastructure failed; the run will be tried again",
            detail=transition.last_error, tries=transition.retries,
        )  # fmt: skip
    elif transition.to_state is RunState.WAITING_EVIDENCE:
        new = bool(transition.events)
        if not new:
            count(NOTHING_NEW)
        (log.info if new else log.debug)("run waits for evidence", new_findings=new)
    elif transition.attempt is not None and transition.to_state not in FINAL_STATES:
        row = transition.attempt
        log.info("an attempt of the engine ended", attempt_no=row.attempt_no, outcome=row.outcome,
                 reason_code=row.reason_code, detail=row.detail)  # fmt: skip
    elif transition.to_state is RunState.READY:
        log.info("run is READY")
    else:
        detail = transition.events[-1].details["detail"]
        log.warning("run ended", state=transition.to_state, reason_code=transition.reason_code, detail=detail)
