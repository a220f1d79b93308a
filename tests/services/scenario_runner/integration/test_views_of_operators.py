"""What operators ask beside lists of runs, on both engines: corrections, receipts, letters, daemons, what expires."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import LEASE, SECOND, START, asking, commit, disposed, draft, event, failed, hex32, hex64, ready
from reemit_support import act
from retention_support import DAY, MANY
from test_authority_supersessions import corrected, correcting
from views_support import Database, admitted, claimed, letters

from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.retention import Expired, Expiry, Kind
from scenario_runner.authority.values import Sent
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.runs import transitions

if TYPE_CHECKING:
    from scenario_runner.authority.values import Claim, Transition

pytestmark = pytest.mark.integration


def ended(database: Database, *keys: str) -> None:
    admitted(database, *keys)
    for key in keys:
        commit(database.authority, ready(claimed(database, key), f"ready {key}"))


def delivered(database: Database) -> None:
    tasks = database.authority.claim_projections("relay", 100, LEASE)
    database.authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
    database.authority.mark_sent([Sent(row) for row in database.authority.claim_signals("p", 100, LEASE)])


# --- which run is meant


def test_ids_are_found_within_the_bounds_of_what_they_begin_with(database: Database) -> None:
    names = [f"{number}" for number in range(40)]
    database.authority.admit([asking(name) for name in names[:20]])
    database.authority.admit([disposed(name, Disposition.REJECTED, hex32(name)) for name in names[20:]])
    database.authority.admit([disposed("names no run", Disposition.REJECTED)])
    for digit in "0123456789abcdef":
        wanted = sorted(hex32(name) for name in names if hex32(name).startswith(digit))
        assert [item.run_id for item in database.views.runs_with_id(digit, 100)] == wanted
    assert len(database.views.runs_with_id("", 100)) == 40
    assert [item.run_equivalence_key for item in database.views.runs_with_key("1", 100)] == ["1", *names[10:20]]


def test_a_message_is_about_the_run_of_the_newest_record_that_names_one(database: Database) -> None:
    for key, run in (("r", "x"), ("s", "y"), ("t", "")):
        record = disposed(key, Disposition.REJECTED, hex32(run) if run else "")
        database.authority.admit([replace(record, message_id="m")])
    assert database.views.run_of_message("m") == hex32("y")


def test_runs_are_read_in_the_order_of_their_ids_page_by_page(database: Database) -> None:
    admitted(database, *"abcdef")
    ids, found = sorted(map(hex32, "abcdef")), [""]
    while page := database.views.runs_by_id(found[-1], 0, 2):
        assert len(found) < 10, "the pages do not come to an end"
        found += [row.run_id for row in page]
    assert found[1:] == ids
    since = database.views.runs_by_id("", START + 3 * SECOND, 10)
    assert [row.run_id for row in since] == sorted(map(hex32, "def"))


# --- corrections


def test_both_ends_of_corrections_are_found_but_not_of_one_that_is_not_ready(database: Database) -> None:
    ended(database, "old", "other", "plain")
    database.authority.admit(
        [
            correcting("new", "old"),
            correcting("late", "old"),
            correcting("new other", "other"),
            correcting("x", "plain"),
        ]
    )
    for key in ("new", "new other"):
        commit(database.authority, corrected(claimed(database, key)))

    def found(*keys: str) -> list[tuple[str, str]]:
        return database.views.supersessions_of([hex32(key) for key in keys])

    assert found("new") == found("old") == [(hex32("new"), hex32("old"))]
    assert found("late") == [(hex32("late"), hex32("old"))]
    assert found("plain") == found("nobody") == []
    assert found("old", "other") == sorted([(hex32("new"), hex32("old")), (hex32("new other"), hex32("other"))])


# --- dead letters


def test_letters_by_key_are_narrowed_by_the_time_when_they_were_received(refused: Database) -> None:
    first, second, third = (f"kinesis/s/shard-0/{number}" for number in (4, 2, 0))
    shard: dict[str, Any] = {"record_key": "kinesis/s/shard-0/"}
    assert letters(refused, since_us=START + 2 * SECOND, **shard) == [first, second]
    assert letters(refused, until_us=START + 3 * SECOND, **shard) == [second, third]
    assert letters(refused, record_key="kinesis/s/shard-1/") == ["kinesis/s/shard-1/3", "kinesis/s/shard-1/1"]
    assert letters(refused, since_us=START + SECOND, until_us=START + 4 * SECOND) == [
        "kinesis/s/shard-1/3", second, "kinesis/s/shard-1/1",
    ]  # fmt: skip


def test_only_a_refused_record_is_a_letter_by_its_number_too(refused: Database) -> None:
    ((number,),) = refused.run("SELECT record_id FROM intake_records WHERE record_key = 'ignored'")
    assert refused.views.letter(str(number)) is None


def test_reasons_of_records_that_were_not_refused_are_no_reasons_of_letters(database: Database) -> None:
    database.authority.admit([replace(disposed(f"i{code}", Disposition.IGNORED), reason_code=code) for code in "AC"])
    database.authority.admit([replace(disposed(code, Disposition.REJECTED), reason_code=code) for code in "BD"])
    assert [row["code"] for row in database.views._rows("refused_reasons")] == ["B", "D"]
    assert letters(database) == ["D", "B"]


# --- receipts


def committed(claim: Claim, ref: str, how: Any = ready) -> Transition:
    receipts = event(EventKind.RECEIPTS_COMMITTED, RunState.VERIFYING, receipts={"output": ref})
    plain = how(claim, f"{how.__name__} {claim.run_id}")
    return transitions.ended(
        claim, plain.to_state, plain.reason_code, plain.at_us, (receipts, *plain.events), plain.signal,
        hex64("view") if how is ready else "",
    )  # fmt: skip


def test_a_receipt_is_that_of_an_earlier_ready_run_with_the_same_manifest(database: Database) -> None:
    admitted(database, "holds", "another receipt", "asks")
    asks = database.views.run(hex32("asks"))
    assert asks is not None
    database.authority.admit([asking("later"), asking("another manifest", fingerprint="two"), asking("failed")])
    for key in ("holds", "asks", "later", "another manifest"):
        commit(database.authority, committed(claimed(database, key), "r/1"))
    commit(database.authority, committed(claimed(database, "another receipt"), "r/2"))
    commit(database.authority, committed(claimed(database, "failed"), "r/1", failed))

    def found(admitted_us: int) -> set[str]:
        return set(database.views.runs_with_receipt(asks.run_id, "r/1", admitted_us, '"note":"one"', 10))

    assert found(asks.admitted_us) == {hex32("holds")}
    assert found(asks.admitted_us + SECOND) == {hex32("holds"), hex32("later")}


# --- what retention would remove


def expired(database: Database, kind: Kind, before_us: int, most: int = 100, **more: Any) -> Expired:
    return database.views.expired(Expiry(kind, before_us, **more), most)


def test_records_that_would_be_removed_are_counted_and_no_others(database: Database) -> None:
    authority, clock = database.authority, database.clock
    authority.admit(
        [asking("a", "kinesis/theirs/1"), asking("b", "redrive/1/x"), disposed("bad", Disposition.REJECTED)]
    )
    clock.pass_seconds(1)
    authority.admit([asking("c", "kinesis/ours/1"), asking("d", "spool/1"), disposed("i", Disposition.IGNORED)])
    before_us = clock.pass_seconds(1)
    authority.admit([asking("e", "spool/2")])
    ours = {"stream": "kinesis/ours/", "others_before_us": START}
    assert expired(database, Kind.INTAKE_RECORDS, before_us, **ours) == Expired(3, False, START + SECOND)
    assert expired(database, Kind.INTAKE_RECORDS, before_us, others_before_us=START) == Expired(
        2, False, START + SECOND
    )
    assert expired(database, Kind.INTAKE_RECORDS, before_us, others_before_us=before_us) == Expired(4, False, START)
    assert expired(database, Kind.INTAKE_RECORDS, before_us, 4, **ours) == Expired(1, True, START + SECOND)
    assert expired(database, Kind.INTAKE_RECORDS, START, 4, **ours) == Expired(0, False, None)


def test_letters_whose_bytes_would_be_removed_are_counted_once(database: Database) -> None:
    authority, clock = database.authority, database.clock
    authority.admit([asking("good"), disposed("i", Disposition.IGNORED)])
    old_us = clock.pass_seconds(1)
    authority.admit([disposed("old", Disposition.REJECTED), asking("good", "conflict", "two")])
    before_us = clock.pass_seconds(1)
    authority.admit([disposed("young", Disposition.REJECTED)])
    assert expired(database, Kind.DEAD_LETTER_RAW, before_us) == Expired(2, False, old_us)
    assert expired(database, Kind.DEAD_LETTER_RAW, START, 2) == Expired(0, False, None)
    authority.remove_expired(Expiry(Kind.DEAD_LETTER_RAW, before_us), 0, 100, "no act")
    assert expired(database, Kind.DEAD_LETTER_RAW, before_us) == Expired(0, False, None)


def test_signals_that_would_be_removed_are_counted_and_none_that_is_owed_or_the_first(database: Database) -> None:
    authority, clock = database.authority, database.clock
    ended(database, "k")
    delivered(database)
    for number in range(2):
        authority.reemit([act(f"{number}", limit=MANY)])
        sent_us = clock.pass_seconds(1)
        delivered(database)
    authority.admit([disposed("r", Disposition.REJECTED, hex32("x"), draft("refusal"))])
    clock.pass_seconds(DAY // SECOND)
    assert expired(database, Kind.OUTBOX_SENT, sent_us) == Expired(1, False, sent_us - SECOND)
    assert expired(database, Kind.OUTBOX_SENT, clock.now) == Expired(2, False, sent_us - SECOND)
    kinds = {kind for (kind,) in database.run("SELECT kind FROM outbox")}
    assert kinds == {SignalKind.READY, SignalKind.READY_REEMIT, SignalKind.REQUEST_REJECTED}


def test_digests_that_would_be_removed_are_counted(database: Database) -> None:
    database.authority.keep_digests(hex64("old"), [hex64("x")])
    before_us = database.clock.pass_seconds(1)
    database.authority.keep_digests(hex64("young"), [hex64("y")])
    assert expired(database, Kind.DIGEST_REUSE, before_us) == Expired(1, False, START)


# --- daemons


def test_daemons_are_listed_by_when_they_were_seen_last(database: Database) -> None:
    for owner in ("first", "second", "first"):
        database.authority.report_daemon(DaemonRow(owner, "all", "1.2.3", "host"), DAY)
        database.clock.pass_seconds(1)
    assert [(row.owner, row.started_us, row.seen_us) for row in database.views.daemons(10)] == [
        ("first", START, START + 2 * SECOND), ("second", START + SECOND, START + SECOND),
    ]  # fmt: skip
    assert [row.owner for row in database.views.daemons(1)] == ["first"]
