"""A daemon with KCL: its JVM, its record processors, and their sudden end."""

import json
import os
import signal
import subprocess
from contextlib import suppress

from typing_extensions import override

from sr_tools.bench.daemon import Daemon
from sr_tools.bench.report import Json
from sr_tools.waiting import until


class KinesisDaemon(Daemon):
    """A ``serve`` that reads a stream."""

    def _last_start(self) -> Json | None:
        """What it logged when it started its JVM last."""
        found = None
        for line in self.log.read_text("utf-8", "replace").splitlines():
            if line.startswith("{") and '"KCL started"' in line:
                found = json.loads(line)
        return found

    def _start(self) -> Json:
        return until(self._last_start, "a JVM starts") or {}

    def jvm(self) -> int:
        """Process id of the JVM that was started last."""
        return int(self._start()["jvm"])

    def worker_id(self) -> str:
        """Its worker id, as leases name it."""
        return str(self._start()["worker_id"])

    def processors(self) -> list[int]:
        """Process ids of its record processors."""
        found = subprocess.run(["pgrep", "-P", str(self.jvm())], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    @override
    def kill(self) -> None:
        """Kill everything at once, as when the machine is gone: the JVM has a process group of its own."""
        last = self._last_start()
        super().kill()
        if last is not None:
            with suppress(ProcessLookupError):
                os.killpg(int(last["jvm"]), signal.SIGKILL)
