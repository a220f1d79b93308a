"""The documents of an attempt: what the engine is asked for, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from scenario_runner.contracts.canonical import Json, canonical_bytes
from scenario_runner.contracts.documents import EngineAttempt, EngineInvocation
from scenario_runner.contracts.errors import EngineRefusal, SequenceError
from scenario_runner.contracts.ids import attempt_id_of
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import format_micros
from scenario_runner.contracts.validation import explain_validation
from scenario_runner.engine.invoker import JobEnd, Launch


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a run, before its launch.

    Attributes:
        intent: What the run asks for.
        attempt_no: From 1.
        engine_run_root: Where the engine is to write its run.
        invoker: Who asked for the run; empty when nobody is named.
    """

    intent: Intent
    attempt_no: int
    engine_run_root: str
    invoker: str = ""

    @property
    def attempt_id(self) -> str:
        """hex32 id of the attempt."""
        return attempt_id_of(self.intent.run_id, self.attempt_no)

    def tokens(self) -> dict[str, str]:
        """The identity as placeholders of ``engine_command`` take it. A set is written with commas between."""
        scenarios = self.intent.scenario_set or (self.intent.scenario_id,)
        return {**self.intent.tokens(), "scenario_set": ",".join(scenarios)}


def invocation_document(attempt: Attempt) -> Json:
    """The engine_invocation document of an attempt.

    Raises:
        EngineRefusal: It would not be a valid document.
    """
    intent = attempt.intent
    document: Json = {
        "manifest_fingerprint": intent.manifest_fingerprint,
        "parameter_hash": intent.parameter_hash,
        "seed": intent.seed,
        "run_id": intent.run_id,
        "scenario_binding": {"scenario_set": list(intent.scenario_set)}
        if intent.scenario_set
        else {"scenario_id": intent.scenario_id},
        "request_id": attempt.attempt_id,
        "engine_run_root": attempt.engine_run_root,
    }
    if attempt.invoker:
        document["invoker"] = attempt.invoker
    try:
        return EngineInvocation.model_validate(document).wire()
    except ValidationError as error:
        raise EngineRefusal(f"the invocation is not valid: {explain_validation(error)}") from error


def launch_of(attempt: Attempt, invocation_path: str, timeout_seconds: float, traceparent: str = "") -> Launch:
    """An attempt as a backend launches it.

    Args:
        attempt: The attempt.
        invocation_path: Where the bytes of the invocation document lie for the engine to read.
        timeout_seconds: How long the engine may run.
        traceparent: W3C trace context; empty for none.

    Raises:
        EngineRefusal: The invocation would not be a valid document.
    """
    return Launch(
        attempt_id=attempt.attempt_id, attempt_no=attempt.attempt_no, run_id=attempt.intent.run_id,
        tokens=attempt.tokens(), engine_run_root=attempt.engine_run_root,
        invocation=canonical_bytes(invocation_document(attempt)),
        invocation_path=invocation_path, timeout_seconds=timeout_seconds, traceparent=traceparent,
    )  # fmt: skip


def attempt_document(
    attempt: Attempt,
    end: JobEnd,
    backend: str,
    *,
    started_us: int,
    ended_us: int,
    receipt_reason: Reason | None = None,
    run_receipt_ref: str = "",
    logs_ref: Mapping[str, str] | None = None,
) -> Json:
    """The engine_attempt document. Success needs an engine that succeeded and a run receipt that was accepted.

    Args:
        attempt: The attempt.
        end: How the engine ended.
        backend: Name of the :class:`~scenario_runner.engine.invoker.EngineInvoker`.
        started_us: When it was launched, in microseconds since the epoch.
        ended_us: When its end was seen.
        receipt_reason: Why the run receipt was refused; None when it was accepted, or not asked for.
        run_receipt_ref: Where the accepted run receipt lies.
        logs_ref: ``stdout_ref`` and ``stderr_ref``; None when nothing was kept.

    Raises:
        EngineRefusal: The invocation would not be a valid document.
        SequenceError: The document would not be valid, or would claim a success without an accepted run receipt.
    """
    reason = receipt_reason if end.succeeded else end.reason_code
    if reason is None and not (end.succeeded and run_receipt_ref):
        raise SequenceError("an attempt without a reason to fail has no accepted run receipt")
    document: Json = {
        "run_id": attempt.intent.run_id,
        "attempt_id": attempt.attempt_id,
        "attempt_no": attempt.attempt_no,
        "outcome": "SUCCEEDED" if reason is None else "FAILED",
        "started_at_utc": format_micros(started_us),
        # A clock that was set back must not make an attempt end before it began.
        "ended_at_utc": format_micros(max(started_us, ended_us)),
        "invocation": invocation_document(attempt),
        "invoker": backend,
        "engine_run_root": attempt.engine_run_root,
        "duration_ms": end.duration_ms,
    }
    document |= {"run_receipt_ref": run_receipt_ref} if reason is None else {"reason_code": str(reason)}
    document |= {"logs_ref": dict(logs_ref)} if logs_ref else {}
    try:
        return EngineAttempt.model_validate(document).wire()
    except ValidationError as error:
        raise SequenceError(f"the engine_attempt document is not valid: {explain_validation(error)}") from error
