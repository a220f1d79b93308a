"""``reemit``: publish the signal of one run again."""

import secrets
from dataclasses import dataclass
from typing import Any, Final

import typer
from pydantic import ValidationError

from scenario_runner.authority.acts import ActionRow, ReemitAnswer
from scenario_runner.authority.reemits import ACCEPTED
from scenario_runner.authority.values import SignalRow
from scenario_runner.cli.acting import actor_of
from scenario_runner.cli.console import Exit, exit_on_error, print_fields, print_json
from scenario_runner.cli.outputs.acting import REEMIT
from scenario_runner.cli.read_only import KeptAuthority, never_started
from scenario_runner.cli.run_ids import named_run
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.documents import ReemitRequest
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.contracts.reasons import CODES, SENTENCES, Reason
from scenario_runner.contracts.states import ReemitKind
from scenario_runner.contracts.times import format_micros
from scenario_runner.contracts.validation import explain_validation
from scenario_runner.intake.reemit import reemit_act
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.production import load_to_write
from scenario_runner.service.reemit import Reemitter, open_reemitter

_FIELDS: Final = (
    "run_id", "outcome", "reason_code", "sentence", "detail", "kind", "message_id", "emission", "sent_at_utc",
    "requested_by",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReemitOptions:
    """What the command line says of an act, for one run or for many."""

    kind: str
    reason: str
    requested_by: str | None
    dry_run: bool

    @property
    def actor(self) -> str:
        """Who asks: the name that was given, or else this user's."""
        return actor_of(self.requested_by)

    def request(self, run_id: str) -> ReemitRequest:
        """The request document that stands for these options.

        Raises:
            UsageError: one cannot be used.
        """
        if self.kind not in set(ReemitKind):
            raise UsageError(f"--kind {self.kind!r} is not one of {', '.join(ReemitKind)}")
        if not self.reason.strip():
            raise UsageError("--reason is empty: the record of the run says why its signal was published again")
        document = {
            "run_id": run_id, "reemit_kind": self.kind, "reason": self.reason, "requested_by": self.actor,
            "dry_run": self.dry_run,
        }  # fmt: skip
        try:
            return ReemitRequest.model_validate(document)
        except ValidationError as error:
            names = {"reason": "--reason", "requested_by": "--requested-by"}
            raise UsageError(explain_validation(error, names=names)) from error


def run(wiring_path: str, run_id: str, options: ReemitOptions, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        document = reemit_run(load_to_write(wiring_path), run_id, options)
    if as_json:
        print_json(document, REEMIT)
    else:
        print_fields(document, _FIELDS)
    raise typer.Exit(Exit.NEGATIVE if document["reason_code"] else Exit.DONE)


def reemit_run(wiring: Wiring, name: str, options: ReemitOptions) -> Json:
    """Publish the signal of a run again, or say what would be published.

    Args:
        wiring: The profile.
        name: The run, as a person names it; see :mod:`scenario_runner.cli.run_ids`.
        options: What is asked for.

    Returns:
        What came of it; ``reason_code`` is None when nothing was refused.

    Raises:
        UsageError: not a run id, no such run, or options that cannot be used.
        Unavailable: infrastructure does not answer. What was accepted is delivered later.
    """
    require_started(wiring, name)
    with KeptAuthority(wiring) as known:
        run_id = named_run(known.ask, name)
    request = options.request(run_id)
    with open_reemitter(wiring, run_id) as reemitter:
        act = reemit_act(request, reemitter.policy, f"cli/{secrets.token_hex(16)}", "cli")
        if act.dry_run:
            act = reemitter.predicted(act)
        (answer,) = reemitter.authority.reemit([act])
        if answer.outcome == Reason.RUN_NOT_FOUND:
            raise UsageError(answer.detail, Reason.RUN_NOT_FOUND)
        outcome, detail = answer.outcome, answer.detail
        if outcome == ACCEPTED:
            action = _delivered(reemitter, answer)
            outcome, detail = action.outcome, action.detail
        signals = reemitter.authority.signals(run_id).rows
        signal = next((row for row in signals if row.action_key == act.key), None)
    document = {"run_id": run_id, **outcome_fields(outcome, detail), **_signal_fields(signal)}
    return document | {"requested_by": act.actor, "dry_run": act.dry_run, "reemit_kind": act.kind.value}


def require_started(wiring: Wiring, what: str) -> None:
    """Refuse a profile whose embedded authority does not exist yet: opening it would make one.

    Raises:
        UsageError: ``RUN_NOT_FOUND``.
    """
    if never_started(wiring):
        raise UsageError(f"nothing is known of {what}: the daemon was never started here", Reason.RUN_NOT_FOUND)


def _delivered(reemitter: Reemitter, answer: ReemitAnswer) -> ActionRow:
    action = reemitter.deliver([answer.key], reemitter.relay.step)[answer.key]
    if action.outcome == ACCEPTED:
        raise Unavailable(
            f"the re-emit of run {answer.run_id} is on record and owed to the control bus, and could not be delivered "
            "now; a daemon delivers it as soon as what it needs answers again"
        )
    while reemitter.relay.step():  # what it added to the run's record
        pass
    return action


def outcome_fields(outcome: str, detail: str) -> Json:
    """What came of an act."""
    refused = outcome in CODES
    return {
        "outcome": outcome,
        "reason_code": outcome if refused else None,
        "sentence": SENTENCES[Reason(outcome)] if refused else None,
        "detail": detail,
    }


def _signal_fields(signal: SignalRow | None) -> dict[str, Any]:
    if signal is None:
        return dict.fromkeys(("kind", "message_id", "emission", "sent_at_utc", "receipt"))
    return {
        "kind": signal.kind,
        "message_id": signal.message_id,
        "emission": signal.emission,
        "sent_at_utc": format_micros(signal.sent_us) if signal.sent_us else None,
        "receipt": parse_json(signal.receipt.encode()) if signal.receipt else None,
    }
