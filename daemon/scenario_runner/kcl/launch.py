"""A small program that becomes the JVM, after it has asked the kernel for SIGTERM when the supervisor dies.

It is run as a plain file that imports nothing slow. ``SR_KCL_COMMAND`` holds the command as JSON, and
``SR_KCL_SUPERVISOR`` the process id of the supervisor. The supervisor must start it from a thread that lives as long as
the JVM: the kernel sends the signal when that thread ends, not when the process ends.
"""

import ctypes
import json
import os
import signal

#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the death signal and become the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The kernel sends nothing for a parent that died before prctl(): its children have another parent by now.
    if os.getppid() != int(os.environ["SR_KCL_SUPERVISOR"]):
        raise SystemExit(1)
    command = json.loads(os.environ.pop("SR_KCL_COMMAND"))
    os.execv(command[0], command)  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
