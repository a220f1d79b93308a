"""``run``: one request from its admission to its verdict, in this process, without a control bus."""

import hashlib
import os
from typing import Final

import typer

from scenario_runner import posix
from scenario_runner.audit.explain import status_of
from scenario_runner.authority.values import Admitted
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.cli.console import Exit, exit_for_state, exit_on_error, print_fields, print_json
from scenario_runner.cli.outputs.acting import RUN
from scenario_runner.cli.request_file import read_bytes
from scenario_runner.cli.stopping import stop_on_signals
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import RequestRefused, ScenarioRunnerError, Unavailable, needs_posix
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import FINAL_STATES, Disposition
from scenario_runner.intake.counting import count_admitted
from scenario_runner.intake.decode import Message, run_id_hint
from scenario_runner.intake.spans import trace_admitted
from scenario_runner.intake.validate import validate_message
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import Daemon, compose_daemon
from scenario_runner.service.control_bus import state_modes
from scenario_runner.service.loops import Role
from scenario_runner.service.span_export import traced
from scenario_runner.service.supervisor import Supervisor
from scenario_runner.service.telemetry import end_process, set_up_logging

#: Stands for the run of a request that names none: no run has this id.
_NO_RUN: Final = "-"
_CORRECT_IT: Final = "correct the request and run it again; no run was created"
_JUDGED_BEFORE: Final = (
    "these very bytes were judged before and keep that answer, whatever the profile says today; to have the request "
    "judged again, give it another request_id or notes"
)
_TOO_EARLY: Final = frozenset({Reason.SUPERSEDED_RUN_NOT_ENDED.value, Reason.SUPERSEDED_RUN_NOT_FOUND.value})
"""Refusals that pass by themselves."""
_FIELDS: Final = ("run_id", "state", "reason_code", "detail", "disposition", "next_action")


def run(
    wiring_path: str,
    policy_path: str,
    file: str,
    timeout: float | None,
    log_level: str,
    log_format: str,
    *,
    as_json: bool,
) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        result, code = run_request(wiring_path, policy_path, file, timeout, log_level, log_format)
    if as_json:
        print_json(result, RUN)
    else:
        print_fields(result, _FIELDS)
    raise typer.Exit(code)


def run_request(
    wiring_path: str, policy_path: str, file: str, timeout: float | None, log_level: str, log_format: str
) -> tuple[Json, Exit]:
    """Admit the request in a file and drive its run until it has a verdict that is delivered, or the time is over.

    Returns:
        The status of the run, or of the refused request, and the exit code that stands for it.

    Raises:
        ConfigurationError: a profile, schema or pack is not valid.
        Unavailable: infrastructure does not answer at start-up.
    """
    if not posix.AVAILABLE:
        raise needs_posix("run", "driving a run")
    set_up_logging(log_level, log_format)
    wiring, policy = load_wiring(wiring_path), load_policy(policy_path)
    os.umask(state_modes(wiring).umask)
    raw = read_bytes(file)
    # The same bytes have the same record key, so that they are admitted once.
    message = Message(f"cli/{hashlib.sha256(raw).hexdigest()}", raw[:MAX_RECORD_BYTES], len(raw))
    only = run_id_hint(message) or _NO_RUN
    try:
        with traced("run", os.environ):
            return _run(compose_daemon(wiring, policy, only), message, timeout)
    except ScenarioRunnerError:
        raise
    except BaseException as error:  # noqa: BLE001 - a defect: threads may still run, and none may decide anything more
        end_process(Exit.DEFECT, error)


def _run(daemon: Daemon, message: Message, timeout: float | None) -> tuple[Json, Exit]:
    admission = validate_message(message, daemon.admission)
    if admission.reemit is not None:
        problem = "the document is a REEMIT_REQUEST, a run request is needed; `scenario-runner reemit` repeats signals"
        raise RequestRefused(problem, Reason.KIND_NOT_SERVED)
    (admitted,) = daemon.authority.admit([admission])
    count_admitted([admission], [admitted])
    trace_admitted([admission], [admitted])
    if admitted.disposition in (Disposition.ACCEPTED, Disposition.DUPLICATE):
        return _drive(daemon, admitted, timeout)
    while daemon.relay.step():  # the refusal goes to the control bus too
        pass
    daemon.authority.close()
    return _refused(admitted), Exit.NEGATIVE


def _refused(admitted: Admitted) -> Json:
    code = admitted.reason_code
    return {
        "run_id": admitted.run_id,
        "state": "REJECTED",
        "disposition": admitted.disposition.value,
        "reason_code": code,
        "sentence": SENTENCES[Reason(code)] if code in set(Reason) else "",
        "detail": admitted.detail,
        "next_action": _next(admitted),
    }


def _next(admitted: Admitted) -> str:
    if admitted.reason_code in _TOO_EARLY:
        return (
            "these very bytes keep this answer: once that run has ended, run the request with another request_id or "
            f"notes, or `scenario-runner dead-letter redrive {admitted.record_key}`; no run was created"
        )
    return _JUDGED_BEFORE if admitted.repeated else _CORRECT_IT


def _drive(daemon: Daemon, admitted: Admitted, timeout: float | None) -> tuple[Json, Exit]:
    supervisor = Supervisor(daemon, Role.ALL, only=admitted.run_id)
    stop_on_signals(daemon, supervisor)
    supervisor.run(timeout)
    status = status_of(daemon.authority, admitted.run_id)
    if status is None:
        raise Unavailable(f"run {admitted.run_id} is no longer in the authority")
    if status["state"] in FINAL_STATES and daemon.authority.pending(only=admitted.run_id).undelivered:
        raise Unavailable(
            f"run {admitted.run_id} is {status['state']}, and documents or signals of it are still owed; run again, or "
            "let a daemon deliver them"
        )
    daemon.authority.close()
    return {**status, "disposition": admitted.disposition.value}, exit_for_state(str(status["state"]))
