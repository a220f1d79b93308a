"""What the spool says of the ends of runs: every file is read once, and what is no signal of an end says nothing."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from scenario_runner.audit.ends_on_bus import EndsOnBus, OnBus
from scenario_runner.authority.values import SignalDraft, StoredEvent
from scenario_runner.bus.envelope import envelope
from scenario_runner.bus.spool import MAX_RECORD_BYTES, spool_store
from scenario_runner.contracts.states import EventKind, SignalKind
from scenario_runner.rebuild.bus import BusWitness, Witness
from scenario_runner.rebuild.values import NotRestoredError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def publish(folder: Path, run: str, kind: str, message: str, file: str = "") -> None:
    data = envelope("topic", message, 1, {"kind": str(kind)}, run, {"run_id": run})
    (folder / (file or f"{message}.json")).write_bytes(data)


def others(ends: EndsOnBus, run: str, message: str) -> list[SignalKind]:
    return [end.kind for end in ends.of_run(run).ends if not end.is_of(message)]


def read(folder: Path) -> EndsOnBus:
    return EndsOnBus.read(spool_store(str(folder)), "topic", lambda _: None)


def test_other_ends_of_a_run_are_found_among_many(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    kinds = [SignalKind.READY, SignalKind.TERMINAL, SignalKind.READY_REEMIT, SignalKind.TERMINAL_REEMIT]
    runs = [(name(f"run {number}")[:32], kinds[number % 4], name(f"message {number}")) for number in range(200)]
    for run, kind, message in runs:
        publish(folder, run, kind, message)
    numbers: list[int] = []
    ends = EndsOnBus.read(spool_store(str(tmp_path)), "topic", numbers.append)
    assert (len(ends), numbers[-1]) == (200, 200)
    for run, kind, message in runs:
        assert others(ends, run, message) == []
        other = SignalKind.READY if "READY" in kind else SignalKind.TERMINAL
        assert others(ends, run, "") == others(ends, run, name("another message")) == [other]
    assert ends.of_run(name("unknown")[:32]) == EndsOnBus().of_run(runs[0][0]) == OnBus()


def test_a_run_with_two_ends_has_one_other_than_its_own(tmp_path: Path) -> None:
    folder, run = tmp_path / "topic", "a" * 32
    folder.mkdir()
    publish(folder, run, "READY", "a")
    publish(folder, run, "READY_REEMIT", "a", "a.reemit-1.json")
    publish(folder, run, "READY_REEMIT", "a", "a.reemit-2.json")
    ends = read(tmp_path)
    assert (len(ends), others(ends, run, "a")) == (2, [])
    publish(folder, run, "TERMINAL", "b")
    ends = read(tmp_path)
    assert (others(ends, run, "a"), others(ends, run, "b")) == ([SignalKind.TERMINAL], [SignalKind.READY] * 2)


def test_only_the_file_that_has_the_name_of_its_message_has_a_digest(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    publish(folder, "a" * 32, "READY", "a")
    publish(folder, "b" * 32, "READY", "b", "another.json")
    publish(folder, "c" * 32, "READY", "c")
    late = (folder / "c.json").read_bytes().replace(b"1970-01-01T00:00:00.000001Z", b"1970-01-01T00:00:00Z")
    (folder / "c.json").write_bytes(late)
    ends = read(tmp_path)
    digests = {run: ends.of_run(run * 32).ends[0][2:] for run in "abc"}
    assert digests["a"] == (1, hashlib.sha256((folder / "a.json").read_bytes()).digest())
    assert digests["b"] == digests["c"] == (0, bytes(32)), "another name, or a time in another form: it is read again"


READ: list[str] = []


def witness(folder: Path, data: bytes) -> tuple[BusWitness, OnBus, Any]:
    """The file of a READY as it lies there, and the witness that is asked about it; who reads it again is in READ."""
    run, message = "a" * 32, "c" * 64
    (folder / "topic").mkdir()
    (folder / f"topic/{message}.json").write_bytes(data)

    def read_again(message_id: str, _emissions: tuple[int, ...]) -> tuple[bytes, int]:
        READ.append(message_id)
        return data, 0

    end = StoredEvent(1, EventKind.RUN_READY, 7, {"state": "READY"})
    admitted: Any = SimpleNamespace(run_id=run, end=end, events=(end,))
    return BusWitness(str, "topic", Witness.BUS, read_again), read(folder).of_run(run), admitted


def ready(**attributes: str) -> bytes:
    kind = {"kind": "READY", "run_id": "a" * 32, **attributes}
    return envelope("topic", "c" * 64, 5, kind, "a" * 32, {"run_id": "a" * 32})


DRAFT = SignalDraft("c" * 64, SignalKind.READY, "a" * 32, {"run_id": "a" * 32}, b'{"run_id":"' + b"a" * 32 + b'"}')


@pytest.mark.parametrize("more", [{}, {"traceparent": "00-1-2-01"}])
def test_the_file_of_an_end_is_read_again_only_when_it_says_more_than_is_expected(
    tmp_path: Path, more: dict[str, str]
) -> None:
    READ.clear()
    bus, said, admitted = witness(tmp_path, ready(**more))
    found = bus.end(admitted, DRAFT, said)
    assert (found.draft.attributes, found.at_us) == ({"run_id": "a" * 32, **more}, 5)
    assert bool(READ) is bool(more)


def test_a_file_that_says_something_else_is_a_contradiction(tmp_path: Path) -> None:
    other = ready().replace(b'"payload":{"run_id":"a', b'"payload":{"run_id":"b')
    bus, said, admitted = witness(tmp_path, other)
    with pytest.raises(NotRestoredError, match="with another content"):
        bus.end(admitted, DRAFT, said)


def test_runs_beside_their_ends_and_ends_without_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    for run, kind in (
        ("1", "READY"),
        ("3", "READY"),
        ("3", "TERMINAL"),
        ("5", "TERMINAL"),
        ("7", "READY"),
        ("7", "READY"),
    ):
        publish(folder, run * 32, kind, f"{run}{kind}{len(list(folder.iterdir()))}")
    seen: list[tuple[str, SignalKind]] = []
    items = ["0" * 32, "3" * 32, "", "4" * 32, "5" * 32]
    found = read(tmp_path).beside(items, lambda item: item, lambda run, kind: seen.append((run[0], kind)))
    assert [(item[:1], [end.kind for end in said.ends]) for item, said in found] == [
        ("0", []), ("3", [SignalKind.READY, SignalKind.TERMINAL]), ("", []), ("4", []), ("5", [SignalKind.TERMINAL]),
    ]  # fmt: skip
    assert seen == [("1", SignalKind.READY), ("7", SignalKind.READY)], "each once, those before and after all items too"


def test_whatever_is_no_signal_of_an_end_says_nothing_and_no_message_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "topic"
    folder.mkdir()
    hostile = [b"", b"{", b"[]", b"7", b"{}", b'{"attributes":[]}', b"null", b'{"attributes":{"kind":[]}}', b"\xff",
               b'{"attributes":{"kind":"READY"},"partition_key":7,"message_id":"m"}',
               b'{"attributes":{"kind":"READY"},"partition_key":"no run id","message_id":"m"}',
               b'{"attributes":{"kind":"READY"},"partition_key":"run"}', b" " * (MAX_RECORD_BYTES + 1)]  # fmt: skip
    for number, data in enumerate(hostile):
        (folder / f"{number}.json").write_bytes(data)
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to(folder / "nowhere")
    publish(folder, "run", "REQUEST_REJECTED", "refused")
    publish(folder, "run", "RUN_SUPERSEDES", "supersedes")
    ends = read(tmp_path)
    assert len(ends) == 0
    names = {f"topic/{number}.json" for number in range(len(hostile))} | {"topic/link.json"}
    assert set(ends.unreadable) == names, "each may be the end of a run, but for the messages that say so"
    assert f" and {len(names) - 1} more" in ends.of_run("a" * 32).unreadable
    assert EndsOnBus.read(spool_store(str(tmp_path)), "none", lambda _: None) == EndsOnBus()
