"""``quarantine list``, ``show`` and ``ack``: runs that a person must see to, what contradicts what, who has seen it."""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import typer

from scenario_runner.audit.explain import explain_run
from scenario_runner.authority.acts import ACK_ACTION, ActionRow, ack_key
from scenario_runner.authority.values import RunRow
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.values import RunSummary
from scenario_runner.cli import runs
from scenario_runner.cli.acting import checked_actor, checked_reason
from scenario_runner.cli.clock import Clock
from scenario_runner.cli.console import Exit, exit_on_error, print_fields, print_json, print_line
from scenario_runner.cli.lists import Form, Page, print_list
from scenario_runner.cli.outputs.looking import QUARANTINE_ACK, QUARANTINE_LIST, QUARANTINE_SHOW
from scenario_runner.cli.read_only import KeptAuthority, existing_authority, existing_views
from scenario_runner.cli.run_ids import checked_name, named_run
from scenario_runner.cli.text import Part
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.refs import PREFIX
from scenario_runner.contracts.states import RunState
from scenario_runner.contracts.times import format_micros
from scenario_runner.profiles.wiring import Wiring, load_wiring

#: Runs whose receipts are compared with the one that drifts.
_MOST_RUNS: Final = 50
_CONSEQUENCES: Final = ("PASS", "BLOCKED", "NOT_READ")
"""Outcomes that contradict nothing: what depends on a gate that did not pass is not examined."""
_FIELDS: Final = (
    "run_id",
    "run_equivalence_key",
    "reason_code",
    "sentence",
    "detail",
    "updated",
    "engine_run_root",
    "acked_by",
    "acked_at_utc",
    "ack_reason",
)
_ACK_FIELDS: Final = ("run_id", "state", "acked_by", "acked_at_utc", "ack_reason", "repeated")
_FINDING_FIELDS: Final = ("path", "object", "expected", "actual", "missing", "reason_code", "detail")
_WHO_WROTE: Final = (
    "find out who wrote the object and move it away if it is not SR's; then submit the request with a new "
    "run_equivalence_key"
)
_EVIDENCE: Final = (
    "compare the engine's files with what its flags and indexes promise, let the engine make them anew, and submit the "
    "request with a new run_equivalence_key"
)
_RECEIPT: Final = (
    "two runs of the same scope found different bytes: find out which engine run is right. The runs that hold the "
    "receipt keep their verdict; if theirs is wrong, a new run must correct it. If this one is wrong, let the engine "
    "make its output as it was, and submit the request with a new run_equivalence_key"
)
_ACTIONS: Final = {Reason.INSTANCE_RECEIPT_DRIFT.value: _RECEIPT}


def run_list(wiring_path: str, options: runs.Options, *, as_json: bool, as_lines: bool) -> None:
    """The command ``quarantine list``: ``runs list`` of the state QUARANTINED, with who has acknowledged each."""
    with exit_on_error(as_json=as_json or as_lines, logs=False), existing_views(load_wiring(wiring_path)) as views:
        asked = options.filter()
        pages = runs.pages_of(views, asked, options.cursor(), options.limit + 1)
        items = (item for rows in pages for item in _with_acks(views, rows))
        page = Page(items, options.limit, lambda item: runs.cursor_of(item, asked))
        print_list(
            QUARANTINE_LIST, page, Form.of(as_json=as_json, as_lines=as_lines), _line_with(Clock(local=options.local))
        )


def run_ack(wiring_path: str, name: str, reason: str, requested_by: str | None, *, as_json: bool) -> None:
    """The command ``quarantine ack``."""
    from scenario_runner.service.production import load_to_write  # slow to import: not for a look

    with exit_on_error(as_json=as_json):
        document = acknowledge(load_to_write(wiring_path), name, checked_reason(reason), checked_actor(requested_by))
    if as_json:
        print_json(document, QUARANTINE_ACK)
    else:
        print_fields(document, _ACK_FIELDS)


def acknowledge(wiring: Wiring, name: str, reason: str, actor: str) -> Json:
    """Put on record that a person has seen a QUARANTINED run. The first acknowledgement stays.

    The state needs no lock: a run that is QUARANTINED stays it.

    Raises:
        UsageError: there is no such run, or it is not QUARANTINED.
        Unavailable: the authority does not answer.
    """
    checked_name(name)
    with KeptAuthority(wiring) as known:
        run_id = named_run(known.ask, name)
        run = known.ask(lambda views: views.summary(run_id))
    if run is None:
        raise UsageError(f"no run is known as {name!r}", Reason.RUN_NOT_FOUND)
    if run.state is not RunState.QUARANTINED:
        raise UsageError(f"run {run_id} is not QUARANTINED but {run.state}", Reason.RUN_NOT_QUARANTINED)
    action = ActionRow(ack_key(run_id), 0, actor, "cli", ACK_ACTION, run_id, reason, "ACKED", "")
    with existing_authority(wiring) as authority:
        if authority is None:
            raise Unavailable("the authority is gone")
        first = authority.record_action(action)
        kept = authority.acts([action.action_key])[action.action_key]
    return {"run_id": run_id, "state": run.state.value, "repeated": not first, **_ack_fields(kept)}


def _with_acks(views: Views | None, rows: Sequence[RunSummary]) -> Iterator[Json]:
    """Runs as they are listed, with who has acknowledged each."""
    acks = views.acks([row.run_id for row in rows]) if views is not None else {}
    for item in runs.shown_runs(views, rows):
        yield item | _ack_fields(acks.get(item["run_id"]))


def _ack_fields(ack: ActionRow | None) -> Json:
    """Who has acknowledged a run, when and why; null when nobody has."""
    if ack is None:
        return dict.fromkeys(("acked_by", "acked_at_utc", "ack_reason"))
    return {"acked_by": ack.actor, "acked_at_utc": format_micros(ack.at_us), "ack_reason": ack.reason}


def _line_with(clock: Clock) -> Callable[[Json], list[Part]]:
    """The columns of ``runs list``, and who has acknowledged the run."""
    columns = runs.line_with(clock)

    def line(item: Json) -> list[Part]:
        return [*columns(item), "  ", f"acked by {item['acked_by']}" if item["acked_by"] else "open"]

    return line


def run_show(wiring_path: str, name: str, *, local: bool, as_json: bool) -> None:
    """The command ``quarantine show``."""
    with exit_on_error(as_json=as_json, logs=False):
        document = describe(wiring_path, name)
    if as_json:
        print_json(document, QUARANTINE_SHOW)
    else:
        _print(document, Clock(local=local))
    raise typer.Exit(Exit.QUARANTINED)


def describe(wiring_path: str, name: str) -> Json:
    """What is known of a run that is QUARANTINED: what was found, what contradicts it, and what to do.

    Raises:
        UsageError: there is no such run, or it is not QUARANTINED.
    """
    checked_name(name)
    with KeptAuthority(load_wiring(wiring_path)) as authority:
        run_id = named_run(authority.ask, name)
        found = authority.ask(lambda views: _describe(views, run_id))
    if found is None:
        raise UsageError(f"no run is known as {name!r}", Reason.RUN_NOT_FOUND)
    if found["state"] != RunState.QUARANTINED:
        raise UsageError(f"run {run_id} is not QUARANTINED but {found['state']}; `explain` tells of every run")
    return found


def _describe(views: Views, run_id: str) -> Json | None:
    run, explained = views.run(run_id), explain_run(views, run_id)
    if run is None or explained is None or run.state is not RunState.QUARANTINED:
        return explained
    kept = ("run_id", "run_equivalence_key", "state", "reason_code", "sentence", "detail", "updated_at_utc",
            "admitted_at_utc", "engine_run_root", "policy_rev", "interface_pack_digest", "signals")  # fmt: skip
    drift = explained.get("drift", {})
    document: Json = {key: explained[key] for key in kept if key in explained}
    document["findings"] = [*([{"kind": "object", **drift}] if drift else []), *_contradictions(explained)]
    document["held_by"] = _holders(views, run, drift) if run.reason_code == Reason.INSTANCE_RECEIPT_DRIFT else []
    document |= _ack_fields(views.acks([run.run_id]).get(run.run_id))
    document["next_action"] = _ACTIONS.get(run.reason_code, _WHO_WROTE if drift else _EVIDENCE)
    return document


def _contradictions(explained: Json) -> list[Json]:
    """What was examined and did not pass."""
    gates = [{"kind": "gate", **item} for item in explained.get("gates", [])]
    outputs = [{"kind": "output", **item} for item in explained.get("outputs", [])]
    receipt = explained.get("run_receipt", {})
    refused = [{"kind": "run_receipt", **receipt}] if receipt else []
    return refused + [item for item in gates + outputs if item.get("outcome") not in _CONSEQUENCES]


def _holders(views: Views, run: RunRow, drift: Json) -> list[Json]:
    """READY runs that hold the receipt which drifts, the newest first."""
    place = posixpath.dirname(str(drift.get("object", "")))
    at = place.find(f"{PREFIX}/instance_receipts/")
    if at < 0:
        return []
    ref = f"{place[at:]}/instance_receipt.json"
    manifest = str(run.intent.get("manifest_fingerprint", ""))
    found = views.runs_with_receipt(run.run_id, ref, run.admitted_us, manifest, _MOST_RUNS)
    holders = filter(None, (views.summary(run_id) for run_id in found))
    return [
        {"run_id": item.run_id, "run_equivalence_key": item.run_equivalence_key, "state": item.state.value}
        for item in holders
    ]


def _print(document: Json, clock: Clock) -> None:
    print_fields(clock.readable(document), _FIELDS)
    for item in document["findings"]:
        named = item.get("gate_id") or item.get("output_id") or ""
        print_line(f"{item['kind']} {named}: {item.get('outcome', 'DRIFT')}".replace(" :", ":"))
        for key in _FINDING_FIELDS:
            if item.get(key):
                print_line(f"    {key + ':':13}{item[key]}")
    for item in document["held_by"]:
        print_line(f"the receipt is held by run {item['run_id']}  {item['state']}  {item['run_equivalence_key']}")
    if not document["held_by"] and document["reason_code"] == Reason.INSTANCE_RECEIPT_DRIFT:
        print_line("none of the runs that were admitted shortly before holds the receipt")
    print_fields(document, ("next_action",))
