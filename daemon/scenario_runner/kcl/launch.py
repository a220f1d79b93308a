"""Becomes the JVM, after asking the kernel for SIGTERM when the supervisor dies.

Run as a plain file, with nothing imported that takes time. ``SR_KCL_COMMAND`` holds the command as JSON,
``SR_KCL_SUPERVISOR`` the supervisor's process id. The supervisor must start this from a thread that lives as long as
the JVM: the kernel means the thread, not the process.
"""

import ctypes
import json
import os
import signal

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the death signal and become the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(os.environ["SR_KCL_SUPERVISOR"]):
        raise SystemExit(1)  # it died before the kernel knew
    command = json.loads(os.environ.pop("SR_KCL_COMMAND"))
    os.execv(command[0], command)  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
