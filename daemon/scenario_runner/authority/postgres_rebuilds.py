"""Rebuilding the production authority from the ledger, a statement for each batch."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from psycopg import IntegrityError
from psycopg.types.numeric import Int8
from typing_extensions import override

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.observed import DaemonRow, daemon_row
from scenario_runner.authority.postgres_batches import Parameters, bigint, columns, signal_columns
from scenario_runner.authority.postgres_pool import UNSTORABLE
from scenario_runner.authority.postgres_reemits import PostgresReemits
from scenario_runner.authority.rebuilds import (
    SEEN_US,
    NotStorableError,
    RebuildEnd,
    RestoredEvent,
    RestoredRun,
    RestoredSignal,
    UnfinishedRebuild,
)
from scenario_runner.authority.rows import action_columns, searchable, storable, storable_attempt
from scenario_runner.contracts.canonical import canonical_bytes, parse_rendered, rendered_again
from scenario_runner.contracts.errors import SequenceError, in_short

_RUN: Final = (
    "run_id run_equivalence_key fingerprint intent inputs state reason_code admitted_us deadline_us updated_us due_us "
    "report_digest event_seq projected_seq facts_view_digest invoker attempts strategy missing supersedes supersession"
)
_EVENT: Final = "event_run_id event_seqs event_kind event_ts_us event_details"
_SIGNAL: Final = (
    "signal_run_id message_id signal_kind partition_key attributes payload emission created_us needs_seq sent_us "
    "receipt signal_action_key removed_emission"
)
_ACTION: Final = "action_key action_at actor via action subject reason outcome detail"
_STORE: Final = "store_name identity"


#: Errors that lie in a value: of the driver, of a number and of a text. Another one is a defect, or a lack of memory.
_UNSTORABLE: Final = (*UNSTORABLE, IntegrityError, OverflowError, UnicodeError, SequenceError)


class PostgresRebuilds(PostgresReemits):
    """The part of the production authority that is rebuilt; the rest of it provides the abstract method."""

    @abstractmethod
    def _query_or_unstorable(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        """Rows of a named statement; raises the driver's error as it is where it lies in a value."""

    @abstractmethod
    def _execute_together(self, statements: Sequence[tuple[str, Parameters]]) -> None:
        """Execute named statements in one transaction."""

    @override
    def begin_rebuild(self, actor: str, terms: str) -> UnfinishedRebuild | None:
        given = {"actor": storable(actor), "terms": storable(terms), "within_us": SEEN_US}
        self._execute_together([("lock_admissions", {}), ("begin_rebuild", given)])
        return self.unfinished_rebuild()

    @override
    def daemons_seen(self, within_us: int) -> list[DaemonRow]:
        return [daemon_row(row) for row in self._query("daemons_seen", within_us=within_us)]

    @override
    def restore(self, runs: Sequence[RestoredRun], epoch: int, end: RebuildEnd | None = None) -> set[str]:
        ended = [] if end is None else [_action(end.action, self.now_us())]
        try:
            rows = self._query_or_unstorable(
                "restore_runs", **_parameters(runs, ended), epoch=epoch, ends=end is not None,
                **columns(_STORE, end.identities if end is not None else ()),
            )  # fmt: skip
        except _UNSTORABLE as error:
            raise NotStorableError(in_short(error)) from error
        found = {row["run_id"] for row in rows}
        there = [run.run_id for run in runs if run.run_id not in found]
        if there:
            found |= {row["run_id"] for row in self._query("restored_runs", run_ids=there, epoch=epoch)}
        return found


def _parameters(runs: Sequence[RestoredRun], more_actions: Sequence[tuple[Any, ...]]) -> Parameters:
    actions = [_action(action, action.at_us) for run in runs for action in run.actions]
    return (
        columns(_RUN, map(_run, runs))
        | columns(_EVENT, (_event(run.run_id, event) for run in runs for event in run.events))
        | columns(_SIGNAL, (_signal(run.run_id, signal) for run in runs for signal in run.signals))
        | columns(_ACTION, [*actions, *more_actions])
        | _attempts(runs)
    )


def _run(run: RestoredRun) -> tuple[Any, ...]:
    return (
        run.run_id, run.run_equivalence_key, run.fingerprint, run.intent, run.inputs,
        run.state.value, run.reason_code, Int8(run.admitted_us), Int8(run.deadline_us), Int8(run.updated_us),
        bigint(run.due_us), run.report_digest, Int8(len(run.events)), Int8(run.projected_seq), run.facts_view_digest,
        storable(run.invoker), Int8(len(run.attempts)), run.strategy, searchable(run.missing),
        run.supersedes, run.supersession_text,
    )  # fmt: skip


def _event(run_id: str, event: RestoredEvent) -> tuple[Any, ...]:
    details = parse_rendered(event.details)
    del details["seq"]  # it is a column
    return run_id, Int8(event.seq), event.kind, Int8(event.ts_us), rendered_again(details)


def _signal(run_id: str, signal: RestoredSignal) -> tuple[Any, ...]:
    return (
        run_id, *signal_columns(signal.draft), Int8(signal.emission), Int8(signal.created_us), Int8(signal.needs_seq),
        Int8(signal.sent_us), signal.receipt, signal.action_key,
        Int8(signal.removed_emission),
    )  # fmt: skip


def _action(action: ActionRow, at_us: int) -> tuple[Any, ...]:
    texts = action_columns(action)
    names = ("action_key", "actor", "via", "action", "subject", "reason", "outcome", "detail")
    key, *others = (texts[name] for name in names)
    return key, Int8(at_us), *others


def _attempts(runs: Sequence[RestoredRun]) -> Parameters:
    attempts = [{"run_id": run.run_id, **asdict(storable_attempt(item))} for run in runs for item in run.attempts]
    return {"tried": canonical_bytes(attempts).decode()}
