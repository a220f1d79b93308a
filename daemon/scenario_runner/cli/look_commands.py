"""Commands that look and change nothing: ``status``, ``explain``, ``watch``, ``verify`` and the lists.

See ``cli/main.py``.
"""

from pathlib import Path
from typing import Annotated

import typer

from scenario_runner.cli.options import (
    AfterOption,
    IntervalOption,
    JsonLinesOption,
    JsonOption,
    LimitOption,
    LinesOption,
    LocalOption,
    ReasonOption,
    RunArgument,
    SinceOption,
    TimeoutOption,
    UntilOption,
    WaitOption,
    WatchedArgument,
    WiringOption,
)


def register(app: typer.Typer, section: str, runs: typer.Typer, dead_letter: typer.Typer) -> None:
    """Add the commands to a section of the top level, and to their groups."""
    app.command("status", rich_help_panel=section, short_help="Show the state of a run, also as the exit code.")(status)
    app.command("explain", rich_help_panel=section, short_help="Show why a run is in its state.")(explain)
    app.command("watch", rich_help_panel=section, short_help="Show what changes, as it changes.")(watch)
    runs.command("list", short_help="List runs, newest first.")(runs_list)
    dead_letter.command("list", short_help="List refused records, newest first.")(dead_letter_list)
    dead_letter.command("show", short_help="Show a refused record and its bytes.")(dead_letter_show)
    app.command("daemons", rich_help_panel=section, short_help="List the daemons that work on an authority.")(daemons)
    app.command("verify", rich_help_panel=section, short_help="Check a READY run as a careful reader would.")(verify)


def status(
    run_id: RunArgument,
    wiring: WiringOption,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    local: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a run. The exit code says it too: 0 READY, 1 FAILED or refused, 3 not yet, 4 QUARANTINED.

    With --wait it is shown when there is a verdict. An authority that is away meanwhile is waited for.

    \b
    Examples:
      scenario-runner status 0f3a
      scenario-runner status nightly-7 --wait --timeout 600
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.status import run

    run(str(wiring), run_id, wait=wait, timeout=timeout, local=local, as_json=as_json)


def explain(
    run_id: RunArgument,
    wiring: WiringOption,
    everything: Annotated[bool, typer.Option("--all", help="Show each gate, output and record too.")] = False,
    local: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show why a run is in its state: the cause, what is missing or was expected and found, what happens next.

    Paths are shortened; --all and --json show them whole. The exit code is that of status.

    \b
    Example:
      scenario-runner explain 0f3a --all
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.explain import run

    run(str(wiring), run_id, everything=everything, local=local, as_json=as_json)


def watch(
    wiring: WiringOption,
    run_id: WatchedArgument = None,
    interval: IntervalOption = 2.0,
    timeout: TimeoutOption = None,
    local: LocalOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Show a run, or the runs on their way, until it has ended: a live table on a terminal, a line a change in a pipe.

    With RUN_ID the exit code is that of status. Ctrl-C ends it.

    \b
    Examples:
      scenario-runner watch
      scenario-runner watch nightly-7 --timeout 600
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.watch import Options, run

    run(str(wiring), run_id, Options(interval, timeout, local, as_json))


def runs_list(
    wiring: WiringOption,
    state: Annotated[str | None, typer.Option(help="Only runs of this state.")] = None,
    reason: ReasonOption = "",
    key: Annotated[str, typer.Option(metavar="PREFIX", help="Only keys that begin so.", show_default=False)] = "",
    missing: Annotated[
        str, typer.Option(metavar="PREFIX", help="Only runs that wait for a path that begins so.", show_default=False)
    ] = "",
    since: SinceOption = None,
    until: UntilOption = None,
    batch: Annotated[
        str, typer.Option(metavar="FILE", help="Only the runs of a file, one a line; '-' reads standard input.")
    ] = "",
    sort: Annotated[
        str, typer.Option(help="admitted, or deadline: runs that wait, the next deadline first.")
    ] = "admitted",
    after: AfterOption = "",
    limit: LimitOption = 100,
    local: LocalOption = False,
    as_json: JsonOption = False,
    as_lines: LinesOption = False,
) -> None:
    """List runs, newest first. --since and --until are about the time of admission.

    With --key alone runs are ordered by their keys, the last one first; those of a state that they pass (PLANNED,
    EXECUTING, VERIFYING) by the time when they are due. A list that stops at the limit says where to go on.

    A file of --batch holds requests, answers of submit --jsonl, run ids or keys. Its runs are listed in its order, also
    those that were refused (REJECTED) or that nobody has taken yet (NOT_SEEN).

    \b
    Examples:
      scenario-runner runs list --state FAILED --since 2h
      scenario-runner runs list --sort deadline --limit 20
      scenario-runner runs list --missing data/layer1/1A/ --jsonl
      scenario-runner runs list --batch requests.jsonl --state FAILED
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.runs import Options, run

    options = Options(state, reason, key, missing, since, until, batch, sort, after, limit, local)
    run(str(wiring), options, as_json=as_json, as_lines=as_lines)


def dead_letter_list(
    wiring: WiringOption,
    reason: ReasonOption = "",
    key: Annotated[
        str, typer.Option(metavar="PREFIX", help="Only record keys that begin so.", show_default=False)
    ] = "",
    shard: Annotated[str, typer.Option(help="Only records of this shard of the stream.", show_default=False)] = "",
    since: SinceOption = None,
    until: UntilOption = None,
    after: AfterOption = "",
    limit: LimitOption = 100,
    local: LocalOption = False,
    as_json: JsonOption = False,
    as_lines: LinesOption = False,
) -> None:
    """List refused records, newest first; with --key or --shard by record key, the last one first.

    \b
    Examples:
      scenario-runner dead-letter list --since 1d --reason REQUEST_SCHEMA_INVALID
      scenario-runner dead-letter list --shard shardId-000000000002
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.dead_letter import Options, run_list

    options = Options(reason, key, shard, since, until, after, limit, local)
    run_list(str(wiring), options, as_json=as_json, as_lines=as_lines)


def dead_letter_show(
    letter: Annotated[str, typer.Argument(metavar="NUMBER|RECORD_KEY", help="As dead-letter list shows it.")],
    wiring: WiringOption,
    shown_as: Annotated[
        str, typer.Option("--as", help="auto, json, text, hex, or raw: the very bytes, not for a terminal.")
    ] = "auto",
    local: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a refused record: why it was refused, its bytes, what to do. What is not printable is shown escaped.

    \b
    Examples:
      scenario-runner dead-letter show 17
      scenario-runner dead-letter show 17 --as raw > request.json
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.dead_letter import run_show

    run_show(str(wiring), letter, shown_as, local=local, as_json=as_json)


def daemons(wiring: WiringOption, as_json: JsonOption = False, as_lines: LinesOption = False) -> None:
    """List the daemons that work on an authority, the one that was seen last first.

    A daemon reports itself twice a minute, also while it has nothing to do, and leaves the list when it stops in order.
    One that was killed, or hangs, is NOT_SEEN after a minute, and leaves the list after a day.

    \b
    Example:
      scenario-runner daemons --json
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.daemons import run

    run(str(wiring), as_json=as_json, as_lines=as_lines)


def verify(
    target: Annotated[
        str,
        typer.Argument(metavar="RUN_ID|FACTS_VIEW_PATH", help="A run, as for status, or a facts view file."),
    ],
    wiring: WiringOption,
    catalogue: Annotated[
        Path | None, typer.Option("--catalogue", help="Output catalogue to verify under.", show_default=False)
    ] = None,
    gate_map: Annotated[
        Path | None, typer.Option("--gate-map", help="Gate map to verify under.", show_default=False)
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Policy that the run must have had.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every check, not only what failed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a READY run as a careful downstream reader would: digests, receipts, gates and outputs, all re-hashed.

    It is verified under the interface pack that is named here, or else that the authority pinned for it, or else that
    the profile names; the answer says which. A pack that only the ledger vouches for does not pass.

    \b
    Examples:
      scenario-runner verify nightly-7
      scenario-runner verify nightly-7 --catalogue outputs.yaml --gate-map gates.yaml --verbose
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.verify import NamedFiles, run

    files = NamedFiles(*(str(path) if path else "" for path in (catalogue, gate_map, policy)))
    run(str(wiring), target, files, verbose=verbose, as_json=as_json)
