"""``explain``: why a run is in its state, and what happens next."""

from typing import Final

import typer

from scenario_runner.audit.explain import explain_run
from scenario_runner.cli.console import exit_for_state, exit_on_error, print_fields, print_json, print_line
from scenario_runner.cli.outputs.looking import EXPLAIN
from scenario_runner.cli.status import find_run
from scenario_runner.contracts.canonical import Json

_FIELDS: Final = (
    "run_id", "state", "reason_code", "sentence", "detail", "updated_at_utc", "evidence_deadline_utc", "next_look_utc",
    "next_action", "engine_run_root", "strategy", "infrastructure_retries", "last_infrastructure_error",
)  # fmt: skip
_FINDING_FIELDS: Final = (
    "expected", "actual", "missing", "blocked_by", "reason_code", "detail", "files", "bytes",
)  # fmt: skip
_ATTEMPT_FIELDS: Final = (
    "launched_at_utc", "handle", "duration_ms", "exit_code", "stop_code", "reason_code", "detail",
)  # fmt: skip


def run(wiring_path: str, run_id: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json, logs=False):
        document = find_run(wiring_path, run_id, explain_run)
    if as_json:
        print_json(document, EXPLAIN)
    else:
        print_explanation(document)
    raise typer.Exit(exit_for_state(document["state"]))


def print_explanation(document: Json) -> None:
    """Print an explanation as text."""
    print_fields(document, _FIELDS)
    for name in ("drift", "documents_owed"):
        for key, value in document.get(name, {}).items():
            print_line(f"{name.replace('_', ' ')} {key + ':':12} {value}")
    for item in document.get("attempts", []):
        print_line(f"attempt {item['attempt_no']}: {item['outcome']}  ({item['invoker']})")
        _print_finding(item, _ATTEMPT_FIELDS)
        for line in item.get("stderr_tail", "").splitlines():
            print_line(f"         stderr | {line}")
    for item in document.get("gates", []):
        print_line(f"gate   {item['gate_id']}: {item['outcome']}  ({item['law']})")
        _print_finding(item, ("flag", "index", "bundle_root", *_FINDING_FIELDS))
    for item in document.get("outputs", []):
        print_line(f"output {item['output_id']}: {item['outcome']}")
        _print_finding(item, ("path", "digest", *_FINDING_FIELDS))
    for item in document.get("signals", []):
        sent = f"sent {item['sent_at_utc']}" if item["sent_at_utc"] else "owed"
        place = "  ".join(item.get("receipt", {}).values())
        print_line(f"signal {item['kind']}: {sent}  {item['message_id']}  {place}".rstrip())
    for item in document.get("actions", []):
        print_line(f"act    {item['action']} by {item['actor']} ({item['via']}): {item['outcome']}  {item['at_utc']}")
        _print_finding(item, ("reason", "detail"))
    for item in document.get("records", []):
        reason = item.get("reason_code", "")
        print_line(f"record {item['disposition']}: {item['record_key']}  {reason}  {item['detail']}")


def _print_finding(item: Json, keys: tuple[str, ...]) -> None:
    for key in keys:
        value = item.get(key)
        if value not in (None, "", []):
            text = ", ".join(value) if isinstance(value, list) else value
            print_line(f"         {key + ':':12} {text}")
