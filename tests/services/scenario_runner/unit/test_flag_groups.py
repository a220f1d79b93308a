"""Options that are one subject reach a command as one value."""

from dataclasses import dataclass
from inspect import signature
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from scenario_runner.cli.flag_groups import takes_flag_groups

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="How wide.")] = 1
    name: Annotated[list[str] | None, typer.Option(help="Its names.")] = None


def _command(*, before: Annotated[str, typer.Argument()], size: Size, after: bool = False) -> None:
    """Say what was given."""
    typer.echo(f"{before} {size} {after}")


def _says(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(takes_flag_groups(_command))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_a_group_is_made_of_the_options_of_its_fields() -> None:
    assert _says("x", "--width", "3", "--name", "a", "--name", "b", "--after") == (
        "x Size(width=3, name=['a', 'b']) True"
    )


def test_an_option_that_is_not_given_has_the_default_of_its_field() -> None:
    assert _says("x").startswith("x Size(width=1, name=")


def test_options_of_a_group_stand_where_the_group_stands() -> None:
    assert list(signature(takes_flag_groups(_command)).parameters) == ["before", "width", "name", "after"]
    assert takes_flag_groups(_command).__doc__ == _command.__doc__
