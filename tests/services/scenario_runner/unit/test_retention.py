"""What retention may remove by policy, stream and spool; the pace of its batches; files of the spool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from scenario_runner.authority.retention import Expiry, Kind, Removal
from scenario_runner.bus.spool import SpoolPaths
from scenario_runner.intake.spool_consumed import count_expired, expired_files, oldest_claim_us, remove_files
from scenario_runner.intake.spool_files import SpoolFiles
from scenario_runner.profiles.policy import Retention
from scenario_runner.service import retention as module
from scenario_runner.service.retention import Due, Outcome, Pace, Sweeper, what_is_due
from scenario_runner.storage.anchored import AnchoredRoot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scenario_runner.intake.spool_files import Folders

pytestmark = pytest.mark.unit

SECOND = 1_000_000
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
NOW = 20_000 * DAY
#: Later than every file that a test makes.
LATER = 1 << 62


class Stream:
    """A stream that keeps records for a time."""

    name = "control"

    def __init__(self, hours: int) -> None:
        self.hours = hours

    def retention_hours(self) -> int:
        return self.hours


def due_records(monkeypatch: pytest.MonkeyPatch, days: int, hours: int | None, folders: Folders | None = None) -> Due:
    monkeypatch.setattr(module, "open_stream", lambda _: None if hours is None else Stream(hours))
    wiring: Any = None
    (due,) = what_is_due(wiring, Retention(intake_records_days=days), NOW, folders)
    return due


def test_only_kinds_that_the_policy_limits_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_stream", lambda _: None)
    wiring: Any = None
    assert what_is_due(wiring, Retention(), NOW, None) == []
    due = what_is_due(wiring, Retention(digest_reuse_days=7, outbox_sent_days=3), NOW, None)
    assert due == [
        Due(3, Expiry(Kind.OUTBOX_SENT, NOW - 3 * DAY)), Due(7, Expiry(Kind.DIGEST_REUSE, NOW - 7 * DAY)),
    ]  # fmt: skip


def test_a_stream_is_asked_only_when_intake_records_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(_: object) -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(module, "open_stream", ask)
    wiring: Any = None
    assert len(what_is_due(wiring, Retention(dead_letter_raw_days=1), NOW, None)) == 1


@pytest.mark.parametrize(
    ("days", "hours", "kept"),
    [(30, 24, 30 * DAY), (1, 24, 24 * HOUR + DAY), (2, 24, 2 * DAY), (30, 8760, 366 * DAY), (400, 8760, 400 * DAY)],
)
def test_an_intake_record_stays_for_longer_than_its_stream_can_deliver_it(
    monkeypatch: pytest.MonkeyPatch, days: int, hours: int, kept: int
) -> None:
    due = due_records(monkeypatch, days, hours)
    assert due.expiry.before_us == NOW - kept
    assert due.expiry.stream == "kinesis/control/"
    assert due.expiry.others_before_us == NOW - max(kept, 366 * DAY), "what another stream keeps is not known"
    assert bool(due.note) == (kept > days * DAY)


def test_records_of_streams_stay_for_a_year_where_the_control_bus_is_a_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    expiry = due_records(monkeypatch, 30, None).expiry
    assert (expiry.before_us, expiry.stream, expiry.others_before_us) == (NOW - 30 * DAY, "", NOW - 366 * DAY)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    files = SpoolFiles(AnchoredRoot(str(tmp_path)))
    files.open()
    with files.folders() as opened:
        yield opened


def test_records_stay_while_a_file_of_the_spool_is_claimed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folders: Folders
) -> None:
    assert oldest_claim_us(folders) is None
    lot = tmp_path / ".private/claimed/lot"
    lot.mkdir()
    (lot / "a.json").write_text("{}")
    claimed_us = (lot / "a.json").stat().st_ctime_ns // 1000
    assert oldest_claim_us(folders) == claimed_us
    monkeypatch.setattr(module, "oldest_claim_us", lambda _: NOW - 90 * DAY)
    due = due_records(monkeypatch, 30, None, folders)
    assert (due.expiry.before_us, bool(due.note)) == (NOW - 90 * DAY, True)
    monkeypatch.setattr(module, "oldest_claim_us", lambda _: NOW - DAY)
    assert due_records(monkeypatch, 30, None, folders) == Due(
        30, Expiry(Kind.INTAKE_RECORDS, NOW - 30 * DAY, "", NOW - 366 * DAY)
    )


def test_only_regular_files_of_consumed_that_are_old_go(tmp_path: Path, folders: Folders) -> None:
    paths = SpoolPaths(str(tmp_path))
    for folder in (paths.consumed, paths.rejected, paths.requests):
        for number in range(3):
            with open(os.path.join(folder, f"{number}.json"), "w", encoding="utf-8") as file:
                file.write("{}")
    os.mkdir(os.path.join(paths.consumed, "folder"))
    os.symlink("/etc/hostname", os.path.join(paths.consumed, "link"))
    changed_us = os.stat(os.path.join(paths.consumed, "0.json")).st_ctime_ns // 1000
    assert count_expired(folders, changed_us, 100).count == 0
    assert list(expired_files(folders, changed_us)) == []
    found = count_expired(folders, LATER, 100)
    assert (found.count, found.more) == (3, False)
    assert found.oldest_us is not None
    assert (count_expired(folders, LATER, 2).count, count_expired(folders, LATER, 2).more) == (2, True)
    names = expired_files(folders, LATER)
    assert remove_files(folders, names, 2) == Removal(2, 0, more=True)
    assert remove_files(folders, names, 2) == Removal(1, 0, more=False)
    assert sorted(os.listdir(paths.consumed)) == ["folder", "link"]
    assert len(os.listdir(paths.rejected)) == len(os.listdir(paths.requests)) == 3


def test_a_file_that_was_written_long_ago_and_consumed_lately_stays(tmp_path: Path, folders: Folders) -> None:
    path = os.path.join(SpoolPaths(str(tmp_path)).consumed, "a.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write("{}")
    os.utime(path, (1, 1))
    assert list(expired_files(folders, os.stat(path).st_ctime_ns // 1000)) == []


def test_a_file_that_somebody_else_removed_does_not_count(tmp_path: Path, folders: Folders) -> None:
    assert remove_files(folders, iter(["gone.json"]), 10) == Removal(0, 0, more=False)
    del tmp_path


def test_batches_grow_while_they_are_quick_and_shrink_when_they_are_slow() -> None:
    pace = Pace(1000)
    sizes = []
    for seconds in (0.001, 0.001, 0.001, 0.001, 0.07, 0.3, 0.3):
        sizes.append(pace.rows)
        assert pace.took(seconds) >= seconds, "who waits gets at least as long"
    assert sizes == [100, 200, 400, 800, 1000, 1000, 500]
    assert pace.rows == 250
    assert Pace(7).rows == 7
    assert pace.took(0.0) > 0


class Counting:
    """An authority that has so many batches, and keeps acts."""

    def __init__(self, batches: int) -> None:
        self.batches, self.ended = batches, []

    def record_action(self, _: object) -> bool:
        return True

    def remove_expired(self, _expiry: Expiry, after: int, _limit: int, _key: str) -> Removal:
        self.batches -= 1
        return Removal(1, after + 1, self.batches > 0)

    def acts(self, keys: list[str]) -> dict[str, Any]:
        class Act:
            detail = "5 rows removed"

        return dict.fromkeys(keys, Act())

    def end_action(self, key: str, outcome: str, detail: str) -> None:
        self.ended.append((key, outcome, detail))


def swept(authority: Any, pauses: list[float], stop_after: int = 1000) -> list[tuple[Outcome, int]]:
    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) > stop_after

    sweeper = Sweeper(authority=authority, actor="ops", reason="why", token="t", batch=1000, deadline=float("inf"),
                      pause=pause)  # fmt: skip
    due = [Due(1, Expiry(Kind.OUTBOX_SENT, 0)), Due(1, Expiry(Kind.DIGEST_REUSE, 0))]
    return [(item.outcome, item.removed) for item in sweeper.sweep(due, None)]


def test_there_is_a_pause_after_every_batch_but_the_last() -> None:
    pauses: list[float] = []
    authority = Counting(3)
    assert swept(authority, pauses) == [(Outcome.DONE, 5), (Outcome.DONE, 5)]
    assert [bool(seconds) for seconds in pauses] == [False, True, True, False]
    assert authority.ended == [
        ("retention/t/outbox_sent", "DONE", "5 rows removed"), ("retention/t/digest_reuse", "DONE", "5 rows removed"),
    ]  # fmt: skip


def test_a_stop_in_a_pause_ends_it_and_begins_no_other_kind() -> None:
    authority = Counting(3)
    assert swept(authority, [], stop_after=1) == [(Outcome.STOPPED, 5), (Outcome.NOT_BEGUN, 0)]
    assert authority.ended == [("retention/t/outbox_sent", "STOPPED", "5 rows removed")]
