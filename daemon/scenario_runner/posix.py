"""What of POSIX this platform has.

The daemon, the folder store, the spool and engine runs in folders need POSIX; the commands that ask S3, PostgreSQL and
Kinesis run on Windows too. What Windows lacks and a module needs at its top is taken from here, so that importing it
never fails; the composition root refuses what cannot work without.
"""

import os
import signal
from typing import Final

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

WINDOWS: Final = os.name == "nt"
"""True where paths have drive letters and backslashes."""
O_CLOEXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
O_DIRECTORY: Final[int] = getattr(os, "O_DIRECTORY", 0)
O_NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)
SIGKILL: Final[int] = getattr(signal, "SIGKILL", 9)
AVAILABLE: Final = bool(getattr(fcntl, "flock", None) and O_DIRECTORY and O_NOFOLLOW)
"""True where files can be locked, made durable, and opened without following links."""

__all__ = [
    "AVAILABLE",
    "O_CLOEXEC",
    "O_DIRECTORY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "SIGKILL",
    "WINDOWS",
    "fcntl",
    "resource",
]
