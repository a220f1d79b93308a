"""The open files of this process, three of which every engine that it launched takes: a process and two pipes.

A process that has no more can neither answer its control bus nor read its database, so it stops launching before that.
"""

import os
from contextlib import suppress
from typing import Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.posix import AVAILABLE, resource

#: For databases, the spool, evidence that is read, sockets, and the launches that are under way at the same time.
_RESERVED: Final = 256
#: Of a limit that is smaller than that: half of it.
_RESERVED_SHARE: Final = 2


def soft_limit() -> int:
    """How many files this process may have open."""
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


#: What this process was started with, and its engines are: programs that use select(2) cannot take more than 1,024.
INHERITED: Final = soft_limit() if AVAILABLE else 0


def use_hard_limit() -> None:
    """Let this process have as many open files as it may ask for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a kernel that allows less than the limit says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_room() -> None:
    """Make sure that another engine can be launched.

    Raises:
        Unavailable: This process has too many files open.
    """
    limit, used = soft_limit(), len(os.listdir("/proc/self/fd"))
    if limit != resource.RLIM_INFINITY and used > limit - min(_RESERVED, limit // _RESERVED_SHARE):
        raise Unavailable(
            f"no room for another engine: {used} of {limit} files are open; raise the limit of open files (LimitNOFILE)"
        )
