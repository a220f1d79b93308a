"""What every engine reads through its named statements in the same way."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import orjson
from typing_extensions import override

from scenario_runner.authority.acts import ActionRow, Arrival, PublishedSignal
from scenario_runner.authority.arrivals import MOST_TOLD
from scenario_runner.authority.base import Authority, RunReader
from scenario_runner.authority.observed import WaitingRuns
from scenario_runner.authority.rebuilds import UnfinishedRebuild
from scenario_runner.authority.rows import (
    Row,
    action_row,
    attempt_row,
    record_row,
    run_row,
    signal_row,
    stored_event,
    supersession_row,
)
from scenario_runner.authority.values import (
    AttemptRow,
    ProjectionTask,
    RecordRow,
    RunRow,
    Signals,
    StoredEvent,
    SupersessionRow,
)


class RunQueries(RunReader):
    """What is known of one run, from named statements."""

    @abstractmethod
    def _query(self, name: str, /, **parameters: Any) -> Sequence[Row]:  # noqa: ANN401 - a column holds anything
        """Rows of a named statement; none when it returns none."""

    @override
    def run(self, run_id: str) -> RunRow | None:
        rows = self._query("get_run", run_id=run_id)
        return run_row(rows[0]) if rows else None

    @override
    def events(self, run_id: str) -> list[StoredEvent]:
        return [stored_event(row) for row in self._query("list_events", run_id=run_id)]

    @override
    def attempts(self, run_id: str) -> list[AttemptRow]:
        return [attempt_row(row) for row in self._query("list_attempts", run_id=run_id)]

    @override
    def records(self, run_id: str) -> list[RecordRow]:
        return [record_row(row) for row in self._query("list_records", run_id=run_id)]

    @override
    def signals(self, run_id: str) -> Signals:
        return Signals(tuple(map(signal_row, self._query("list_signals", run_id=run_id))))

    @override
    def supersessions(self, run_id: str) -> list[SupersessionRow]:
        return [supersession_row(row) for row in self._query("supersessions", run_id=run_id)]

    @override
    def actions(self, subject: str) -> list[ActionRow]:
        return [action_row(row) for row in self._query("list_actions", subject=subject)]

    @override
    def awaited(self, arrival: Arrival) -> bool:
        return bool(self._waiting_at(arrival, "", 1))

    def _waiting_at(self, arrival: Arrival, after: str, limit: int) -> list[str]:
        """Ids of runs that wait for what has come, in order."""
        name = "waiting_at_only" if arrival.run_id else "waiting_at"
        rows = self._query(name, root=arrival.engine_run_root, only=arrival.run_id, after=after, limit=limit)
        return [str(row["run_id"]) for row in rows]


class Queries(RunQueries, Authority):
    """The reading half of an authority."""

    @override
    def absent_roots(self, after: str, limit: int, only: str = "") -> list[str]:
        name = "absent_roots_only" if only else "absent_roots"
        return [row["absent_root"] for row in self._query(name, after=after, limit=limit, only=only)]

    @override
    def waiting_runs(self) -> WaitingRuns:
        (row,) = self._query("waiting_runs")
        return WaitingRuns(row["count"], row["oldest_us"] or 0, row["next_deadline_us"] or 0)

    @override
    def tell(self, arrivals: Sequence[Arrival]) -> list[int]:
        roots = list(dict.fromkeys(arrival.engine_run_root for arrival in arrivals))
        rows = self._query("awaited_roots", roots=self._list(roots)) if roots else []
        awaited = {row["root"] for row in rows}
        waiting = dict.fromkeys(arrivals, 0)
        untold: dict[str, None] = {}
        for arrival in waiting:
            if arrival.engine_run_root in awaited:
                for run_ids in self._pages_waiting_at(arrival):
                    waiting[arrival] += len(run_ids)
                    untold |= dict.fromkeys(run_ids)
                    self._tell_full_pages(untold)
        if untold:
            self._tell_runs(list(untold))
        return [waiting[arrival] for arrival in arrivals]

    def _tell_full_pages(self, untold: dict[str, None]) -> None:
        """Tell runs of however many arrivals together, as many at a time as one statement may; the rest stays."""
        while len(untold) >= MOST_TOLD:
            page = list(islice(untold, MOST_TOLD))
            self._tell_runs(page)
            for run_id in page:
                del untold[run_id]

    @override
    def waiting_roots(self, most: int) -> list[str]:
        return [str(row["root"]) for row in self._query("waiting_roots", most=most)]

    def _pages_waiting_at(self, arrival: Arrival) -> Iterator[list[str]]:
        """Ids of all runs that wait for what has come."""
        after = ""
        while run_ids := self._waiting_at(arrival, after, MOST_TOLD):
            yield run_ids
            if len(run_ids) < MOST_TOLD:
                return
            after = run_ids[-1]

    @abstractmethod
    def _tell_runs(self, run_ids: Sequence[str]) -> None:
        """Make runs due that wait, or mark them if they are under lease."""

    @abstractmethod
    def _list(self, values: Sequence[str]) -> object:
        """A list as the parameter of a statement."""

    @override
    def acts(self, keys: Sequence[str]) -> dict[str, ActionRow]:
        rows = self._query("find_actions", action_keys=self._list(keys)) if keys else []
        return {row["action_key"]: action_row(row) for row in rows}

    @override
    def published(self, state: str, after: tuple[int, int], until_us: int, limit: int) -> list[PublishedSignal]:
        after_us, after_id = after
        rows = self._query(
            "published_signals", state=state, after_us=after_us, after_id=after_id, until_us=until_us, limit=limit
        )
        return [
            PublishedSignal(row["run_id"], row["message_id"], row["kind"], (row["sent_us"], row["outbox_id"]))
            for row in rows
        ]

    @override
    def runs(self, state: str | None, limit: int) -> list[RunRow]:
        return [run_row(row) for row in self._query("list_runs", state=state, limit=limit)]

    @override
    def find_digests(self, key: str) -> list[str] | None:
        rows = self._query("find_digests", digest_key=key)
        return list(orjson.loads(rows[0]["digests"])) if rows else None

    @override
    def identity(self, name: str, proposed: str) -> str:
        if proposed:
            self._propose_identity(name, proposed)
        rows = self._query("get_identity", name=name)
        return str(rows[0]["identity"]) if rows else ""

    @override
    def unfinished_rebuild(self) -> UnfinishedRebuild | None:
        rows = self._query("get_rebuild")
        if not rows:
            return None
        row = rows[0]
        return UnfinishedRebuild(row["began_us"], row["epoch"], row["actor"], row["terms"])

    def _require_rebuilt(self) -> None:
        """Refuse to work while the authority is being rebuilt.

        Raises:
            Unavailable: it is.
        """
        rebuild = self.unfinished_rebuild()
        if rebuild is not None:
            raise rebuild.refusal()

    @abstractmethod
    def _propose_identity(self, name: str, identity: str) -> None:
        """Keep the identity of a store unless one is known."""


def runs_with_attempts(claimed: Iterable[Row]) -> list[str]:
    """Ids of the claimed runs whose attempts must be read; most runs have none."""
    return [row["run_id"] for row in claimed if row["attempts"]]


def attempts_by_run(rows: Iterable[Row]) -> dict[str, tuple[AttemptRow, ...]]:
    """Rows of attempts, in the order of their numbers, by run."""
    return {
        run_id: tuple(map(attempt_row, its_rows)) for run_id, its_rows in groupby(rows, lambda row: str(row["run_id"]))
    }


def projection_tasks(claimed: Iterable[Row], events: Iterable[Row]) -> list[ProjectionTask]:
    """Claimed runs with their events.

    Args:
        claimed: Rows of runs.
        events: Rows of their events in order. They are read after the claim, so a run that is still being driven may
            have more by then: those above its ``event_seq`` are left to the next task.
    """
    tasks = {run.run_id: (run, list[StoredEvent]()) for run in map(run_row, claimed)}
    for row in events:
        run, its_events = tasks[row["run_id"]]
        if row["seq"] <= run.event_seq:
            its_events.append(stored_event(row))
    return [ProjectionTask(run, tuple(its_events)) for run, its_events in tasks.values()]
