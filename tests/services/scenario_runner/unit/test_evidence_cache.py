"""The evidence cache alone: what it keeps, what it gives back, and who waits for whom."""

import dataclasses
import threading
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from test_lifecycle import passed

from scenario_runner.artifacts.base import Kind, Snapshot
from scenario_runner.contracts.errors import EvidenceChanged, EvidenceRefused, LeaseLostError, Unavailable
from scenario_runner.contracts.plan import DEFAULT_BOUNDS
from scenario_runner.evidence import cache as cache_module
from scenario_runner.evidence.cache import EvidenceBusyError, EvidenceCache, bytes_of
from scenario_runner.evidence.key import EvidenceKey

pytestmark = pytest.mark.unit

PASSED = passed()


def key(name: str = "one") -> EvidenceKey:
    return EvidenceKey(f"/runs/{name}", "d", (), (), (), DEFAULT_BOUNDS)


def seen(files: int = 1, *, stable: bool = True) -> Snapshot:
    return Snapshot({f"f{number}": (number,) for number in range(files)}, {}, {}, stable)


def root(failure: Exception | None = None) -> Any:
    """A run root on which everything is as it was, or whose confirmation fails."""
    confirmed: list[Snapshot] = []

    def confirm(snapshot: Snapshot) -> None:
        confirmed.append(snapshot)
        if failure is not None:
            raise failure

    return SimpleNamespace(confirm=confirm, confirmed=confirmed)


def test_a_finding_is_given_back_once_the_root_has_confirmed_all_that_was_seen() -> None:
    cache, snapshot, unchanged = EvidenceCache(), seen(), root()
    assert cache.get(key(), unchanged) is None
    cache.put(key(), PASSED, snapshot)
    assert cache.get(key(), unchanged) is PASSED
    assert unchanged.confirmed == [snapshot]
    assert cache.get(key("two"), unchanged) is None


@pytest.mark.parametrize("failure", [EvidenceChanged("other bytes", path="f0"), EvidenceRefused("a link")])
def test_a_finding_of_evidence_that_is_not_the_same_now_is_not_given_back(failure: Exception) -> None:
    cache = EvidenceCache()
    cache.put(key(), PASSED, seen())
    assert cache.get(key(), root(failure)) is None


def test_evidence_that_cannot_be_read_is_an_outage_and_no_miss() -> None:
    cache = EvidenceCache()
    cache.put(key(), PASSED, seen())
    with pytest.raises(Unavailable):
        cache.get(key(), root(Unavailable("the mount is away")))


def test_only_passed_findings_of_files_that_had_not_just_changed_are_kept() -> None:
    cache = EvidenceCache()
    cache.put(key("failed"), dataclasses.replace(PASSED, verified=None), seen())
    cache.put(key("racy"), PASSED, seen(stable=False))
    assert cache.get(key("failed"), root()) is None
    assert cache.get(key("racy"), root()) is None


def test_the_entries_that_were_kept_first_go_first_and_replaced_files_are_not_counted_twice() -> None:
    cache = EvidenceCache(max_bytes=bytes_of(seen(4)) * 9 // 2)
    names = ("one", "two", "three", "four")
    for name in ("one", *names):
        cache.put(key(name), PASSED, seen(4))
    assert [cache.get(key(name), root()) for name in names] == [PASSED] * 4
    cache.put(key("five"), PASSED, seen(4))
    assert [cache.get(key(name), root()) for name in (*names, "five")] == [None, *[PASSED] * 4]


def test_an_entry_of_more_than_a_quarter_is_not_kept_and_drives_out_no_other() -> None:
    cache = EvidenceCache(max_bytes=bytes_of(seen(4)) * 4)
    cache.put(key("one"), PASSED, seen(4))
    cache.put(key("two"), PASSED, seen(4))
    cache.put(key("large"), PASSED, seen(5))
    assert [cache.get(key(name), root()) for name in ("one", "two", "large")] == [PASSED, PASSED, None]
    cache.put(key("two"), PASSED, seen(5))
    assert [cache.get(key(name), root()) for name in ("one", "two")] == [PASSED, None], "what it was before is gone"


def listed(names: int) -> Snapshot:
    return Snapshot({}, {"out": tuple((f"{number:08d}.tmp", True) for number in range(names))}, {}, stable=True)


def asked(names: int) -> Snapshot:
    return Snapshot({}, {}, {f"out/{number:08d}.tmp": Kind.ABSENT for number in range(names)}, stable=True)


def with_long_paths(files: int) -> Snapshot:
    return Snapshot(
        {f"{number:08d}{'x' * 1_000}": (1 << 30, 1 << 40 | number, 1) for number in range(files)}, {}, {}, stable=True
    )


@pytest.mark.parametrize("make", [listed, asked, with_long_paths])
def test_what_a_snapshot_holds_besides_files_is_counted_by_what_it_takes(make: Callable[[int], Snapshot]) -> None:
    tracemalloc.start()
    try:
        snapshot = make(10_000)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken * 0.8 < bytes_of(snapshot) - bytes_of(seen(0)) < taken * 1.7, "a dict has up to twice the room"


def budget(beats: list[int], *, patient: bool) -> Any:
    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise LeaseLostError("it ran out")

    return SimpleNamespace(share=SimpleNamespace(patient=patient), beat=beat)


def test_the_same_evidence_is_examined_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_WAITING_BEAT_SECONDS", 0.01)
    cache, beats = EvidenceCache(), list[int]()
    with cache.exclusive(key(), budget(beats, patient=True)):
        with pytest.raises(EvidenceBusyError), cache.exclusive(key(), budget(beats, patient=False)):
            pass
        assert beats == [], "a batch does not wait"
        with pytest.raises(LeaseLostError), cache.exclusive(key(), budget(beats, patient=True)):
            pass
        assert len(beats) == 3, "whoever waits reports that it is alive, and ends with its lease"
        with cache.exclusive(key("two"), budget(beats, patient=False)):
            pass
    with cache.exclusive(key(), budget(beats, patient=False)):
        pass


def test_a_thread_that_waits_goes_on_when_the_other_one_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_WAITING_BEAT_SECONDS", 0.01)
    cache, order = EvidenceCache(), list[str]()
    waiting: Any = SimpleNamespace(share=SimpleNamespace(patient=True), beat=lambda: None)

    def second() -> None:
        with cache.exclusive(key(), waiting):
            order.append("second")

    with cache.exclusive(key(), waiting):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_locks_that_nobody_holds_are_dropped_and_those_that_are_held_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_MAX_LOCKS", 2)
    cache, quick = EvidenceCache(), budget([], patient=False)
    with cache.exclusive(key("held"), quick):
        for number in range(10):
            with cache.exclusive(key(str(number)), quick):
                pass
        assert len(cache._locks) <= 4
        with pytest.raises(EvidenceBusyError), cache.exclusive(key("held"), quick):
            pass
