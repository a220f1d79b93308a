"""Reads what lies in deploy/: commands are parsed by the installed command line, settings by the profile's own code."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer.main
from support import REPO

from scenario_runner.cli.main import app
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = REPO / "deploy"
#: Where an installation has the folder config/ of the repository.
INSTALLED_CONFIG = "/etc/scenario-runner/config"
#: How much longer than the longest drain a supervisor waits: for the end of the JVM and of what is left.
MARGIN_SECONDS = 10


def parse_command(words: list[str]) -> tuple[str, dict[str, Any]]:
    """What the command line makes of the words after ``scenario-runner``; raises where it would refuse them."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("scenario-runner", list(words), allow_extra_args=True)
    rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
    name, command, rest = group.resolve_command(context, rest)
    return name, command.make_context(name, rest, parent=context).params


def local(path: str) -> str:
    """The file of the repository that an installation has at this path."""
    assert path.startswith(f"{INSTALLED_CONFIG}/"), path
    return path.replace(INSTALLED_CONFIG, str(REPO / "config"))


def load_profiles(environment: dict[str, str]) -> Wiring:
    """The profile and the policy that an environment names, valid and with files that exist."""
    here = environment | {"SR_CONFIG_ROOT": str(REPO / "config")}
    assert environment["SR_CONFIG_ROOT"] == INSTALLED_CONFIG
    load_policy(local(environment["SR_POLICY"]))
    return load_wiring(local(environment["SR_WIRING"]), env=here)


def longest_shutdown() -> int:
    """The largest value of ``shutdown_seconds`` that a profile may have."""
    (bound,) = [item.le for item in Wiring.model_fields["shutdown_seconds"].metadata if hasattr(item, "le")]
    return int(bound)


def read_settings(path: Path) -> dict[str, str]:
    """The settings of an environment file of systemd."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.partition("=") for line in lines]
    return {name: " ".join(shlex.split(value)) for name, _, value in pairs}


@dataclass
class Unit:
    """A unit file of systemd.

    Attributes:
        sections: Assignments in their order, by section.
    """

    sections: dict[str, list[tuple[str, str]]]

    @classmethod
    def read(cls, path: Path) -> Unit:
        found: dict[str, list[tuple[str, str]]] = {}
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("["):
                section = found.setdefault(line.strip("[]"), [])
            elif line and not line.startswith("#"):
                name, _, value = line.partition("=")
                section.append((name, value))
        return cls(found)

    def all(self, name: str, section: str = "Service") -> list[str]:
        return [value for key, value in self.sections[section] if key == name]

    def one(self, name: str, section: str = "Service") -> str:
        (value,) = self.all(name, section)
        return value
