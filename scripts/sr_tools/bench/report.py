"""What a bench says: entries of the report, the machine, progress and tables for people."""

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

REPO: Final = Path(__file__).resolve().parents[3]
#: Microseconds of a second: the unit of all times in the authority.
MICROS: Final = 1_000_000
#: Bytes of the peak memory that a daemon may have, in MB (10^6).
RSS_LIMIT_MB: Final = 300


class CheckFailedError(AssertionError):
    """What was timed was not done; the number would mean nothing."""


def note(text: str) -> None:
    """Progress, for people."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def result(name: str, value: float, unit: str, target: str, how: str, *, met: bool, **more: object) -> Json:
    """One entry of the report.

    Args:
        name: Of the figure.
        value: The figure.
        unit: Its unit.
        target: What it should be, in words.
        how: How it was taken, in words.
        met: Whether the target is met.
        more: Further fields of the entry.
    """
    return {"name": name, "value": round(value, 4), "unit": unit, "target": target, "met": met, **more, "how": how}


def reported(name: str, value: float, unit: str, how: str, **more: object) -> Json:
    """An entry that has no target."""
    return result(name, value, unit, "none, reported only", how, met=True, **more)


def rss_result(name: str, peak: int, how: str) -> Json:
    """Peak memory in bytes against its target."""
    value = peak / 1e6
    return result(name, value, "MB", f"<= {RSS_LIMIT_MB}", how, met=value <= RSS_LIMIT_MB)


def at_rank(values: Sequence[float], part: float) -> float:
    """A percentile by nearest rank: ``part`` 0.99 for p99."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> Json:
    """What the numbers were taken on."""
    return {
        "cores": cores(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text in columns that line up; the first row is the head."""
    lines = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in lines)  # fmt: skip


def results_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The entries of a report, a line each."""
    return table([("figure", "value", "unit", "target", "met", "reference"), *map(_row, results)])


def _row(entry: Mapping[str, Any]) -> Sequence[str]:
    if "error" in entry:
        return (str(entry["name"]), "FAILED", "", "", "no", "")
    reference = entry.get("reference", {})
    shown = f"{reference['value']:g} {reference['unit']}" if reference else ""
    met = "yes" if entry["met"] else "NO"
    return (str(entry["name"]), f"{entry['value']:g}", str(entry["unit"]), str(entry["target"]), met, shown)
