"""What is measured: an installed command, or the sources of another checkout."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sr_tools.bench.report import REPO


@dataclass(frozen=True)
class Subject:
    """A command and the checkout that it belongs to.

    Attributes:
        name: What reports call it.
        command: The installed ``scenario-runner``.
        checkout: Its folder, whose interface pack and schemas the profiles name.
        sources: Folder that Python looks into before the installed package; empty for what is installed.
        variables: Further variables of the environment of its processes.
    """

    name: str
    command: str
    checkout: Path = REPO
    sources: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def pack(self) -> Path:
        """The interface pack."""
        return self.checkout / "config/engine/interface_pack"

    @property
    def schemas(self) -> Path:
        """The schemas of SR's own documents."""
        return self.checkout / "config/platform/contracts/scenario_runner"

    def environment(self) -> dict[str, str]:
        """Variables for its processes, which keep their bytecode, as an installed command does."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, **({"PYTHONPATH": self.sources} if self.sources else {}), **self.variables}


def this_checkout(command: str) -> Subject:
    """The command of this checkout, or another one that was named."""
    return Subject("this", command)


def other_checkout(folder: Path, command: str) -> Subject:
    """Another checkout: its own environment where it has one, else its sources in the environment of ``command``.

    Raises:
        ValueError: The folder is no checkout of Scenario Runner.
    """
    folder = folder.resolve()
    if not (folder / "daemon/scenario_runner").is_dir():
        raise ValueError(f"{folder} is no checkout of Scenario Runner: it has no daemon/scenario_runner")
    own = folder / ".venv/bin/scenario-runner"
    if own.exists():
        return Subject("other", str(own), folder)
    return Subject("other", command, folder, str(folder / "daemon"))


def find_command() -> str:
    """The installed command: next to this interpreter, else on PATH."""
    sibling = Path(sys.executable).parent / "scenario-runner"
    return str(sibling) if sibling.exists() else shutil.which("scenario-runner") or str(sibling)
