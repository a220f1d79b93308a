"""The log's stream: never blocks, never fails, loses nothing that can be written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scenario_runner.contracts.errors import UsageError
from scenario_runner.counters import counted
from scenario_runner.service import telemetry
from scenario_runner.service.telemetry import DROPPED, LogStream, set_up_logging

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


def _dropped() -> int:
    return counted().get(DROPPED, 0)


def test_lines_are_written_in_their_order_and_flush_waits_for_them(tmp_path: Path):
    with (tmp_path / "log").open("wb") as file:
        stream = LogStream(file.fileno())
        for number in range(2000):
            stream.write(f"{number}\n")
        stream.end()
    assert (tmp_path / "log").read_text("utf-8").split() == [str(number) for number in range(2000)]


def test_what_no_encoding_has_is_written_escaped(tmp_path: Path):
    with (tmp_path / "log").open("wb") as file:
        stream = LogStream(file.fileno())
        stream.write("\udcff\n")
        stream.end()
    assert (tmp_path / "log").read_bytes() == b"\\udcff\n"


def test_lines_that_cannot_be_written_are_counted_and_the_next_that_can_says_so(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    write, broken = os.write, [OSError(28, "No space left on device")] * 3
    monkeypatch.setattr(
        os, "write", lambda fd, data: (_ for _ in ()).throw(broken.pop()) if broken else write(fd, data)
    )
    before, stream = _dropped(), LogStream(writer)
    for number in range(4):
        stream.write(f"line {number}\n")
    stream.end()
    assert _dropped() - before == 3
    first, second = os.read(reader, 65536).decode().splitlines()
    assert json.loads(first) == {"event": "log lines were lost", "level": "warning", "lines": 3}
    assert second == "line 3"
    os.close(reader)
    os.close(writer)


def test_a_line_that_was_cut_is_ended_before_the_next(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    write, calls = os.write, iter(["cut", "fail"])

    def failing(descriptor: int, data: bytes) -> int:
        what = next(calls, "")
        if what == "fail":
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:4] if what == "cut" else data)

    monkeypatch.setattr(os, "write", failing)
    stream = LogStream(writer)
    stream.write("first line\n")
    stream.write("second line\n")
    stream.end()
    lines = os.read(reader, 65536).decode().splitlines()
    assert (lines[0], lines[2]) == ("firs", "second line")
    os.close(reader)
    os.close(writer)


def test_a_reader_that_stopped_holds_nobody_up_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry, "_MOST_LINES", 100)
    monkeypatch.setattr(telemetry, "_FLUSH_SECONDS", 0.2)
    reader, writer = os.pipe()
    before, stream = _dropped(), LogStream(writer)
    for _ in range(1000):
        stream.write("x" * 1000 + "\n")
    assert _dropped() - before >= 1000 - 100 - 65536 // 1000 - 2
    began = time.monotonic()
    stream.flush()
    stream.end()
    assert time.monotonic() - began < 5
    os.close(reader)  # the thread goes on, fails, and drops the rest
    while stream._lines.qsize() or stream._busy_since is not None:
        time.sleep(0.01)


@pytest.mark.parametrize("value", [{1: object(), "a": 2}, float("nan"), "\udcff", b"\xff"])
def test_any_value_can_be_logged(value: object):
    json.loads(telemetry._rendered(None, "info", {"event": "something", "value": value}))


def test_a_value_that_cannot_be_shown_is_no_reason_to_fail():
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    line = json.loads(telemetry._rendered(None, "info", {"event": "something", "value": Bad()}))
    assert (line["event"], line["not_rendered"]) == ("something", "RuntimeError")


# --- formats

_SET_UP = """
import structlog, sys
from scenario_runner.service.telemetry import set_up_logging
set_up_logging(*sys.argv[1:])
log = structlog.get_logger("test")
log.debug("not at info")
log.info("run is READY", run_id="r1", detail="evil \\x1b[2J \\u202e \\x9b end")
try:
    raise ValueError("broken")
except ValueError:
    log.critical("a loop died", exc_info=True)
"""


def logged(*arguments: str, terminal: bool = False) -> str:
    """What a process logs, on a pipe or on a terminal."""
    reader, writer = os.openpty() if terminal else os.pipe()
    try:
        subprocess.run([sys.executable, "-c", _SET_UP, *arguments], stderr=writer, check=True, timeout=60)
        if terminal:
            return os.read(reader, 1 << 16).decode().replace("\r\n", "\n")
        os.close(writer)
        writer = -1
        with os.fdopen(os.dup(reader), "rb") as file:
            return file.read().decode()
    finally:
        for descriptor in filter(lambda number: number >= 0, (reader, writer)):
            os.close(descriptor)


@pytest.mark.parametrize("arguments", [("info", "auto"), ("info", "json"), ("info",)])
def test_in_a_pipe_every_line_is_one_json_object(arguments: tuple[str, ...]) -> None:
    documents = [json.loads(line) for line in logged(*arguments).splitlines()]
    assert [document["event"] for document in documents] == ["run is READY", "a loop died"]
    assert "ValueError: broken" in documents[1]["exception"]


@pytest.mark.parametrize(("arguments", "terminal"), [(("info", "text"), False), (("info", "auto"), True)])
def test_for_people_a_line_has_time_level_event_and_facts_and_nothing_that_a_terminal_obeys(
    arguments: tuple[str, ...], terminal: bool
) -> None:
    text = logged(*arguments, terminal=terminal)
    lines = text.splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3}Z INFO     run is READY  run_id=r1  "
        r"detail=evil \\x1b\[2J \\u202e \\x9b end", lines[0],
    ), lines[0]  # fmt: skip
    assert "CRITICAL a loop died" in lines[1]
    assert lines[2] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ValueError: broken"
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("arguments", [("info", "xml"), ("loud", "json")])
def test_an_unknown_format_or_level_is_a_usage_error(arguments: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="is not one of"):
        set_up_logging(*arguments)
