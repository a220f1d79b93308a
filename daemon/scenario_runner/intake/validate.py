"""Validates a message: all that can be known of it without the authority, from its bytes and the admission policy."""

from dataclasses import replace
from typing import Final

import structlog

from scenario_runner.authority.acts import Arrival
from scenario_runner.authority.refusals import request_rejected
from scenario_runner.authority.values import COLLISION_CODE, COLLISION_DETAIL, Admission, NewRun, SignalDraft
from scenario_runner.contracts import refs
from scenario_runner.contracts.documents import (
    RunRequest,
    parse_evidence_arrived,
    parse_reemit_request,
    parse_run_request,
)
from scenario_runner.contracts.errors import RequestRefused, one_line
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs, plan_hash
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import OWN_SIGNALS, Disposition, SignalKind
from scenario_runner.contracts.supersession import refuse_itself
from scenario_runner.contracts.times import MICROS
from scenario_runner.intake.admission_policy import AdmissionPolicy, plan_request
from scenario_runner.intake.decode import Decoded, Message, decode, run_id_hint
from scenario_runner.intake.reemit import reemit_act
from scenario_runner.intake.roots import normalise_root
from scenario_runner.tracing import RequestTimes, now_ns, request_times

#: A detail quotes what somebody sent; two thousand characters show what is wrong with it.
_LONGEST_DETAIL: Final = 2000
_log = structlog.get_logger("intake")


def validate_message(message: Message, admission: AdmissionPolicy) -> Admission:
    """Decode, validate and authorise a message.

    Returns:
        What to admit: a run, or the disposition of a message that makes none. A message that raises an unexpected error
        is a dead letter: it must not block the messages after it.
    """
    times = request_times()
    try:
        validated = _validate(message, admission, times)
    except MemoryError:
        raise  # says nothing about the message
    except Exception as error:  # noqa: BLE001 - whatever a message causes stays with this message
        _log.critical("validating a message failed unexpectedly; it is kept as a dead letter", record=message.key,
                      exc_info=error)  # fmt: skip
        return dead_letter(message.key, message.raw, message.size, error)
    if times is None:
        return validated
    times.validated_ns = now_ns()
    return replace(validated, times=times)


def dead_letter(key: str, raw: bytes, size: int, error: Exception) -> Admission:
    """The rejection of a message that caused an unexpected error; only its bytes are kept of it."""
    detail = one_line(f"this record broke Scenario Runner: {type(error).__name__}: {error}")
    return Admission(
        record_key=key, raw=raw, raw_size=size, disposition=Disposition.REJECTED,
        reason_code=Reason.INTERNAL_ERROR.value, detail=detail,
    )  # fmt: skip


def _validate(message: Message, admission: AdmissionPolicy, times: RequestTimes | None) -> Admission:
    decoded = Decoded("", "", {})
    try:
        decoded = decode(message, admission.topic, admission.record_limit)
        if times is not None:
            times.caller = decoded.caller
        if decoded.foreign:
            return _disposed(message, decoded, Disposition.IGNORED, f"of the topic {decoded.foreign}, not ours")
        if decoded.kind in OWN_SIGNALS:
            return _disposed(message, decoded, Disposition.IGNORED, "one of our own signals")
        if decoded.kind == SignalKind.REEMIT_REQUEST:
            return _reemit(message, decoded, admission)
        if decoded.kind == SignalKind.EVIDENCE_ARRIVED:
            return _arrival(message, decoded, admission)
        request = parse_run_request(decoded.document)
        intent, inputs = _plan(request, admission, times)
        refuse_itself(intent.run_id, decoded.supersession)
    except RequestRefused as refused:
        return _rejected(message, decoded, refused, admission.record_limit)
    return _admitted(message, decoded, request, intent, inputs)


def _plan(request: RunRequest, admission: AdmissionPolicy, times: RequestTimes | None) -> tuple[Intent, PlanInputs]:
    """Intent and plan inputs of a request, observed where spans are recorded."""
    if times is None:
        return plan_request(request, admission)
    times.planning_ns = now_ns()
    planned = plan_request(request, admission)
    times.planned_ns = now_ns()
    return planned


def _reemit(message: Message, decoded: Decoded, admission: AdmissionPolicy) -> Admission:
    """A record that asks for a re-emit. What it comes to is the authority's: it knows the run and the rate limit.

    Raises:
        RequestRefused: The request is malformed.
    """
    act = reemit_act(parse_reemit_request(decoded.document), admission.reemit, message.key, "bus")
    return Admission(
        record_key=message.key, raw=message.raw, raw_size=message.size, kind=decoded.kind,
        message_id=decoded.message_id, run_id=act.run_id, reemit=act,
    )  # fmt: skip


def _arrival(message: Message, decoded: Decoded, admission: AdmissionPolicy) -> Admission:
    """A record that says that evidence has come. Whether a run waits there, the authority knows.

    Nobody need be named in it: a name is no proof, and what the record does the schedule does later without it.

    Raises:
        RequestRefused: It is malformed, or names a root that the profile does not allow.
    """
    said = parse_evidence_arrived(decoded.document)
    root = normalise_root(said.engine_run_root, admission.engine_roots, admission.cwd)
    return Admission(
        record_key=message.key, raw=message.raw, raw_size=message.size, kind=decoded.kind,
        message_id=decoded.message_id, disposition=Disposition.ACCEPTED, arrival=Arrival(root, said.run_id or ""),
    )  # fmt: skip


def _admitted(message: Message, decoded: Decoded, request: RunRequest, intent: Intent, inputs: PlanInputs) -> Admission:
    run = NewRun(
        run_id=intent.run_id,
        run_equivalence_key=intent.run_equivalence_key,
        fingerprint=intent.fingerprint(),
        intent=intent.document(),
        inputs=inputs.document(),
        plan_hash=plan_hash(intent, inputs),
        plan_ref=refs.plan_ref(intent.run_id),
        evidence_wait_us=inputs.evidence_wait_seconds * MICROS,
        invoker=request.invoker or "",
        supersession=decoded.supersession,
        traceparent=decoded.caller.text() if decoded.caller is not None else "",
    )
    # Only the authority can know whether the key is taken, so the refusal is ready in case it is.
    refusal = _refusal(message, decoded, intent.run_id, Disposition.CONFLICT, COLLISION_CODE, COLLISION_DETAIL)
    return Admission(
        record_key=message.key, raw=message.raw, raw_size=message.size, kind=decoded.kind,
        message_id=decoded.message_id, run_id=intent.run_id, run=run, refusal=refusal,
    )  # fmt: skip


def _disposed(message: Message, decoded: Decoded, disposition: Disposition, detail: str) -> Admission:
    """A disposition that is final, and for which no signal is sent."""
    return Admission(
        record_key=message.key, raw=message.raw, raw_size=message.size, kind=decoded.kind,
        message_id=decoded.message_id, disposition=disposition, detail=detail[:_LONGEST_DETAIL],
    )  # fmt: skip


def _rejected(message: Message, decoded: Decoded, refused: RequestRefused, limit: int) -> Admission:
    """The rejection of a message, with a signal when it says which run it is about."""
    # An oversized message is not parsed, and it may have been cut off.
    run_id = run_id_hint(message) if message.size <= limit else ""
    code, detail, disposition = refused.reason.value, refused.detail[:_LONGEST_DETAIL], Disposition.REJECTED
    refusal = _refusal(message, decoded, run_id, disposition, code, detail) if run_id else None
    return Admission(
        record_key=message.key, raw=message.raw, raw_size=message.size, kind=decoded.kind,
        message_id=decoded.message_id, run_id=run_id, disposition=disposition, reason_code=code, detail=detail,
        refusal=refusal,
    )  # fmt: skip


def _refusal(
    message: Message, decoded: Decoded, run_id: str, disposition: Disposition, reason_code: str, detail: str
) -> SignalDraft:
    return request_rejected(message.key, decoded.message_id, run_id, disposition, reason_code, detail)
