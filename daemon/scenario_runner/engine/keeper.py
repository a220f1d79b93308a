"""The keeper of one engine attempt: a small program that starts the engine and leaves no process of it behind.

It is run as a plain file that imports nothing of the package, with the attempt's folder as its working directory:

* descriptor 0: one line of JSON that says what to start, then one byte for each renewal of the run's lease. Its end
  says that the daemon is gone.
* descriptor 1: one line when the engine was started, or could not be.
* ``keeper``: its process id and start time.
* ``stdout.log``, ``stderr.log``, then ``result.json``: written when nothing of the attempt runs any more.

The keeper is a child subreaper: whatever the engine starts stays below it, also what forks twice and makes a session of
its own. So "no child is left" means that no process of the attempt is left. (What the engine asks another service to
run, as ``docker run`` does, is not below it and is the engine's to end.) It has one thread, and waits in ``poll``.

The daemon's end is seen by the end of descriptor 0. The kernel's death signal would be sent when the daemon's *thread*
ends that started the keeper, and threads of a pool do end.
"""

import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

#: The number of this option in <linux/prctl.h>.
_PR_SET_PDEATHSIG: Final = 1
#: Likewise.
_PR_SET_CHILD_SUBREAPER: Final = 36
#: A bound for the description of the launch: two command lines as long as Linux takes them (2 MiB with environment).
_LONGEST_SPEC: Final = 4 << 20
#: The daemon gives a launch up after 10 s; whoever took its run over must not wait for a daemon that was stopped.
_SPEC_SECONDS: Final = 15.0
#: What a pipe of Linux holds: one read empties it.
_READ_BYTES: Final = 64 << 10
#: Between rounds of SIGKILL, for a process that forks faster than it is killed or that the kernel holds in a call.
_KILL_PAUSE_SECONDS, _LONGEST_KILL_PAUSE_SECONDS = 0.02, 1.0
#: poll() takes milliseconds in an int of C, which 25 days overflow; one more turn in an hour costs nothing.
_LONGEST_WAIT_SECONDS: Final = 3600.0
#: Places in /proc/PID/stat after the name of the program.
_PARENT, _START_TIME = 1, 19
_NEVER: Final = float("inf")


class CappedOutput:
    """The first and the last bytes of a stream, however long it is.

    Args:
        head_bytes: How many of the first bytes to keep.
        tail_bytes: How many of the last.
    """

    def __init__(self, head_bytes: int, tail_bytes: int) -> None:
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self._head, self._tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.total += len(data)
        room = self._head_bytes - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        # Cut at twice the size: every byte is moved once at most, however small the pieces are that come.
        if len(self._tail) > 2 * self._tail_bytes:
            del self._tail[: -self._tail_bytes]

    def render(self) -> bytes:
        """What is kept, with a marker that says how many bytes were left out."""
        tail = self._tail[-self._tail_bytes :]
        left_out = self.total - len(self._head) - len(tail)
        marker = f"\n[scenario-runner: {left_out} bytes left out]\n".encode() if left_out else b""
        return bytes(self._head + marker + tail)


def stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the name of the program; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def descendants() -> Iterator[tuple[int, str]]:
    """Process id and start time of every process below this one."""
    children: dict[int, list[tuple[int, str]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := stat_fields(name)):
            children.setdefault(int(fields[_PARENT]), []).append((int(name), fields[_START_TIME]))
    parents = [os.getpid()]
    while parents:
        for pid, started in children.get(parents.pop(), ()):
            parents.append(pid)
            yield pid, started


def send(pid: int, started: str, numbers: tuple[int, ...]) -> None:
    """Send signals to a process, and to none that was given its id since it was seen."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if stat_fields(pid)[_START_TIME:][:1] == [started]:
                for number in numbers:
                    signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def write_file(name: str, data: bytes) -> None:
    """Put a file into the attempt's folder, whole or not at all.

    It is not made durable: after a loss of power nothing of the attempt runs, and a lost result means another attempt.
    """
    descriptor = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.rename(f"{name}.new", name)


class Keeper:
    """Starts one engine and follows it to the end of its last process.

    Args:
        spec: ``argv``, ``environment``, ``cwd`` (null for the attempt's folder), ``timeout_seconds``,
            ``grace_seconds`` between SIGTERM and SIGKILL, ``renew_seconds`` for which a renewal holds (null for ever),
            ``start_by`` on the monotonic clock, after which nothing is started any more (null for never),
            ``head_bytes`` and ``tail_bytes`` of each stream to keep, ``descriptors`` that the engine may have open.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._outputs = {name: CappedOutput(spec["head_bytes"], spec["tail_bytes"]) for name in ("stdout", "stderr")}
        self._streams: dict[int, str] = {}
        self._poller = select.poll()
        self._engine = 0
        self._status: int | None = None
        self._cause = ""
        self._stop_wanted = self._daemon_gone = False
        self._kill_at, self._kill_pause = _NEVER, _KILL_PAUSE_SECONDS
        self._ending = False
        self._began = self._ended = time.monotonic()
        self._deadline = self._began + spec["timeout_seconds"]
        self._renewed_until = _NEVER
        self._wakeup, wakeup_writer = os.pipe()
        for end in (self._wakeup, wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._want_stop)
        # A handler, not SIG_DFL: only a signal that is handled writes into the wake-up pipe.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _want_stop(self, _number: int, _frame: object) -> None:
        self._stop_wanted = True

    # --- start

    def run(self) -> None:
        """Start the engine, answer whether it was started, follow it, and write its result."""
        error = self._refusal() or self._start()
        if error:
            self._write_result(error)
            _answer(f"failed {error}")
            return
        _answer(f"started {self._engine}")
        self._renew()
        self._poller.register(0, select.POLLIN)
        self._poller.register(self._wakeup, select.POLLIN)
        self._follow()
        self._write_result("")

    def _refusal(self) -> str:
        """Why the engine must not be started any more; empty when it may be."""
        if self._stop_wanted:
            self._cause = "STOPPED"
            return "it was stopped before it was started"
        start_by = self._spec["start_by"]
        if start_by is not None and time.monotonic() >= start_by:
            self._cause = "NOT_RENEWED"
            return "the lease of its run ended before it was started"
        return ""

    def _start(self) -> str:
        """Start the engine; returns why it could not be started, or an empty text."""
        ends = [os.pipe() for _ in range(3)]
        (failure, failure_writer) = ends[2]
        keeper = os.getpid()
        self._engine = os.fork()
        if not self._engine:
            _become(self._spec, keeper, ends[0][1], ends[1][1], failure_writer)
        for _, writer in ends:
            os.close(writer)
        for (reader, _), name in zip(ends, ("stdout", "stderr"), strict=False):
            os.set_blocking(reader, False)
            self._streams[reader] = name
            self._poller.register(reader, select.POLLIN)
        # The writer's last copy is closed by exec, so this returns when the engine runs or has failed to.
        with os.fdopen(failure, "rb") as file:
            error = file.read().decode(errors="replace")
        if error:
            os.waitpid(self._engine, 0)
        return error

    # --- follow

    def _follow(self) -> None:
        """Return when no process of the attempt is left."""
        while self._reap():
            self._advance(time.monotonic())
            for descriptor, _ in self._poller.poll(self._wait_ms()):
                self._handle(descriptor)
        # Without a process there is no writer, unless one has passed its descriptor to somebody else.
        for descriptor in list(self._streams):
            while self._drain(descriptor):
                pass

    def _reap(self) -> bool:
        """Bury what has ended; returns whether anything is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._engine and self._status is None:
                self._status, self._ended = status, time.monotonic()
                # An engine that ends by itself is judged by its status, whatever is wanted of it later. One that fails
                # while its stop is wanted is not: who stops a service signals all processes of it at once.
                if not self._ending and status:
                    self._cause = self._stop_cause()

    def _advance(self, now: float) -> None:
        """Begin to end the attempt when it is time, and end by force what has not ended in the grace."""
        if not self._ending:
            if self._status is None:
                self._cause = self._cause_at(now)
                if not self._cause:
                    return
            self._ending, self._kill_at = True, now + self._spec["grace_seconds"]
            self._signal_all(signal.SIGTERM, signal.SIGCONT)  # a process that is stopped sees SIGTERM when it goes on
        elif now >= self._kill_at:
            self._signal_all(signal.SIGKILL)
            self._kill_at = time.monotonic() + self._kill_pause
            self._kill_pause = min(2 * self._kill_pause, _LONGEST_KILL_PAUSE_SECONDS)

    def _cause_at(self, now: float) -> str:
        """Why the engine is to be ended now; empty when it may run on."""
        if cause := self._stop_cause():
            return cause
        if now >= self._deadline:
            return "TIMEOUT"
        return "NOT_RENEWED" if now >= self._renewed_until else ""

    def _stop_cause(self) -> str:
        if self._stop_wanted:
            return "STOPPED"
        return "DAEMON_GONE" if self._daemon_gone else ""

    def _signal_all(self, *numbers: int) -> None:
        for pid, started in list(descendants()):
            send(pid, started, numbers)

    def _wait_ms(self) -> int:
        """How long nothing happens unless a descriptor says so."""
        due = self._kill_at if self._ending else min(self._deadline, self._renewed_until)
        # One millisecond more, so that the time has certainly come when the wait ends.
        return max(0, int(min(due - time.monotonic(), _LONGEST_WAIT_SECONDS) * 1000)) + 1

    def _handle(self, descriptor: int) -> None:
        if descriptor == self._wakeup:
            with suppress(BlockingIOError):
                os.read(self._wakeup, _READ_BYTES)
        elif descriptor == 0:
            if os.read(0, _READ_BYTES):
                self._renew()
            else:
                self._poller.unregister(0)
                self._daemon_gone = True
        else:
            self._drain(descriptor)

    def _renew(self) -> None:
        seconds = self._spec["renew_seconds"]
        self._renewed_until = _NEVER if seconds is None else time.monotonic() + seconds

    def _drain(self, descriptor: int) -> bool:
        """Take what a stream holds; returns whether there was something."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        self._outputs[self._streams[descriptor]].add(data)
        if not data:
            self._poller.unregister(descriptor)
            del self._streams[descriptor]
            os.close(descriptor)
        return bool(data)

    # --- result

    def _write_result(self, error: str) -> None:
        """Write the outputs, then the result: where a result is, the outputs are complete."""
        for name, output in self._outputs.items():
            with suppress(OSError):  # a full disk must not hide the exit status
                write_file(f"{name}.log", output.render())
        status = self._status
        result = {
            "started": not error,
            "error": error,
            "exit_code": None if status is None else os.waitstatus_to_exitcode(status),
            "cause": self._cause,
            "duration_ms": max(0, round((self._ended - self._began) * 1000)),
            "stdout_bytes": self._outputs["stdout"].total,
            "stderr_bytes": self._outputs["stderr"].total,
        }
        write_file("result.json", json.dumps(result).encode())


def _become(spec: dict[str, Any], keeper: int, stdout: int, stderr: int, failure: int) -> None:
    """In the child: become the engine, or write to ``failure`` why that was not possible."""
    import resource  # noqa: PLC0415 - this file is imported where there is none

    try:
        # The keeper handles some; Python ignores some, and nohup too, which a program would inherit.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError):  # two of them belong to the C library
                signal.signal(number, signal.SIG_DFL)
        os.setsid()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["descriptors"], hard))
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)  # the keeper died before the call, so that no signal comes any more
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        if spec["cwd"] is not None:
            os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])  # noqa: S606 - an argument list, and no shell
    except BaseException as error:  # noqa: BLE001 - it ends here, and its text is the answer
        where = getattr(error, "filename", None) or spec["argv"][0]
        os.write(failure, f"{where}: {getattr(error, 'strerror', None) or error}".encode())
    finally:
        os._exit(127)


def _prctl(option: int, value: int) -> None:
    """Call prctl(2).

    Raises:
        OSError: It failed.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {errno.errorcode.get(number, number)}")


def _answer(line: str) -> None:
    """Tell the daemon, if it is still there."""
    with suppress(OSError):
        os.write(1, f"{' '.join(line.split())}\n".encode())
    # The daemon reads until the end; and nothing that this process prints may be taken for an answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _read_spec() -> dict[str, Any] | None:
    """What to start; None when the daemon is gone, or hangs, before it has said so."""
    data = bytearray()
    poller, deadline = select.poll(), time.monotonic() + _SPEC_SECONDS
    poller.register(0, select.POLLIN)
    while b"\n" not in data and len(data) <= _LONGEST_SPEC:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        # Byte by byte it would be slow, and in pieces it may take a renewal with it: that is no loss at the start.
        piece = os.read(0, _READ_BYTES)
        if not piece:
            return None
        data += piece
    found: dict[str, Any] = json.loads(data.partition(b"\n")[0])
    return found


def main() -> int:
    """Keep one attempt; returns the exit status."""
    for name in os.listdir("/proc/self/fd"):
        # The lock of the attempt came through exec. The engine must not have it: its end is what ends the attempt.
        with suppress(OSError):
            if int(name) > 2:  # noqa: PLR2004 - the standard streams
                os.set_inheritable(int(name), False)  # noqa: FBT003 - positional only
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    write_file("keeper", f"{os.getpid()} {stat_fields('self')[_START_TIME]}".encode())
    spec = _read_spec()
    if spec is None:
        return 1
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    Keeper(spec).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
