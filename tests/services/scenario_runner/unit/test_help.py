"""The help of every command has an example that the command line takes, and says how many documents --json prints."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from commands_support import commands

from scenario_runner.cli.outputs.table import LINES

pytestmark = pytest.mark.unit

COMMANDS = dict(commands())
_PROGRAM = "scenario-runner"


def examples(command: Any) -> list[str]:
    """The commands of the paragraph of examples; click keeps its lines, which a backspace asks for."""
    _, _, text = command.help.partition("\b\nExample")
    paragraph = text.partition(":\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    return [line.strip() for line in paragraph.splitlines()]


def parse(line: str) -> str:
    """The name of the command that a line calls; raises where the command line would refuse its words."""
    words = shlex.split(re.split(" [>|] ", line)[0])
    assert words[0] == _PROGRAM
    name = next(name for name in COMMANDS if words[1 : 1 + len(name.split())] == name.split())
    COMMANDS[name].make_context(name, words[1 + len(name.split()) :])
    return name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_examples_that_the_command_line_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR_WIRING", "wiring.yaml")
    monkeypatch.setenv("SR_POLICY", "policy.yaml")
    found = examples(COMMANDS[name])
    assert found
    assert [parse(line) for line in found] == [name] * len(found)
    title = "Examples:" if len(found) > 1 else "Example:"
    assert f"\b\n{title}\n" in COMMANDS[name].help


def test_an_option_that_prints_lines_says_so() -> None:
    for name in LINES:
        (option,) = [item for item in COMMANDS[name].params if "--json" in item.opts]
        assert "one JSON object a line" in option.help, name
