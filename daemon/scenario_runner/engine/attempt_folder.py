"""The private folder of one attempt: its existence says that the attempt was launched, its lock that it may run.

``FOLDER/{attempt_id}/`` holds the files that :mod:`~scenario_runner.engine.keeper` names, and ``lock``. The lock is
taken before the folder gets its name, and passed on to the keeper. So there is no moment in which the folder is there,
the attempt may still be started, and the lock is free.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.engine.command import ATTEMPT_VARIABLE
from scenario_runner.posix import SIGKILL, fcntl
from scenario_runner.procfs import processes_with

#: Longer than any row needs the folder to know that its attempt was launched: a run's lease expires within minutes.
KEPT_SECONDS: Final = 7 * 24 * 3600.0
#: The kernel ends a process that was killed within milliseconds, unless it waits for a disk or a network.
_KILL_SECONDS: Final = 5.0
#: Between looks at the process table, which costs some milliseconds.
_PAUSE_SECONDS: Final = 0.02
#: Between the folder's making and its lock pass microseconds; a minute later whoever made it was killed.
_NEW_SECONDS: Final = 60.0
_LOST: Final = "KEEPER_LOST"
_GIVEN_UP: Final = "GIVEN_UP"
_NOT_STARTED: Final = "NOT_STARTED"
_RESULT, _LOCK, _KEEPER = "result.json", "lock", "keeper"
_NEW: Final = ".new-"


def prepare_root(root: str) -> None:
    """Make the folder of all attempts, and remove what nobody asks for any more.

    Raises:
        ConfigurationError: The folder cannot be used, or others may write into it.
    """
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        info = os.stat(root)
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise ConfigurationError(
                root, "others may write into the folder of engine attempts", "give it to the daemon's user, mode 0700"
            )
        for name in os.listdir(root):
            _remove_if_old(os.path.join(root, name), is_new=name.startswith(_NEW))
    except OSError as error:
        raise ConfigurationError(root, f"cannot be used: {error.strerror or error}", "correct the folder") from error


def _remove_if_old(path: str, *, is_new: bool) -> None:
    with suppress(OSError):
        # A folder without its name yet, whose lock is free, is what a killed daemon left before a launch.
        kept = _NEW_SECONDS if is_new else KEPT_SECONDS
        if time.time() - os.stat(path).st_mtime > kept:  # the clock that stamps files
            with _try_lock(os.path.join(path, _LOCK)) as locked:
                if locked:
                    shutil.rmtree(path)


@contextmanager
def _try_lock(path: str) -> Iterator[bool]:
    """Lock a file while the block runs; False when somebody else has the lock.

    Raises:
        OSError: There is no such file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _ended(error: str, cause: str, *, started: bool = False) -> dict[str, Any]:
    """The result of an attempt that left none."""
    return {"started": started, "error": error, "exit_code": None, "cause": cause, "duration_ms": 0}


class AttemptFolder:
    """The folder of one attempt; it need not exist.

    Args:
        root: Folder of all attempts.
        attempt_id: hex32.
    """

    def __init__(self, root: str, attempt_id: str) -> None:
        self._root, self._attempt_id = root, attempt_id
        self.path = os.path.join(root, attempt_id)

    def create(self) -> int | None:
        """Make the folder, locked.

        Returns:
            The descriptor of the lock; None when the folder exists, so that the attempt was launched before.

        Raises:
            OSError: The folder cannot be made.
        """
        os.makedirs(self._root, mode=0o700, exist_ok=True)  # somebody may have removed it under the daemon
        new = tempfile.mkdtemp(prefix=_NEW, dir=self._root)
        descriptor = os.open(os.path.join(new, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A folder that is not empty is never replaced by a rename: this one call decides who launches.
            os.rename(new, self.path)
        except OSError:
            os.close(descriptor)
            shutil.rmtree(new, ignore_errors=True)
            if self.exists():
                return None
            raise
        return descriptor

    def exists(self) -> bool:
        """Whether the attempt was launched, or begun to be."""
        return os.path.isdir(self.path)

    def give_up_unless_launched(self) -> None:
        """Make sure that an attempt without a folder runs nowhere on this host, and is launched by nobody any more.

        The process that was to launch it may only be stopped, and go on later: it then finds the folder made.

        Raises:
            Unavailable: The folder cannot be made, or a process of the attempt cannot be killed.
        """
        try:
            lock = None if self.exists() else self.create()
        except OSError as error:
            raise Unavailable(f"attempt {self._attempt_id} cannot be given up: {error.strerror or error}") from error
        if lock is None:
            return
        try:
            self.kill_processes()  # in case somebody emptied the folder of attempts under a running keeper
            self._write_result(_ended("the attempt was given up before it was launched", _GIVEN_UP))
        except OSError as error:
            raise Unavailable(f"attempt {self._attempt_id} cannot be given up: {error.strerror or error}") from error
        finally:
            os.close(lock)

    def is_given_up(self) -> bool:
        """Whether the attempt was given up before it was launched."""
        result = self.result()
        return result is not None and result["cause"] == _GIVEN_UP

    def keeper(self) -> tuple[int, str] | None:
        """Process id and start time of the keeper; None when it has not written them."""
        try:
            with open(os.path.join(self.path, _KEEPER), encoding="ascii") as file:
                pid, _, started = file.read().partition(" ")
            return int(pid), started
        except (OSError, ValueError):
            return None

    def result(self) -> dict[str, Any] | None:
        """What the keeper found at the end; None when there is no result."""
        try:
            with open(os.path.join(self.path, _RESULT), "rb") as file:
                found: dict[str, Any] = json.loads(file.read())
        except (OSError, ValueError):  # a file that a loss of power left empty is no result
            return None
        return found

    def output(self, stream: str) -> bytes:
        """What is kept of ``stdout`` or ``stderr``."""
        return self._read(f"{stream}.log")

    def _read(self, name: str) -> bytes:
        """A file of the folder; empty when it cannot be read."""
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return file.read()
        except OSError:
            return b""

    def reap(self) -> dict[str, Any] | None:
        """The result of an attempt; where its keeper is gone without one, every process is killed and this is noted.

        Returns:
            The result; None while the attempt may run.

        Raises:
            Unavailable: A process cannot be killed, or the folder cannot be read or written.
        """
        try:
            # The lock first, then the result: in the other order the keeper could write and end in between.
            with _try_lock(os.path.join(self.path, _LOCK)) as free:
                return (self.result() or self._note_lost()) if free else None
        except OSError as error:
            raise Unavailable(f"the folder of attempt {self._attempt_id}: {error.strerror or error}") from error

    def _note_lost(self) -> dict[str, Any]:
        """Called under the lock."""
        started = self.keeper() is not None
        self.kill_processes()
        # A keeper that was killed says nothing; one that failed has left a traceback, whose last line says why.
        said = self._read("keeper.log").decode(errors="replace").strip().rpartition("\n")[2]
        error = said if started else "the daemon was killed before it could start the engine"
        lost = _ended(error, _LOST, started=started)
        with suppress(OSError):  # a full disk: whoever asks again finds the same
            self._write_result(lost)
        return lost

    def note_not_started(self, error: str) -> None:
        """Note that the attempt certainly never started; called by who made the folder, while no keeper runs."""
        self._write_result(_ended(error, _NOT_STARTED))

    def _write_result(self, result: dict[str, Any]) -> None:
        new = os.path.join(self.path, f"{_RESULT}.new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(result, file)
        os.rename(new, os.path.join(self.path, _RESULT))

    def kill_processes(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Kill every process that bears the attempt's mark, the keeper among them, and wait until none is left.

        Raises:
            Unavailable: One is still there after the bound.
        """
        deadline = time.monotonic() + _KILL_SECONDS
        # Again and again: a process may have forked between the look at the table and its death.
        while found := list(processes_with(ATTEMPT_VARIABLE, self._attempt_id)):
            if time.monotonic() > deadline:
                raise Unavailable(f"{len(found)} processes of attempt {self._attempt_id} cannot be killed")
            for pid in found:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, SIGKILL)
            sleep(_PAUSE_SECONDS)

    def forget_outputs(self) -> None:
        """Remove what the engine wrote. The folder stays, so that the attempt is never launched again."""
        for name in ("stdout.log", "stderr.log", "keeper.log"):
            with suppress(OSError):
                os.unlink(os.path.join(self.path, name))
