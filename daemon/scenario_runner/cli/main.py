"""The command line: which commands there are, their options, and their help.

Each command is done by ``run`` of the module that is named after it, which is imported when it runs: ``--help`` stays
quick. A new command is a module and a function here; those that look are in ``look_commands.py``, those that look and
act in ``act_commands.py``.
"""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from scenario_runner.cli import act_commands, authority, ledger, look_commands
from scenario_runner.cli.console import open_standard_streams, print_line
from scenario_runner.cli.corrections import CorrectionFlags
from scenario_runner.cli.evidence_commands import add_evidence
from scenario_runner.cli.flag_groups import takes_flag_groups
from scenario_runner.cli.groups import Groups
from scenario_runner.cli.options import (
    CheckPolicyOption,
    FileArgument,
    JsonOfManyOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    ManyOption,
    OptionalFileArgument,
    PolicyOption,
    TimeoutOption,
    WaitOption,
    WiringOption,
)
from scenario_runner.cli.request_flags import RequestFlags
from scenario_runner.cli.retention_commands import add_retention

_EXIT_CODES = (
    "Exit codes: 0 done or passed; 1 the verdict is negative; 2 usage or configuration; 3 still waiting; "
    "4 quarantined; 5 a store, database or stream is unavailable."
)


app = typer.Typer(
    name="scenario-runner",
    cls=Groups,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run authority of a fraud-data platform: run requests in, verified READY signals out.\n\n"
    "No PASS, no READY: a missing, unreadable, unknown or contradictory thing is never a pass.\n\n" + _EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


#: Sections of the top-level help.
_SERVE, _REQUEST, _LOOK, _SET_UP = "Serve", "Request a run", "Look", "Set up and maintain"


def _group(name: str, section: str, help_text: str) -> typer.Typer:
    """A command that has commands of its own."""
    group = typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name, rich_help_panel=section)
    return group


def main() -> None:
    """Entry point of the ``scenario-runner`` command."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # code pages of Windows lack most characters
    app()


def _version(*, value: bool) -> None:
    if value:
        from scenario_runner import __version__

        print_line(f"scenario-runner {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda value: _version(value=value),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    del version


@app.command(rich_help_panel=_SERVE, short_help="Run the daemon.")
def serve(
    wiring: WiringOption,
    policy: PolicyOption,
    role: Annotated[str, typer.Option(help="all, intake, runner, relay or housekeeping.")] = "all",
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Do everything that can be done now, then exit 0.")
    ] = False,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "auto",
) -> None:
    """Run the daemon: consume requests, verify evidence, publish READY.

    The first SIGTERM or SIGINT finishes what is in progress; the second stops at once. Neither loses anything.

    \b
    Examples:
      scenario-runner serve --wiring $W --policy $P
      scenario-runner serve --wiring $W --policy $P --role runner --log-format json
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.process_one import leave_process_one

    leave_process_one()  # before the import below: a fork must precede all threads
    from scenario_runner.cli.serve import run

    run(str(wiring), str(policy), role, log_level, log_format, until_idle=until_idle)


@app.command("run", rich_help_panel=_SERVE, short_help="Carry one request to its verdict in this process.")
def run_one(
    file: FileArgument,
    wiring: WiringOption,
    policy: PolicyOption,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds; the run goes on where it is driven next.")
    ] = None,
    log_level: LogLevelOption = "warning",
    log_format: LogFormatOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Carry one request to its verdict in this process: admit it, drive its run, deliver its signals.

    For a scheduled task or a CI job. The exit code is the verdict: 0 READY, 1 FAILED or refused, 3 no verdict in time,
    4 QUARANTINED. Run again with the same file it goes on with the same run; a run that has ended is not driven again.
    Nothing is taken from the control bus, and no other run is touched.

    \b
    Example:
      scenario-runner run request.json --wiring $W --policy $P --timeout 600
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.process_one import leave_process_one

    leave_process_one()  # before the import below: a fork must precede all threads
    from scenario_runner.cli.run import run

    run(str(wiring), str(policy), file, timeout, log_level, log_format, as_json=as_json)


@app.command(rich_help_panel=_REQUEST, short_help="Put run requests on the control bus.")
@takes_flag_groups
def submit(
    *,
    wiring: WiringOption,
    file: OptionalFileArgument = None,
    jsonl: ManyOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the request document, and send nothing.")] = False,
    as_json: JsonOfManyOption = False,
    request: RequestFlags,
    correction: CorrectionFlags,
    policy: CheckPolicyOption = None,
) -> None:
    """Put run requests on the control bus; print the run id and message id.

    A request is a document (FILE), or is made of the flags below --json, or --jsonl names a file of many. Documents are
    checked first: one that would be refused for its form is not sent (exit 1); with --policy neither is one that intake
    would refuse under that policy. A request with --supersedes corrects a run that has ended, once it is READY itself.
    With --wait the exit code is the verdict: 0 READY, 1 FAILED or refused, 3 none before the timeout, 4 QUARANTINED.

    --jsonl prints one line of JSON for each request, in their order; the exit code says whether one failed (1 refused,
    5 the bus did not take it). To submit the same file again does no harm.

    \b
    Example:
      scenario-runner submit --wiring $W --run-equivalence-key nightly-7 \\
        --manifest-fingerprint $M --parameter-hash $P --seed 7 --scenario-id baseline_v1 \\
        --window-start 2026-01-01T00:00:00Z --window-end 2026-01-02T00:00:00Z \\
        --engine-run-root runs/local_full_run-1/$M --wait --timeout 600
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.submit import Options, run

    checked = str(policy) if policy is not None else None
    options = Options(file, jsonl, request, correction, checked, wait, timeout, only_print, as_json)
    if jsonl is not None:
        from scenario_runner.cli.submit_lines import run as run_lines

        run_lines(str(wiring), jsonl, options)
        return
    run(str(wiring), options)


@app.command(rich_help_panel=_REQUEST, short_help="Show the plan that a request would get.")
def plan(wiring: WiringOption, policy: PolicyOption, file: FileArgument, as_json: JsonOption = False) -> None:
    """Show the plan that a request would get, without side effects; exit 1 when it would be refused.

    \b
    Example:
      scenario-runner plan request.json --wiring $W --policy $P
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.plan import run

    run(str(wiring), str(policy), file, as_json=as_json)


add_evidence(_group("evidence", _REQUEST, "Tell the daemons that evidence has come."))
runs_app = _group("runs", _LOOK, "List runs, and have waiting ones examined now.")
dead_letter_app = _group("dead-letter", _LOOK, "Look at refused records and their bytes; redrive them.")
quarantine_app = _group("quarantine", _LOOK, "Look at runs that a person must see to; acknowledge them.")
look_commands.register(app, _LOOK, runs_app, dead_letter_app)
act_commands.register(app, _LOOK, runs_app, dead_letter_app, quarantine_app)


@app.command(rich_help_panel=_SET_UP, short_help="Publish the signal of a run again.")
def reemit(
    wiring: WiringOption,
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="RUN_ID", help="A run id or its beginning, a key, or a message id; or else --state."),
    ] = None,
    kind: Annotated[str, typer.Option(help="READY_ONLY, TERMINAL_ONLY or BOTH: whichever the run has.")] = "BOTH",
    reason: Annotated[str, typer.Option(help="Why: it is kept in the run's record.", show_default=False)] = "",
    requested_by: Annotated[str | None, typer.Option(help="Who asks; this user if none.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and publish nothing.")] = False,
    state: Annotated[str | None, typer.Option(help="Many: runs of READY, FAILED or QUARANTINED.")] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="Many: published first at this time or later.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Many: published first before; now if none.")] = "",
    rate: Annotated[int, typer.Option(min=0, help="Many: most signals a second; 0 for no bound.")] = 200,
    resume: Annotated[str, typer.Option(metavar="BATCH", help="Many: go on with a batch that was broken off.")] = "",
    as_json: JsonOfManyOption = False,
) -> None:
    """Publish the READY or TERMINAL of a run again: the same message id and the same payload.

    Before READY is repeated its facts view is compared with what the authority announced. Nothing else of the run
    changes. Who may do this, and how often, the wiring profile says (reemit_allowlist, reemit_rate_limit_max). Exit 1
    when it was refused; the answer says why.

    With --state and --since the signals of many runs are published again, at most --rate a second, with one line of
    JSON for each under --json. Broken off, it goes on with --resume BATCH.

    \b
    Examples:
      scenario-runner reemit RUN_ID --wiring $W --reason "consumer lost its offset" --dry-run
      scenario-runner reemit --wiring $W --state READY --since 2026-01-01T00:00:00Z --reason "rehydrate the index"
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.reemit import ReemitOptions, run

    options = ReemitOptions(kind, reason, requested_by, dry_run)
    if run_id is not None and state is None and not since and not until and not resume:
        run(str(wiring), run_id, options, as_json=as_json)
        return
    from scenario_runner.cli.reemit_many import ManyOptions
    from scenario_runner.cli.reemit_many import run as run_many

    run_many(str(wiring), ManyOptions(run_id, state, since, until, resume, rate, options), as_json=as_json)


@app.command(rich_help_panel=_SERVE, short_help="Ask a daemon whether it is alive or ready.")
def healthcheck(
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="http://host:port of its listener.", show_default=False)
    ] = None,
    wiring: Annotated[
        Path | None,
        typer.Option(
            "--wiring", envvar="SR_WIRING", help="Its profile, which names health_listen.", show_default=False
        ),
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it is ready, and not whether it is alive.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a daemon whether every loop of it makes progress, or with --ready whether it can work.

    For supervisors whose image has no HTTP client. The exit code is 0 for yes and 1 for no or no answer.

    \b
    Examples:
      scenario-runner healthcheck --url http://127.0.0.1:8077
      scenario-runner healthcheck --wiring wiring.yaml --ready
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.healthcheck import run

    run(url, str(wiring) if wiring is not None else None, ready=ready, as_json=as_json)


@app.command(rich_help_panel=_SET_UP, short_help="Probe everything that a profile names.")
def doctor(
    wiring: WiringOption,
    policy: Annotated[
        Path | None, typer.Option("--policy", envvar="SR_POLICY", help="Policy profile (YAML).", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Probe everything that a profile names, and say what to do about what is wrong.

    \b
    Example:
      scenario-runner doctor --wiring $W --policy $P
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.doctor import run

    run(str(wiring), str(policy) if policy else None, as_json=as_json)


stores_app = _group("stores", _SET_UP, "Work with the stores of a profile.")
policy_app = _group("policy", _SET_UP, "Work with policy profiles.")
contracts_app = _group("contracts", _SET_UP, "Work with the contracts.")
add_retention(_group("retention", _SET_UP, "Remove what the policy keeps no longer."))
stream_app = _group("stream", _SET_UP, "Work with the control stream.")
app.add_typer(authority.app, name="authority", rich_help_panel=_SET_UP)
app.add_typer(ledger.app, name="ledger", rich_help_panel=_SET_UP)


@stores_app.command("adopt", short_help="Make the stores that are there the known ones.")
def stores_adopt(
    wiring: WiringOption,
    only: Annotated[str | None, typer.Option(help="Only this one: object_store or spool.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the object store and the spool that are there now the known ones, after they were really replaced.

    A store has an identity: a marker in it, which the authority knows too. SR refuses another store in its place, since
    the usual cause is a missing mount or a wrong bucket: then mount the right store instead. Documents and signals that
    the old store held are not in the new one; running daemons must be restarted.

    \b
    Example:
      scenario-runner stores adopt --wiring $W --only spool
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.stores import run

    run(str(wiring), only, as_json=as_json)


@policy_app.command("digest", short_help="Print the content digest of a policy file.")
def policy_digest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy profile.")],
    as_json: JsonOption = False,
) -> None:
    """Print the content digest that a policy file should carry.

    \b
    Example:
      scenario-runner policy digest policy.yaml
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.policy import run

    run(str(file), as_json=as_json)


@contracts_app.command("export", short_help="Write every JSON Schema: wire contracts and output.")
def contracts_export(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write the schema files.")] = Path(
        "config"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write every JSON Schema, of the wire contracts and of what --json prints, in the layout of ``config/``.

    \b
    Example:
      scenario-runner contracts export config
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.contracts import run

    run(str(directory), as_json=as_json)


@stream_app.command("adopt", short_help="Read a stream that was made anew.")
def stream_adopt(wiring: WiringOption, as_json: JsonOption = False) -> None:
    """Read a stream that was deleted and made anew: forget the leases of the former one.

    Stop every daemon of the application first. When the leases belong to the stream as it is, nothing is changed.

    \b
    Example:
      scenario-runner stream adopt --wiring $W
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with a backspace
    from scenario_runner.cli.stream import run

    run(str(wiring), as_json=as_json)
