"""Commands that look and act: ``quarantine``, ``dead-letter redrive`` and ``runs wake``. See ``cli/main.py``."""

from typing import Annotated

import typer

from scenario_runner.cli.options import (
    AfterOption,
    JsonLinesOption,
    JsonOfManyOption,
    JsonOption,
    LimitOption,
    LinesOption,
    LocalOption,
    PolicyOption,
    ReasonOption,
    RunArgument,
    SinceOption,
    UntilOption,
    WiringOption,
)

ActorOption = Annotated[str | None, typer.Option("--requested-by", help="Who asks; this user if none.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def register(
    app: typer.Typer, section: str, runs: typer.Typer, dead_letter: typer.Typer, quarantine: typer.Typer
) -> None:
    """Add the commands to a section of the top level, and to their groups."""
    app.command("scrub", rich_help_panel=section, short_help="Read published evidence again; report drift.")(scrub)
    runs.command("wake", short_help="Examine waiting runs now.")(runs_wake)
    dead_letter.command("redrive", short_help="Judge refused records anew.")(dead_letter_redrive)
    quarantine.command("list", short_help="List runs that are QUARANTINED.")(quarantine_list)
    quarantine.command("show", short_help="Show what contradicts what, and what to do.")(quarantine_show)
    quarantine.command("ack", short_help="Put on record that a person has seen a run.")(quarantine_ack)


def scrub(
    wiring: WiringOption,
    rate: Annotated[
        float, typer.Option(min=0.0, metavar="MB/S", help="Most megabytes a second; 0 for no bound.")
    ] = 50.0,
    since: SinceOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with a scrub that was broken off.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why: it is kept on record.", show_default=False)] = "",
    requested_by: ActorOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Read the published evidence of READY runs again, slowly, and report what is not as it was published.

    Facts views, receipts, gates and outputs are checked as verify checks them; the control bus is not asked, and
    evidence that runs share is read once. A run is never changed: drift becomes an event in its record, an act, and a
    metric of the daemons. The same drift is put on record once, another one of the same run a day later at the soonest.
    --since takes runs whose READY was published since.

    The exit code is 1 when there is drift of runs that are not superseded, also of a scrub that is broken off; 5 when
    something could not be read, which is no drift. A scrub that was broken off, or killed, goes on with --resume.
    With --json each finding is a line, and the summary is the last one.

    \b
    Examples:
      scenario-runner scrub --rate 20
      scenario-runner scrub --since 7d --json > findings.jsonl
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.scrub import ScrubOptions, run

    run(str(wiring), ScrubOptions(rate, since, resume, reason, requested_by), as_json=as_json)


def runs_wake(
    wiring: WiringOption,
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="A run, as for status; or else --missing.", show_default=False)
    ] = "",
    missing: Annotated[
        str, typer.Option(metavar="PREFIX", help="Runs that wait for a path that begins so.", show_default=False)
    ] = "",
    most: Annotated[int, typer.Option("--max", min=1, max=100_000, help="Most runs of --missing.")] = 1000,
    reason: Annotated[str, typer.Option(help="Why: it is kept on record.", show_default=False)] = "",
    requested_by: ActorOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOfManyOption = False,
) -> None:
    """Examine a waiting run now, not at the end of its pause: its evidence has come.

    A daemon takes it within its poll_seconds. The evidence deadline does not move, and a run that is being examined is
    left alone. Exit 1 for a run that does not wait. With --missing the runs are those of runs list --missing, with one
    line of JSON for each under --json.

    \b
    Examples:
      scenario-runner runs wake 0f3a --reason "the index was uploaded late"
      scenario-runner runs wake --missing data/layer1/1A/ --dry-run
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.wake import WakeOptions, run

    run(str(wiring), WakeOptions(run_id, missing, most, reason, requested_by, dry_run), as_json=as_json)


def dead_letter_redrive(
    wiring: WiringOption,
    policy: PolicyOption,
    letter: Annotated[
        str,
        typer.Argument(
            metavar="NUMBER|RECORD_KEY",
            help="As for show, or the beginning of a key; or else filters.",
            show_default=False,
        ),
    ] = "",
    reason: Annotated[
        str, typer.Option(help="Many: only this reason code. Of one letter: why, as --why.", show_default=False)
    ] = "",
    key: Annotated[
        str, typer.Option(metavar="PREFIX", help="Many: record keys that begin so.", show_default=False)
    ] = "",
    shard: Annotated[str, typer.Option(help="Many: of this shard of the stream.", show_default=False)] = "",
    since: SinceOption = None,
    until: UntilOption = None,
    most: Annotated[int, typer.Option("--max", min=1, max=100_000, help="Many: most letters.")] = 100,
    rate: Annotated[int, typer.Option(min=0, help="Many: most letters a second; 0 for no bound.")] = 50,
    yes: Annotated[bool, typer.Option("--yes", help="Many: do it. Without it this is a dry run.")] = False,
    why: Annotated[str, typer.Option(help="Why: it is kept on record.", show_default=False)] = "",
    requested_by: ActorOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOfManyOption = False,
) -> None:
    """Judge the bytes of refused records anew, under the profile, policy and pack of today.

    What a letter would come to is shown first; --dry-run stops there. The redrive is a record of its own,
    redrive/N/KEY, judged as intake judges, also for who may ask. The letter stays. The same judgement of a letter under
    the same pack and policy is carried out once: a repeat says what it came to. Exit 1 when a letter is refused again.

    Without a letter the filters of dead-letter list choose, the oldest first; letters that are settled are left out.
    Nothing is done without --yes. One line of JSON for each under --json. Broken off, give the command again.

    \b
    Examples:
      scenario-runner dead-letter redrive 17 --dry-run
      scenario-runner dead-letter redrive --reason AUTH_DENIED --since 1d --yes --why "invoker is on the list now"
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.dead_letter import Options
    from scenario_runner.cli.redrive import RedriveOptions, run

    chosen = Options(reason, key, shard, since, until)
    options = RedriveOptions(letter, chosen, why, requested_by, most, rate, yes, dry_run)
    run(str(wiring), str(policy), options, as_json=as_json)


def quarantine_list(
    wiring: WiringOption,
    reason: ReasonOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    acked: Annotated[
        bool | None, typer.Option("--acked/--open", help="Only those that somebody has seen, or nobody.")
    ] = None,
    after: AfterOption = "",
    limit: LimitOption = 100,
    local: LocalOption = False,
    as_json: JsonOption = False,
    as_lines: LinesOption = False,
) -> None:
    """List runs that are QUARANTINED, newest first, with who has acknowledged each: runs list of that state.

    \b
    Example:
      scenario-runner quarantine list --open --since 1d
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.quarantine import run_list
    from scenario_runner.cli.runs import Options

    options = Options(
        "QUARANTINED", reason, since=since, until=until, after=after, limit=limit, local=local, acked=acked
    )
    run_list(str(wiring), options, as_json=as_json, as_lines=as_lines)


def quarantine_show(
    run_id: RunArgument, wiring: WiringOption, local: LocalOption = False, as_json: JsonOption = False
) -> None:
    """Show why a run is QUARANTINED: what was expected and found, who else holds a receipt that drifts, what to do.

    The exit code is 4.

    \b
    Example:
      scenario-runner quarantine show 0f3a
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.quarantine import run_show

    run_show(str(wiring), run_id, local=local, as_json=as_json)


def quarantine_ack(
    run_id: RunArgument,
    wiring: WiringOption,
    reason: Annotated[str, typer.Option(help="What was found: it is kept on record.", show_default=False)] = "",
    requested_by: ActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put on record that a person has seen a QUARANTINED run. State and verdict stay as they are.

    The first acknowledgement stays: a second one says who was first, and exits with 0 too.

    \b
    Example:
      scenario-runner quarantine ack 0f3a --reason "the index was sealed twice; a new request runs"
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.quarantine import run_ack

    run_ack(str(wiring), run_id, reason, requested_by, as_json=as_json)
