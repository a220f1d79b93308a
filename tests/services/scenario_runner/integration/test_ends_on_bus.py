"""What the spool says of the ends of runs: every file is read once, and what is no signal of an end says nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from scenario_runner.bus.envelope import envelope
from scenario_runner.bus.spool import MAX_RECORD_BYTES, spool_store
from scenario_runner.contracts.states import SignalKind
from scenario_runner.rebuild.bus import EndsOnBus

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def publish(folder: Path, run: str, kind: str, message: str, file: str = "") -> None:
    data = envelope("topic", message, 1, {"kind": str(kind)}, run, {"run_id": run})
    (folder / (file or f"{message}.json")).write_bytes(data)


def test_other_ends_of_a_run_are_found_among_many(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    kinds = [SignalKind.READY, SignalKind.TERMINAL, SignalKind.READY_REEMIT, SignalKind.TERMINAL_REEMIT]
    runs = [(name(f"run {number}")[:32], kinds[number % 4], name(f"message {number}")) for number in range(200)]
    for run, kind, message in runs:
        publish(folder, run, kind, message)
    read: list[int] = []
    ends = EndsOnBus.read(spool_store(str(tmp_path)), "topic", read.append)
    assert (len(ends), read[-1]) == (200, 200)
    for run, kind, message in runs:
        assert ends.other_than(run, message) is None
        other = SignalKind.READY if "READY" in kind else SignalKind.TERMINAL
        assert ends.other_than(run, "") is other
        assert ends.other_than(run, name("another message")) is other
    assert ends.other_than(name("unknown")[:32], "") is None
    assert EndsOnBus().other_than(runs[0][0], "") is None


def test_a_run_with_two_ends_has_one_other_than_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    publish(folder, "run", "READY", "a")
    publish(folder, "run", "READY_REEMIT", "a", "a.reemit-1.json")
    ends = EndsOnBus.read(spool_store(str(tmp_path)), "topic", lambda _: None)
    assert (len(ends), ends.other_than("run", "a")) == (1, None)
    publish(folder, "run", "TERMINAL", "b")
    ends = EndsOnBus.read(spool_store(str(tmp_path)), "topic", lambda _: None)
    assert (ends.other_than("run", "a"), ends.other_than("run", "b")) == (SignalKind.TERMINAL, SignalKind.READY)


def test_whatever_is_no_signal_of_an_end_says_nothing_and_no_message_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    hostile = [b"", b"{", b"[]", b"7", b"{}", b'{"attributes":[]}', b"null", b'{"attributes":{"kind":[]}}', b"\xff",
               b'{"attributes":{"kind":"READY"},"partition_key":7,"message_id":"m"}',
               b'{"attributes":{"kind":"READY"},"partition_key":"run"}', b" " * (MAX_RECORD_BYTES + 1)]  # fmt: skip
    for number, data in enumerate(hostile):
        (folder / f"{number}.json").write_bytes(data)
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to(folder / "nowhere")
    publish(folder, "run", "REQUEST_REJECTED", "refused")
    publish(folder, "run", "RUN_SUPERSEDES", "supersedes")
    ends = EndsOnBus.read(spool_store(str(tmp_path)), "topic", lambda _: None)
    assert len(ends) == 0
    names = {f"topic/{number}.json" for number in range(len(hostile))} | {"topic/link.json"}
    assert set(ends.unreadable) == names, "each may be the end of a run, but for the messages that say so"
    assert EndsOnBus.read(spool_store(str(tmp_path)), "none", lambda _: None) == EndsOnBus()
