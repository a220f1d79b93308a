"""What a relay may still write, over every backend: only of what it has claimed, and nobody else since."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import LEASE, SECOND, WAIT, Clock, asking, claim_one, commit, hex32, hex64, ready, waiting
from reemit_support import DRIFT, RECEIPT, act, action_of, ended, one, owed, run_of

from scenario_runner.authority.reemits import sent
from scenario_runner.authority.values import OutboxRow, ProjectionFailure, ReemitEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration

FIRST: dict[str, Callable[[Authority, OutboxRow], None]] = {
    "sent": lambda authority, row: authority.mark_sent([sent(row, RECEIPT)]),
    "put off": lambda authority, row: authority.postpone_signals([row], 0),
}
REPEATED: dict[str, Callable[[Authority, OutboxRow], None]] = {
    "put off": FIRST["put off"],
    "published": lambda authority, row: authority.end_reemits([ReemitEnd(row)]),
    "refused": lambda authority, row: authority.end_reemits([ReemitEnd(row, failure=DRIFT)]),
}
#: That a signal was published is so whoever holds its row.
PUBLISHED = (FIRST["sent"], REPEATED["published"])
ENDS = [(False, end) for end in FIRST.values()] + [(True, end) for end in REPEATED.values()]
NAMES = [f"first signal {name}" for name in FIRST] + [f"repeated signal {name}" for name in REPEATED]
each_end = pytest.mark.parametrize(("repeated", "end"), ENDS, ids=NAMES)


def claimed(authority: Authority, *, repeated: bool) -> OutboxRow:
    ended(authority, sent=repeated)
    if repeated:
        one(authority, act("one"))
    (row,) = owed(authority)
    return row


def everything(authority: Authority, *, repeated: bool) -> tuple[Any, ...]:
    """All that could tell of an end, and what other publishers may claim."""
    acts = [action_of(authority, "one")] if repeated else []
    free = [row.message_id for row in authority.claim_signals("another", 10, LEASE)]
    return (
        run_of(authority),
        authority.events(hex32("k")),
        authority.signals(hex32("k")),
        acts,
        authority.owners(),
        free,
    )


@pytest.mark.parametrize(
    ("repeated", "end", "other"),
    [
        pytest.param(*end, other, id=f"{name}: {next(iter(other))}")
        for end, name in zip(ENDS, NAMES, strict=True)
        for other in ({"outbox_id": 2**40}, {"message_id": hex64("x")}, {"emission": 2}, {"owner": "relay of then"})
        if end[1] not in PUBLISHED or "owner" not in other
    ],
)
def test_a_row_with_another_number_message_or_owner_is_left_as_it_is(
    authority: Authority,
    repeated: bool,
    end: Callable[[Authority, OutboxRow], None],
    other: dict[str, Any],
) -> None:
    """The database was rebuilt, or restored from a backup, while a relay stood still.

    There a message may have another number. It is published again then, which its consumers recognise.
    """
    row = claimed(authority, repeated=repeated)
    before = everything(authority, repeated=repeated)
    end(authority, replace(row, **other))
    assert everything(authority, repeated=repeated) == before
    end(authority, row)
    assert everything(authority, repeated=repeated) != before, "what was claimed is its own"


@pytest.mark.parametrize(
    ("repeated", "end"),
    [pytest.param(*end, id=name) for end, name in zip(ENDS, NAMES, strict=True) if end[1] not in PUBLISHED],
)
def test_a_row_that_another_publisher_has_claimed_since_is_left_to_it(
    authority: Authority,
    clock: Clock,
    repeated: bool,
    end: Callable[[Authority, OutboxRow], None],
) -> None:
    row = claimed(authority, repeated=repeated)
    clock.pass_seconds(LEASE / SECOND)
    (again,) = authority.claim_signals("later", 10, LEASE)
    assert (row.owner, again.owner) == ("p", "later")
    before = everything(authority, repeated=repeated)
    end(authority, row)
    assert everything(authority, repeated=repeated) == before
    end(authority, again)
    assert everything(authority, repeated=repeated) != before


@pytest.mark.parametrize("repeated", [False, True])
def test_that_a_signal_was_published_is_recorded_whoever_holds_its_row(
    authority: Authority,
    clock: Clock,
    repeated: bool,
) -> None:
    """It is so; and two relays on a slow bus, each of which takes longer than its lease, must come to an end."""
    row, publish = claimed(authority, repeated=repeated), PUBLISHED[repeated]
    clock.pass_seconds(LEASE / SECOND)
    (again,) = authority.claim_signals("later", 10, LEASE)
    publish(authority, row)
    first = everything(authority, repeated=repeated)
    assert first[-1] == []
    publish(authority, again)
    assert everything(authority, repeated=repeated) == first


@each_end
def test_a_lease_that_has_run_out_counts_until_another_publisher_claims_the_row(
    authority: Authority,
    clock: Clock,
    repeated: bool,
    end: Callable[[Authority, OutboxRow], None],
) -> None:
    row = claimed(authority, repeated=repeated)
    clock.pass_seconds(LEASE / SECOND + 1)
    authority.expire_owner("p")
    end(authority, row)
    assert [item.owner for item in authority.claim_signals("p", 10, LEASE)] == ["p"] * (end is FIRST["put off"])


def test_what_one_publisher_put_off_and_another_has_published_is_neither_resumed_nor_corrected(
    authority: Authority,
    clock: Clock,
) -> None:
    row = claimed(authority, repeated=False)
    authority.expire_owner("p")
    (again,) = authority.claim_signals("later", 10, LEASE)
    authority.postpone_signals([again], clock.now + 1000 * WAIT)
    PUBLISHED[False](authority, row)
    authority.admit([asking("far")])
    commit(authority, waiting(claim_one(authority), clock.now + 1000 * WAIT))
    assert authority.pull_in_times() == 1, "the run, and not the signal"
    assert authority.resume_deliveries() == 0


# --- documents --------------------------------------------------------------------------------------------------------

PROJECTION_ENDS: dict[str, Callable[[Authority, str, int], None]] = {
    "written": lambda authority, owner, seq: authority.mark_projected(owner, [(hex32("k"), seq)]),
    "put off": lambda authority, owner, _: authority.postpone_projections(
        owner, [ProjectionFailure(hex32("k"), 0, "away")]
    ),
}
each_projection_end = pytest.mark.parametrize("end", PROJECTION_ENDS.values(), ids=PROJECTION_ENDS)


def owed_documents(authority: Authority) -> int:
    """A run that has ended, claimed by "relay"; the number of its last event."""
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    (task,) = authority.claim_projections("relay", 10, LEASE)
    return task.run.event_seq


@each_projection_end
def test_documents_that_another_relay_has_claimed_are_left_to_it(
    authority: Authority,
    clock: Clock,
    end: Callable[[Authority, str, int], None],
) -> None:
    seq = owed_documents(authority)
    clock.pass_seconds(LEASE / SECOND)
    assert len(authority.claim_projections("later", 10, LEASE)) == 1
    before = run_of(authority)
    end(authority, "relay", seq)
    assert (run_of(authority), authority.owners()) == (before, {"later"})
    end(authority, "later", seq)
    after = run_of(authority)
    assert (after != before, authority.owners()) == (True, set())
    end(authority, "later", seq)
    assert run_of(authority) == after, "a call that is repeated changes nothing"


@each_projection_end
def test_a_lease_of_documents_that_has_run_out_counts_until_another_relay_claims_them(
    authority: Authority,
    clock: Clock,
    end: Callable[[Authority, str, int], None],
) -> None:
    seq = owed_documents(authority)
    clock.pass_seconds(LEASE / SECOND + 1)
    authority.expire_owner("relay")
    before = run_of(authority)
    end(authority, "relay", seq)
    assert run_of(authority) != before


def test_no_more_documents_count_as_written_than_the_run_has_events(authority: Authority) -> None:
    """They may be those of the run in a database of before."""
    seq = owed_documents(authority)
    authority.mark_projected("relay", [(hex32("k"), seq + 92)])
    assert run_of(authority).projected_seq == seq


def test_what_an_old_relay_marks_lets_no_signal_out_before_its_documents(authority: Authority) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    authority.mark_projected("relay of then", [(hex32("k"), 99)])
    commit(authority, ready(claim))
    assert owed(authority) == []
    assert len(authority.claim_projections("relay", 10, LEASE)) == 1
