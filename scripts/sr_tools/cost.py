"""What a million runs cost: measured use, times prices, from a file of assumptions; the table of docs/cost.md."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ASSUMPTIONS: Final = Path(__file__).resolve().parents[2] / "docs/cost.yaml"
MILLION: Final = 1_000_000
HOURS: Final = 730.0
"""Hours of a month, as AWS bills it."""
GB: Final = 1e9
PAYLOAD_UNIT: Final = 25_000
"""Bytes of a PUT payload unit of Kinesis: each record is at least one."""

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Item:
    """What one component costs for a million runs.

    Attributes:
        component: What is paid for.
        quantity: How much of it, in words.
        dollars: For a million runs.
        fixed: Whether it is paid by the hour: twice the runs cost the same.
    """

    component: str
    quantity: str
    dollars: float
    fixed: bool = False


def items(assumed: Mapping[str, Any]) -> Iterator[Item]:
    """The cost of a million runs, component by component.

    Args:
        assumed: The document of assumptions: ``prices``, ``workload``, ``measured``.
    """
    price, work, run = assumed["prices"], assumed["workload"], _mean_run(assumed)
    months = MILLION / work["runs_per_month"]
    yield from _s3(price, work, run)
    yield from _stream(price, work, run, months)
    yield from _servers(price, work, run, months)
    log_gb = run["log_bytes"] * MILLION / GB
    yield Item("CloudWatch logs", f"{log_gb:.2f} GB taken in, kept for {work['log_months']} months",
               log_gb * (price["logs_gb"] + price["logs_gb_month"] * work["log_months"]))  # fmt: skip


def _mean_run(assumed: Mapping[str, Any]) -> Numbers:
    """What a run uses on average: some are the first for their engine run, the others ask for a known one."""
    new, known = assumed["measured"]["new_world"], assumed["measured"]["known_world"]
    share = assumed["workload"]["share_of_new_engine_runs"]
    return {name: share * new[name] + (1 - share) * known[name] for name in known}


def _s3(price: Numbers, work: Numbers, run: Numbers) -> Iterator[Item]:
    writes, reads = (run["s3_put"] + run["s3_list"]) * MILLION, (run["s3_get"] + run["s3_head"]) * MILLION
    yield Item("S3, PUT and LIST", f"{writes / MILLION:.2f} million", writes / 1000 * price["s3_put_1000"])
    yield Item("S3, GET and HEAD", f"{reads / MILLION:.2f} million", reads / 1000 * price["s3_get_1000"])
    kept = run["ledger_bytes"] * MILLION / GB
    yield Item("S3, documents of the ledger", f"{kept:.1f} GB, kept for {work['ledger_months']} months",
               kept * work["ledger_months"] * price["s3_gb_month"])  # fmt: skip


def _stream(price: Numbers, work: Numbers, run: Numbers, months: float) -> Iterator[Item]:
    units = sum(
        run[f"{kind}_records"] * max(1, -(-run[f"{kind}_bytes"] // PAYLOAD_UNIT)) for kind in ("request", "signal")
    )
    yield Item("Kinesis, records", f"{units:.2f} million payload units", units * price["kinesis_million_units"])
    hours = work["shards"] * HOURS * months
    yield Item("Kinesis, shards", f"{hours:,.0f} shard hours", hours * price["kinesis_shard_hour"], fixed=True)
    writes, reads = (work[f"lease_{kind}_hour"] * HOURS * months / MILLION for kind in ("writes", "reads"))
    leases = writes * price["dynamodb_million_writes"] + reads * price["dynamodb_million_reads"]
    yield Item("DynamoDB, lease tables", f"{writes:.2f} million writes, {reads:.2f} million reads", leases, fixed=True)


def _servers(price: Numbers, work: Numbers, run: Numbers, months: float) -> Iterator[Item]:
    yield Item("RDS, instance", f"{HOURS * months:,.0f} hours", HOURS * months * price["rds_hour"], fixed=True)
    stored = run["database_bytes"] * MILLION / GB
    yield Item("RDS, storage of the rows", f"{stored:.1f} GB, kept for {work['database_months']} months",
               stored * work["database_months"] * price["rds_gb_month"])  # fmt: skip
    hours = work["daemons"] * HOURS * months
    each = work["daemon_vcpu"] * price["fargate_vcpu_hour"] + work["daemon_gb"] * price["fargate_gb_hour"]
    busy = run["cpu_ms"] * MILLION / 3_600_000 / (hours * work["daemon_vcpu"])
    yield Item("Fargate, daemons", f"{hours:,.0f} task hours, {busy:.1%} of their CPU used by runs", hours * each,
               fixed=True)  # fmt: skip


def table(assumed: Mapping[str, Any]) -> str:
    """The cost as a table of Markdown."""
    found = list(items(assumed))
    total = sum(item.dollars for item in found)
    hourly = sum(item.dollars for item in found if item.fixed)
    rows = [
        f"| {item.component} | {item.quantity} | {item.dollars:,.2f} | {item.dollars / total:.0%} | "
        f"{'by the hour' if item.fixed else 'by the run'} |"
        for item in found
    ]
    sums = [f"| **all** | | **{total:,.2f}** | 100% | by the hour {hourly:,.2f}, by the run {total - hourly:,.2f} |"]
    return "\n".join(["| component | for a million runs | $ | share | paid |", "|---|---|---|---|---|", *rows, *sums])


def assumptions(assumed: Mapping[str, Any]) -> str:
    """Prices and workload as a table of Markdown."""
    parts = [(name, value) for part in ("prices", "workload") for name, value in assumed[part].items()]
    meanings: Mapping[str, str] = assumed["meanings"]
    rows = [f"| `{name}` | {value:g} | {meanings[name]} |" for name, value in parts]
    return "\n".join(["| assumption | value | what it is |", "|---|---|---|", *rows])


def measured(assumed: Mapping[str, Any]) -> str:
    """What was measured of a run as a table of Markdown."""
    known, new = assumed["measured"]["known_world"], assumed["measured"]["new_world"]
    rows = [f"| `{name}` | {known[name]:g} | {new[name]:g} |" for name in known]
    return "\n".join(["| of a run | known engine run | new engine run |", "|---|---|---|", *rows])


TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "cost": table, "cost assumptions": assumptions, "cost measured": measured,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cost of a million runs; returns 0."""
    parser = argparse.ArgumentParser(prog="cost.py", description=__doc__)
    parser.add_argument("assumptions", nargs="?", type=Path, default=ASSUMPTIONS, help="default: docs/cost.yaml")
    print(table(yaml.safe_load(parser.parse_args(argv).assumptions.read_text("utf-8"))))
    return 0
