"""Windows as far as Python code can see it: the modules, functions and flags that it lacks are taken away.

Only from the package and from the tests: libraries and Python's own modules believe what they find, as on Windows they
find other things. ``run`` starts a fresh interpreter so.
"""

from __future__ import annotations

import builtins
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
ABSENT = {
    "fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "readline", "crypt", "spwd", "nis",
    "posix", "curses",
}  # fmt: skip
LACKING = {
    os: {
        "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_TMPFILE", "O_NOATIME", "O_PATH", "O_SYNC",
        "O_DSYNC", "O_NOCTTY", "O_DIRECT", "O_ASYNC", "O_NDELAY", "O_RSYNC", "O_LARGEFILE", "O_ACCMODE", "O_FSYNC",
        "O_EXLOCK", "fork", "forkpty", "setsid", "setpgid", "getpgid", "getpgrp", "setpgrp", "getsid", "killpg",
        "getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid", "seteuid", "setegid", "setgroups",
        "initgroups", "chown", "fchown", "lchown", "chroot", "mkfifo", "mknod", "makedev", "major", "minor", "nice",
        "getpriority", "setpriority", "wait", "waitid", "wait3", "wait4", "WNOHANG", "WEXITED", "WNOWAIT", "WSTOPPED",
        "WCONTINUED", "WUNTRACED", "P_PID", "P_PGID", "P_ALL", "pread", "pwrite", "preadv", "pwritev", "readv",
        "writev", "sendfile", "posix_fadvise", "posix_fallocate", "posix_spawn", "posix_spawnp", "fdatasync", "sync",
        "fwalk", "statvfs", "fstatvfs", "pathconf", "fpathconf", "confstr", "sysconf", "getloadavg", "uname",
        "ctermid", "openpty", "ttyname", "pipe2", "eventfd", "memfd_create", "register_at_fork", "sched_getaffinity",
        "sched_setaffinity", "sched_yield", "getxattr", "setxattr", "listxattr", "removexattr", "getrandom",
        "getresuid", "setresuid", "copy_file_range", "splice", "lockf", "F_LOCK", "pidfd_open", "unshare", "setns",
        "fchmod", "fchdir", "EX_OK", "EX_TEMPFAIL", "EX_CONFIG", "tcgetpgrp", "tcsetpgrp",
    },
    signal: {
        "SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGCHLD", "SIGCONT", "SIGSTOP",
        "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGWINCH", "alarm", "setitimer", "getitimer", "pause",
        "pthread_kill", "pthread_sigmask", "sigpending", "sigwait", "sigtimedwait", "siginterrupt", "SIG_BLOCK",
    },
    select: {"poll", "epoll", "kqueue", "EPOLLIN", "POLLIN"},
}  # fmt: skip
"""Names that these modules lack on Windows."""


class _Lacking(ModuleType):
    """A module without some of its names."""

    def __init__(self, module: ModuleType, lacking: set[str]) -> None:
        super().__init__(module.__name__)
        self.__dict__["_real"], self.__dict__["_lacking"] = module, lacking

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return "nt" if (self.__name__, name) == ("os", "name") else getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._real, name)


def install() -> None:
    """Take POSIX away from the package and the tests, in this process."""
    real = builtins.__import__
    poor = {module.__name__: _Lacking(module, lacking) for module, lacking in LACKING.items()}
    importers = (str(REPO / "daemon"), str(REPO / "tests"), str(REPO / "scripts"))

    def without_posix(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:  # noqa: A002
        if str((globals or {}).get("__file__", "")).startswith(importers):
            if name.partition(".")[0] in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
            if name in poor:
                return poor[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = without_posix


BOOT = (
    f"import sys; sys.path[:0] = {[str(HERE), str(REPO / 'scripts')]!r}; import windows_like; windows_like.install(); "
)


def run(code: str, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Any:
    """Run Python code where POSIX is taken away; ``arguments`` are its ``sys.argv[1:]``."""
    return subprocess.run([sys.executable, "-c", BOOT + code, *arguments], capture_output=True, text=True,
                          timeout=300, check=False, env={**os.environ, **(env or {})}, **options)  # fmt: skip


def command(*arguments: str, **options: Any) -> Any:
    """Run a command of the package so."""
    return run("from scenario_runner.cli.main import main; main()", *arguments, **options)
