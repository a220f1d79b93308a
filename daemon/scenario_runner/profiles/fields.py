"""Types of the keys of a wiring profile: each reads a value strictly and brings it into its normal form."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from scenario_runner.profiles import values


def _as_list(value: object) -> object:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _blank(value: object) -> object:
    return None if value == "" else value


def _each(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda items: [check(item) for item in items])


def _if_given(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda value: None if value is None else check(value))


def _entry(value: str) -> str:
    if not value.strip():
        raise ValueError("an entry is blank")
    return values.one_line(value)


def _arguments(value: object) -> object:
    """A command as a list. A text is none: nothing here would split it, and no shell does."""
    if isinstance(value, str) and value.split():
        raise ValueError(
            "must be a list, the program and then each argument, as in ['/opt/engine/run', '--seed', '{seed}']: no "
            "shell splits a text"
        )
    items = list(value) if isinstance(value, list) else []
    if others := [number for number, item in enumerate(items) if not isinstance(item, str)]:
        raise ValueError(f"its item {others[0]} is no text: write it in quotes, as in '{{seed}}' or '7'")
    return [] if value == "" else value


def _port_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _blank(value)


Text = Annotated[str, Field(min_length=1), AfterValidator(values.one_line)]
Location = Annotated[str, Field(min_length=1), AfterValidator(values.location)]
OptionalText = Annotated[str | None, BeforeValidator(_blank), _if_given(values.one_line)]
OptionalLocation = Annotated[str | None, BeforeValidator(_blank), _if_given(values.location)]
OptionalEndpoint = Annotated[str | None, BeforeValidator(_blank), _if_given(values.endpoint)]
OptionalQueue = Annotated[str | None, BeforeValidator(_blank), _if_given(values.queue_url)]
OptionalRegion = Annotated[str | None, BeforeValidator(_blank), _if_given(values.region)]
OptionalName = Annotated[str | None, BeforeValidator(_blank), _if_given(values.stream_name)]
OptionalListen = Annotated[str | None, BeforeValidator(_port_as_text), _if_given(values.listen)]
OptionalResource = Annotated[str | None, BeforeValidator(_blank), _if_given(values.resource)]
Texts = Annotated[list[str], BeforeValidator(_as_list), _each(_entry)]
Locations = Annotated[list[str], BeforeValidator(_as_list), _each(_entry), _each(values.location)]
Resources = Annotated[list[str], BeforeValidator(_as_list), _each(_entry), _each(values.resource)]
Arguments = Annotated[list[str], BeforeValidator(_arguments)]
