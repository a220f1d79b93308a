"""Rounds of the same figures, of one checkout or of two that took turns: medians, spread and ratios."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sr_tools.bench.report import Json, table

Series = dict[str, list[float]]
"""Values of one figure by subject, in order of rounds."""


def compare(results: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Every figure that differs between rounds or subjects.

    Args:
        results: Entries of reports with ``subject`` and ``round``. Every number of an entry is a figure: its value, and
            each further field. Entries of failed measurements have none.

    Returns:
        For each figure ``name``, ``unit`` (of values only), ``median``, ``min`` and ``max`` by subject, and for two
        subjects ``ratio``: the median of the ratios of this checkout to the other in the same round.
    """
    series: dict[str, Series] = {}
    units: dict[str, str] = {}
    for entry in sorted(results, key=lambda item: int(item["round"])):
        for name, value in _figures(entry):
            series.setdefault(name, {}).setdefault(str(entry["subject"]), []).append(value)
        units[str(entry["name"])] = str(entry.get("unit", ""))
    return [_compared(name, units.get(name, ""), values) for name, values in series.items() if _varies(values)]


def _figures(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    name = str(entry["name"])
    numbers = {key: value for key, value in entry.items() if isinstance(value, int | float)}
    return [
        (name if key == "value" else f"{name} {key}", float(value))
        for key, value in numbers.items()
        if not isinstance(value, bool) and key != "round"
    ]


def _varies(values: Series) -> bool:
    """Whether a figure says anything: counts of what was asked for are always the same."""
    return len({value for each in values.values() for value in each}) > 1


def _compared(name: str, unit: str, values: Series) -> Json:
    found: Json = {"name": name, "unit": unit}
    for key, pick in (("median", statistics.median), ("min", min), ("max", max)):
        found[key] = {subject: round(pick(each), 4) for subject, each in values.items()}
    ratios = [ours / theirs for ours, theirs in zip(values.get("this", ()), values.get("other", ()), strict=False)
              if theirs]  # fmt: skip
    if ratios:
        found["ratio"] = round(statistics.median(ratios), 3)
        found["ratios"] = [round(ratio, 3) for ratio in ratios]
    return found


def comparison_table(compared: Sequence[Mapping[str, Any]]) -> str:
    """A line for each figure: median and spread of each subject, and the ratio."""
    rows = [("figure", "unit", "this", "other", "this/other", "by round")]
    for item in compared:
        ours, theirs = (_spread(item, subject) for subject in ("this", "other"))
        by_round = " ".join(f"{ratio:g}" for ratio in item.get("ratios", ()))
        rows.append((item["name"], item["unit"], ours, theirs, f"{item['ratio']:g}" if by_round else "", by_round))
    return table(rows)


def _spread(item: Mapping[str, Any], subject: str) -> str:
    if subject not in item["median"]:
        return ""
    return f"{item['median'][subject]:g} ({item['min'][subject]:g} to {item['max'][subject]:g})"
