"""The leases of the relay: what a pass claimed and left undelivered, the next one claims again before they end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority_support import SECOND, START, Clock, asking, claim_one, commit, hex32, ready
from test_authority_supersessions import corrected, correcting

from scenario_runner.audit.explain import status_of
from scenario_runner.authority.acts import ReemitAct, ReemitLimit
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.values import UNTIL_RESTART, ProjectionFailure
from scenario_runner.bus.base import PublishResult
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import ReemitKind
from scenario_runner.contracts.times import format_micros
from scenario_runner.counters import counted
from scenario_runner.relay import relay as relay_module
from scenario_runner.relay.relay import Relay

pytestmark = pytest.mark.integration


class Flaky:
    """An authority one of whose calls fails, before or after it is done, or whose answer is never heard."""

    def __init__(self, inner: SqliteAuthority) -> None:
        self._inner, self.fault = inner, ("", "")

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        failing, how = self.fault

        def guarded(*arguments: Any, **named: Any) -> Any:
            if name != failing:
                return call(*arguments, **named)
            self.fault = ("", "")
            if how == "unheard":
                call(*arguments, **named)
                return call(*arguments, **named)  # as a retry after a lost answer
            if how == "after":
                call(*arguments, **named)
            raise Unavailable("the connection is gone")

        return guarded


class Sink:
    """A ledger and a stream: documents of runs in ``failures`` and signals of runs in ``taken`` are refused."""

    def __init__(self) -> None:
        self.projected: list[str] = []
        self.sent: list[str] = []
        self.failures: dict[str, LedgerDrift | Unavailable] = {}
        self.taken: set[str] = set()
        self.views: dict[str, LedgerDrift | Unavailable] = {}
        self.asked: list[str] = []

    def project_many(self, owed: Any) -> list[LedgerDrift | Unavailable | None]:
        self.asked.append("documents")
        self.projected += [item.run.run_id for item in owed]
        return [self.failures.get(item.run.run_id) for item in owed]

    def compare_facts_views(self, expected: Any) -> list[LedgerDrift | Unavailable | None]:
        self.asked.append("facts views")
        return [self.views.get(run_id) for run_id, _ in expected]

    def publish(self, rows: Any) -> list[PublishResult]:
        self.asked.append("signals")
        self.sent += [row.message_id for row in rows]
        refused = {row.outbox_id for row in rows if row.run_id in self.taken}
        return [
            PublishResult(row.outbox_id, "taken", permanent=True)
            if row.outbox_id in refused
            else PublishResult(row.outbox_id, "")
            for row in rows
        ]


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[SqliteAuthority]:
    """Two READY runs whose documents and signals are owed."""
    made = SqliteAuthority(str(tmp_path / "authority.db"))
    for key in ("a", "b"):
        made.admit([asking(key)])
        commit(made, ready(claim_one(made), f"ready {key}"))
    yield made
    made.close()


def relay_of(authority: Any, sink: Sink) -> Relay:
    """A relay that delivers to a sink."""
    return Relay(authority, sink, sink, "relay")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["before", "after", "unheard"])
@pytest.mark.parametrize("call", ["claim_projections", "mark_projected", "claim_signals", "mark_sent", "expire_owner"])
def test_what_a_broken_pass_had_claimed_is_delivered_by_the_next_ones_without_waiting_for_a_lease(
    authority: SqliteAuthority, call: str, how: str
) -> None:
    flaky, sink = Flaky(authority), Sink()
    relay = relay_of(flaky, sink)
    flaky.fault = (call, how)
    relay._may_hold_leases = call == "expire_owner"
    for _ in range(4):
        try:
            relay.step()
        except Unavailable:
            continue
    assert authority.pending().nothing
    assert set(sink.projected) == {hex32("a"), hex32("b")}
    assert len(set(sink.sent)) == 2
    assert {row.sent_us for run in ("a", "b") for row in authority.signals(hex32(run)).rows} != {None}


@pytest.fixture
def superseded(tmp_path: Path) -> Iterator[SqliteAuthority]:
    """A READY run that is delivered, and its correction, which has just become READY."""
    made = SqliteAuthority(str(tmp_path / "authority.db"))
    made.admit([asking("old")])
    commit(made, ready(claim_one(made), "ready old"))
    relay_of(made, Sink()).step()
    made.admit([correcting("a new one", "old")])
    commit(made, corrected(claim_one(made)))
    yield made
    made.close()


OLD, NEW = hex32("old"), hex32("a new one")


def test_the_record_of_a_superseded_run_follows_the_documents_of_its_correction(superseded: SqliteAuthority) -> None:
    """A ledger in which a run names a correction that is not READY there cannot tell what was published."""
    sink = Sink()
    relay = relay_of(superseded, sink)
    relay.step()
    assert sink.asked[:2] == ["documents"] * 2
    assert sink.projected == [NEW, OLD]
    relay.step()
    assert superseded.pending().undelivered is False


@pytest.mark.parametrize("only", ["", NEW])
def test_while_another_relay_writes_the_correction_the_record_of_the_old_run_waits(
    superseded: SqliteAuthority, only: str
) -> None:
    tasks = {task.run.run_id: task for task in superseded.claim_projections("other", 10, 60_000_000)}
    assert set(tasks) == {OLD, NEW}
    superseded.postpone_projections("other", [ProjectionFailure(OLD, 0, "")])  # the other relay has the correction only
    sink = Sink()
    relay = Relay(superseded, sink, sink, "relay", only)  # type: ignore[arg-type]
    relay.step()
    assert sink.projected == []
    old = superseded.run(OLD)
    assert old is not None
    assert NEW in old.relay_error
    superseded.mark_projected("other", [(NEW, tasks[NEW].run.event_seq)])
    superseded.resume_deliveries()
    relay.step()
    assert sink.projected == [OLD]


def test_a_correction_whose_documents_cannot_be_written_keeps_back_the_record_of_the_old_run(
    superseded: SqliteAuthority,
) -> None:
    sink = Sink()
    sink.failures[NEW] = Unavailable("the store is away")
    relay = relay_of(superseded, sink)
    relay.step()
    assert sink.projected == [NEW]
    del sink.failures[NEW]
    superseded.resume_deliveries()
    relay.step()
    assert sink.projected == [NEW, NEW, OLD]


def test_a_run_whose_own_signal_waits_for_its_documents_waits_for_no_correction(tmp_path: Path) -> None:
    """What is wrong with the documents of a correction must not keep the READY of another run back."""
    made = SqliteAuthority(str(tmp_path / "authority.db"))
    made.admit([asking("old")])
    commit(made, ready(claim_one(made), "ready old"))
    made.admit([correcting("a new one", "old")])
    commit(made, corrected(claim_one(made)))
    sink = Sink()
    sink.failures[NEW] = Unavailable("the store is away")
    relay_of(made, sink).step()
    assert (set(sink.projected), sink.sent) == ({NEW, OLD}, [made.signals(OLD).rows[0].message_id])
    made.close()


def test_what_another_relay_has_claimed_is_left_to_it(authority: SqliteAuthority) -> None:
    assert len(authority.claim_projections("other", 10, 60_000_000)) == 2
    sink = Sink()
    relay = relay_of(authority, sink)
    assert [relay.step() for _ in range(6)] == [0] * 6
    assert (sink.projected, sink.sent) == ([], [])


def test_neither_the_store_nor_the_bus_is_asked_for_what_is_not_owed(authority: SqliteAuthority) -> None:
    sink = Sink()
    relay = relay_of(authority, sink)
    assert relay.step() == 4
    assert sink.asked == ["documents", "signals"], "facts views are compared only where READY is repeated"
    assert relay.step() == 0
    assert sink.asked == ["documents", "signals"]


def test_documents_are_written_before_the_signals_that_point_at_them(authority: SqliteAuthority) -> None:
    order: list[str] = []

    class Ordered(Sink):
        def project_many(self, owed: Any) -> list[LedgerDrift | Unavailable | None]:
            order.extend(f"documents of {item.run.run_id}" for item in owed)
            return super().project_many(owed)

        def publish(self, rows: Any) -> list[PublishResult]:
            order.extend(f"signal of {row.run_id}" for row in rows)
            return super().publish(rows)

    relay = relay_of(authority, Ordered())
    assert relay.has_pending()
    assert relay.step() == 4
    assert not relay.has_pending()
    for run in ("a", "b"):
        assert order.index(f"documents of {hex32(run)}") < order.index(f"signal of {hex32(run)}")


def test_no_signal_is_published_while_its_documents_cannot_be_written(authority: SqliteAuthority) -> None:
    sink = Sink()
    sink.failures[hex32("a")] = OUTAGE
    relay = relay_of(authority, sink)
    for _ in range(3):
        relay.step()
    assert sink.sent == [row.message_id for row in authority.signals(hex32("b")).rows]


def test_signals_wait_for_some_full_batches_of_documents_and_not_for_ever(
    authority: SqliteAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_DOCUMENT_BATCH", 1)
    monkeypatch.setattr(relay_module, "_SIGNAL_BATCH", 1)
    monkeypatch.setattr(relay_module, "_BATCHES_IN_A_ROW", 2)
    sink = Sink()
    relay = relay_of(authority, sink)
    assert relay.step() == 1
    assert (len(sink.projected), sink.sent) == (1, [])
    assert relay.step() == 1 + 2
    assert (len(sink.projected), len(sink.sent)) == (2, 2)


# --- what cannot be delivered

HOUR = 3600
DRIFT = LedgerDrift("/ledger/run_record/a.jsonl: is not ours; move it away", Reason.RECORD_DRIFT)
OUTAGE = Unavailable("the bucket does not answer")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(tmp_path: Path, clock: Clock) -> Iterator[SqliteAuthority]:
    """Two READY runs on a clock that is moved by hand."""
    made = SqliteAuthority(str(tmp_path / "timed.db"), clock)
    for key in ("a", "b"):
        made.admit([asking(key)])
        commit(made, ready(claim_one(made), f"ready {key}"))
    yield made
    made.close()


def pauses(authority: SqliteAuthority, clock: Clock, relay: Relay, tries: int) -> list[float]:
    """Step a relay whenever the run ``a`` is due; the pauses in seconds after each of some tries."""
    found = []
    for _ in range(tries):
        relay.step()
        run = authority.run(hex32("a"))
        assert run is not None
        found.append((run.relay_until_us - clock.now) / SECOND)
        clock.now = run.relay_until_us
    return found


def test_documents_that_drifted_are_tried_later_each_time_while_those_of_other_runs_are_delivered(
    timed: SqliteAuthority, clock: Clock
) -> None:
    sink, before = Sink(), counted().get("relay.drift", 0)
    sink.failures[hex32("a")] = DRIFT
    relay = relay_of(timed, sink)
    assert pauses(timed, clock, relay, 10) == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900]
    assert sink.projected.count(hex32("b")) == 1
    assert counted()["relay.drift"] == before + 10
    explained = status_of(timed, hex32("a")) or {}
    owed = explained["documents_owed"]
    assert owed["error"] == f"RECORD_DRIFT: {DRIFT.detail}"
    assert (owed["tries"], owed["since_utc"]) == (10, format_micros(START))
    assert owed["next_try"] == format_micros(clock.now)
    del sink.failures[hex32("a")]
    assert relay.step() == 2, "the documents and the signal"
    assert "documents_owed" not in (status_of(timed, hex32("a")) or {})


def test_documents_that_drifted_for_a_day_wait_for_a_daemon_to_start(timed: SqliteAuthority, clock: Clock) -> None:
    sink = Sink()
    sink.failures[hex32("a")] = DRIFT
    relay = relay_of(timed, sink)
    run = timed.run(hex32("a"))
    for _ in range(200):
        relay.step()
        run = timed.run(hex32("a"))
        assert run is not None
        if run.relay_until_us == UNTIL_RESTART:
            break
        clock.now = run.relay_until_us
    assert 24 * HOUR <= (clock.now - START) / SECOND <= 25 * HOUR
    assert run is not None
    assert 100 <= run.relay_retries <= 110
    assert (status_of(timed, hex32("a")) or {})["documents_owed"]["next_try"] == "when a daemon starts"
    assert timed.pending().undelivered
    assert not timed.pending().projections, "a drain would never end"
    clock.pass_seconds(1000 * HOUR)
    assert relay.step() == 0
    del sink.failures[hex32("a")]
    assert relay.step() == 0
    assert timed.resume_deliveries() == 1
    assert relay.step() == 2, "the documents and the signal"


def test_an_outage_is_waited_for_without_end_and_noticed_soon_when_it_is_over(
    timed: SqliteAuthority, clock: Clock
) -> None:
    sink, before = Sink(), counted().get("relay.unavailable", 0)
    sink.failures[hex32("a")] = OUTAGE
    relay = relay_of(timed, sink)
    assert pauses(timed, clock, relay, 5) == [5, 10, 20, 30, 30]
    clock.pass_seconds(100 * HOUR)
    assert pauses(timed, clock, relay, 1) == [30]
    assert counted()["relay.unavailable"] == before + 6
    assert (status_of(timed, hex32("a")) or {})["documents_owed"]["error"] == f"UNAVAILABLE: {OUTAGE.detail}"


def test_a_signal_whose_place_is_taken_is_put_off_by_itself_and_in_the_end_until_a_daemon_starts(
    timed: SqliteAuthority, clock: Clock
) -> None:
    sink = Sink()
    relay = relay_of(timed, sink)
    sink.taken.add(hex32("a"))
    assert relay.step() == 3, "both runs' documents and the other run's signal"
    for seconds in (5, 10, 20):
        clock.pass_seconds(seconds - 0.1)
        assert len(timed.claim_signals("probe", 10, 1)) == 0
        clock.pass_seconds(0.1)
        assert relay.step() == 0
    clock.pass_seconds(25 * HOUR)
    relay.step()
    clock.pass_seconds(25 * HOUR)
    assert timed.claim_signals("probe", 10, 1) == []
    assert timed.resume_deliveries() == 1
    sink.taken.clear()
    assert relay.step() == 1


# --- signals that are published again ---------------------------------------------------------------------------------


def again(authority: SqliteAuthority, *runs: str) -> None:
    """Ask for the signals of runs once more."""
    limit = ReemitLimit(9, SECOND)
    authority.reemit([
        ReemitAct(key=f"again {run}", run_id=hex32(run), kind=ReemitKind.BOTH, actor="ops", via="cli", reason="why",
                  limit=limit)
        for run in runs
    ])  # fmt: skip


def outcomes(authority: SqliteAuthority) -> dict[str, str]:
    return {key: act.outcome for key, act in authority.acts(["again a", "again b"]).items()}


def test_of_a_batch_only_what_has_its_facts_view_is_published_again(authority: SqliteAuthority) -> None:
    sink = Sink()
    relay = relay_of(authority, sink)
    while relay.step():
        pass
    sink.sent.clear()
    again(authority, "a", "b")
    sink.views[hex32("a")] = LedgerDrift("another one is there", Reason.FACTS_VIEW_DRIFT)
    assert relay.publish() == 2
    assert len(sink.sent) == 1
    assert outcomes(authority) == {"again a": "FACTS_VIEW_DRIFT", "again b": "PUBLISHED"}
    assert not authority.pending().signals


def test_only_what_was_published_again_ends_an_act(authority: SqliteAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    end_reemits = authority.end_reemits
    monkeypatch.setattr(
        authority, "end_reemits", lambda given: (ends.extend(end.row.emission for end in given), end_reemits(given))
    )
    sink = Sink()
    sink.taken.add(hex32("b"))
    relay = relay_of(authority, sink)
    relay.step()
    assert ends == []
    sink.taken.clear()
    authority.resume_deliveries()
    again(authority, "a")
    assert relay.step() == 3, "two signals, and the documents of the run that got an act"
    assert ends == [1]


def test_a_store_that_does_not_answer_postpones_what_is_published_again_and_nothing_else(
    tmp_path: Path,
) -> None:
    clock = Clock()
    authority = SqliteAuthority(str(tmp_path / "authority.db"), clock=clock)
    for key in ("a", "b"):
        authority.admit([asking(key)])
        commit(authority, ready(claim_one(authority), f"ready {key}"))
    sink = Sink()
    relay = relay_of(authority, sink)
    while relay.step():
        pass
    sink.sent.clear()
    again(authority, "a", "b")
    sink.views[hex32("a")] = Unavailable("the store is away")
    relay.publish()
    assert outcomes(authority) == {"again a": "ACCEPTED", "again b": "PUBLISHED"}
    assert relay.publish() == 0
    sink.views.clear()
    clock.pass_seconds(60)
    assert relay.publish() == 1
    assert outcomes(authority) == {"again a": "PUBLISHED", "again b": "PUBLISHED"}
    assert len(sink.sent) == 2
    authority.close()


@pytest.mark.parametrize("how", ["before", "after", "unheard"])
def test_a_mark_that_fails_publishes_the_same_once_more_and_is_made_once(authority: SqliteAuthority, how: str) -> None:
    flaky, sink = Flaky(authority), Sink()
    relay = relay_of(flaky, sink)
    while relay.step():
        pass
    again(authority, "a")
    flaky.fault = ("end_reemits", how)
    for _ in range(4):
        try:
            relay.step()
        except Unavailable:
            continue
    assert outcomes(authority) == {"again a": "PUBLISHED"}
    kinds = [event.kind for event in authority.events(hex32("a"))]
    assert kinds[-2:] == ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]
    assert not authority.pending().undelivered
