"""The commands of ``retention``: their options and their help. See :mod:`scenario_runner.cli.retention`."""

from typing import Annotated, Final

import typer

from scenario_runner.cli.options import JsonOption, PolicyOption, WiringOption

#: 1,000 rows cost SQLite up to 59 ms of CPU, so these leave most of the 200 ms to a busy machine and its disk.
_BATCH: Final = 500


def add_retention(group: typer.Typer) -> None:
    """Add the commands to their group."""
    group.command("plan", short_help="Show what the policy keeps no longer.")(_plan)
    group.command("run", short_help="Remove what the policy keeps no longer.")(_run)


def _plan(wiring: WiringOption, policy: PolicyOption, as_json: JsonOption = False) -> None:
    """Show how much has expired by the policy's retention, of which kind and since when. Nothing is changed.

    Counting stops at 100,000 of a kind: more is shown as "more than".

    \b
    Example:
      scenario-runner retention plan --wiring $W --policy $P
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.retention import run_plan

    run_plan(str(wiring), str(policy), as_json=as_json)


def _run(
    wiring: WiringOption,
    policy: PolicyOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed: as retention plan.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Most rows of a transaction.")] = _BATCH,
    max_seconds: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Begin no batch after so long.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; the policy's revision if none.", show_default=False)] = "",
    requested_by: Annotated[str | None, typer.Option(help="Who asks; this user if none.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what has expired by the policy's retention, in small batches beside a running daemon.

    Runs, events, attempts, acts, refusals, documents and the first READY or TERMINAL of a run are never removed. An
    intake record stays for as long as the stream can deliver it again, whatever the policy says. Each kind is an act on
    record with its count. Stopped by a signal or by --max-seconds it ends between two batches with exit 0, and the next
    one goes on.

    \b
    Example:
      scenario-runner retention run --wiring $W --policy $P --max-seconds 600
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.retention import Options, run

    options = Options(dry_run=dry_run, batch=batch, max_seconds=max_seconds, reason=reason, requested_by=requested_by)
    run(str(wiring), str(policy), options, as_json=as_json)
