"""The log's stream: never blocks, never fails, loses nothing that can be written."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from scenario_runner.counters import counted
from scenario_runner.service import telemetry
from scenario_runner.service.telemetry import DROPPED, LogStream

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
