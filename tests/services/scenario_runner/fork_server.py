"""Processes of the command that need no interpreter to start: forks of one that has loaded it, and does nothing else.

Such a process is the command in all but its start, which takes three quarters of what most commands of a test take. It
has an environment, a folder and, when asked for, a session of its own, and ends as a program does. Unlike a fork of the
test's own process (``support.ForkedWorld``) it inherits no patches, no threads and nothing of a client of S3.

As a program: ``fork_server.py DESCRIPTOR``, a socket on which :class:`Forked` asks for processes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Messages are an environment and arguments: far below what a socket takes at once, which is 200 kB.
MOST_BYTES: Final = 1 << 18
NUMBER: Final = struct.Struct("!i")
#: What an interpreter reads when it starts, so that a fork cannot have other values.
READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC_")


@cache
def load_everything() -> None:
    """Import every module of the package, so that not every fork does it again."""
    package = importlib.import_module("scenario_runner")
    for module in pkgutil.walk_packages(package.__path__, "scenario_runner."):
        importlib.import_module(module.name)


# ---------------------------------------------------------------- for the tests


class Forked:
    """A process of the command, with as much of ``subprocess.Popen`` as tests use.

    Args:
        arguments: Of the command.
        program: The module whose ``main`` is called: the command's, or ``crashing``.
        stdin: Open file that it reads; likewise what it writes to.
        env: Its environment.
        new_session: Whether it leads a session of its own.
    """

    def __init__(
        self, arguments: Sequence[str], *, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes],
        env: Mapping[str, str], program: str = "scenario_runner.cli.main", new_session: bool = False,
    ) -> None:  # fmt: skip
        asked = {
            "argv": list(arguments),
            "program": program,
            "env": dict(env),
            "cwd": os.getcwd(),
            "setsid": new_session,
        }
        self.args, self.returncode = list(arguments), None
        self._said, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [file.fileno() for file in (stdin, stdout, stderr)] + [theirs.fileno()]
            socket.send_fds(_server(), [json.dumps(asked).encode()], descriptors)
        self.pid = self._number()

    args: list[str]
    returncode: int | None

    def _number(self) -> int:
        data = self._said.recv(NUMBER.size)
        if not data:
            raise RuntimeError("the process that commands are forked from has ended")
        return int(NUMBER.unpack(data)[0])

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self.returncode is None and select.select([self._said], [], [], 0)[0]:
            self.returncode = self._number()
            self._said.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: It runs longer than that.
        """
        if self.returncode is None and not select.select([self._said], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def is_possible(env: Mapping[str, str]) -> bool:
    """Whether a fork can have this environment: it started like the interpreter of the test."""
    return hasattr(os, "pidfd_open") and _read_at_start(env) == _AT_START


def run(
    arguments: Sequence[str], data: bytes | None, timeout: float, env: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """As ``subprocess.run`` of the command, with what it printed; it is killed when it takes longer."""
    with _memory(data or b"") as given, _memory() as out, _memory() as err:
        process = Forked(arguments, stdin=given, stdout=out, stderr=err, env=env)
        try:
            code = process.wait(timeout)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                error.output, error.stderr = _content(out), _content(err)
            raise
        return subprocess.CompletedProcess(list(arguments), code, _content(out), _content(err))


def _memory(data: bytes = b"") -> IO[bytes]:
    file = open(os.memfd_create("command"), "w+b", buffering=0)  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


def _content(file: IO[bytes]) -> bytes:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_START)}


_AT_START: Final = _read_at_start(os.environ)
_STARTS: Final = threading.Lock()


def _server() -> socket.socket:
    """The socket of the server of this process, which ends with it."""
    with _STARTS:
        return _started()


@cache
def _started() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        ours.shutdown(socket.SHUT_RDWR)
        server.wait()

    atexit.register(end)
    return ours


# ---------------------------------------------------------------- the program


class Server:
    """Forks what is asked for, and tells each asker the process id, and later the exit status."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._events = selectors.DefaultSelector()
        self._events.register(requests, selectors.EVENT_READ, self._fork)

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._events.select():
                key.data()

    def _fork(self) -> None:
        data, descriptors, *_ = socket.recv_fds(self._requests, MOST_BYTES, 4)
        if not data:
            os._exit(0)
        *files, said = descriptors
        pid = os.fork()
        if pid == 0:
            _become(json.loads(data), files)
        asker = socket.socket(fileno=said)
        for descriptor in files:
            os.close(descriptor)
        process = os.pidfd_open(pid)
        self._events.register(process, selectors.EVENT_READ, lambda: self._ended(pid, process, asker))
        _tell(asker, pid)

    def _ended(self, pid: int, process: int, asker: socket.socket) -> None:
        self._events.unregister(process)
        os.close(process)
        _tell(asker, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        asker.close()


def _tell(asker: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone
        asker.send(NUMBER.pack(number))


def _become(asked: dict[str, Any], files: list[int]) -> NoReturn:
    """In the fork: be the program, and end as an interpreter does."""
    if asked["setsid"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1 << 20)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    unbuffered = bool(asked["env"].get("PYTHONUNBUFFERED"))
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        file = open(number, "w", 1 if number == 2 else -1, errors=errors, closefd=False)  # noqa: SIM115
        file.reconfigure(write_through=unbuffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    sys.argv = ["scenario-runner", *asked["argv"]]
    os._exit(_status(importlib.import_module(asked["program"]).main))


def _status(main: Callable[[], object]) -> int:
    """Call the program, wait for its threads and do what is registered for its end; its exit status."""
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code if isinstance(ended.code, int) else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    return code & 0xFF


def main() -> None:
    """The program."""
    atexit._clear()
    load_everything()
    importlib.import_module("crashing")
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would miss threads"
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, all that is inherited
    Server(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
