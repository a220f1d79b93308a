"""A copy of the tree that tests run in without a guard."""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from sr_tools.guards.guard import Guard
from sr_tools.guards.rooms import REPO

MINE: Final = "SR_DELETED_GUARD"
"""Environment variable by which processes that a stopped test left running are found."""


class Copy:
    """A copy of the tree that tests run in."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self._python = folder, python
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPO,
                                capture_output=True, check=True).stdout  # fmt: skip
        for name in filter(None, listed.decode().split("\0")):
            if (REPO / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / name, folder / name)

    def test(self, arguments: Sequence[str], seconds: float) -> str:
        """``passed``, ``failed`` or ``too long``."""
        token = secrets.token_hex(8)
        env = {**os.environ, "PYTHONPATH": str(self.folder / "daemon"), "PYTHONDONTWRITEBYTECODE": "1", MINE: token}
        command = [self._python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        try:
            return "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "too long"
        finally:
            _end_processes(f"{MINE}={token}".encode())
            process.wait()

    def try_without(self, guard: Guard, selections: Sequence[Sequence[str]], seconds: float) -> str:
        """What the tests say without a guard: ``noticed``, ``noticed: too long`` or ``survived``."""
        path = self.folder / guard.file
        whole = path.read_bytes()
        try:
            if guard.file.endswith(".py"):
                compile(guard.without, guard.file, "exec")
            path.write_bytes(guard.without)
            for arguments in selections:
                said = self.test(arguments, seconds)
                if said != "passed":
                    return "noticed" if said == "failed" else "noticed: too long"
        finally:
            path.write_bytes(whole)
        return "survived"


def _end_processes(mark: bytes) -> None:
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            if mark in Path(f"/proc/{int(name)}/environ").read_bytes().split(b"\0"):
                os.kill(int(name), signal.SIGKILL)
