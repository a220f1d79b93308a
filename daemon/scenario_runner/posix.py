"""What of POSIX this platform has.

The daemon, the folder store, the spool and engine runs in folders need POSIX; the commands that ask S3, PostgreSQL and
Kinesis run on Windows too. Whoever needs a module or flag that Windows lacks takes it from here, so that importing it
never fails; whoever cannot work without POSIX says so with :data:`NEEDS_POSIX`.
"""

import os
from types import ModuleType
from typing import Final

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

WINDOWS: Final = os.name == "nt"
"""True where paths have drive letters and backslashes."""
AVAILABLE: Final = fcntl is not None and hasattr(os, "O_DIRECTORY") and hasattr(os, "O_NOFOLLOW")
"""True where files can be locked, made durable and opened without following links."""
NEEDS_POSIX: Final = "needs a POSIX system, which Windows is not"
REMEDY: Final = "run it in WSL2 (Ubuntu on Windows), in a container, or on Linux"

O_CLOEXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
O_DIRECTORY: Final[int] = getattr(os, "O_DIRECTORY", 0)
O_NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)
O_TMPFILE: Final[int] = getattr(os, "O_TMPFILE", 0)
SIGKILL: Final[int] = 9
