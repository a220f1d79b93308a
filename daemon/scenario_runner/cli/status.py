"""``status``, ``explain`` and ``runs list``: reading the authority, changing nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from scenario_runner.audit.explain import REJECTED, explain_run, status_of
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import connect_authority, sqlite_path
from scenario_runner.cli.console import say, say_fields
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.ids import checked_run_id
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import RunState
from scenario_runner.contracts.times import format_micros
from scenario_runner.intake.submitted import find_submitted
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.control_bus import spool_root
from scenario_runner.service.identity import NamedStore, require_known
from scenario_runner.storage.identity import HiddenMarkerError

SUBMITTED: Final = "SUBMITTED"
"""State shown for a run id whose request lies on the control bus; no run exists yet."""
NOT_SEEN: Final = "NOT_SEEN"
"""State shown for a run id that nobody knows, where the control bus cannot be searched."""


def never_started(wiring: Wiring) -> bool:
    """True when the profile's embedded authority does not exist yet: looking at it must not create it."""
    path = sqlite_path(wiring.authority_store_dsn)
    return path is not None and not os.path.exists(path)


def require_marked(wiring: Wiring, item: NamedStore) -> None:
    """Refuse a bare mount point. The authority is asked only about a store that has no identity.

    Whoever may drop requests need not be let into SR's private folder: that it is there is enough.

    Raises:
        Unavailable: the authority knows a store at this place, and this is not it.
    """
    try:
        if item.store.identity() or never_started(wiring):
            return
    except HiddenMarkerError:
        return
    authority = connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}")
    try:
        require_known(item, authority)
    finally:
        authority.close()


@contextmanager
def _authority(wiring_path: str) -> Iterator[Authority | None]:
    """The profile's authority, or None when it has never been started."""
    wiring = load_wiring(wiring_path)
    if never_started(wiring):
        yield None
        return
    authority = connect_authority(wiring.authority_store_dsn, wiring_path)
    try:
        yield authority
    finally:
        authority.close()


def look_at_run(wiring_path: str, run_id: str, *, whole: bool) -> Json:
    """What is known about a run, or that a request for it lies, or may lie, on the control bus.

    Raises:
        UsageError: not a run id, or ``RUN_NOT_FOUND``.
    """
    checked_run_id(run_id)
    document = _known(wiring_path, run_id, whole=whole)
    if document is not None and document["state"] != REJECTED:
        return document
    on_bus = _on_bus(load_wiring(wiring_path), run_id, refused=document is not None)
    if on_bus is not None and on_bus["state"] == SUBMITTED:
        return on_bus
    document = _known(wiring_path, run_id, whole=whole) or on_bus  # it may have been taken between the two looks
    if document is None:
        raise UsageError(
            f"no run and no refused request is known as {run_id}, and no request for it lies in the spool",
            Reason.RUN_NOT_FOUND,
        )
    return document


def _known(wiring_path: str, run_id: str, *, whole: bool) -> Json | None:
    """What the authority knows about a run or its refused requests."""
    with _authority(wiring_path) as authority:
        return (explain_run if whole else status_of)(authority, run_id) if authority is not None else None


def _on_bus(wiring: Wiring, run_id: str, *, refused: bool) -> Json | None:
    """A request that waits on the control bus; None when none does."""
    if wiring.bus_kind != "spool":
        return None if refused else _not_seen(run_id, "a stream cannot be asked for it; look again in a while")
    found = find_submitted(spool_root(wiring), wiring.control_bus_topic, run_id)
    if found.name:
        return {
            "run_id": run_id,
            "state": SUBMITTED,
            "detail": f"its request lies in the spool: {found.name}",
            "updated_at_utc": format_micros(found.dropped_us),
            "next_action": "wait: the daemon has not taken it yet; when it stays so, see whether the daemon runs",
        }
    return None if found.complete or refused else _not_seen(run_id, found.detail)


def _not_seen(run_id: str, detail: str) -> Json:
    return {
        "run_id": run_id,
        "state": NOT_SEEN,
        "reason_code": Reason.RUN_NOT_SEEN.value,
        "sentence": SENTENCES[Reason.RUN_NOT_SEEN],
        "detail": detail,
    }


def list_runs(wiring_path: str, state: str | None, limit: int) -> list[Json]:
    """Runs, newest first.

    Raises:
        UsageError: no such state.
    """
    if state is not None and state not in set(RunState):
        raise UsageError(f"--state {state!r} is not one of {', '.join(RunState)}")
    with _authority(wiring_path) as authority:
        rows = authority.runs(state, limit) if authority is not None else []
    found = []
    for row in rows:
        item: dict[str, Any] = {
            "run_id": row.run_id,
            "run_equivalence_key": row.run_equivalence_key,
            "state": row.state.value,
            "admitted_at_utc": format_micros(row.admitted_us),
            "updated_at_utc": format_micros(row.updated_us),
            "evidence_deadline_utc": format_micros(row.deadline_us),
        }
        if row.reason_code:
            item["reason_code"] = row.reason_code
        found.append(item)
    return found


def say_explanation(document: Json) -> None:
    """An explanation for a person."""
    say_fields(
        document,
        (
            "run_id", "state", "reason_code", "sentence", "detail", "updated_at_utc", "evidence_deadline_utc",
            "next_look_utc", "next_action", "engine_run_root", "strategy", "infrastructure_retries",
            "last_infrastructure_error",
        ),
    )  # fmt: skip
    for name in ("drift", "documents_owed"):
        for key, value in document.get(name, {}).items():
            say(f"{name.replace('_', ' ')} {key + ':':12} {value}")
    for item in document.get("gates", []):
        say(f"gate   {item['gate_id']}: {item['outcome']}  ({item['law']})")
        _say_finding(item, ("flag", "index", "bundle_root"))
    for item in document.get("outputs", []):
        say(f"output {item['output_id']}: {item['outcome']}")
        _say_finding(item, ("path", "digest"))
    for item in document.get("signals", []):
        sent = f"sent {item['sent_at_utc']}" if item["sent_at_utc"] else "owed"
        say(f"signal {item['kind']}: {sent}  {item['message_id']}")
    for item in document.get("records", []):
        say(f"record {item['disposition']}: {item['record_key']}  {item.get('reason_code', '')}  {item['detail']}")


def _say_finding(item: Json, places: tuple[str, ...]) -> None:
    for key in (
        *places,
        "expected",
        "actual",
        "missing",
        "blocked_by",
        "reason_code",
        "detail",
        "files",
        "bytes",
    ):
        value = item.get(key)
        if value not in (None, "", []):
            say(f"         {key + ':':13}{', '.join(value) if isinstance(value, list) else value}")
