"""Options that are one subject, as one dataclass: a command takes the dataclass, and typer sees an option a field."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def takes_flag_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer can read it: each parameter that is a dataclass becomes one parameter for each of its fields.

    The fields need ``Annotated`` types, as parameters of a command do, and defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)
    }

    @wraps(command)
    def ungrouped(**given: Any) -> None:  # noqa: ANN401 - typer has checked the values
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        one = [parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)]
        parameters += _parameters_of(groups[name]) if name in groups else one
    ungrouped.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    ungrouped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return ungrouped


def _parameters_of(group: type[Any]) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(group)
    ]
