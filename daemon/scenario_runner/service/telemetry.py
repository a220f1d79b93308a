"""Logs: a line each on stderr, as JSON for programs or as text for people; stdout belongs to the commands.

Logging never decides. Whoever writes to ``sys.stderr`` puts a line into a bounded queue, and one thread writes the
queue to the descriptor. When the descriptor fails (EPIPE, ENOSPC, EIO) or nobody reads a full pipe, lines are dropped
and counted as ``log.dropped``; the next line that can be written says how many. Only the end of the process waits for
what is queued, and not for longer than a second.
"""

import atexit
import io
import json
import logging
import os
import queue
import select
import sys
import threading
import time
import traceback
from contextlib import suppress
from enum import StrEnum
from typing import Final, NoReturn, TextIO, cast

import structlog
from typing_extensions import override

from scenario_runner.contracts.errors import UsageError, printable
from scenario_runner.counters import count, counted

DROPPED: Final = "log.dropped"
"""Counter of log lines that could not be written."""
_MOST_LINES: Final = 10_000
"""Bound of the queue: some megabytes of memory, and minutes of a busy daemon's lines."""
LEVELS: Final = ("debug", "info", "warning", "error")
_TIME_OF_DAY: Final = slice(11, 23)
"""Hours to milliseconds of a timestamp: a person who follows a log knows the day."""
_FLUSH_SECONDS: Final = 1.0
"""Longest time that the end of a process waits for its log to be written: a reader that lives needs milliseconds."""


class LogStream(io.TextIOBase):
    """Stands for ``sys.stderr``: writing to it neither blocks nor fails, also from a signal handler.

    Args:
        descriptor: Where the lines go.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()  # reentrant, other queues are not
        self._busy_since: float | None = None
        self._reported = counted().get(DROPPED, 0)
        self._ended = self._torn = False
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    @override
    def write(self, text: str) -> int:
        """Queue a text, or drop it when too much is queued."""
        if self._ended or self._lines.qsize() >= _MOST_LINES:
            count(DROPPED)
        else:
            self._lines.put(text)
        return len(text)

    @override
    def flush(self) -> None:
        """Wait until the lines so far are written or dropped, for a second at most."""
        busy_since = self._busy_since
        patience = _FLUSH_SECONDS - (time.monotonic() - busy_since if busy_since is not None else 0.0)
        if patience > 0 and not self._ended:
            written = threading.Event()
            self._lines.put(written)
            written.wait(patience)

    def end(self) -> None:
        """Flush, and drop what comes later: the thread does not outlive the interpreter."""
        self.flush()
        self._ended = True

    @override
    def fileno(self) -> int:
        return self._descriptor

    def _write_lines(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            self._busy_since = time.monotonic()
            self._write_line(line)
            self._busy_since = None

    def _write_line(self, line: str) -> None:
        dropped = counted().get(DROPPED, 0)
        lost = dropped - self._reported
        text = ("\n" if self._torn else "") + (_loss(lost) if lost else "") + line
        try:
            self._write_bytes(text.encode("utf-8", "backslashreplace"))
        except OSError:
            count(DROPPED)
        else:
            self._reported = dropped

    def _write_bytes(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a pipe whose other users made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                self._torn = self._torn or len(rest) < len(data)
                raise
        self._torn = False


def _loss(lines: int) -> str:
    return json.dumps({"event": "log lines were lost", "level": "warning", "lines": lines}, sort_keys=True) + "\n"


class _LineLogger:
    """Takes rendered lines from structlog."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        self._stream.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


def _rendered(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    """One line of JSON; what cannot be rendered is no reason to fail."""
    try:
        return json.dumps(event, sort_keys=True, default=repr)
    except Exception as error:  # noqa: BLE001 - a value's own repr may raise anything
        return json.dumps({"event": str(event.get("event")), "level": "error", "not_rendered": type(error).__name__})


def _for_people(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    """Time, level, event and facts as one line, what is not printable escaped; the lines of a stack trace follow."""
    try:
        time_of_day, level = event.pop("timestamp")[_TIME_OF_DAY], event.pop("level")
        text, trace = event.pop("event"), event.pop("exception", "")
        facts = "".join(f"  {key}={value}" for key, value in event.items())
        lines = (f"{time_of_day}Z {level.upper():8} {text}{facts}", *(f"    {line}" for line in trace.splitlines()))
        return "\n".join(map(printable, lines))
    except Exception as error:  # noqa: BLE001 - a value's own str may raise anything
        return f"ERROR    an event could not be rendered: {type(error).__name__}"


class LogFormat(StrEnum):
    """How a daemon logs."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


def set_up_logging(level: str, log_format: str = LogFormat.JSON) -> None:
    """Send structured logs of this level and above to stderr, and all else that is written to ``sys.stderr``.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: See :class:`LogFormat`; ``auto`` is text on a terminal, and JSON in a pipe, a file or a journal.

    Raises:
        UsageError: no such format or level.
    """
    if level not in LEVELS:
        raise UsageError(f"--log-level {level!r} is not one of {', '.join(LEVELS)}")
    if log_format not in set(LogFormat):
        raise UsageError(f"--log-format {log_format!r} is not one of {', '.join(LogFormat)}")
    as_text = log_format == LogFormat.TEXT or (log_format == LogFormat.AUTO and _is_terminal(2))
    stream = LogStream()
    sys.stderr = cast("TextIO", stream)
    atexit.register(stream.end)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _for_people if as_text else _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_names: _LineLogger(stream),
        cache_logger_on_first_use=True,
    )


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


class _WarningLogger:
    """Takes rendered lines of a short command from structlog."""

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{printable(line)}\n")

    debug = info = warning = error = critical = exception = msg


def _as_text(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    """``level: event (key=value)``."""
    level, text = event.pop("level"), event.pop("event")
    facts = " ".join(f"{key}={value!r}" for key, value in event.items())
    return f"{level}: {text}" + (f" ({facts})" if facts else "")


def log_warnings_as_text() -> None:
    """Send warnings of a short command to stderr, a line each: its stdout holds the result and nothing else."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _as_text],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_names: _WarningLogger(),
        cache_logger_on_first_use=False,  # `serve` configures its own log after this
    )


def end_process(code: int, error: BaseException | None = None) -> NoReturn:
    """End this process now, whatever its threads do. An error is printed first, if the log can be written."""
    if error is not None:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(code)
