"""The commands. Each imports what it needs when it runs, so ``--help`` is quick."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from scenario_runner.cli.console import (
    Exit,
    emit,
    exit_for_state,
    open_standard_streams,
    reporting,
    say,
    say_fields,
)

_EXIT_CODES = (
    "Exit codes: 0 done or passed; 1 the verdict is negative; 2 usage or configuration; 3 still waiting; "
    "4 quarantined; 5 a store, database or stream is unavailable."
)

app = typer.Typer(
    name="scenario-runner",
    help="Run authority of a fraud-data platform: run requests in, verified READY signals out.\n\n"
    "No PASS, no READY: a missing, unreadable, unknown or contradictory thing is never a pass.\n\n" + _EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="Look at many runs.", no_args_is_help=True, rich_markup_mode=None)
policy_app = typer.Typer(help="Work with policy profiles.", no_args_is_help=True, rich_markup_mode=None)
contracts_app = typer.Typer(help="Work with the wire contracts.", no_args_is_help=True, rich_markup_mode=None)
stream_app = typer.Typer(help="Work with the control stream.", no_args_is_help=True, rich_markup_mode=None)
stores_app = typer.Typer(help="Work with the stores of a profile.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")
app.add_typer(stores_app, name="stores")
app.add_typer(policy_app, name="policy")
app.add_typer(contracts_app, name="contracts")
app.add_typer(stream_app, name="stream")

WiringOption = Annotated[Path, typer.Option("--wiring", help="Wiring profile (YAML).", show_default=False)]
PolicyOption = Annotated[Path, typer.Option("--policy", help="Policy profile (YAML).", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="Run id: 32 lowercase hex characters.")]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A run request as JSON; '-' reads standard input.")]


def main() -> None:
    """Entry point of the ``scenario-runner`` command."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a Windows console shows few of the characters there are
    app()


def _version(*, value: bool) -> None:
    if value:
        from scenario_runner import __version__

        say(f"scenario-runner {__version__}")
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


@app.command()
def serve(
    wiring: WiringOption,
    policy: PolicyOption,
    role: Annotated[str, typer.Option(help="all, intake, runner, relay or housekeeping.")] = "all",
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Do everything that can be done now, then exit 0.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the daemon: consume requests, verify evidence, publish READY.

    The first SIGTERM or SIGINT lets what is in flight finish; the second stops at once. Either loses nothing.
    """
    from scenario_runner.cli.process_one import leave_process_one

    leave_process_one()
    from scenario_runner.cli.serve import run_daemon

    with reporting(as_json=False):
        run_daemon(str(wiring), str(policy), role, log_level, until_idle=until_idle)


@app.command()
def submit(wiring: WiringOption, file: FileArgument, as_json: JsonOption = False) -> None:
    """Drop a run request on the control bus; prints its run id and message id.

    The document is checked first: one that would be refused for its form is not sent (exit 1).
    """
    from scenario_runner.cli.plan import submit_request

    with reporting(as_json=as_json):
        result = submit_request(str(wiring), file)
    if as_json:
        emit(result)
    else:
        say_fields(result, ("run_id", "message_id", "record"))


@app.command()
def plan(wiring: WiringOption, policy: PolicyOption, file: FileArgument, as_json: JsonOption = False) -> None:
    """Show the plan that a request would get, without side effects; exit 1 when it would be refused."""
    from scenario_runner.cli.plan import plan_file

    with reporting(as_json=as_json):
        result = plan_file(str(wiring), str(policy), file)
    if as_json:
        emit(result)
        return
    say_fields(result, ("run_id", "strategy", "evidence_wait_seconds", "engine_run_root", "plan_hash"))
    for item in result["outputs"]:
        say(f"  output {item['output_id']}  ({item['role']}{', optional' if item['optional'] else ''})")
        say(f"         {item['path']}")
    for item in result["gates"]:
        say(f"  gate   {item['gate_id']}  ({item['law']})")
        say(f"         {item['flag']}")


def _look(wiring: Path, run_id: str, *, whole: bool, as_json: bool) -> dict[str, Any]:
    from scenario_runner.cli.status import look_at_run

    with reporting(as_json=as_json):
        return look_at_run(str(wiring), run_id, whole=whole)


@app.command()
def status(run_id: RunArgument, wiring: WiringOption, as_json: JsonOption = False) -> None:
    """Where a run stands. The exit code says it too: 0 READY, 1 FAILED or refused, 3 not yet, 4 QUARANTINED."""
    document = _look(wiring, run_id, whole=False, as_json=as_json)
    if as_json:
        emit(document)
    else:
        say_fields(document, ("run_id", "state", "reason_code", "sentence", "detail", "updated_at_utc",
                              "evidence_deadline_utc", "next_look_utc", "next_action", "infrastructure_retries",
                              "last_infrastructure_error", "documents_owed"))  # fmt: skip
    raise typer.Exit(exit_for_state(document["state"]))


@app.command()
def explain(run_id: RunArgument, wiring: WiringOption, as_json: JsonOption = False) -> None:
    """Why a run stands where it stands: per gate and output, what was found where, what is missing, what is next."""
    document = _look(wiring, run_id, whole=True, as_json=as_json)
    if as_json:
        emit(document)
    else:
        from scenario_runner.cli.status import say_explanation

        say_explanation(document)
    raise typer.Exit(exit_for_state(document["state"]))


@runs_app.command("list")
def runs_list(
    wiring: WiringOption,
    state: Annotated[str | None, typer.Option(help="Only runs of this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, newest first.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    from scenario_runner.cli.status import list_runs

    with reporting(as_json=as_json):
        found = list_runs(str(wiring), state, limit)
    if as_json:
        emit({"runs": found})
        return
    for item in found:
        say(f"{item['run_id']}  {item['state']:16}  {item['updated_at_utc']}  {item.get('reason_code', '')}")


@app.command()
def verify(
    target: Annotated[str, typer.Argument(metavar="RUN_ID|FACTS_VIEW_PATH", help="A run id, or a facts view file.")],
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
    as_json: JsonOption = False,
) -> None:
    """Check a READY run as a careful downstream reader would: digests, receipts, gates and outputs, all re-hashed.

    It is verified under the interface pack that is named here, or that the authority pinned for it, or that the profile
    names; the answer says which. A pack that only the ledger vouches for does not pass.
    """
    from scenario_runner.cli.verify import NamedFiles, verify_target

    files = NamedFiles(*(str(path) if path else "" for path in (catalogue, gate_map, policy)))
    with reporting(as_json=as_json):
        document, code = verify_target(str(wiring), target, files)
    if as_json:
        emit(document)
    else:
        for check in document["checks"]:
            say(
                f"{'n/a ' if check.get('not_possible') else 'ok  ' if check['ok'] else 'FAIL'}  {check['check']}"
                + (f": {check['detail']}" if check.get("detail") else "")
            )
        for name in ("pack", "policy"):
            if document.get(name):
                say(f"{name}: {document[name]['origin']}  {document[name].get('digest', '')}".rstrip())
        say(f"{document['outcome']}: {document['summary']}")
    raise typer.Exit(code)


@stores_app.command("adopt")
def stores_adopt(
    wiring: WiringOption,
    only: Annotated[str | None, typer.Option(help="Only this one: object_store or spool.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the object store and the spool that are there now the known ones, after they were really replaced.

    A store has an identity: a marker in it, which the authority knows too. Another store in its place is refused, since
    that is mostly a missing mount or a wrong bucket: mount the right one instead of adopting what is there. Signals and
    documents that the old store held are not in the new one; running daemons must be restarted.
    """
    from scenario_runner.cli.stores import adopt_stores

    with reporting(as_json=as_json):
        found = adopt_stores(str(wiring), only)
    if as_json:
        emit({"stores": found})
        return
    for item in found:
        say(f"{item['store']}  {item['where']}\n  known until now: {item['old'] or 'none'}")
        say(f"  known from now on: {item['new']}" if item["adopted"] else "  unchanged: nothing else is there")


@policy_app.command("digest")
def policy_digest_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy profile.")],
    as_json: JsonOption = False,
) -> None:
    """Print the content digest that a policy file should carry."""
    from scenario_runner.profiles.policy import policy_digest, read_policy

    with reporting(as_json=as_json):
        digest = policy_digest(read_policy(str(file)), str(file))
    if as_json:
        emit({"content_digest": digest})
    else:
        say(digest)


@contracts_app.command("export")
def contracts_export(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write the schema files.")] = Path(
        "config"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write every JSON Schema of the wire contracts, in the layout of ``config/``."""
    from scenario_runner.cli.contracts import export_contracts

    with reporting(as_json=as_json):
        written = export_contracts(str(directory))
    if as_json:
        emit({"written": written})
    else:
        for path in written:
            say(path)


@stream_app.command("adopt")
def stream_adopt(wiring: WiringOption, as_json: JsonOption = False) -> None:
    """Read a stream that was deleted and made anew: forgets the leases that are about the former one.

    Stop every daemon of the application first. Nothing is done when the leases are about the stream as it is.
    """
    from scenario_runner.cli.stream import adopt_stream

    with reporting(as_json=as_json):
        document = adopt_stream(str(wiring))
    if as_json:
        emit(document)
    else:
        say_fields(document, ("stream", "former_stream", "lease_table", "leases_forgotten", "begins_at", "outcome"))


@app.command()
def doctor(
    wiring: WiringOption,
    policy: Annotated[Path | None, typer.Option("--policy", help="Policy profile (YAML).", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Probe everything that a profile names, and say what to do about what is wrong."""
    from scenario_runner.cli.doctor import examine

    findings = examine(str(wiring), str(policy) if policy else None)
    if as_json:
        emit({"ok": all(item["ok"] for item in findings), "checks": findings})
    else:
        for item in findings:
            remedy = f"; {item['remedy']}" if item.get("remedy") else ""
            say(f"{'ok  ' if item['ok'] else 'FAIL'}  {item['check']}: {item['detail']}{remedy}")
    raise typer.Exit(max((item.get("exit", 0) for item in findings if not item["ok"]), default=Exit.DONE))
