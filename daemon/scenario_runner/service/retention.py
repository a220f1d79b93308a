"""Retention: what the policy keeps no longer is removed in small batches, beside a busy daemon.

A batch is one short transaction, and the pause after it is at least as long: whoever waits for the database gets it
first. Two retentions at once remove each row once.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.base import Authority
from scenario_runner.authority.retention import ACTION, RUNNING, Expiry, Kind, Removal, count_of, counted
from scenario_runner.contracts.times import MICROS, format_micros
from scenario_runner.intake.spool_consumed import expired_files, oldest_claim_us, remove_files
from scenario_runner.intake.spool_files import Folders, SpoolFiles
from scenario_runner.profiles.policy import Retention
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.compose import open_authority
from scenario_runner.service.control_bus import open_spool, open_stream, state_modes
from scenario_runner.service.identity import named_spool, require_known

_DAY_US: Final = 86_400 * MICROS
#: Beyond what a stream keeps: clocks differ, and records may be kept a little longer than is promised.
_STREAM_MARGIN_US: Final = _DAY_US
#: The longest time that a stream keeps records (365 days) with the margin: for streams that the profile does not name.
_ANY_STREAM_US: Final = 366 * _DAY_US
#: Rows of the first batch: the next ones are as large as fits the time.
_FIRST_ROWS: Final = 100
#: A batch that takes longer is followed by a smaller one. The bound that must hold is 200 ms, on a slow disk too.
_SLOW_SECONDS: Final = 0.1
#: A batch that takes less is followed by a larger one.
_QUICK_SECONDS: Final = 0.05
#: Fewer rows would not be quicker: the commit is the most of it then.
_LEAST_ROWS: Final = 10
#: The shortest pause. Who waits for SQLite's lock asks again within 25 ms at first.
_PAUSE_SECONDS: Final = 0.03


class Outcome(StrEnum):
    """What came of a kind."""

    DONE = "DONE"
    STOPPED = "STOPPED"
    NOT_BEGUN = "NOT_BEGUN"


@dataclass(frozen=True, slots=True)
class Due:
    """What the policy keeps no longer, of a kind that it limits.

    Attributes:
        note: Why less is removed than the policy says; empty when it is not.
    """

    days: int
    expiry: Expiry
    note: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a kind.

    Attributes:
        action_key: The act that it is on record as; empty when it was not begun.
        longest_seconds: Of its batches: the transaction and the wait for it.
    """

    due: Due
    outcome: Outcome
    removed: int = 0
    action_key: str = ""
    longest_seconds: float = 0.0


def what_is_due(wiring: Wiring, retention: Retention, now_us: int, folders: Folders | None) -> list[Due]:
    """What the policy keeps no longer, of the kinds that it limits.

    Args:
        wiring: The profile.
        retention: How long the policy keeps what.
        now_us: The time, on the clock of what is kept.
        folders: The spool of the profile; None when it has none, or none yet.

    Raises:
        ConfigurationError: the stream does not exist, or may not be described.
        Unavailable: the stream does not answer.
    """
    days = {kind: getattr(retention, kind.policy_key) for kind in Kind}
    found = []
    for kind, kept in days.items():
        if kept is None:
            continue
        before_us = now_us - kept * _DAY_US
        if kind is Kind.INTAKE_RECORDS:
            found.append(_due_records(wiring, kept, before_us, now_us, folders))
        else:
            found.append(Due(kept, Expiry(kind, before_us)))
    return found


def _due_records(wiring: Wiring, days: int, before_us: int, now_us: int, folders: Folders | None) -> Due:
    """Records that no control bus can deliver again."""
    prefix, limit_us, why = "", now_us, ""
    stream = open_stream(wiring)
    if stream is not None:
        hours = stream.retention_hours()
        limit_us = now_us - hours * 3600 * MICROS - _STREAM_MARGIN_US
        prefix = f"kinesis/{stream.name}/"
        why = f"the stream delivers records for {hours} h; records stay for a day longer"
    elif folders is not None and (claimed_us := oldest_claim_us(folders)) is not None:
        limit_us, why = claimed_us, "a file of the spool is claimed and not moved on yet; younger records stay"
    others_us = min(before_us, now_us - _ANY_STREAM_US)
    if limit_us >= before_us:
        return Due(days, Expiry(Kind.INTAKE_RECORDS, before_us, prefix, others_us))
    return Due(days, Expiry(Kind.INTAKE_RECORDS, limit_us, prefix, min(limit_us, others_us)), why)


@contextmanager
def spool_folders(wiring: Wiring) -> Iterator[Folders | None]:
    """The folders of the profile's spool; None when its control bus is a stream.

    Raises:
        ConfigurationError: this platform has no spool.
        Unavailable: the spool is not there, or another one is.
    """
    root = open_spool(wiring)
    if root is None:
        yield None
        return
    with SpoolFiles(root).folders() as folders:
        yield folders


class Pace:
    """Rows of the next batch, from the time that the last one took.

    Args:
        most: Never more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.rows = min(most, _FIRST_ROWS)

    def took(self, seconds: float) -> float:
        """Take over what a batch took; returns how long to pause."""
        if seconds > _SLOW_SECONDS:
            self.rows = max(min(self._most, _LEAST_ROWS), self.rows // 2)
        elif seconds < _QUICK_SECONDS:
            self.rows = min(self._most, self.rows * 2)
        return max(_PAUSE_SECONDS, seconds)


@dataclass(frozen=True, kw_only=True)
class Sweeper:
    """Removes what is due.

    Attributes:
        actor: Who does it.
        reason: Why.
        token: Makes the keys of the acts unlike those of every other retention.
        batch: Most rows of a batch.
        deadline: Monotonic time after which no batch begins.
        pause: Waits so many seconds; returns True when the command is to stop.
    """

    authority: Authority
    actor: str
    reason: str
    token: str
    batch: int
    deadline: float
    pause: Callable[[float], bool]
    monotonic: Callable[[], float] = time.monotonic

    def sweep(self, due: list[Due], folders: Folders | None) -> list[Done]:
        """Remove it, kind by kind, each as an act.

        Raises:
            Unavailable: the authority does not answer. What was removed is on record; the act stays RUNNING.
        """
        found = []
        for item in due:
            if self._must_stop(0.0):
                found.append(Done(item, Outcome.NOT_BEGUN))
            elif item.expiry.kind is Kind.SPOOL_CONSUMED:
                found.append(self._sweep_files(item, folders))
            else:
                found.append(self._sweep_rows(item))
        return found

    def _must_stop(self, pause: float) -> bool:
        return self.pause(pause) or self.monotonic() >= self.deadline

    def _sweep_rows(self, due: Due) -> Done:
        what = "dead letters emptied" if due.expiry.kind is Kind.DEAD_LETTER_RAW else "rows removed"
        key = self._begin(due, what)
        came = self._batches(lambda after, rows: self.authority.remove_expired(due.expiry, after, rows, key))
        return self._end(due, key, came, self.authority.acts([key])[key].detail)

    def _sweep_files(self, due: Due, folders: Folders | None) -> Done:
        if folders is None:  # the control bus is a stream
            return Done(due, Outcome.DONE)
        key, removed, what = self._begin(due, "files removed"), 0, self._what(due, "files removed")
        names = expired_files(folders, due.expiry.before_us)

        def batch(_after: int, rows: int) -> Removal:
            nonlocal removed
            removal = remove_files(folders, names, rows)
            removed += removal.removed
            # After the files: a kill between the two leaves some uncounted, none counted that is still there.
            self.authority.end_action(key, RUNNING, counted(removed, what))
            return removal

        return self._end(due, key, self._batches(batch), counted(removed, what))

    def _batches(self, remove: Callable[[int, int], Removal]) -> tuple[Outcome, float]:
        """Remove batch by batch; returns what came of it, and the seconds of the longest batch."""
        pace, after, longest = Pace(self.batch), 0, 0.0
        while True:
            began = self.monotonic()
            removal = remove(after, pace.rows)
            took = self.monotonic() - began
            longest, after = max(longest, took), removal.after
            if not removal.more:
                return Outcome.DONE, longest
            if self._must_stop(pace.took(took)):
                return Outcome.STOPPED, longest

    def _what(self, due: Due, what: str) -> str:
        return f"{what}, older than {format_micros(due.expiry.before_us)}"

    def _begin(self, due: Due, what: str) -> str:
        kind = due.expiry.kind.value
        key, detail = f"{ACTION}/{self.token}/{kind}", counted(0, self._what(due, what))
        self.authority.record_action(ActionRow(key, 0, self.actor, "cli", ACTION, kind, self.reason, RUNNING, detail))
        return key

    def _end(self, due: Due, key: str, came: tuple[Outcome, float], detail: str) -> Done:
        outcome, longest = came
        self.authority.end_action(key, outcome.value, detail)
        return Done(due, outcome, count_of(detail), key, longest)


@contextmanager
def open_sweeper_parts(wiring: Wiring, *, spool: bool) -> Iterator[tuple[Authority, Folders | None]]:
    """The authority, and the folders of the spool where the profile has one, proven to be the known one.

    Args:
        wiring: The profile.
        spool: Whether the spool is needed.

    Raises:
        ConfigurationError: the profile is not valid, or names what this platform does not have.
        Unavailable: the authority or the spool cannot be reached, or another spool is there.
    """
    os.umask(state_modes(wiring).umask)
    with ExitStack() as opened:
        authority = open_authority(wiring)
        opened.callback(authority.close)
        root = open_spool(wiring) if spool else None
        if root is None:
            yield authority, None
            return
        require_known(named_spool(root), authority)
        yield authority, opened.enter_context(SpoolFiles(root).folders())
