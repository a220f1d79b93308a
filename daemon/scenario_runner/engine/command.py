"""``engine_command``: an argument list with placeholders, checked when it is loaded and rendered once for each attempt.

There is no shell. A placeholder is replaced by its value where it stands, and the value is not looked at again: one
that contains ``{run_id}`` stays as it is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scenario_runner.contracts.errors import ConfigurationError, EngineRefusal
from scenario_runner.engine.invoker import Launch

IDENTITY_PLACEHOLDERS: Final = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "scenario_set")
"""Placeholders whose values stand in ``Launch.tokens``."""

INVOCATION_JSON: Final = "invocation_json"
PLACEHOLDERS: Final = (
    *IDENTITY_PLACEHOLDERS, "run_id", "engine_run_root", INVOCATION_JSON, "invocation_path", "attempt_id", "attempt_no",
)  # fmt: skip
"""All placeholders of ``engine_command``."""

ATTEMPT_VARIABLE: Final = "SR_ATTEMPT_ID"
"""Names the attempt in the environment of all its processes. They are found by it."""

INVOCATION_VARIABLE: Final = "SR_ENGINE_INVOCATION_JSON"
OWN_VARIABLES: Final = (
    INVOCATION_VARIABLE, "SR_ENGINE_INVOCATION_PATH", "SR_ENGINE_RUN_ROOT", ATTEMPT_VARIABLE, "TRACEPARENT",
)  # fmt: skip
"""Variables that SR gives to every engine."""

#: Linux takes no argument or variable that is longer with its closing zero byte (MAX_ARG_STRLEN: 32 pages of 4 KiB).
_LONGEST_ARGUMENT: Final = 32 * 4096 - 1
_PIECE: Final = re.compile(r"\{([a-z_]+)\}")
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """A command that was checked.

    Attributes:
        arguments: Of each argument its literals and placeholders in turn; placeholders stand at odd places.
    """

    arguments: tuple[tuple[str, ...], ...]

    def render(self, values: Mapping[str, str]) -> list[str]:
        """The argument list for these values.

        Raises:
            EngineRefusal: A value would be taken for an option, or is longer than an argument can be.
        """
        return [_render(pieces, values) for pieces in self.arguments]


def parse_command(arguments: Sequence[str], place: str, *, by_path_only: bool = False) -> EngineCommand:
    """Check a command.

    Args:
        arguments: The command and its arguments.
        place: Where they are written, for a person.
        by_path_only: Whether the engine gets the invocation by its path only.

    Raises:
        ConfigurationError: There is no command, it is a placeholder, or a placeholder is not known.
    """
    if not arguments or not arguments[0]:
        raise ConfigurationError(place, "names no command", "write a list: the command and its arguments")
    parsed = tuple(tuple(_PIECE.split(argument)) for argument in arguments)
    if len(parsed[0]) > 1:
        raise ConfigurationError(place, "the command itself holds a placeholder", "name one program")
    for argument, pieces in zip(arguments, parsed, strict=True):
        _check(argument, pieces, place, by_path_only=by_path_only)
    return EngineCommand(parsed)


def _check(argument: str, pieces: tuple[str, ...], place: str, *, by_path_only: bool) -> None:
    if "\0" in argument:
        raise ConfigurationError(place, "an argument holds a zero byte", "remove it")
    for name in pieces[1::2]:
        if name not in PLACEHOLDERS:
            raise ConfigurationError(place, f"the placeholder {{{name}}} is not known", f"one of {_known()}")
        if by_path_only and name == INVOCATION_JSON:
            raise ConfigurationError(
                place, "this invoker cannot pass {invocation_json}: it bounds the length of a command",
                "use {invocation_path}",
            )  # fmt: skip
    if any("{" in literal or "}" in literal for literal in pieces[::2]):
        raise ConfigurationError(
            place, f"the argument {argument!r} holds braces that are no placeholder",
            f"put it into a script of its own; placeholders are {_known()}",
        )  # fmt: skip


def _known() -> str:
    return " ".join(f"{{{name}}}" for name in PLACEHOLDERS)


def _render(pieces: tuple[str, ...], values: Mapping[str, str]) -> str:
    argument = "".join(values[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))
    # Where the argument begins with a literal, its author decided what it begins with.
    if not pieces[0] and argument.startswith("-"):
        raise EngineRefusal(f"the value of {{{pieces[1]}}} begins with '-': the engine would take it for an option")
    return _bounded(argument, f"the argument with {{{pieces[1]}}}" if len(pieces) > 1 else "an argument")


def _bounded(text: str, what: str) -> str:
    if "\0" in text:
        raise EngineRefusal(f"{what} holds a zero byte")
    if len(text.encode()) > _LONGEST_ARGUMENT:
        raise EngineRefusal(f"{what} holds more than the {_LONGEST_ARGUMENT} bytes that the system can pass")
    return text


def placeholder_values(launch: Launch) -> dict[str, str]:
    """The value of every placeholder for one attempt."""
    return {
        **{name: launch.tokens[name] for name in IDENTITY_PLACEHOLDERS},
        "run_id": launch.run_id,
        "engine_run_root": launch.engine_run_root,
        INVOCATION_JSON: launch.invocation.decode(),
        "invocation_path": launch.invocation_path,
        "attempt_id": launch.attempt_id,
        "attempt_no": str(launch.attempt_no),
    }


def check_allow_list(names: Iterable[str], place: str) -> tuple[str, ...]:
    """Check the names of an allow-list of variables.

    Raises:
        ConfigurationError: A name is none, or one that SR sets itself.
    """
    checked = tuple(names)
    for name in checked:
        if _VARIABLE_NAME.fullmatch(name) is None:
            raise ConfigurationError(place, f"{name!r} is not the name of a variable", "write names without values")
        if name in OWN_VARIABLES:
            raise ConfigurationError(place, f"SR sets {name} itself", "take it out of the list")
    return checked


def own_variables(launch: Launch) -> dict[str, str]:
    """The variables that SR gives to the engine, for one attempt.

    Raises:
        EngineRefusal: One is longer than a variable can be.
    """
    values = (
        launch.invocation.decode(), launch.invocation_path, launch.engine_run_root, launch.attempt_id,
        launch.traceparent,
    )  # fmt: skip
    found = {name: value for name, value in zip(OWN_VARIABLES, values, strict=True) if value}
    for name, value in found.items():
        _bounded(f"{name}={value}", f"the variable {name}")
    return found


def environment_of(launch: Launch, allow_list: Iterable[str], source: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of an engine: what the allow-list names of ``source``, and SR's own variables.

    Raises:
        EngineRefusal: A variable is longer than it can be.
    """
    return {**{name: source[name] for name in allow_list if name in source}, **own_variables(launch)}
