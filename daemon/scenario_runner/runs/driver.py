"""Driving one run from its claim to a commit: plan object, evidence, receipts, facts view, verdict.

The order of writes is that of architecture.md section 3; killing the process between any two leads to the same bytes
when the run is driven again. Infrastructure errors end in a retry, never in a verdict.
"""

from collections.abc import Callable
from typing import Final

import structlog

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.authority.base import Authority, Claim, Event, SignalDraft, Verdict
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, canonical_sha256
from scenario_runner.contracts.errors import (
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    LeaseLostError,
    LedgerDrift,
    Refusal,
    Unavailable,
)
from scenario_runner.contracts.intent import Intent, intent_from_document
from scenario_runner.contracts.plan import PlanInputs, plan_document, plan_inputs_from_document
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState, SignalKind, Strategy
from scenario_runner.contracts.times import MICROS
from scenario_runner.gates.receipts import FactsView, InstanceReceiptFile, facts_view, instance_receipts
from scenario_runner.ledger.documents import terminal_signal
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.runs.evaluation import Evaluation, Outcome, evaluate
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.packs import Packs

LOOK_AGAIN_SECONDS: Final = (0.1, 0.4)
"""Pauses before evidence that changed while it was read is looked at again; after the last it is refused."""

_MAX_WAIT_SECONDS: Final = 60
_MAX_RETRY_SECONDS: Final = 30
_log = structlog.get_logger("runs")


def backoff_seconds(tries: int, most: int) -> int:
    """1, 2, 4, ... seconds, at most ``most``."""
    return min(most, 1 << min(tries, 20))


class RunDriver:
    """Drives claimed runs.

    Args:
        authority: Where decisions are committed.
        ledger: Where documents are written.
        artifacts: Where evidence is read.
        packs: Interface packs by digest.
        leases: Leases of this process.
        sleep: Waits some seconds before a second look.
    """

    def __init__(
        self,
        authority: Authority,
        ledger: Ledger,
        artifacts: Artifacts,
        packs: Packs,
        leases: Leases,
        sleep: Callable[[float], None],
    ) -> None:
        self._authority, self._ledger, self._artifacts = authority, ledger, artifacts
        self._packs, self._leases, self._sleep = packs, leases, sleep

    def drive(self, claim: Claim) -> None:
        """Drive one run as far as it goes now, and give its lease back."""
        log = _log.bind(run_id=claim.run_id, epoch=claim.epoch)
        try:
            self._drive(claim, log)
        except LeaseLostError as lost:
            log.warning("lease lost", detail=lost.detail)
        except Unavailable as error:
            self._retry_later(claim, error.detail, log)
        finally:
            self._leases.release(claim)

    def _retry_later(self, claim: Claim, detail: str, log: structlog.stdlib.BoundLogger) -> None:
        pause = backoff_seconds(claim.retries, _MAX_RETRY_SECONDS)
        log.warning("infrastructure failed; the run will be tried again", detail=detail, seconds=pause)
        try:
            self._authority.retry_later(claim, self._authority.now_us() + pause * MICROS, detail)
        except (Unavailable, LeaseLostError) as error:
            log.warning("the retry could not be noted; the lease will run out", detail=error.detail)

    def _drive(self, claim: Claim, log: structlog.stdlib.BoundLogger) -> None:
        intent = intent_from_document(claim.run_id, claim.run_equivalence_key, claim.intent)
        inputs = plan_inputs_from_document(claim.inputs)
        try:
            self._ledger.write_plan(plan_document(intent, inputs, claim.admitted_us))
            evaluation = self._evaluate(claim, intent, inputs)
            if evaluation.verified is not None:
                self._commit_ready(claim, intent, inputs, evaluation)
                log.info("run is READY")
            elif evaluation.outcome is Outcome.MISSING:
                self._wait_or_fail(claim, evaluation, log)
            else:
                state = RunState.FAILED if evaluation.outcome is Outcome.FAIL else RunState.QUARANTINED
                self._commit_negative(claim, state, evaluation.reason, evaluation.detail, evaluation.report)
                log.warning("run ended", state=state, reason_code=evaluation.reason, detail=evaluation.detail)
        except LedgerDrift as drift:
            self._commit_negative(claim, RunState.QUARANTINED, drift.reason, drift.detail, {})
            log.error("run is QUARANTINED", reason_code=drift.reason, detail=drift.detail)

    # --- evidence

    def _evaluate(self, claim: Claim, intent: Intent, inputs: PlanInputs) -> Evaluation:
        settled = _settled_without_evidence(intent, inputs)
        if settled is not None:
            return settled
        for pause in (*LOOK_AGAIN_SECONDS, None):
            try:
                return self._look(claim, intent, inputs)
            except EvidenceChanged as changed:
                if pause is None:
                    return _nothing_read(Outcome.CONFLICT, changed)
                self._sleep(pause)
        raise AssertionError

    def _look(self, claim: Claim, intent: Intent, inputs: PlanInputs) -> Evaluation:
        pack = self._packs.get(inputs.pack_digest)
        try:
            root = self._artifacts.open(intent.engine_run_root, lambda _read: self._leases.check(claim))
        except EvidenceMissing as missing:
            return _nothing_read(Outcome.MISSING, missing)
        except EvidenceRefused as refused:
            return _nothing_read(Outcome.CONFLICT, refused)
        try:
            return evaluate(root, pack, intent.tokens(), inputs.gates, inputs.outputs)
        finally:
            root.close()

    # --- decisions

    def _commit_ready(self, claim: Claim, intent: Intent, inputs: PlanInputs, evaluation: Evaluation) -> None:
        assert evaluation.verified is not None
        receipts = instance_receipts(evaluation.verified, intent, intent.engine_run_root)
        view = facts_view(evaluation.verified, intent, inputs, intent.engine_run_root, receipts)
        self._leases.check(claim)
        for receipt in receipts:
            self._ledger.write_receipt(receipt)
        self._ledger.write_facts_view(view)
        self._leases.check(claim)
        signal = SignalDraft(
            view.message_id,
            SignalKind.READY,
            claim.run_id,
            {"facts_view_digest": view.digest},
            canonical_bytes(view.ready),
        )
        events = (*_resumed(claim), *_ready_events(evaluation.report, receipts, view))
        self._authority.decide(claim, Verdict(RunState.READY, "", self._now_after(claim), events, signal, view.digest))

    def _commit_negative(self, claim: Claim, state: RunState, reason: Reason | None, detail: str, report: Json) -> None:
        code = (reason or Reason.INTERNAL_ERROR).value
        at_us = self._now_after(claim)
        message_id, payload = terminal_signal(claim.run_id, state, code, at_us)
        kind = EventKind.RUN_FAILED if state is RunState.FAILED else EventKind.RUN_QUARANTINED
        event = Event(kind, state, {"reason_code": code, "detail": detail[:2000], "report": report})
        signal = SignalDraft(message_id, SignalKind.TERMINAL, claim.run_id, {}, canonical_bytes(payload))
        self._authority.decide(claim, Verdict(state, code, at_us, (*_resumed(claim), event), signal))

    def _wait_or_fail(self, claim: Claim, evaluation: Evaluation, log: structlog.stdlib.BoundLogger) -> None:
        now = self._authority.now_us()
        if now >= claim.deadline_us:
            self._commit_negative(
                claim, RunState.FAILED, Reason.EVIDENCE_MISSING_DEADLINE, evaluation.detail, evaluation.report
            )
            log.warning("run FAILED: evidence still missing at its deadline", detail=evaluation.detail)
            return
        due = min(claim.deadline_us, now + backoff_seconds(claim.wakes, _MAX_WAIT_SECONDS) * MICROS)
        digest = canonical_sha256(evaluation.report)
        events: tuple[Event, ...] = ()
        if digest != claim.report_digest:
            waiting = Event(
                EventKind.EVIDENCE_MISSING,
                RunState.WAITING_EVIDENCE,
                {"detail": evaluation.detail, "report": evaluation.report},
            )
            events = (*_resumed(claim), waiting)
            log.info("run waits for evidence", detail=evaluation.detail)
        self._authority.park(claim, due, self._now_after(claim), events, digest)

    def _now_after(self, claim: Claim) -> int:
        return max(self._authority.now_us(), claim.updated_us + 1)


def _settled_without_evidence(intent: Intent, inputs: PlanInputs) -> Evaluation | None:
    """Runs whose end needs no look: no engine is configured to invoke, or there is no root to look in."""
    if inputs.strategy is Strategy.FORCE_INVOKE:
        return _nothing_read(
            Outcome.FAIL,
            Refusal(
                "the strategy is FORCE_INVOKE and no engine_command is configured",
                Reason.ENGINE_COMMAND_MISSING,
            ),
        )
    if not intent.engine_run_root:
        return _nothing_read(
            Outcome.FAIL,
            Refusal("the request names no engine_run_root and no engine is configured", Reason.ENGINE_ROOT_MISSING),
        )
    return None


def _nothing_read(outcome: Outcome, refusal: Refusal) -> Evaluation:
    report: Json = {
        "outcome": outcome.value,
        "reason_code": refusal.reason.value,
        "detail": refusal.detail,
        "gates": [],
        "outputs": [],
    }
    return Evaluation(outcome, refusal.reason, refusal.detail, report, None)


def _resumed(claim: Claim) -> tuple[Event, ...]:
    if claim.state is RunState.WAITING_EVIDENCE:
        return (Event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING, {}),)
    return ()


def _ready_events(report: Json, receipts: list[InstanceReceiptFile], view: FactsView) -> tuple[Event, ...]:
    run_id = view.document["run_id"]
    state = RunState.VERIFYING
    return (
        Event(EventKind.GATES_PASSED, state, {"gates": report["gates"]}),
        Event(
            EventKind.RECEIPTS_COMMITTED,
            state,
            {"outputs": report["outputs"], "receipts": {item.output_id: item.ref for item in receipts}},
        ),
        Event(
            EventKind.FACTS_VIEW_COMMITTED,
            state,
            {"ref": refs.facts_view_ref(run_id), "digest": view.digest, "bundle_hash": view.bundle_hash},
        ),
        Event(EventKind.RUN_READY, RunState.READY, {"ready": view.ready, "message_id": view.message_id}),
    )
