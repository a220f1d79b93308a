"""Output of the commands: JSON or text on stdout, diagnostics on stderr, one exit code per kind of result."""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, Final, TextIO

import typer

from scenario_runner.cli.outputs.error import ERROR
from scenario_runner.cli.outputs.shapes import Shape
from scenario_runner.cli.text import Part, Word, toned
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import (
    AmbiguousRunError,
    ConfigurationError,
    EvidenceChanged,
    LedgerDrift,
    Refusal,
    ScenarioRunnerError,
    Unavailable,
    UsageError,
    printable,
)


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    NEGATIVE = 1
    USAGE = 2
    WAITING = 3
    QUARANTINED = 4
    UNAVAILABLE = 5
    DEFECT = 70  # EX_SOFTWARE of sysexits.h; a defect: no command returns it on purpose


_BY_STATE: Final = {
    "READY": Exit.DONE,
    "FAILED": Exit.NEGATIVE,
    "REJECTED": Exit.NEGATIVE,
    "QUARANTINED": Exit.QUARANTINED,
}


def exit_for_state(state: str) -> Exit:
    """Exit code that stands for a run's state."""
    return _BY_STATE.get(state, Exit.WAITING)


def exit_for_error(error: BaseException) -> Exit:
    """Exit code that stands for an error."""
    if isinstance(error, ConfigurationError | UsageError):
        return Exit.USAGE
    if isinstance(error, Unavailable):
        return Exit.UNAVAILABLE
    if isinstance(error, Refusal | LedgerDrift | EvidenceChanged):
        return Exit.NEGATIVE
    return Exit.DEFECT


@contextmanager
def exit_on_error(*, as_json: bool, logs: bool = True) -> Iterator[None]:
    """End the command on an error of SR: a message on stderr, a JSON object where asked for, and an exit code.

    What is no error of SR is a defect: its traceback on stderr, and an exit code that stands for no verdict.

    Args:
        as_json: Whether the command prints JSON.
        logs: False for a command that only looks. Nothing that it needs logs, and the library for logs takes a quarter
            of its time to import. Where it needs more, it calls :func:`log_to_stderr` first.
    """
    if logs:
        log_to_stderr()
    try:
        yield
    except ScenarioRunnerError as error:
        raise _ended_by(error, as_json=as_json) from error
    except MemoryError as error:  # says nothing of what was asked about
        raise _ended_by(Unavailable("memory is short; call the same command again"), as_json=as_json) from error
    except BrokenPipeError:
        sys.stderr.close()  # else the interpreter reports the same broken pipe once more when it exits
        raise typer.Exit(Exit.DONE) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # the interpreter would exit with 1, which is a negative verdict
        traceback.print_exception(error)
        raise typer.Exit(Exit.DEFECT) from error


def _ended_by(error: ScenarioRunnerError, *, as_json: bool) -> typer.Exit:
    """Say what ended the command; returns its exit code, to be raised."""
    print_err(f"error: {error.reason}: {error.detail}")
    for item in error.candidates if isinstance(error, AmbiguousRunError) else ():
        print_err(f"  {item['run_id']}  {item['run_equivalence_key']}")
    if as_json:
        print_json_line({"error": _error_document(error)}, ERROR)
        sys.stdout.flush()
    return typer.Exit(exit_for_error(error))


def log_to_stderr() -> None:
    """Send what SR logs from now on to stderr, as text: stdout holds the result and nothing else."""
    from scenario_runner.service.telemetry import log_warnings_as_text  # slow to import: not for --help

    log_warnings_as_text()


def _error_document(error: ScenarioRunnerError) -> dict[str, Any]:
    found: dict[str, Any] = {"reason_code": error.reason.value, "sentence": error.sentence(), "detail": error.detail}
    return found | {"candidates": error.candidates} if isinstance(error, AmbiguousRunError) else found


def print_json(document: Json, shape: Shape) -> None:
    """Print one JSON document of a shape on stdout."""
    sys.stdout.write(json.dumps(shape.stamped(document), indent=2, sort_keys=True) + "\n")
    sys.stdout.flush()


def print_json_line(document: Json, shape: Shape) -> None:
    """Print a document of a shape as one line. Whoever prints the last line flushes stdout."""
    sys.stdout.write(json.dumps(shape.stamped(document), sort_keys=True) + "\n")


def print_request(document: Json) -> None:
    """Print a run request, which is a document of the control bus: as it is, without ``schema_version``."""
    sys.stdout.write(json.dumps(document, indent=2, sort_keys=True) + "\n")
    sys.stdout.flush()


def print_line(*parts: Part, flush: bool = False) -> None:
    """Print one line on stdout. Characters that are not printable are escaped: they come from outside."""
    sys.stdout.write(rendered(parts, sys.stdout) + "\n")
    if flush:
        sys.stdout.flush()


def rendered(parts: Sequence[Part], stream: TextIO) -> str:
    """The parts of a line as a stream shows them. What is not printable is escaped before a part gets its tone."""
    shown = [printable(part) if isinstance(part, str) else toned(part, printable(part.text), stream) for part in parts]
    return "".join(shown).rstrip(" ")


def print_fields(document: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Print the named fields that have a value, one a line."""
    for key in keys:
        value = document.get(key)
        if value not in (None, "", [], {}):
            shown = value if isinstance(value, str | int) else json.dumps(value, sort_keys=True)
            # A state is the only value with a tone: a detail may be any word.
            print_line(f"{key + ':':24}", Word(str(shown)) if key in ("state", "outcome") else str(shown))


def print_err(text: str) -> None:
    """Print one line on stderr, escaped likewise. A failure to write it is ignored: no result depends on it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(printable(text) + "\n")


def open_standard_streams() -> None:
    """Open ``/dev/null`` in the place of standard streams that are closed.

    Else the next file that is opened, a database perhaps, gets the number of the closed stream, and whatever is printed
    is written into it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end
