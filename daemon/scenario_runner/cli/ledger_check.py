"""``ledger check``: compare the ledger with the authority, both ways."""

import time
from functools import partial

import typer

from scenario_runner.audit.ends_on_bus import EndsOnBus
from scenario_runner.audit.ledger_check import CheckReport, LedgerCheck, require_known_store
from scenario_runner.authority.views.base import Views
from scenario_runner.cli.console import Exit, exit_on_error, print_json_line, print_line
from scenario_runner.cli.ledger_reading import Progress, print_finding, print_finding_line, readers
from scenario_runner.cli.outputs.acting import LEDGER_SUMMARY
from scenario_runner.cli.read_only import KeptAuthority, existing_views
from scenario_runner.cli.run_ids import named_run
from scenario_runner.cli.when import micros_of
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.compose import open_store
from scenario_runner.service.control_bus import open_spool
from scenario_runner.service.identity import named_spool


def run(wiring_path: str, since: str | None, name: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        document = check_ledger(load_wiring(wiring_path), since, name, as_json=as_json)
    if as_json:
        print_json_line({"summary": document}, LEDGER_SUMMARY)
    else:
        _print_summary(document)
    raise typer.Exit(Exit.NEGATIVE if document["findings"] else Exit.DONE)


def check_ledger(wiring: Wiring, since: str | None, name: str, *, as_json: bool) -> Json:
    """Check the ledger of a profile; findings are printed as they are made.

    Args:
        wiring: The profile.
        since: Only runs that were admitted since this time.
        name: Only this run, as a person names it; empty for all.
        as_json: Print findings as JSON Lines.

    Returns:
        The summary.

    Raises:
        UsageError: no such run, or a time that cannot be read.
        Unavailable: the store or the authority does not answer, or is not there.
    """
    since_us = micros_of("--since", since, 0)
    run_id = ""
    if name:
        with KeptAuthority(wiring) as known:
            run_id = named_run(known.ask, name)
    began, progress = time.monotonic(), Progress()
    with existing_views(wiring) as views, readers(wiring) as pool:
        if views is None:
            raise Unavailable("there is no authority yet to compare with; authority rebuild makes one from the ledger")
        store = open_store(wiring)
        require_known_store(store, views)
        everything = not run_id and not since_us
        printing = print_finding_line if as_json else print_finding
        check = LedgerCheck(
            store, views, pool, lambda: time.time_ns() // 1000, printing,
            lambda report: progress(partial(_progress, report)), _ends(wiring, views, progress) if everything else None,
        )  # fmt: skip
        if run_id:
            check.one(run_id)
        elif since_us:
            check.since(since_us)
        else:
            check.everything()
    return _document(check.report, store.where, since, run_id, time.monotonic() - began)


def _ends(wiring: Wiring, views: Views, progress: Progress) -> EndsOnBus | None:
    """What the control bus says of the ends of runs, where it keeps messages."""
    root = open_spool(wiring)
    if root is None:
        return None
    spool = named_spool(root).store
    require_known_store(spool, views, "spool")
    return EndsOnBus.read(
        spool, wiring.control_bus_topic, lambda read: progress(lambda _: f"{read} signals of the control bus read")
    )


def _progress(report: CheckReport, seconds: float) -> str:
    runs = report.runs.total()
    return f"{runs} runs compared, {report.findings.total()} findings ({runs / seconds:.0f} runs/s)"


def _document(report: CheckReport, where: str, since: str | None, run_id: str, seconds: float) -> Json:
    return {
        "outcome": "FINDINGS" if report.findings else "CLEAN",
        "ledger": where,
        "since": since,
        "run_id": run_id or None,
        "runs": report.runs.total(),
        "by_state": dict(sorted(report.runs.items())),
        "objects": dict(sorted(report.objects.items())),
        "owed": report.owed,
        "findings": report.findings.total(),
        "findings_by_code": dict(sorted(report.findings.items())),
        "seconds": round(seconds, 3),
    }


def _print_summary(document: Json) -> None:
    states = ", ".join(f"{count} {state}" for state, count in document["by_state"].items())
    print_line(f"{document['outcome']}: {document['runs']} runs compared: {states or 'none'}")
    if document["objects"]:
        print_line("objects: " + ", ".join(f"{count} {name}" for name, count in document["objects"].items()))
    print_line(f"{document['owed']} runs are owed documents; {document['findings']} findings")
    for code, count in document["findings_by_code"].items():
        print_line(f"  {code}: {count}")
