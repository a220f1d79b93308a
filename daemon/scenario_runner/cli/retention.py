"""``retention plan`` and ``retention run``: what the policy keeps no longer."""

import math
import secrets
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.retention import Expired, Kind
from scenario_runner.authority.views.base import Views
from scenario_runner.cli.acting import actor_of
from scenario_runner.cli.console import exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.acting import RETENTION
from scenario_runner.cli.read_only import existing_views, never_started
from scenario_runner.cli.stopping import stop_between_batches
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.times import format_micros
from scenario_runner.intake.spool_consumed import count_expired
from scenario_runner.intake.spool_files import Folders
from scenario_runner.profiles.policy import Policy, Retention, load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.production import load_to_write
from scenario_runner.service.retention import (
    Done,
    Due,
    Outcome,
    Sweeper,
    open_sweeper_parts,
    spool_folders,
    what_is_due,
)

_MOST_COUNTED: Final = 100_000
"""Rows of a kind that are read to count it: a tenth of a second."""
_KEYS: Final = (
    "keep_days", "before_utc", "expired", "more", "oldest_utc", "removed", "outcome", "action_key", "longest_batch_ms",
    "note",
)  # fmt: skip
_LONGEST_TEXT: Final = 256
"""As of a re-emit's reason and requester."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    dry_run: bool
    batch: int
    max_seconds: float | None
    reason: str
    requested_by: str | None

    def check(self) -> None:
        """Refuse texts that no act can keep.

        Raises:
            UsageError: one is too long, or holds control characters.
        """
        for option, text in (("--reason", self.reason), ("--requested-by", self.requested_by or "")):
            if len(text) > _LONGEST_TEXT or not text.isprintable():
                raise UsageError(f"{option}: at most {_LONGEST_TEXT} characters, all of them printable")


def run_plan(wiring_path: str, policy_path: str, *, as_json: bool) -> None:
    """The command ``retention plan``."""
    with exit_on_error(as_json=as_json):
        document = _planned(load_wiring(wiring_path), load_policy(policy_path))
    _print(document, as_json=as_json)


def run(wiring_path: str, policy_path: str, options: Options, *, as_json: bool) -> None:
    """The command ``retention run``."""
    with exit_on_error(as_json=as_json):
        options.check()
        wiring, policy = load_to_write(wiring_path), load_policy(policy_path)
        if options.dry_run or never_started(wiring):
            document = _planned(wiring, policy)
        else:
            document = _swept(wiring, policy, options)
    _print(document, as_json=as_json)


def _planned(wiring: Wiring, policy: Policy) -> Json:
    with ExitStack() as opened:
        views = opened.enter_context(existing_views(wiring))
        folders = None
        if views is not None and _needs_spool(policy.retention):
            folders = opened.enter_context(spool_folders(wiring))
        due = what_is_due(wiring, policy.retention, time.time_ns() // 1000, folders)
        return _document(policy, [_entry(item, _counted(item, views, folders), None) for item in due], dry_run=True)


def _needs_spool(retention: Retention) -> bool:
    return retention.spool_consumed_days is not None or retention.intake_records_days is not None


def _counted(due: Due, views: Views | None, folders: Folders | None) -> Expired:
    if due.expiry.kind is not Kind.SPOOL_CONSUMED:
        return Expired(0, False, None) if views is None else views.expired(due.expiry, _MOST_COUNTED)
    return Expired(0, False, None) if folders is None else count_expired(folders, due.expiry.before_us, _MOST_COUNTED)


def _swept(wiring: Wiring, policy: Policy, options: Options) -> Json:
    stopping = threading.Event()
    stop_between_batches(stopping)
    seconds = math.inf if options.max_seconds is None else options.max_seconds
    deadline = time.monotonic() + seconds
    with open_sweeper_parts(wiring, spool=_needs_spool(policy.retention)) as (authority, folders):
        due = what_is_due(wiring, policy.retention, authority.now_us(), folders)
        sweeper = Sweeper(
            authority=authority, actor=actor_of(options.requested_by), token=secrets.token_hex(16),
            reason=options.reason or f"retention of policy {policy.policy_id}, revision {policy.revision}",
            batch=options.batch, deadline=deadline, pause=stopping.wait,
        )  # fmt: skip
        done = sweeper.sweep(due, folders)
    return _document(policy, [_entry(item.due, None, item) for item in done], dry_run=False)


def _entry(due: Due, expired: Expired | None, done: Done | None) -> Json:
    oldest_us = expired.oldest_us if expired is not None else None
    return {
        "kind": due.expiry.kind.value,
        "keep_days": due.days,
        "before_utc": format_micros(due.expiry.before_us),
        "expired": expired.count if expired is not None else None,
        "more": expired.more if expired is not None else None,
        "oldest_utc": format_micros(oldest_us) if oldest_us is not None else None,
        "removed": done.removed if done is not None else None,
        "outcome": done.outcome.value if done is not None else None,
        "action_key": done.action_key or None if done is not None else None,
        "longest_batch_ms": round(done.longest_seconds * 1000, 1) if done is not None else None,
        "note": due.note or None,
    }


def _document(policy: Policy, limited: list[Json], *, dry_run: bool) -> Json:
    """The answer: every kind, also those that are kept for ever."""
    found = {item["kind"]: item for item in limited}
    kinds = [found.get(kind.value, {"kind": kind.value, **dict.fromkeys(_KEYS)}) for kind in Kind]
    return {
        "policy_id": policy.policy_id,
        "policy_revision": policy.revision,
        "dry_run": dry_run,
        "complete": None if dry_run else all(item["outcome"] == Outcome.DONE for item in limited),
        "kinds": kinds,
    }


def _print(document: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(document, RETENTION)
        return
    for item in document["kinds"]:
        print_line(f"{item['kind']:18}{_sentence(item)}")
        if item["note"]:
            print_line(f"{'':18}{item['note']}")


def _sentence(item: Json) -> str:
    if item["keep_days"] is None:
        return "kept for ever"
    kept = f"kept for {item['keep_days']} d, until {item['before_utc']}"
    if item["outcome"] is not None:
        return f"{item['removed']} removed, {item['outcome']}; {kept}"
    if not item["expired"] and not item["more"]:
        return f"none has expired; {kept}"
    count = f"more than {item['expired']}" if item["more"] else str(item["expired"])
    return f"{count} expired, the oldest of {item['oldest_utc'] or 'unknown time'}; {kept}"
