"""``explain``: why a run is in its state, and what happens next."""

from typing import Final

import typer

from scenario_runner.audit.cause import cause_of
from scenario_runner.audit.explain import ROUNDS, explain_run
from scenario_runner.cli.clock import IN_ROUNDS, Clock
from scenario_runner.cli.console import exit_for_state, exit_on_error, print_fields, print_json, print_line
from scenario_runner.cli.outputs.looking import EXPLAIN
from scenario_runner.cli.status import find_run, lines_of_corrections, lines_of_owed
from scenario_runner.cli.text import Sheet, counted, shortened, width
from scenario_runner.contracts.canonical import Json

_FIELDS: Final = (
    "run_id", "run_equivalence_key", "state", "reason_code", "sentence", "detail", "updated", "admitted", "deadline",
    "due", "next_action", "engine_run_root", "strategy", "infrastructure_retries", "last_infrastructure_error",
)  # fmt: skip
_FINDING_FIELDS: Final = (
    "expected", "actual", "missing", "blocked_by", "reason_code", "detail", "files", "bytes",
)  # fmt: skip
_ATTEMPT_FIELDS: Final = (
    "launched_at_utc", "handle", "duration_ms", "exit_code", "stop_code", "reason_code", "detail",
)  # fmt: skip
#: Lines of the parts that may need more than one. With one line for each other part, 24 are enough.
_SENTENCE_LINES, _DETAIL_LINES, _CLOCK_LINES, _NEXT_LINES = 2, 3, 2, 2
#: Characters of a word of a detail: a path, of which both ends are read, and room for a sentence around it.
_WORD: Final = 72


def run(wiring_path: str, run_id: str, *, everything: bool, local: bool, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json, logs=False):
        document = find_run(wiring_path, run_id, explain_run)
    if as_json:
        print_json(document, EXPLAIN)
    elif everything:
        print_everything(document, Clock(local=local))
    else:
        for line in answer(document, Clock(local=local), width()).lines:
            print_line(*line)
    raise typer.Exit(exit_for_state(document["state"]))


# --- the answer


def answer(document: Json, clock: Clock, columns: int) -> Sheet:
    """An explanation in at most 24 lines: state, why, expected and found, clock, next, then a line for each kind."""
    sheet = Sheet(columns)
    sheet.add_state("state", document["state"], document.get("reason_code", ""))
    sheet.add("run", "  ".join(filter(None, (document["run_id"], document.get("run_equivalence_key")))))
    sheet.add("why", document.get("sentence", ""), _SENTENCE_LINES)
    sheet.add("" if document.get("sentence") else "why", _detail(document), _DETAIL_LINES)
    _add_cause(sheet, document)
    sheet.add("clock", _times(document, clock), _CLOCK_LINES)
    sheet.add("owed", "; ".join(lines_of_owed(document, clock)))
    sheet.add("chain", "; ".join(lines_of_corrections(document)))
    sheet.add("next", document.get("next_action", ""), _NEXT_LINES)
    sheet.add("gates", counted(item["outcome"] for item in document.get("gates", [])) or _required(document))
    sheet.add("outputs", _outputs(document) or _intended(document))
    sheet.add("signals", _signals(document, clock))
    _add_engine(sheet, document)
    sheet.add("acts", _acts(document, clock))
    records = counted(item["disposition"] for item in document.get("records", []))
    sheet.add("records", f"{records} (all there is: explain {document['run_id'][:12]} --all)" if records else "")
    return sheet


def _detail(document: Json) -> str:
    """What was met, with shortened paths: else a sentence of three paths would hide its own end."""
    detail = document.get("detail", "")
    if error := document.get("last_infrastructure_error"):
        detail = f"{detail} (tried {document.get('infrastructure_retries', 0)} times: {error})".strip()
    return " ".join(shortened(word, _WORD) for word in detail.split())


def _add_cause(sheet: Sheet, document: Json) -> None:
    cause = cause_of(document)
    if not cause.what:
        return
    law = f" ({cause.law})" if cause.law else ""
    more = f", and {cause.others} more like it" if cause.others else ""
    sheet.add("cause", f"{cause.outcome} {cause.what}{law}{more}")
    sheet.add("missing" if cause.missing else "path", cause.path)
    sheet.add("root", document.get("engine_run_root", "") if cause.path else "")
    sheet.add("expected", cause.expected)
    sheet.add("found", cause.actual)


def _times(document: Json, clock: Clock) -> str:
    """When the run changed, and when something happens by itself."""
    found = [f"changed {clock.moment(document['updated_at_utc'])}"] if document.get("updated_at_utc") else []
    if document["state"] == "WAITING_EVIDENCE":
        found.append(f"deadline {clock.deadline(document['evidence_deadline_utc'])}")
    if document.get("next_look") == ROUNDS:
        found.append(IN_ROUNDS)
    elif document.get("next_look_utc"):
        found.append(f"due {clock.moment(document['next_look_utc'])}")
    return "; ".join(found)


def _required(document: Json) -> str:
    return f"{len(document['required_gates'])} required, none examined yet" if document.get("required_gates") else ""


def _intended(document: Json) -> str:
    if not document.get("intended_outputs"):
        return ""
    return f"{len(document['intended_outputs'])} intended, none examined yet"


def _outputs(document: Json) -> str:
    """Outcomes of the outputs, and how deep they were verified where not all of them were read."""
    outputs = document.get("outputs", [])
    depths = counted(item["verification_depth"] for item in outputs if item.get("verification_depth"))
    return counted(item["outcome"] for item in outputs) + (f"; depth {depths}" if depths else "")


def _signals(document: Json, clock: Clock) -> str:
    """Each signal of the run, and how often one was published again."""
    signals = document.get("signals", [])
    firsts = [_sent(item, clock) for item in signals if not item["emission"]]
    again = [_sent(item, clock).partition(" ")[2] for item in signals if item["emission"]]
    return ", ".join(firsts) + (f"; again {len(again)}x, {again[-1]}" if again else "")


def _sent(item: Json, clock: Clock) -> str:
    return f"{item['kind']} " + (f"sent {clock.stamp(item['sent_at_utc'])}" if item["sent_at_utc"] else "owed")


def _add_engine(sheet: Sheet, document: Json) -> None:
    attempts = document.get("attempts", [])
    if not attempts:
        strategy = document.get("strategy")
        sheet.add("engine", f"not invoked ({strategy})" if strategy else "")
        return
    last = attempts[-1]
    facts = [f"{len(attempts)} attempts" if len(attempts) > 1 else "1 attempt", f"the last {last['outcome']}"]
    facts += [f"exit code {last['exit_code']}"] if last.get("exit_code") is not None else []
    facts += [str(last[key]) for key in ("stop_code", "reason_code", "handle") if last.get(key)]
    sheet.add("engine", ", ".join(facts))
    written = last.get("stderr_tail", "").strip().splitlines()
    if written:
        sheet.add("stderr", written[-1])


def _acts(document: Json, clock: Clock) -> str:
    acts = document.get("actions", [])
    if not acts:
        return ""
    last = acts[-1]
    count = f"{len(acts)} acts, the last: " if len(acts) > 1 else ""
    return f"{count}{last['action']} by {last['actor']}: {last['outcome']} at {clock.stamp(last['at_utc'])}"


# --- everything


def print_everything(document: Json, clock: Clock) -> None:
    """Print an explanation whole, as text."""
    print_fields(clock.readable(document), _FIELDS)
    for key, value in document.get("drift", {}).items():
        print_line(f"drift {key + ':':12} {value}")
    for line in (*(f"owed: {line}" for line in lines_of_owed(document, clock)), *lines_of_corrections(document)):
        print_line(line)
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
        _print_finding(item, ("path", "digest", "verification_depth", "read_files", *_FINDING_FIELDS))
    for item in document.get("signals", []):
        sent = f"sent {clock.moment(item['sent_at_utc'])}" if item["sent_at_utc"] else "owed"
        place = "  ".join(item.get("receipt", {}).values())
        print_line(f"signal {item['kind']}: {sent}  {item['message_id']}  {place}".rstrip())
    for item in document.get("actions", []):
        at = clock.moment(item["at_utc"])
        print_line(f"act    {item['action']} by {item['actor']} ({item['via']}): {item['outcome']}  {at}")
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
