"""What retention removes from an authority and what it leaves, over every backend: batches, acts, repeated records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import Clock, asking, claim_one, commit, disposed, hex32, ready
from reemit_support import act, ended, owed
from retention_support import admitted_apart, begun, swept

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.retention import Expiry, Kind
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.values import Admission
from scenario_runner.authority.views.sqlite import SqliteViews
from scenario_runner.contracts.states import Disposition, SignalKind

if TYPE_CHECKING:
    from pathlib import Path

    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration


def records(backend: Backend) -> list[str]:
    return [key for (key,) in backend.query("SELECT record_key FROM intake_records ORDER BY record_id")]


# --- intake records


def test_records_that_are_older_go_and_younger_ones_stay(backend: Backend, authority: Authority, clock: Clock) -> None:
    admitted_apart(authority, clock, *"abc")
    before_us = clock.now
    admitted_apart(authority, clock, *"de")
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, before_us)) == 3
    assert records(backend) == ["bus/d", "bus/e"]


def test_a_record_that_comes_again_after_its_row_has_gone_finds_its_run(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    admitted_apart(authority, clock, "a")
    commit(authority, ready(claim_one(authority)))
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now)) == 1
    (again,) = authority.admit([asking("a", "bus/a")])
    assert (again.disposition, again.repeated) == (Disposition.DUPLICATE, False)
    assert [row.kind for row in authority.signals(hex32("a")).rows] == [SignalKind.READY], "nothing is published twice"
    (other,) = authority.admit([asking("a", "bus/other", fingerprint="two")])
    assert other.disposition is Disposition.CONFLICT
    run = authority.run(hex32("a"))
    assert run is not None
    assert run.state == "READY"
    assert backend.query("SELECT count(*) FROM runs") == [(1,)]


def test_a_reemit_that_comes_again_after_its_record_has_gone_is_not_carried_out_again(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    ended(authority)
    record = Admission(record_key="bus/reemit", kind="REEMIT_REQUEST", run_id=hex32("k"), reemit=act("bus/reemit"),
                       raw=b"{}", raw_size=2)  # fmt: skip
    (first,) = authority.admit([record])
    assert first.disposition is Disposition.ACCEPTED
    assert len(owed(authority)) == 1
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now)) == 2
    events = authority.events(hex32("k"))
    (again,) = authority.admit([record])
    assert (again.disposition, again.detail, again.repeated) == (Disposition.ACCEPTED, first.detail, False)
    assert [row.emission for row in authority.signals(hex32("k")).rows] == [0, 1]
    assert authority.events(hex32("k")) == events
    assert records(backend) == ["bus/reemit"], "every record has its disposition, also one that comes once more"
    (third,) = authority.admit([record])
    assert (third.disposition, third.repeated) == (Disposition.ACCEPTED, True)


def known_refusal(authority: Authority, key: str) -> Admission:
    """A record that asks for a re-emit which was refused, and whose row has gone: with the database that was lost."""
    authority.record_action(ActionRow(key, 0, "ops", "bus", "reemit", hex32("k"), "", "REEMIT_RATE_LIMIT", "too many"))
    return Admission(
        record_key=key, kind="REEMIT_REQUEST", run_id=hex32("k"), reemit=act(key), raw=b"{}", raw_size=2
    )  # fmt: skip


def test_a_reemit_that_was_refused_and_comes_again_without_a_record_is_a_dead_letter_again(
    backend: Backend,
    authority: Authority,
) -> None:
    ended(authority)
    (found,) = authority.admit([known_refusal(authority, "bus/refused")])
    assert (found.disposition, found.reason_code, found.detail, found.repeated) == (
        Disposition.REJECTED, "REEMIT_RATE_LIMIT", "too many", False,
    )  # fmt: skip
    assert backend.query("SELECT count(*) FROM dead_letters WHERE record_key = 'bus/refused'") == [(1,)]
    assert [row.kind for row in owed(authority)] == [SignalKind.REQUEST_REJECTED]


def test_a_redrive_of_a_reemit_that_is_known_without_its_record_is_carried_out_once(
    backend: Backend,
    authority: Authority,
) -> None:
    ended(authority)
    record = known_refusal(authority, "redrive/1/bus/refused")
    action = ActionRow("redrive/x", 0, "ops", "cli", "redrive", "bus/refused", "why", "", "")
    found = authority.admit_for(action, record)
    assert found is not None
    assert (found.disposition, found.reason_code) == (Disposition.REJECTED, "REEMIT_RATE_LIMIT")
    assert [item.outcome for item in authority.actions("bus/refused")] == ["REEMIT_RATE_LIMIT"]
    assert "redrive/1/bus/refused" in records(backend)
    assert authority.admit_for(action, record) is None


def test_refused_records_and_redrives_stay(backend: Backend, authority: Authority, clock: Clock) -> None:
    authority.admit([disposed("bus/refused", Disposition.REJECTED), disposed("bus/ignored", Disposition.IGNORED)])
    authority.admit([asking("a", "redrive/1/bus/refused"), asking("a", "bus/conflict", fingerprint="two")])
    authority.admit([asking("a", "bus/duplicate")])
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now)) == 2
    assert records(backend) == ["bus/refused", "redrive/1/bus/refused", "bus/conflict"]


def test_a_record_of_another_stream_has_a_time_of_its_own(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking(key, key) for key in ("kinesis/ours/shard/1", "kinesis/theirs/shard/1", "spool/x")])
    begin_us = clock.now
    clock.pass_seconds(10)
    ours = Expiry(Kind.INTAKE_RECORDS, clock.now, "kinesis/ours/", begin_us)
    assert swept(authority, ours, key="one") == 2
    assert records(backend) == ["kinesis/theirs/shard/1"]
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now, "", begin_us), key="two") == 0
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now, "", clock.now), key="three") == 1


def test_old_records_of_another_stream_do_not_hide_those_behind_them(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    begin_us = clock.now
    theirs = [f"kinesis/theirs/shard/{number}" for number in range(5)]
    authority.admit([asking(key, key) for key in (*theirs, "kinesis/ours/shard/1", "spool/x")])
    clock.pass_seconds(10)
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now, "kinesis/ours/", begin_us), limit=2) == 2
    assert records(backend) == theirs


def test_batches_go_on_where_the_one_before_ended_also_past_rows_that_stay(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([disposed(f"bus/refused-{number}", Disposition.REJECTED) for number in range(7)])
    authority.admit([asking(str(number), f"bus/{number}") for number in range(7)])
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now), limit=2) == 7
    assert len(records(backend)) == 7


def test_a_row_from_a_time_when_the_clock_was_ahead_does_not_stop_those_behind_it(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    admitted_apart(authority, clock, "a")
    clock.pass_seconds(1000)
    admitted_apart(authority, clock, "ahead")
    clock.pass_seconds(-1000)
    admitted_apart(authority, clock, "b", "c")
    assert swept(authority, Expiry(Kind.INTAKE_RECORDS, clock.now), limit=2) == 3
    assert records(backend) == ["bus/ahead"]


# --- dead letters


def test_the_bytes_of_old_dead_letters_go_and_their_rows_stay(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([disposed("bus/old", Disposition.REJECTED)])
    removed_us = clock.pass_seconds(1)
    authority.admit([disposed("bus/young", Disposition.REJECTED)])
    assert swept(authority, Expiry(Kind.DEAD_LETTER_RAW, clock.now)) == 1
    assert backend.dead_letters() == {"bus/old": b"", "bus/young": b"\xff raw"}
    kept = "SELECT record_key, disposition, reason_code, raw_size, raw_sha256 <> '', raw_removed_us FROM intake_records"
    old, young = backend.query(f"{kept} ORDER BY record_id")
    assert (old[0], old[1], old[2], old[3], bool(old[4])) == ("bus/old", "REJECTED", "RECORD_NOT_JSON", 5, True)
    assert old[5] == removed_us
    assert young[5] is None
    (again,) = authority.admit([disposed("bus/old", Disposition.REJECTED)])
    assert again.repeated, "its disposition is known for ever"
    assert swept(authority, Expiry(Kind.DEAD_LETTER_RAW, clock.now), key="second") == 0


def test_dead_letters_whose_bytes_have_gone_are_not_counted_as_kept(authority: Authority, clock: Clock) -> None:
    authority.admit([disposed(f"old{number}", Disposition.REJECTED) for number in range(3)])
    clock.pass_seconds(1)
    authority.admit([disposed("young", Disposition.REJECTED)])
    assert authority.backlog(2).dead_letters == 2
    assert authority.backlog(10).dead_letters == 4
    assert swept(authority, Expiry(Kind.DEAD_LETTER_RAW, clock.now)) == 3
    assert authority.backlog(10).dead_letters == 1


def test_a_batch_of_dead_letters_is_bounded_by_their_bytes(authority: Authority, clock: Clock) -> None:
    large = [replace(disposed(f"bus/{number}", Disposition.REJECTED), raw_size=1 << 20) for number in range(9)]
    authority.admit(large)
    clock.pass_seconds(1)
    expiry = Expiry(Kind.DEAD_LETTER_RAW, clock.now)
    first = authority.remove_expired(expiry, 0, 100, begun(authority, expiry.kind))
    assert (first.removed, first.more) == (4, True)
    assert swept(authority, expiry) == 9


def test_letters_from_a_time_when_the_clock_was_ahead_do_not_stop_those_behind_them(
    backend: Backend,
    authority: Authority,
    clock: Clock,
) -> None:
    for name in ("a", "b"):
        clock.pass_seconds(1000)
        authority.admit([disposed(f"bus/ahead {name}", Disposition.REJECTED)])
        clock.pass_seconds(-1000)
        authority.admit([disposed(f"bus/{name}", Disposition.REJECTED)])
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.DEAD_LETTER_RAW, clock.now), limit=2) == 2
    assert {key for key, raw in backend.dead_letters().items() if raw} == {"bus/ahead a", "bus/ahead b"}


def test_bytes_that_another_retention_removes_meanwhile_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite a page is read without the write lock."""
    clock_ = Clock()
    one_, other = (SqliteAuthority(str(tmp_path / "authority.db"), clock=clock_) for _ in range(2))
    one_.admit([disposed("bus/a", Disposition.REJECTED)])
    removed_us = clock_.pass_seconds(1)
    expiry = Expiry(Kind.DEAD_LETTER_RAW, clock_.now)
    read = one_._query

    def read_and_lose(name: str, /, **parameters: Any) -> Any:
        found = read(name, **parameters)
        if name == "expired_dead_letter_raw":
            assert other.remove_expired(expiry, 0, 10, "no act").removed == 1
            clock_.pass_seconds(1)
        return found

    monkeypatch.setattr(one_, "_query", read_and_lose)
    assert one_.remove_expired(expiry, 0, 10, "no act").removed == 0
    views = SqliteViews(str(tmp_path / "authority.db"))
    letter = views.letter("bus/a")
    assert letter is not None
    assert letter.raw_removed_us == removed_us
    for opened in (views, one_, other):
        opened.close()
