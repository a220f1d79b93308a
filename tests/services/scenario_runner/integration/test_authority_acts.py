"""Acts of operators over every backend: a record that is judged again, and a waiting run that is due now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import (
    LEASE,
    SECOND,
    START,
    Clock,
    asking,
    claim_one,
    commit,
    disposed,
    draft,
    failed,
    hex32,
    new_run,
    ready,
    waiting,
)

from scenario_runner.authority.acts import ActionRow, ReemitAct, ReemitLimit, WakeAct
from scenario_runner.authority.values import Admission, Sent
from scenario_runner.contracts.states import Disposition, ReemitKind, RunState

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration

BY = ActionRow("act", 0, "ops", "cli", "redrive", "spool/old", "the pack was corrected", "", "")


def records(backend: Backend) -> list[tuple[Any, ...]]:
    return backend.query("SELECT record_key, disposition FROM intake_records ORDER BY record_id")


def acted(backend: Backend) -> list[tuple[Any, ...]]:
    return backend.query("SELECT action_key, subject, outcome FROM operator_actions ORDER BY action_id")


def reemit_of(key: str, record: str) -> Admission:
    act = ReemitAct(key=record, run_id=hex32(key), kind=ReemitKind.BOTH, actor="c", via="bus", reason="lost",
                    limit=ReemitLimit(3, 60 * SECOND))  # fmt: skip
    return Admission(record_key=record, raw=b"{}", raw_size=2, kind="REEMIT_REQUEST", run_id=act.run_id, reemit=act)


# --- a record that an operator asks for -------------------------------------------------------------------------------


def test_a_record_of_an_act_is_admitted_like_any_other_and_the_act_says_what_came_of_it(
    authority: Authority,
    clock: Clock,
) -> None:
    clock.pass_seconds(7)
    admitted = authority.admit_for(BY, asking("k", "redrive/1/spool/old"))
    assert admitted is not None
    assert (admitted.disposition, admitted.repeated) == (Disposition.ACCEPTED, False)
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.admitted_us, run.event_seq) == (RunState.PLANNED, clock.now, 4)
    (action,) = authority.actions("spool/old")
    assert action == replace(BY, at_us=clock.now, outcome="ADMITTED")


@pytest.mark.parametrize(
    ("record", "disposition", "outcome"),
    [
        (asking("k", "redrive/1/spool/old"), Disposition.DUPLICATE, "DUPLICATE"),
        (asking("k", "redrive/1/spool/old", "two"), Disposition.CONFLICT, "EQUIV_KEY_COLLISION"),
        (disposed("redrive/1/spool/old", Disposition.REJECTED), Disposition.REJECTED, "RECORD_NOT_JSON"),
    ],
)
def test_the_outcome_of_an_act_is_the_disposition_or_why_the_record_was_refused(
    authority: Authority,
    backend: Backend,
    record: Admission,
    disposition: Disposition,
    outcome: str,
) -> None:
    authority.admit([asking("k")])
    admitted = authority.admit_for(BY, record)
    assert admitted is not None
    assert admitted.disposition is disposition
    assert acted(backend) == [("act", "spool/old", outcome)]
    letters = backend.query("SELECT record_key FROM dead_letters")
    assert letters == ([("redrive/1/spool/old",)] if disposition.value in ("CONFLICT", "REJECTED") else [])


def test_a_known_record_or_act_is_not_written_again(authority: Authority, backend: Backend) -> None:
    assert authority.admit_for(BY, asking("k", "redrive/1/spool/old")) is not None
    before = records(backend), acted(backend)
    another = replace(BY, action_key="another")
    assert authority.admit_for(BY, asking("other", "redrive/2/spool/old")) is None, "a known act"
    assert authority.admit_for(another, asking("other", "redrive/1/spool/old")) is None, "a known record"
    assert authority.admit_for(another, reemit_of("k", "redrive/1/spool/old")) is None
    assert (records(backend), acted(backend)) == before
    assert authority.run(hex32("other")) is None, "nothing is left of what was not written"


def test_a_reemit_request_of_an_act_leaves_both_acts(authority: Authority, backend: Backend) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    authority.mark_sent([Sent(row) for row in authority.claim_signals("p", 10, LEASE)])
    admitted = authority.admit_for(BY, reemit_of("k", "redrive/1/spool/old"))
    assert admitted is not None
    assert (admitted.disposition, admitted.run_id) == (Disposition.ACCEPTED, hex32("k"))
    assert sorted(acted(backend)) == [("act", "spool/old", "ADMITTED"), ("redrive/1/spool/old", hex32("k"), "ACCEPTED")]
    assert backend.query("SELECT emission FROM outbox WHERE run_id <> '' ORDER BY outbox_id")[-1] == (1,)
    assert authority.admit_for(BY, reemit_of("k", "redrive/1/spool/old")) is None
    assert authority.admit_for(BY, reemit_of("k", "redrive/2/spool/old")) is None
    assert len(authority.events(hex32("k"))) == 4 + 1 + 2 + 1


def test_a_reemit_request_that_is_refused_again_says_so_in_the_act(authority: Authority, backend: Backend) -> None:
    admitted = authority.admit_for(BY, reemit_of("nothing", "redrive/1/spool/old"))
    assert admitted is not None
    assert (admitted.disposition, admitted.reason_code) == (Disposition.REJECTED, "RUN_NOT_FOUND")
    assert ("act", "spool/old", "RUN_NOT_FOUND") in acted(backend)


def test_of_many_at_once_one_is_carried_out(authority: Authority, backend: Backend) -> None:
    for kind in ("run", "refused", "reemit"):
        made = {
            "run": asking("k", f"redrive/1/{kind}"), "reemit": reemit_of("k", f"redrive/1/{kind}"),
            "refused": disposed(f"redrive/1/{kind}", Disposition.REJECTED),
        }[kind]  # fmt: skip
        by = replace(BY, action_key=kind, subject=kind)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _, by=by, made=made: authority.admit_for(by, made), range(8)))  # type: ignore[misc]
        assert len([answer for answer in answers if answer is not None]) == 1, kind
        assert len(authority.actions(kind)) == 1
    assert len(records(backend)) == 3


def test_a_failure_before_the_act_is_written_leaves_nothing_of_the_record(
    authority: Authority,
    backend: Backend,
) -> None:
    """An act that cannot be written: its subject is no text of the database."""
    if "postgres" in type(authority).__module__:
        backend.query("ALTER TABLE operator_actions ADD CONSTRAINT broken CHECK (action_key <> 'act')")
    else:
        backend.query(
            "CREATE TRIGGER broken BEFORE INSERT ON operator_actions BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    for made in (asking("k", "redrive/1/x"), disposed("redrive/1/x", Disposition.REJECTED)):
        with pytest.raises(Exception, match="broken"):
            authority.admit_for(BY, made)
    assert records(backend) == acted(backend) == []
    assert authority.run(hex32("k")) is None
    assert backend.query("SELECT count(*) FROM dead_letters") == [(0,)]


# --- wake -------------------------------------------------------------------------------------------------------------


def wake(authority: Authority, *keys: str, act: str = "w") -> dict[str, str]:
    found = authority.wake([WakeAct(key=f"{act}/{key}", run_id=hex32(key), actor="ops", reason="r") for key in keys])
    return {key: found[hex32(key)] for key in keys if hex32(key) in found}


def waits(authority: Authority, key: str, seconds: float = 60) -> None:
    authority.admit([asking(key)])
    commit(authority, waiting(claim_one(authority), authority.now_us() + round(seconds * SECOND)))


def test_a_waiting_run_is_due_now_and_nothing_else_of_it_changes(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    before = authority.run(hex32("k"))
    assert before is not None
    assert authority.claim("w2", 1, LEASE) == []
    clock.pass_seconds(5)
    assert wake(authority, "k") == {"k": "WOKEN"}
    after = authority.run(hex32("k"))
    assert after == replace(before, due_us=clock.now)
    (action,) = authority.actions(hex32("k"))
    assert (action.at_us, action.actor, action.via, action.action, action.reason, action.outcome) == (
        clock.now, "ops", "cli", "runs_wake", "r", "WOKEN",
    )  # fmt: skip
    assert claim_one(authority).run_id == hex32("k")


def test_a_wake_that_is_sent_again_is_carried_out_once(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    assert wake(authority, "k") == wake(authority, "k") == {"k": "WOKEN"}
    assert len(authority.actions(hex32("k"))) == 1
    assert wake(authority, "k", act="second") == {"k": "DUE_ALREADY"}


def test_a_run_under_lease_is_left_to_its_holder_who_commits_as_if_nothing_had_happened(
    authority: Authority,
    clock: Clock,
) -> None:
    waits(authority, "k")
    clock.pass_seconds(61)
    claim = claim_one(authority)
    before = authority.run(hex32("k"))
    assert wake(authority, "k") == {"k": "BEING_EXAMINED"}
    assert authority.run(hex32("k")) == before
    commit(authority, waiting(claim, clock.now + 60 * SECOND))
    assert wake(authority, "k", act="after") == {"k": "WOKEN"}
    taken = claim_one(authority)
    assert taken.epoch == claim.epoch + 1


def test_only_waiting_runs_are_woken_and_every_act_has_its_row(authority: Authority, backend: Backend) -> None:
    authority.admit([asking("ended")])
    commit(authority, failed(claim_one(authority)))
    waits(authority, "waits")
    authority.admit([asking("planned")])
    before = authority.run(hex32("ended"))
    assert wake(authority, "ended", "planned", "waits", "unknown") == {
        "ended": "RUN_NOT_WAITING", "planned": "RUN_NOT_WAITING", "waits": "WOKEN",
    }  # fmt: skip
    assert authority.run(hex32("ended")) == before
    assert [outcome for _, _, outcome in acted(backend)] == ["RUN_NOT_WAITING", "RUN_NOT_WAITING", "WOKEN"]
    details = backend.query("SELECT detail FROM operator_actions")
    assert all(detail for (detail,) in details)


def test_a_wake_makes_the_run_due_that_it_names_and_no_other(authority: Authority, clock: Clock) -> None:
    waits(authority, "named")
    waits(authority, "another")
    before = authority.run(hex32("another"))
    clock.pass_seconds(5)
    assert wake(authority, "named") == {"named": "WOKEN"}
    assert authority.run(hex32("another")) == before
    assert wake(authority, "another") == {"another": "WOKEN"}, "acts on other runs do not stand in its way"


def test_no_wake_is_no_statement(authority: Authority) -> None:
    assert authority.wake([]) == {}


def test_new_runs_of_tests_have_a_time() -> None:
    assert START
    assert new_run("k").run_id == hex32("k")
    assert draft("d").message_id
