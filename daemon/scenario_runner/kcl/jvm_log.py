"""Forwards what the JVM and its shard workers write to the daemon's log.

A shard worker writes JSON lines, which are logged as it wrote them. The JVM writes ``LEVEL logger message``
(``logback.xml``); of that only warnings and errors are of interest outside of debugging.
"""

import json
import threading
from contextlib import suppress
from typing import IO, Final

import structlog

_LEVELS: Final = {"ERROR": "error", "WARN": "warning", "INFO": "debug"}
#: A line of Java may hold a whole stack trace; its begin names the error.
_LONGEST_LINE: Final = 2000
_log = structlog.get_logger("kcl")


def forward_logs(lines: IO[bytes] | None, stopping: threading.Event) -> None:
    """Log every line until the JVM closes its end.

    Args:
        lines: The standard output of the JVM, with its standard error.
        stopping: Set while the JVM is being stopped.
    """
    assert lines is not None
    for line in lines:
        # A full pipe would block the JVM, so every line is read even when it cannot be logged.
        with suppress(Exception):
            forward_line(line.decode("utf-8", "replace").rstrip(), stopping=stopping.is_set())


def forward_line(line: str, *, stopping: bool) -> None:
    """Log one line of the JVM or of a shard worker."""
    if line.startswith("{"):
        _forward_json(line)
        return
    level, _, rest = line.partition(" ")
    logger, _, message = rest.partition(" ")
    if level not in _LEVELS:
        if line:
            _log.warning("KCL says", line=line[:_LONGEST_LINE])
        return
    # While it stops, KCL without a leader logs errors about its own threads that mean nothing.
    at = "debug" if stopping else _LEVELS[level]
    getattr(_log, at)("KCL says", logger=logger, line=message[:_LONGEST_LINE])


def _forward_json(line: str) -> None:
    try:
        document = json.loads(line)
        at, event = document.pop("level"), document.pop("event")
        document.pop("timestamp", None)
        log = {"critical": _log.critical, "error": _log.error, "warning": _log.warning, "info": _log.info}
        log.get(at, _log.debug)(event, **document)
    except (ValueError, KeyError, AttributeError, TypeError):
        _log.error("unexpected output of a record processor", line=line[:_LONGEST_LINE])
