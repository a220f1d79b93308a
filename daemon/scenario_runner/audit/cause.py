"""The cause of a run's state: of everything that an explanation holds, the one finding that decided.

Commands and pages ask here, so that none of them chooses for itself.
"""

from dataclasses import dataclass
from typing import Final

from scenario_runner.contracts.canonical import Json

#: Outcomes of what was examined that keep a run from READY, the worst first. An examination decides in this order.
_WORST_FIRST: Final = ("CONFLICT", "FAIL", "MISSING")
#: States that nothing keeps from anything.
_WITHOUT_CAUSE: Final = ("READY", "PLANNED", "SUBMITTED", "NOT_SEEN")


@dataclass(frozen=True, slots=True)
class Cause:
    """What decided.

    Attributes:
        what: Gate, output, object, engine attempt or record with its name; empty when nothing single decided.
        outcome: Of the finding, e.g. ``MISSING``.
        law: Digest law of the gate.
        path: What the finding is about; relative to the engine run root where it lies there.
        expected: What should be there: mostly a digest.
        actual: What is there instead.
        missing: Every path that is missing.
        others: How many more findings are as bad.
    """

    what: str = ""
    outcome: str = ""
    law: str = ""
    path: str = ""
    expected: str = ""
    actual: str = ""
    missing: tuple[str, ...] = ()
    others: int = 0


def cause_of(explained: Json) -> Cause:
    """The cause of the state of a run.

    Args:
        explained: An explanation, see :func:`scenario_runner.audit.explain.explain_run`.
    """
    if explained.get("state") in _WITHOUT_CAUSE:
        return Cause()
    if explained.get("state") == "REJECTED":
        return Cause(what=f"record {explained['records'][-1]['record_key']}", outcome=_last_disposition(explained))
    if drift := explained.get("drift"):
        return Cause("object", "DRIFT", "", drift.get("object", ""), drift.get("expected", ""), drift.get("actual", ""))
    return _of_engine(explained) or _of_evidence(explained)


def _last_disposition(explained: Json) -> str:
    return str(explained["records"][-1]["disposition"])


def _of_engine(explained: Json) -> Cause | None:
    """The last attempt, when the run ended because of it or waits for the next."""
    attempts = explained.get("attempts", [])
    if not attempts or attempts[-1]["outcome"] in ("SUCCEEDED", "RUNNING"):
        return None
    last = attempts[-1]
    if explained.get("state") == "EXECUTING" or not _examined(explained):
        return Cause(f"engine attempt {last['attempt_no']}", last["outcome"])
    return None


def _of_evidence(explained: Json) -> Cause:
    """The first of the worst findings of the newest examination, as the examination itself decides."""
    examined = _examined(explained)
    for outcome in _WORST_FIRST:
        found = [item for item in examined if item.get("outcome") == outcome]
        if found:
            first = found[0]
            missing = tuple(str(item["missing"]) for item in found if item.get("missing"))
            actual = str(first.get("actual", ""))  # what was expected explains nothing where nothing was found
            path = first.get("path") or first.get("missing") or first.get("flag") or ""
            return Cause(
                _name(first), outcome, str(first.get("law", "")), str(path), str(first.get("expected", "")) if actual
                else "", actual, missing, len(found) - 1,
            )  # fmt: skip
    return Cause()


def _examined(explained: Json) -> list[Json]:
    receipt = explained.get("run_receipt")
    return [*([receipt] if receipt else []), *explained.get("gates", []), *explained.get("outputs", [])]


def _name(item: Json) -> str:
    if "gate_id" in item:
        return f"gate {item['gate_id']}"
    return f"output {item['output_id']}" if "output_id" in item else "engine run receipt"
