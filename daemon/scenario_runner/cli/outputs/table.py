"""Which command prints which shapes: the schemas that ``contracts export`` writes and the tests validate against."""

from typing import Final

from scenario_runner.cli.outputs import acting, looking
from scenario_runner.cli.outputs.error import ERROR
from scenario_runner.cli.outputs.shapes import NEXT_LINE, ListShape, Shape, document_schema
from scenario_runner.contracts.canonical import Json

DOCUMENTS: Final[dict[str, Shape]] = {
    "run": acting.RUN,
    "submit": acting.SUBMIT,
    "plan": acting.PLAN,
    "evidence arrived": acting.EVIDENCE_ARRIVED,
    "status": looking.STATUS,
    "explain": looking.EXPLAIN,
    "verify": looking.VERIFY,
    "healthcheck": looking.HEALTHCHECK,
    "dead-letter show": looking.DEAD_LETTER_SHOW,
    "dead-letter redrive": acting.REDRIVE,
    "quarantine show": looking.QUARANTINE_SHOW,
    "quarantine ack": looking.QUARANTINE_ACK,
    "runs wake": acting.WAKE,
    "retention plan": acting.RETENTION,
    "retention run": acting.RETENTION,
    "reemit": acting.REEMIT,
    "doctor": acting.DOCTOR,
    "stores adopt": acting.STORES_ADOPT,
    "policy digest": acting.POLICY_DIGEST,
    "contracts export": acting.CONTRACTS_EXPORT,
    "stream adopt": acting.STREAM_ADOPT,
}
"""Commands that print one document under ``--json``."""
LINES: Final[dict[str, tuple[Shape, ...]]] = {
    "submit": (acting.SUBMIT_LINE,),
    "reemit": (acting.REEMIT_LINE,),
    "dead-letter redrive": (acting.REDRIVE,),
    "runs wake": (acting.WAKE,),
    "watch": (looking.STATUS, looking.RUNS_LIST.item),
    "authority rebuild": (acting.LEDGER_FINDING, acting.REBUILD_REPORT),
    "scrub": (acting.SCRUB_LINE, acting.SCRUB_SUMMARY),
    "ledger check": (acting.LEDGER_FINDING, acting.LEDGER_SUMMARY),
}
"""Commands that print a line for each of many things, with the shapes that a line may have."""
LISTS: Final[dict[str, ListShape]] = {
    "runs list": looking.RUNS_LIST,
    "dead-letter list": looking.DEAD_LETTER_LIST,
    "quarantine list": looking.QUARANTINE_LIST,
    "daemons": looking.DAEMONS,
}
"""Commands that list: one document under ``--json``, lines under ``--jsonl``."""


def file_name(command: str, *, line: bool = False) -> str:
    """Name of a command's schema, without its folder and ending."""
    return command.replace(" ", "_").replace("-", "_") + ("_line" if line else "")


def output_schemas() -> dict[str, Json]:
    """Every schema by its name."""
    found = {"error": document_schema("error", ERROR)}
    for command, shape in {**DOCUMENTS, **{name: of.document for name, of in LISTS.items()}}.items():
        found[file_name(command)] = document_schema(file_name(command), shape)
    for command, shapes in LINES.items():
        name = file_name(command, line=True)
        found[name] = document_schema(name, *shapes)
    for command, of in LISTS.items():
        name = file_name(command, line=True)
        found[name] = document_schema(name, of.item, NEXT_LINE)
    return dict(sorted(found.items()))
