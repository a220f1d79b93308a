"""``ledger``: the commands that look at the ledger of a profile."""

from typing import Annotated

import typer

from scenario_runner.cli.options import JsonLinesOption, SinceOption, WiringOption

app = typer.Typer(help="Check the ledger of a profile.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Keep a group of one command a group."""


@app.command("check", short_help="Compare the ledger with the authority, both ways.")
def check(
    wiring: WiringOption,
    since: SinceOption = None,
    run_id: Annotated[
        str, typer.Option("--run", metavar="RUN_ID", help="Only this run, named as for status.", show_default=False)
    ] = "",
    as_json: JsonLinesOption = False,
) -> None:
    """Compare the ledger with the authority: every document of every run, and every object that lies there.

    Documents are rendered again from the authority's rows and compared byte for byte; receipts with the facts views
    that name them. Nothing is changed. Every finding says what belongs there, what is there, and what to do; what a
    daemon still owes is a finding only when it is old. With --since or --run, objects that are nobody's are not looked
    for.

    The exit code is 1 when there are findings. With --json each finding is a line, and the summary is the last one.

    \b
    Example:
      scenario-runner ledger check --json > findings.jsonl
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.ledger_check import run

    run(str(wiring), since, run_id, as_json=as_json)
