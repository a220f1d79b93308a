"""The command of ``evidence``: its options and its help. See :mod:`scenario_runner.cli.evidence`."""

from typing import Annotated

import typer

from scenario_runner.cli.options import JsonOption, WiringOption


def add_evidence(group: typer.Typer) -> None:
    """Add the command to its group."""
    group.command("arrived", short_help="Tell the daemons that evidence has come.")(_arrived)


def _arrived(
    wiring: WiringOption,
    root: Annotated[str, typer.Argument(metavar="ROOT", help="The engine run root, as requests name it.")],
    run_id: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN_ID", help="Only this run, if it waits there.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the daemons, over the control bus, that evidence has come: runs that wait at ROOT are examined at once.

    For an engine, as the last step of its run, and for whoever may write to the bus only; runs wake needs the authority
    and puts on record who asked. It proves nothing: a run becomes READY by its evidence alone. Where no run waits,
    nothing happens. A run that nobody tells is examined by its schedule. Exit 1 when the profile does not allow ROOT.

    \b
    Examples:
      scenario-runner evidence arrived s3://engine/runs/2026-01-31 --wiring $W
      scenario-runner evidence arrived runs/local_full_run-1/$M --run $RUN_ID --wiring $W
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.evidence import run

    run(str(wiring), root, run_id, as_json=as_json)
