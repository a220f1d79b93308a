"""The intake of a spool, step by step and on a clock of the test: what is claimed, waited for, refused, put away."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from spool_support import OLD, Spool, unavailable

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.types import KEY_MAX_LENGTH
from scenario_runner.intake import spool_files
from scenario_runner.intake.spool import BATCH, TAKE_OVER_SECONDS, SpoolConsumer
from scenario_runner.intake.spool_files import QUIET_SECONDS
from scenario_runner.storage import renames

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ("spool_fixtures",)
pytestmark = pytest.mark.integration


def again_by_rename(spool: Spool) -> None:
    spool.drop("second")
    spool.drop("third")


def again_by_removal(spool: Spool) -> None:
    for key in ("second", "third"):
        spool.path("requests/request.json").unlink(missing_ok=True)
        spool.path("requests/request.json").write_text(json.dumps(spool.request(key)))


@pytest.mark.parametrize("again", [again_by_rename, again_by_removal])
def test_what_is_dropped_under_the_name_of_a_request_that_is_being_admitted_is_admitted_next(
    spool: Spool, again: Callable[[Spool], None]
) -> None:
    """Whatever inode number it gets: on ext4 it is often the very one that has just become free."""
    spool.drop("first")
    spool.during = lambda: again(spool)
    assert spool.intake.step() == 1
    assert spool.names("requests") == ["request.json"]
    spool.during = lambda: None
    assert spool.intake.step() == 1
    assert spool.keys() == {"first", "third"}
    assert len(spool.names("consumed")) == 2
    assert spool.claimed() == []


def test_the_same_bytes_under_the_same_name_are_a_record_for_each_drop(spool: Spool) -> None:
    for _ in range(3):
        spool.drop("only")
        os.utime(spool.path("requests/request.json"), OLD)
        spool.intake.step()
    assert sorted(spool.records()) == [("request.json", "ACCEPTED")] + [("request.json", "DUPLICATE")] * 2
    assert len(spool.names("consumed")) == 3


def test_where_a_rename_may_replace_no_name_is_used_that_another_file_could_have(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renames, "_renameat2", lambda: None)
    for key in ("first", "second"):
        spool.drop(key)
        spool.intake.step()
    assert spool.keys() == {"first", "second"}
    assert len(spool.names("consumed")) == 2
    assert "request.json" not in spool.names("consumed")


def test_a_file_that_is_changed_between_reading_and_admission_is_read_again(spool: Spool) -> None:
    spool.drop("first")
    with spool.path("requests/request.json").open("r+b") as file:

        def change() -> None:
            file.truncate(0)
            file.write(json.dumps(spool.request("second in its place")).encode())
            file.flush()

        spool.during = change
        spool.intake.step()
        spool.during = lambda: None
    assert spool.claimed() == ["request.json"]
    spool.intake.step()
    assert spool.keys() == {"first", "second in its place"}
    assert spool.claimed() == []


# ---------------------------------------------------------------- a kill, an outage, another daemon


def test_what_was_claimed_before_a_kill_is_admitted_by_the_next_start(spool: Spool) -> None:
    spool.drop("one")
    spool.during = unavailable
    with pytest.raises(Unavailable):
        spool.intake.step()
    assert (spool.names("requests"), spool.claimed()) == ([], ["request.json"])
    assert spool.intake.empty() is False
    spool.during = lambda: None
    after = spool.another()
    assert after.step() == 1
    assert (spool.keys(), spool.names("consumed"), spool.claimed()) == ({"one"}, ["request.json"], [])
    assert after.empty() is True
    assert os.listdir(spool.path(".private/claimed")) == []


def test_a_record_that_was_admitted_before_a_kill_keeps_its_disposition(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.drop("one")
    with monkeypatch.context() as killed:
        killed.setattr(SpoolConsumer, "_acknowledge", lambda *_: None)
        spool.intake.step()
    assert spool.records() == [("request.json", "ACCEPTED")]
    spool.another().step()
    assert spool.records() == [("request.json", "ACCEPTED")]
    assert spool.names("consumed") == ["request.json"]


def test_what_another_daemon_has_claimed_is_left_to_it_for_a_while_and_then_taken_over(spool: Spool) -> None:
    other = spool.another()
    spool.drop("one")
    spool.during = unavailable
    with pytest.raises(Unavailable):
        other.step()
    spool.during = lambda: None
    spool.pass_seconds(1)
    spool.intake.step()  # sees it
    spool.pass_seconds(TAKE_OVER_SECONDS - 1)
    assert spool.intake.step() == 0
    assert spool.claimed() == ["request.json"]
    spool.pass_seconds(1.1)
    assert spool.intake.step() == 1
    other.step()  # goes on, and finds nothing left to do
    assert spool.records() == [("request.json", "ACCEPTED")]
    assert spool.names("consumed") == ["request.json"]


def test_two_daemons_that_have_judged_one_file_dispose_of_it_once(spool: Spool) -> None:
    other = spool.another()
    spool.world.drop(b"not json", "bad.json")
    os.utime(spool.path("requests/bad.json"), OLD)
    spool.during = unavailable
    with pytest.raises(Unavailable):
        other.step()
    taker = spool.another()

    def meanwhile() -> None:
        spool.during = lambda: None
        other.step()

    spool.during = meanwhile
    taker.step()
    assert spool.records() == [("bad.json", "REJECTED")]
    assert spool.names("rejected") == ["bad.json"]
    assert len(spool.world.rejected()) == 1


def test_while_the_authority_is_away_no_more_is_claimed_than_one_batch(spool: Spool) -> None:
    for number in range(300):
        spool.drop(f"key-{number}", f"{number:03d}.json")
    spool.during = unavailable
    for _ in range(4):
        with pytest.raises(Unavailable):
            spool.intake.step()
        spool.pass_seconds(1)
    assert len(spool.claimed()) == BATCH
    spool.during = lambda: None
    while spool.intake.step():
        pass
    assert len(spool.records()) == 300


def test_a_file_that_the_disk_fails_to_read_is_told_and_tried_again_and_holds_up_nobody(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = spool_files.read

    def read(folders: Any, file: Any) -> Any:
        if file.name == "aa.json":
            raise OSError(5, "Input/output error", file.path)
        return real(folders, file)

    spool.drop("bad sector", "aa.json")
    spool.drop("good", "zz.json")
    with monkeypatch.context() as failing:
        failing.setattr(spool_files, "read", read)
        with pytest.raises(Unavailable, match=r"aa\.json"):
            spool.intake.step()
        assert spool.keys() == {"good"}
        spool.drop("another good one", "zz.json")
        assert spool.intake.step() == 1
        assert spool.intake.empty() is False
    spool.pass_seconds(6)
    spool.intake.step()
    assert spool.keys() == {"good", "another good one", "bad sector"}


# ---------------------------------------------------------------- files that are still being written


def test_a_slow_copy_is_waited_for_while_it_grows_and_holds_up_nobody(spool: Spool) -> None:
    data = json.dumps(spool.request("slow")).encode()
    with spool.path("requests/slow.json").open("wb", 0) as file:
        spool.drop("quick", "zz.json")
        for start in range(0, len(data), 60):
            file.write(data[start : start + 60])
            spool.intake.step()
            spool.pass_seconds(QUIET_SECONDS - 0.1)
            assert spool.keys() >= {"quick"}
    spool.intake.step()
    assert spool.keys() == {"quick", "slow"}
    assert spool.world.rejected() == []


@pytest.mark.parametrize("data", [b"", b'{"run_equivalence_key": "cut o'])
def test_what_stays_incomplete_is_refused_after_a_quiet_while_and_the_reason_says_how_to_drop(
    spool: Spool, data: bytes
) -> None:
    spool.world.drop(data, "torn.json", fresh=True)
    spool.intake.step()
    spool.pass_seconds(QUIET_SECONDS - 0.1)
    spool.intake.step()
    assert spool.records() == []
    assert spool.intake.empty() is False
    spool.pass_seconds(0.5)
    spool.intake.step()
    (reason,) = spool.world.rejected()
    assert reason["reason_code"] == "RECORD_NOT_JSON"
    assert "rename" in reason["detail"]
    assert spool.path("rejected/torn.json").read_bytes() == data


def test_what_nobody_has_written_to_for_a_while_is_refused_at_once(spool: Spool) -> None:
    spool.world.drop(b"{", "torn.json", fresh=True)
    os.utime(spool.path("requests/torn.json"), OLD)
    assert spool.intake.step() == 1
    assert spool.names("rejected") == ["torn.json"]


def test_a_file_that_is_touched_for_ever_is_not_waited_for_for_ever(spool: Spool) -> None:
    with spool.path("requests/endless.json").open("wb", 0) as file:
        for _ in range(70):
            file.write(b"x")
            spool.intake.step()
            spool.pass_seconds(1)
    assert spool.names("rejected") == ["endless.json"]


def test_many_incomplete_files_do_not_keep_a_good_one_waiting(spool: Spool) -> None:
    for number in range(300):
        (spool.path("requests") / f"{number:03d}.json").write_bytes(b"{")
    spool.drop("good", "zz.json")
    for _ in range(4):
        spool.intake.step()
        spool.pass_seconds(0.3)  # by now the first ones are due again
    assert spool.keys() == {"good"}


# ---------------------------------------------------------------- what a refusal says


def refuse(spool: Spool, data: bytes) -> dict[str, Any]:
    """Drop a record that is refused at once; returns its reason file."""
    spool.world.drop(data, "refused.json")
    os.utime(spool.path("requests/refused.json"), OLD)
    spool.intake.step()
    (reason,) = spool.world.rejected()
    return reason


HINTS = ("is empty", "UTF-16", "base64")


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b" \n\t", "is empty"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32-be"), "UTF-16"),
        (b"eyJhIjogMX0=", "base64"),
        (b'{"a": ', ""),
        (b"\0\0\0\1binary", ""),
        (b"see the wiki", ""),
    ],
    ids=["empty", "UTF-16", "UTF-32", "base64", "cut off", "binary", "text"],
)
def test_what_was_sent_in_the_place_of_json_is_named_only_when_it_is_recognised(
    spool: Spool, data: bytes, hint: str
) -> None:
    reason = refuse(spool, data)
    assert reason["reason_code"] == "RECORD_NOT_JSON"
    assert [word for word in HINTS if word in reason["detail"]] == ([hint] if hint else [])
    assert reason["detail"].startswith(" (") is False, "a remark on nothing"


@pytest.mark.parametrize(
    ("key", "named"),
    [("k", True), ("k" * KEY_MAX_LENGTH, True), ("k" * (KEY_MAX_LENGTH + 1), False), ("", False), (7, False)],
    ids=["short", "longest", "too long", "empty", "a number"],
)
def test_a_refusal_names_a_run_only_by_a_key_that_a_run_may_have(spool: Spool, key: Any, named: bool) -> None:
    reason = refuse(spool, json.dumps(spool.request("x", run_equivalence_key=key, seed="no number")).encode())
    assert reason["reason_code"] == "REQUEST_SCHEMA_INVALID"
    assert bool(reason["run_id"]) is named
    with closing(sqlite3.connect(spool.world.database)) as connection:
        signals = connection.execute("SELECT count(*) FROM outbox WHERE kind = 'REQUEST_REJECTED'").fetchone()
    assert signals == (int(named),)
