"""``authority``: the commands that work on the database of a profile."""

from pathlib import Path
from typing import Annotated

import typer

from scenario_runner.cli.options import JsonLinesOption, WiringOption

app = typer.Typer(help="Work with the authority of a profile.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Keep a group of one command a group."""


@app.command("rebuild", short_help="Recreate an empty authority from the ledger.")
def rebuild(
    wiring: WiringOption,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.", show_default=False)],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", envvar="SR_POLICY", help="Policy that runs on their way must have.",
                     show_default=False),
    ] = None,
    witness: Annotated[
        str,
        typer.Option(
            help="Who must agree that a run is READY: bus, evidence or ledger. Default: bus on a spool, else evidence.",
            show_default=False,
        ),
    ] = "",
    catalogue: Annotated[
        list[Path] | None,
        typer.Option("--catalogue", help="Output catalogue of an earlier interface pack; may be given several times.",
                     show_default=False),
    ] = None,
    gate_map: Annotated[
        list[Path] | None,
        typer.Option("--gate-map", help="Its gate map; as many as --catalogue, in the same order.", show_default=False),
    ] = None,
    requested_by: Annotated[
        str | None, typer.Option("--requested-by", help="Who asks; this user's name without it.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be restored; write nothing.")] = False,
    as_json: JsonLinesOption = False,
) -> None:  # fmt: skip
    """Recreate an empty authority from the ledger: runs, events, attempts, signals and re-emits.

    Stop every daemon first. Whatever does not hold together is a finding, and its run stays out: it is never READY. No
    signal is published. Interface packs that runs were admitted under before the profile's must be named, unless the
    spool has their READY. What the ledger cannot know, and what to do next, is listed at the end. A rebuild that was
    interrupted is begun again by the same command; until it ends, no daemon starts.

    The exit code is 1 when there are findings. With --json each finding is a line, and the report is the last one.

    \b
    Example:
      scenario-runner authority rebuild --policy policy.yaml --reason "the disk of the database died"
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.authority_rebuild import RebuildOptions, run

    packs = tuple(map(str, catalogue or ())), tuple(map(str, gate_map or ()))
    options = RebuildOptions(reason, str(policy) if policy else "", witness, requested_by, dry_run, *packs)
    run(str(wiring), options, as_json=as_json)
