"""The views on an authority, the same for every engine: which statement answers which question."""

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from heapq import merge
from itertools import groupby, islice
from typing import Any, Final

import orjson

from scenario_runner.authority.acts import ActionRow, ack_key
from scenario_runner.authority.observed import DaemonRow, daemon_row
from scenario_runner.authority.queries import RunQueries
from scenario_runner.authority.retention import Expired, Expiry
from scenario_runner.authority.rows import Row, action_row, run_row, stored_event
from scenario_runner.authority.values import RunRow, StoredEvent
from scenario_runner.authority.views.values import (
    FOREVER_US,
    INDEXED_STATES,
    Candidate,
    Cursor,
    Letter,
    LetterFilter,
    Order,
    RunFilter,
    RunSummary,
    prefix_end,
)
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.states import Disposition, RunState

#: Records in which a message id is searched, the newest: message ids of records have no index. PostgreSQL reads so many
#: in 0.05 s, and in 0.15 s where they are not in memory.
MOST_RECORDS: Final = 50_000
#: States of runs that are worked on now: an index of PostgreSQL holds them alone.
_BUSY: Final = (RunState.EXECUTING, RunState.VERIFYING)
#: Number of a letter: smaller than the largest of the database.
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
#: Runs in which the holder of a receipt is searched; it was mostly admitted not long before. Their rows are larger:
#: PostgreSQL reads so many in 0.04 s, and in 0.12 s where they are not in memory.
MOST_RUNS: Final = 10_000


class Views(RunQueries):
    """What people ask an authority. One thread uses it; every answer is of one moment."""

    @abstractmethod
    def _rows(self, name: str, terms: Collection[str] = (), /, **parameters: Any) -> Sequence[Row]:  # noqa: ANN401
        """Rows of a named statement of the views, or of the authority's, with the lines of some terms."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""

    @property
    @abstractmethod
    def outdated(self) -> bool:
        """True when an older release made the database, and no daemon of this one has brought it up to date."""

    def _query(self, name: str, /, **parameters: Any) -> Sequence[Row]:  # noqa: ANN401 - a column holds anything
        return self._rows(name, **parameters)

    # --- runs

    def list_runs(self, asked: RunFilter, after: Cursor | None, limit: int) -> list[RunSummary]:
        """A page of runs.

        Args:
            asked: Which.
            after: Where the page before ended; None for the first.
            limit: At most so many.

        Raises:
            UsageError: the cursor is that of another list.
        """
        if after is not None and after.order is not asked.order:
            raise UsageError(f"the cursor is that of another list: this one is ordered by {asked.order}")
        pages = {Order.KEY: self._by_key, Order.DUE: self._by_time, Order.DEADLINE: self._by_time}
        return [_summary(row) for row in pages.get(asked.order, self._by_admission)(asked, after, limit)]

    def _by_admission(self, asked: RunFilter, after: Cursor | None, limit: int) -> Sequence[Row]:
        """Newest first, from the index that leaves out most."""
        state = RunState.WAITING_EVIDENCE if asked.waiting else asked.state
        name = "runs_by_admission"
        if asked.reason and not asked.missing:
            name = "runs_by_reason"
        elif state in INDEXED_STATES:
            name = "runs_by_state"
        # The range ends with the rows of the cursor's time, so that the index begins there.
        until = min(asked.until_us, after.at_us + 1) if after is not None else asked.until_us
        terms = {"after": after, "state": state, "key": asked.key, "missing": asked.missing,
                 "acked": asked.acked is not None}  # fmt: skip
        return self._rows(
            name, _given(terms), since=asked.since_us, until=until, state=state or "", reason=asked.reason,
            acked=int(bool(asked.acked)), limit=limit, **_after(after), **_key(asked.key), **_missing(asked.missing),
        )  # fmt: skip

    def _by_time(self, asked: RunFilter, after: Cursor | None, limit: int) -> Sequence[Row]:
        """Runs on their way by the time when they are due, or waiting runs by their deadline."""
        terms = {"after": after, "admitted": _bounded(asked), "key": asked.key, "missing": asked.missing,
                 "busy": asked.state in _BUSY and asked.order is Order.DUE}  # fmt: skip
        return self._rows(
            f"runs_by_{asked.order}", _given(terms), since=asked.since_us, until=asked.until_us,
            state=asked.state or "", from_us=after.at_us if after is not None else 0, limit=limit, **_after(after),
            **_key(asked.key), **_missing(asked.missing),
        )  # fmt: skip

    def _by_key(self, asked: RunFilter, after: Cursor | None, limit: int) -> Sequence[Row]:
        """By key, the last one first: where keys hold a date, the newest."""
        key = _key(asked.key)
        if after is not None:
            rows = self._rows("run_summary", run_id=after.run_id)
            if not rows:
                raise UsageError(f"the cursor names a run that is not here: {after.run_id}")
            key["key_end"] = rows[0]["run_equivalence_key"]
        terms = {"admitted": _bounded(asked), "state": asked.state}
        return self._rows("runs_by_key", _given(terms), since=asked.since_us, until=asked.until_us,
                          state=asked.state or "", limit=limit, **key)  # fmt: skip

    def summary(self, run_id: str) -> RunSummary | None:
        """One run."""
        rows = self._rows("run_summary", run_id=run_id)
        return _summary(rows[0]) if rows else None

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """Those of some runs that there are, in any order."""
        return [_summary(row) for row in self._rows("run_summaries", run_ids=self._many(run_ids))]

    def supersessions_of(self, run_ids: Sequence[str]) -> list[tuple[str, str]]:
        """(new run, old run) of corrections: those among some runs, and those of some runs that are READY."""
        rows = self._rows("supersessions_of", run_ids=self._many(run_ids)) if run_ids else []
        return sorted({(row["run_id"], row["supersedes"]) for row in rows})

    @abstractmethod
    def _many(self, texts: Sequence[str]) -> Any:  # noqa: ANN401 - each driver has its own
        """Texts as a parameter."""

    def acks(self, run_ids: Sequence[str]) -> dict[str, ActionRow]:
        """Who has acknowledged which of some QUARANTINED runs."""
        keys = self._many([ack_key(run_id) for run_id in run_ids])
        found = (action_row(row) for row in self._rows("find_actions", action_keys=keys))
        return {action.subject: action for action in found}

    # --- everything, in the order of the run ids

    def runs_by_id(self, after: str, since_us: int, limit: int) -> list[RunRow]:
        """A page of whole runs.

        Args:
            after: Id of the last run of the page before; empty for the first.
            since_us: Only runs that were admitted since then.
            limit: At most so many.
        """
        terms = _given({"admitted": since_us > 0})
        return [run_row(row) for row in self._rows("runs_by_id", terms, after=after, since=since_us, limit=limit)]

    def events_of(self, run_ids: Sequence[str]) -> dict[str, tuple[StoredEvent, ...]]:
        """Events of runs, in their order."""
        rows = self._rows("events_of_runs", run_ids=self._many(run_ids)) if run_ids else []
        return {
            run_id: tuple(map(stored_event, its_rows))
            for run_id, its_rows in groupby(rows, lambda row: str(row["run_id"]))
        }

    def store_identity(self, name: str) -> str:
        """The identity of a store as the authority knows it; empty when it knows none."""
        rows = self._rows("get_identity", name=name)
        return str(rows[0]["identity"]) if rows else ""

    # --- which run is meant

    def runs_with_id(self, prefix: str, limit: int) -> list[Candidate]:
        """Runs, and ids that only refused requests name, that begin with some characters."""
        bounds = {"prefix": prefix, "prefix_end": prefix_end(prefix), "limit": limit}
        named = {row["run_id"]: Candidate(row["run_id"]) for row in self._rows("recorded_run_ids", **bounds)}
        named |= {row["run_id"]: _candidate(row) for row in self._rows("run_ids", **bounds)}
        return sorted(named.values(), key=lambda item: item.run_id)[:limit]

    def runs_with_key(self, prefix: str, limit: int) -> list[Candidate]:
        """Runs whose key begins with some characters, in the order of their keys."""
        rows = self._rows("run_keys", prefix=prefix, prefix_end=prefix_end(prefix), limit=limit)
        return [_candidate(row) for row in rows]

    def known(self, run_id: str) -> bool:
        """Whether there is a run or a record with this id."""
        return bool(self._rows("run_summary", run_id=run_id) or self._rows("list_records", run_id=run_id))

    def run_of_message(self, message_id: str) -> str:
        """The run that a message is about: a signal, or one of the newest records; empty when there is none."""
        rows = self._rows("run_of_signal", message_id=message_id) or self._rows(
            "run_of_message", message_id=message_id, most=MOST_RECORDS
        )
        return str(rows[0]["run_id"]) if rows else ""

    # --- dead letters

    def list_letters(self, asked: LetterFilter, before: Letter | None, limit: int) -> list[Letter]:
        """A page of dead letters: newest first, or by record key, the last one first, when that is asked for.

        Args:
            asked: Which.
            before: The last letter of the page before; None for the first page.
            limit: At most so many.
        """
        terms = {"reason": asked.reason, "received": asked.since_us or asked.until_us < FOREVER_US}
        bounds = {"since": asked.since_us, "until": asked.until_us, "limit": limit}
        if asked.record_key:
            end = before.record_key if before is not None else prefix_end(asked.record_key)
            rows = self._rows("letters_by_key", _given(terms), key=asked.record_key, key_end=end, reason=asked.reason,
                              **bounds)  # fmt: skip
            return [_letter(row) for row in rows]
        number = before.number if before is not None else FOREVER_US
        # The index holds the numbers of one reason in order; those of all reasons are merged.
        reasons = [asked.reason] if asked.reason else [row["code"] for row in self._rows("refused_reasons")]
        found = [
            map(_letter, self._rows("letters_by_reason", _given(terms), **{**bounds, "reason": code}, before=number))
            for code in reasons
        ]
        return list(islice(merge(*found, key=lambda letter: letter.number, reverse=True), limit))

    def letter(self, name: str) -> Letter | None:
        """A dead letter with its bytes.

        Args:
            name: Its record key, or its number.
        """
        rows = self._rows("letter_with_key", record_key=name)
        if not rows and _NUMBER.fullmatch(name):
            rows = self._rows("letter_with_number", record_id=int(name))
        if not rows:
            return None
        raw = rows[0]["raw"]
        return _letter(rows[0], None if raw is None else bytes(raw))

    # --- retention

    def expired(self, expiry: Expiry, most: int) -> Expired:
        """How much has expired of a kind.

        Args:
            expiry: What; not of the spool.
            most: Rows that are read at most.
        """
        (row,) = self._rows(f"expired_of_{expiry.kind}", **expiry.parameters(), most=most)
        more = row["examined"] >= most and row["older"] > 0
        return Expired(row["expired"], more, row["oldest_us"])

    # --- daemons

    def daemons(self, limit: int) -> list[DaemonRow]:
        """Daemons that reported themselves within a day and did not stop in order; the last one seen first."""
        return [daemon_row(row) for row in self._rows("daemons", limit=limit)]

    # --- receipts

    def runs_with_receipt(self, run_id: str, ref: str, admitted_us: int, manifest: str, limit: int) -> list[str]:
        """READY runs that committed an instance receipt, of the newest that were admitted before a run.

        Args:
            run_id: The run, which is left out.
            ref: The receipt's object.
            admitted_us: When the run was admitted.
            manifest: The run's manifest fingerprint.
            limit: At most so many are compared.
        """
        rows = self._rows("receipts_of_others", run_id=run_id, until=admitted_us, manifest=manifest.encode(),
                          most=MOST_RUNS, limit=limit)  # fmt: skip
        return [row["run_id"] for row in rows if row["details"] and _names(orjson.loads(row["details"]), ref)]


def _names(details: Json, ref: str) -> bool:
    """Whether an event of committed receipts names a receipt."""
    return ref in details.get("receipts", {}).values()


def _given(terms: Mapping[str, object]) -> frozenset[str]:
    return frozenset(name for name, value in terms.items() if value)


def _bounded(asked: RunFilter) -> bool:
    return asked.since_us > 0 or asked.until_us < FOREVER_US


def _after(after: Cursor | None) -> dict[str, Any]:
    return {"after_us": after.at_us, "after": after.run_id} if after is not None else {"after_us": 0, "after": ""}


def _key(prefix: str) -> dict[str, str]:
    return {"key": prefix, "key_end": prefix_end(prefix)}


def _missing(prefix: str) -> dict[str, Any]:
    """What the row of a waiting run holds when a path begins so, and what its event holds then.

    Events are canonical JSON. Inside a text of JSON a quote is escaped, so these bytes stand for the field alone.
    """
    return {"path": f"\n{prefix}", "missing": b'"missing":' + orjson.dumps(prefix)[:-1]}


def _summary(row: Row) -> RunSummary:
    return RunSummary(
        row["run_id"], row["run_equivalence_key"], RunState(row["state"]), row["reason_code"], row["admitted_us"],
        row["deadline_us"], row["updated_us"], row["due_us"], row["absent_root"],
    )  # fmt: skip


def _candidate(row: Row) -> Candidate:
    return Candidate(row["run_id"], row["run_equivalence_key"])


def _letter(row: Row, raw: bytes | None = None) -> Letter:
    return Letter(
        row["record_id"], row["record_key"], row["message_id"], row["kind"], row["run_id"],
        Disposition(row["disposition"]), row["reason_code"], row["detail"], row["received_us"], row["raw_sha256"],
        row["raw_size"], raw, row["raw_removed_us"],
    )  # fmt: skip
