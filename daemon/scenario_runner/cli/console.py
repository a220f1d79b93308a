"""How commands speak: JSON or text on stdout, diagnostics on stderr, one exit code per kind of outcome."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, Final

import typer

from scenario_runner.contracts.errors import (
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
    DEFECT = 70


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
def reporting(*, as_json: bool) -> Iterator[None]:
    """Turn errors into a message for a person, a JSON object where asked for, and an exit code."""
    try:
        yield
    except ScenarioRunnerError as error:
        note(f"error: {error.reason}: {error.detail}")
        if as_json:
            emit(
                {
                    "error": {
                        "reason_code": error.reason.value,
                        "sentence": error.sentence(),
                        "detail": error.detail,
                    }
                }
            )
        raise typer.Exit(exit_for_error(error)) from error
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(Exit.DONE) from None


def emit(document: Any) -> None:  # noqa: ANN401
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, sort_keys=True) + "\n")
    sys.stdout.flush()


def say(text: str = "") -> None:
    """One line for a person on stdout; what is not printable in it is shown escaped."""
    sys.stdout.write(printable(text) + "\n")


def note(text: str) -> None:
    """One line of progress or diagnostics on stderr; what is not printable in it is shown escaped.

    Nothing depends on whether it can be written.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write(printable(text) + "\n")


def open_standard_streams() -> None:
    """Put ``/dev/null`` where standard streams were closed: else the next file that is opened gets their number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end


def say_fields(document: dict[str, Any], keys: tuple[str, ...]) -> None:
    """The named fields that are there, one a line."""
    for key in keys:
        value = document.get(key)
        if value not in (None, "", [], {}):
            say(f"{key + ':':24}{value if isinstance(value, str | int) else json.dumps(value, sort_keys=True)}")
