"""Acts of operators on PostgreSQL: decided on facts that are read first, and written only while these hold."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from psycopg.errors import UniqueViolation
from psycopg.types.numeric import Int8
from typing_extensions import override

from scenario_runner.authority import scrubs
from scenario_runner.authority.acts import ActionRow, DriftAct, ReemitAct, ReemitAnswer
from scenario_runner.authority.postgres_batches import (
    Parameters,
    action_parameters,
    claimed_columns,
    columns,
    details_of,
    signal_columns,
)
from scenario_runner.authority.queries import Queries
from scenario_runner.authority.reemits import (
    ACTION,
    UNCOUNTED,
    ReemitDecision,
    decide,
    delivery_event,
    delivery_outcome,
    disposition_of,
    run_facts,
)
from scenario_runner.authority.refusals import request_rejected
from scenario_runner.authority.rows import action_columns, shortened, storable
from scenario_runner.authority.values import Admission, Admitted, ReemitEnd
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import Disposition, RunState
from scenario_runner.rounds import rounds_without_repeats

#: Tries of one act. Each try is lost to another act on the same run, which moves on, so many at once are a loop of a
#: caller's; whoever asks then hears that the authority is busy, and asks again.
_TRIES: Final = 20
_ACT: Final = (
    "action_key run_id actor via reason outcome detail at_us from_seq count emission needs_seq signal_id signal_kind "
    "partition_key attributes payload record_key message_id kind disposition reason_code raw raw_sha256 raw_size"
)
_EVENT: Final = "event_run_id event_nth event_kind event_details"
_END: Final = "published receipt kind details outcome detail"

Asked = tuple[ReemitAct, Admission | None]
"""An act, and the record that asks for it."""
Decided = tuple[tuple[ReemitAct | DriftAct, Admission | None], ReemitDecision, int]
"""An act with its record, what it comes to, and the event of its run that this was decided on."""


class PostgresReemits(Queries):
    """The part of the production authority that repeats signals; the rest of it provides the abstract method."""

    @abstractmethod
    def _query_or_conflict(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        """Rows of a named statement; raises ``UniqueViolation`` as it is."""

    @abstractmethod
    def _admit_together(self, records: list[Admission]) -> dict[str, Admitted]:
        """Give records their dispositions."""

    @override
    def record_action(self, action: ActionRow) -> bool:
        return bool(self._query("insert_action", **action_columns(action)))

    @override
    def end_action(self, key: str, outcome: str, detail: str) -> None:
        self._query("end_action", action_key=key, outcome=outcome, detail=shortened(detail))

    @override
    def replace_detail(self, key: str, before: str, detail: str) -> bool:
        return bool(self._query("replace_detail", action_key=key, before=before, detail=detail))

    @override
    def _list(self, values: Sequence[str]) -> list[str]:
        return list(values)

    @override
    def reemit(self, acts: Sequence[ReemitAct]) -> list[ReemitAnswer]:
        answers: dict[str, ReemitAnswer] = {}
        for indices in rounds_without_repeats([act.run_id for act in acts]):
            answers |= self._carry_out([(acts[index], None) for index in indices if acts[index].key not in answers])
        return [answers[act.key] for act in acts]

    def _admit_reemits(self, records: Sequence[Admission]) -> dict[str, Admitted]:
        """Dispose of records that ask for re-emits, one after the other: they are rare, and their order counts."""
        return {record.record_key: self._admit_reemit(record) for record in records}

    def _admit_reemit(self, record: Admission) -> Admitted:
        act, known = record.reemit, self._known_record(record.record_key)
        assert act is not None
        if known is None:
            answer = self._carry_out([(act, record)])[act.key]
            # An act that is known now was written with its record by a first try, or by another intake.
            known = self._known_record(record.record_key) if answer.repeated else None
            if known is None and answer.repeated:
                return self._admit_together([disposed(record, answer)])[record.record_key]
            if known is None:
                disposition, reason = disposition_of(answer.outcome)
                return Admitted(record.record_key, disposition, reason, answer.detail, act.run_id, repeated=False)
        return known

    def _known_record(self, record_key: str) -> Admitted | None:
        rows = self._query("find_records", record_keys=[record_key])
        if not rows:
            return None
        row = rows[0]
        disposition = Disposition(row["disposition"])
        return Admitted(record_key, disposition, row["reason_code"], row["detail"], row["run_id"], repeated=True)

    def _carry_out(self, asked: Sequence[Asked], by: ActionRow | None = None) -> dict[str, ReemitAnswer]:
        """Carry out acts on different runs; one that lost a race is decided again on the facts of then.

        Args:
            asked: The acts.
            by: Another act, which asks for the record of the only one.
        """
        answers: dict[str, ReemitAnswer] = {}
        left = list(asked)
        for _ in range(_TRIES):
            if not left:
                return answers
            decided: list[Decided] = []
            for item, row in zip(left, self._facts([act for act, _ in left]), strict=True):
                act = item[0]
                if row["outcome"] is not None:
                    answers[act.key] = ReemitAnswer(act.key, act.run_id, row["outcome"], row["detail"], repeated=True)
                else:
                    facts = run_facts(row)
                    from_seq = 0 if facts is None else facts.event_seq
                    decided.append((item, decide(act, facts, row["now"]), from_seq))
            answers |= self._write(decided, by)
            left = [item for item in left if item[0].key not in answers]
            if left:
                self._require_rebuilt()
        raise Unavailable("other re-emits of the same runs are faster each time; nothing was done, ask again")

    def _facts(self, acts: Sequence[ReemitAct]) -> Sequence[Any]:
        rows = columns(
            "action_key run_id window_us", [(act.key, act.run_id, Int8(act.limit.window_us)) for act in acts]
        )
        return self._query("reemit_facts", **rows, action=ACTION, uncounted=list(UNCOUNTED))

    def _write(self, decided: Sequence[Decided], by: ActionRow | None, action: str = ACTION) -> dict[str, ReemitAnswer]:
        """Write what was decided; of an act that lost a race there is no answer, and nothing is written."""
        if not decided:
            return {}
        name = "commit_reemits" if by is None else "commit_reemits_by"
        try:
            done = self._query_or_conflict(name, **_act_parameters(decided), **action_parameters(by), action=action)
        except UniqueViolation:
            return {}
        keys = {row["action_key"] for row in done}
        return {
            act.key: ReemitAnswer(act.key, act.run_id, decision.outcome, decision.detail)
            for (act, _), decision, _ in decided
            if act.key in keys
        }

    @override
    def record_drift(self, act: DriftAct) -> bool:
        given = columns("action_key run_id window_us", [(act.key, act.run_id, Int8(0))])
        for _ in range(_TRIES):
            (row,) = self._query("reemit_facts", **given, action=scrubs.ACTION, uncounted=list(UNCOUNTED))
            facts = run_facts(row)
            if row["outcome"] is not None or facts is None or facts.state is not RunState.READY:
                return False
            # Read after the run: a drift that is not among them now makes the write below find another event.
            if scrubs.told_lately(act, self.actions(act.run_id), row["now"]):
                return False
            at_us = max(row["now"], facts.last_event_us + 1)
            decision = ReemitDecision(scrubs.DRIFT, act.detail, at_us, (scrubs.drift_event(act),))
            if self._write([((act, None), decision, facts.event_seq)], None, scrubs.ACTION):
                return True
            self._require_rebuilt()
        raise Unavailable("acts on the same run are faster each time; nothing was put on record, scrub again")

    @override
    def end_reemits(self, ends: Sequence[ReemitEnd]) -> None:
        for indices in rounds_without_repeats([end.row.run_id for end in ends]):
            ended = [ends[index] for index in indices]
            rows = claimed_columns([end.row for end in ended])
            self._query("end_reemits", **rows, **columns(_END, map(_end, ended)))


def disposed(record: Admission, answer: ReemitAnswer) -> Admission:
    """A record whose act was carried out before, and whose row has gone since: it gets its disposition once more."""
    disposition, reason = disposition_of(answer.outcome)
    refusal = None
    if reason:
        refusal = request_rejected(
            record.record_key, record.message_id, answer.run_id, disposition, reason, answer.detail
        )
    return replace(
        record, reemit=None, disposition=disposition, reason_code=reason, detail=answer.detail, refusal=refusal
    )


def _act_parameters(decided: Sequence[Decided]) -> Parameters:
    events = [
        (act.run_id, Int8(number), event.kind.value, details_of(event))
        for (act, _), decision, _ in decided
        for number, event in enumerate(decision.events, 1)
    ]
    event_columns = columns(_EVENT, events) if events else {name: [] for name in _EVENT.split()}
    return columns(_ACT, [_act(*item) for item in decided]) | event_columns


def _act(
    asked: tuple[ReemitAct | DriftAct, Admission | None], decision: ReemitDecision, from_seq: int
) -> tuple[Any, ...]:
    act, record = asked
    disposition, reason_code = disposition_of(decision.outcome)
    signal = decision.signal
    if record is not None and reason_code:
        signal = request_rejected(
            record.record_key, record.message_id, act.run_id, disposition, reason_code, decision.detail
        )
    return (
        act.key, act.run_id, storable(act.actor), act.via, storable(act.reason), decision.outcome,
        shortened(decision.detail), Int8(decision.at_us), Int8(from_seq), Int8(len(decision.events)),
        Int8(decision.emission), Int8(decision.needs_seq), *signal_columns(signal),
        *_record(record, disposition, reason_code),
    )  # fmt: skip


def _record(record: Admission | None, disposition: Disposition, reason_code: str) -> tuple[Any, ...]:
    if record is None:
        return (None,) * 8
    return (
        record.record_key, storable(record.message_id), storable(record.kind), disposition.value, reason_code,
        record.raw, hashlib.sha256(record.raw).hexdigest(), Int8(record.raw_size),
    )  # fmt: skip


def _end(end: ReemitEnd) -> tuple[Any, ...]:
    event = delivery_event(end)
    outcome, detail = delivery_outcome(end)
    return (
        end.failure is None, end.receipt, event.kind.value, details_of(event), outcome, shortened(detail),
    )  # fmt: skip
