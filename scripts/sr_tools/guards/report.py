"""What was tried, and why some deletions cannot be noticed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from sr_tools.guards.guard import Guard
from sr_tools.guards.rooms import REPO

EQUIVALENT: Final = REPO / "scripts/delete_guards.equivalent.json"

Report = dict[str, dict[str, Any]]
"""Lines of a report by the guards' keys."""


def read_report(path: Path) -> Report:
    """A report; empty when there is none."""
    return {item["key"]: item for item in json.loads(path.read_text("utf-8"))} if path.exists() else {}


def write_report(path: Path, report: Report) -> None:
    """Write it whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(list(report.values()), indent=1) + "\n", "utf-8")
    beside.replace(path)


def reasons() -> dict[tuple[str, str, str, int | None], str]:
    """Why nothing notices the deletion of a guard that is listed as equivalent.

    Returns:
        Reasons by file, function, text, and which of the guards of the function with this text; None is all of them.
    """
    listed = json.loads(EQUIVALENT.read_text("utf-8"))
    return {(item["file"], item["function"], item["guard"], item.get("nth")): item["reason"] for item in listed}


def unexplained(guards: Iterable[Guard]) -> list[Guard]:
    """Those of some guards that are not listed as equivalent."""
    known = reasons()
    return [item for item in guards if known.keys().isdisjoint((*item.named, which) for which in (None, item.nth))]
