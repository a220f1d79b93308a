"""A PostgreSQL whose answers are lost, that does not answer, or that crashes: nothing is lost or done twice."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from authority_support import (
    LEASE,
    SECOND,
    START,
    WAIT,
    asking,
    claim_one,
    commit,
    disposed,
    draft,
    event,
    failed,
    gates_recorded,
    hex32,
    hex64,
    launched,
    ready,
    retried,
    waiting,
)
from postgres_support import Proxy, Schema, Server, with_parameters
from support import World

from scenario_runner.authority.acts import ReemitAct, ReemitLimit
from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Claim, ProjectionFailure, ReemitEnd, Sent, SignalRow
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import Disposition, ReemitKind, RunState
from scenario_runner.runs.leases import Leases

pytest_plugins = ("postgres_fixtures",)
pytestmark = pytest.mark.parity


def prepare(authority: Authority) -> Claim:
    authority.admit([asking("k")])
    return claim_one(authority)


def state_of(authority: Authority) -> tuple[Any, ...]:
    run = authority.run(hex32("k"))
    events, attempts = authority.events(hex32("k")), authority.attempts(hex32("k"))
    return (run, events, authority.signals(hex32("k")), authority.records(hex32("k")), attempts)


SETTLED: dict[str, Callable[[Claim], Any]] = {
    "READY": ready,
    "FAILED": failed,
    "waiting": lambda claim: waiting(claim, START + WAIT, [event()]),
    "retry": lambda claim: retried(claim, START + WAIT, "the store is away"),
    "gates recorded": gates_recorded,
    "a launch": launched,
}


@pytest.fixture
def proxy(schema: Schema) -> Iterator[Proxy]:
    made = Proxy(schema.dsn)
    yield made
    made.close()


@pytest.fixture
def lossy(schema: Schema, proxy: Proxy, opened: Callable[[str], Authority]) -> Authority:
    """An authority behind the proxy, in a schema whose clock stands still."""
    authority = opened(with_parameters(proxy.dsn, application_name=schema.name))
    schema.use_clock(START)
    return authority


LOSSES: dict[str, Callable[[Proxy], None]] = {
    "the answer was lost": Proxy.lose_answer,
    "cut before the answer": Proxy.cut_after_request,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", SETTLED)
def test_an_outcome_whose_commit_is_unknown_is_found_applied_once(
    schema: Schema, proxy: Proxy, lossy: Authority, kind: str, loss: str
) -> None:
    claim = prepare(lossy)
    before = state_of(lossy)
    LOSSES[loss](proxy)
    commit(lossy, SETTLED[kind](claim))
    assert proxy.lost == 1
    applied = state_of(lossy)
    assert applied != before
    schema.query("DELETE FROM run_events; DELETE FROM outbox; DELETE FROM runs; DELETE FROM intake_records")
    schema.query("DELETE FROM engine_attempts")
    twin = prepare(lossy)
    commit(lossy, SETTLED[kind](twin))
    assert state_of(lossy) == applied, "as if nothing had been lost"


def test_an_outcome_that_the_server_still_works_on_is_waited_for_and_not_taken_for_a_lost_lease(
    schema: Schema, proxy: Proxy, lossy: Authority
) -> None:
    """The first try waits for a row when its connection is cut, and commits after the second has begun."""
    claim = prepare(lossy)
    tries = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"

    def waiting() -> int:
        schema.query("SELECT pg_stat_clear_snapshot()")
        return int(schema.query(tries, schema.name)[0][0])

    with ThreadPoolExecutor(1) as pool, schema.admin.transaction():
        schema.query("SELECT 1 FROM runs FOR UPDATE")
        proxy.cut_after_request(b"INSERT INTO outbox")
        answer = pool.submit(lossy.commit, [ready(claim)])
        until(lambda: waiting() == 2, 10)
    assert answer.result(30) == [None]
    assert len(lossy.signals(hex32("k")).rows) == 1
    assert len(lossy.events(hex32("k"))) == 7


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_records_whose_commit_is_unknown_is_admitted_once(proxy: Proxy, lossy: Authority, loss: str) -> None:
    refused = disposed("x", Disposition.REJECTED, hex32("k"), draft("no"))
    batch = [asking("k"), asking("k", "again"), asking("k", "other", fingerprint="two"), refused]
    LOSSES[loss](proxy)
    answers = lossy.admit(batch)
    assert proxy.lost == 1
    assert [item.disposition.value for item in answers] == ["ACCEPTED", "DUPLICATE", "CONFLICT", "REJECTED"]
    _, events, signals, records, _ = state_of(lossy)
    assert (len(events), len(signals.rows), len(records)) == (4, 2, 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_runs_whose_claim_was_never_answered_come_back_when_their_lease_has_run_out(
    schema: Schema, proxy: Proxy, lossy: Authority, loss: str
) -> None:
    lossy.admit([asking(f"k{number}") for number in range(4)])
    leases = Leases(lossy, "w1", 30, time.monotonic)
    LOSSES[loss](proxy)
    first = leases.claim(2)
    assert proxy.lost == 1
    schema.set_clock(START + 20 * SECOND)
    leases.renew()
    schema.set_clock(START + 40 * SECOND)
    second = lossy.claim("w2", 10, LEASE)
    assert {claim.run_id for claim in first} | {claim.run_id for claim in second} == {hex32(f"k{n}") for n in range(4)}
    assert not {claim.run_id for claim in first} & {claim.run_id for claim in second}
    commit(lossy, *[ready(claim, f"ready {claim.run_id}") for claim in (*first, *second)])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_other_operation_may_be_cut_as_well(schema: Schema, proxy: Proxy, lossy: Authority, loss: str) -> None:
    def cut(operation: Callable[[], Any]) -> Any:
        LOSSES[loss](proxy)
        before = proxy.lost
        answer = operation()
        assert proxy.lost == before + 1
        until(lambda: proxy.ended == proxy.lost, 30)  # what comes next is not about two at once
        return answer

    claim = prepare(lossy)
    assert cut(lambda: lossy.renew("w1", [(claim.run_id, claim.epoch)], LEASE)) == {(claim.run_id, claim.epoch)}
    assert cut(lossy.now_us) == START
    commit(lossy, waiting(claim, START + WAIT))
    cut(lossy.make_waiting_due)
    commit(lossy, ready(claim_one(lossy)))
    cut(lambda: lossy.claim_projections("relay", 10, LEASE))
    assert cut(lossy.owners) == {"relay"}
    cut(lambda: lossy.expire_owner("relay"))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    cut(lambda: lossy.postpone_projections("relay", [ProjectionFailure(owed.run.run_id, START, "why")]))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    cut(lambda: lossy.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)]))
    assert cut(lossy.pending).signals
    cut(lambda: lossy.claim_signals("p", 10, LEASE))
    schema.set_clock(START + LEASE)
    (row,) = lossy.claim_signals("p", 10, LEASE)
    cut(lambda: lossy.postpone_signals([row], START))
    (row,) = lossy.claim_signals("p", 10, LEASE)
    cut(lambda: lossy.mark_sent([Sent(row)]))
    cut(lambda: lossy.keep_digests("key", ["a"]))
    assert cut(lambda: lossy.find_digests("key")) == ["a"]
    assert cut(lambda: lossy.signals(hex32("k"))).rows == (SignalRow(hex64("ready"), "READY", START + LEASE),)
    assert lossy.pending().undelivered is False


def test_an_act_whose_commit_is_unknown_is_carried_out_once(schema: Schema, proxy: Proxy, lossy: Authority) -> None:
    commit(lossy, ready(prepare(lossy)))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    lossy.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    lossy.mark_sent([Sent(row) for row in lossy.claim_signals("p", 10, LEASE)])
    asked = ReemitAct(
        key="one", run_id=hex32("k"), kind=ReemitKind.BOTH, actor="ops", via="cli", reason="why",
        limit=ReemitLimit(1, 60 * SECOND),
    )  # fmt: skip
    proxy.cut_after_request(b"INSERT INTO operator_actions")
    (answer,) = lossy.reemit([asked])
    assert proxy.lost == 1
    assert answer.outcome == "ACCEPTED"
    assert [row.emission for row in lossy.signals(hex32("k")).rows] == [0, 1]
    (row,) = lossy.claim_signals("p", 10, LEASE)
    until(lambda: proxy.ended == proxy.lost, 30)
    proxy.cut_after_request(b"DELETE FROM outbox")
    lossy.end_reemits([ReemitEnd(row)])
    assert proxy.lost == 2
    kinds = [event.kind for event in lossy.events(hex32("k"))]
    assert kinds[-2:] == ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]
    assert [action.outcome for action in lossy.actions(hex32("k"))] == ["PUBLISHED"]


def test_a_signal_keeps_the_time_of_its_first_mark(schema: Schema, lossy: Authority) -> None:
    commit(lossy, ready(prepare(lossy)))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    lossy.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    (row,) = lossy.claim_signals("p", 10, LEASE)
    lossy.mark_sent([Sent(row)])
    schema.set_clock(START + SECOND)
    lossy.mark_sent([Sent(row)])
    assert lossy.signals(hex32("k")).rows == (SignalRow(hex64("ready"), "READY", START),)


# --- a server that does not answer ------------------------------------------------------------------------------------


def test_connections_that_were_killed_are_replaced(schema: Schema, opened: Callable[[str], Authority]) -> None:
    authority = opened(with_parameters(schema.dsn, application_name=schema.name))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: authority.admit([asking(f"k{number}")]), range(40)))
        killed = schema.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", schema.name
        )
        found = list(pool.map(lambda number: authority.run(hex32(f"k{number}")), range(40)))
    assert len(killed) > 1
    assert None not in found


def test_a_statement_that_takes_too_long_is_given_up_and_told(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    options = f"-csearch_path={schema.name} -cstatement_timeout=200 -clock_timeout=0"
    authority = opened(with_parameters(schema.dsn, options=options))
    with schema.admin.transaction():
        schema.query("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="statement_timeout"):
            authority.admit([asking("k")])
    assert authority.admit([asking("k")])[0].disposition is Disposition.ACCEPTED


@pytest.mark.usefixtures("impatient_sessions")
def test_a_lock_that_is_held_for_too_long_is_given_up_and_told(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    options = f"-csearch_path={schema.name} -clock_timeout=200"
    authority = opened(with_parameters(schema.dsn, options=options))
    claim = prepare(authority)
    with schema.admin.transaction():
        schema.query("SELECT 1 FROM runs FOR UPDATE")
        with pytest.raises(Unavailable, match="pg_stat_activity"):
            authority.commit([ready(claim)])
    commit(authority, ready(claim))


@pytest.mark.usefixtures("impatient_sessions")
def test_a_server_that_is_away_is_unavailable_and_serves_again_when_it_is_back(
    server: Server, opened: Callable[[str], Authority]
) -> None:
    authority = opened(server.dsn)
    claim = prepare(authority)
    server.stop()
    calls: list[Callable[[], Any]] = [
        lambda: authority.admit([asking("x")]),
        lambda: authority.commit([ready(claim)]),
        lambda: authority.claim("w1", 1, LEASE),
        authority.now_us,
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="check that the server runs"):
            call()
    with pytest.raises(Unavailable):
        opened(server.dsn)
    server.start()
    commit(authority, ready(claim))


class Load:
    """Intake and two workers that go on through everything, and remember what they were promised."""

    def __init__(self, authority: Authority) -> None:
        self._authority, self._stop, self._all_in = authority, threading.Event(), threading.Event()
        self.promised: dict[str, Disposition] = {}
        self.decided: dict[str, list[str]] = {}
        self.last_success = 0.0

    def run(self, meanwhile: Callable[[], None]) -> None:
        """Work while something happens, then finish what was begun."""
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(self._take_in), pool.submit(self._decide, "w1"), pool.submit(self._decide, "w2")]
            try:
                meanwhile()
            finally:
                self._stop.set()
            for future in work:
                future.result(60)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                answer = call()
            except Unavailable:
                time.sleep(1)  # as the loops of the daemon do
            else:
                self.last_success = time.monotonic()
                return answer

    def _take_in(self) -> None:
        number = 0
        while not self._stop.is_set():
            batch = [asking(f"k{number + offset}") for offset in range(8)]
            number += len(batch)
            for item in self._patiently(partial(self._authority.admit, batch)):
                self.promised[item.run_id] = item.disposition
        self._all_in.set()

    def _decide(self, owner: str) -> None:
        while not (self._all_in.is_set() and len(self.decided) == len(self.promised)):
            claims = self._patiently(partial(self._authority.claim, owner, 8, 2 * SECOND))
            outcomes = [ready(claim, f"ready {claim.run_id}") for claim in claims]
            answers = self._patiently(partial(self._authority.commit, outcomes))
            for claim, lost in zip(claims, answers, strict=True):
                if lost is None:
                    self.decided.setdefault(claim.run_id, []).append(owner)


def test_a_server_that_crashes_under_load_loses_nothing_and_is_used_again_after_its_return(
    server: Server, opened: Callable[[str], Authority]
) -> None:
    """A crash in the middle of all, twice; what was promised is there, and only once."""
    load = Load(opened(server.dsn))

    def crash() -> None:
        for down in (0, 3):
            time.sleep(1)
            server.stop("immediate")
            time.sleep(down)
            server.start()
            back = time.monotonic()
            until(lambda back=back: load.last_success > back, 30)
        time.sleep(1)

    load.run(crash)
    assert len(load.promised) > 50
    assert set(load.promised.values()) == {Disposition.ACCEPTED}
    assert set(load.decided) == set(load.promised), "zero lost"
    assert all(len(owners) == 1 for owners in load.decided.values()), "each decided once"
    authority = opened(server.dsn)
    for run_id in load.promised:
        run = authority.run(run_id)
        assert run is not None
        assert run.state is RunState.READY
        assert [item.seq for item in authority.events(run_id)] == list(range(1, run.event_seq + 1))
        assert authority.signals(run_id).rows == (SignalRow(hex64(f"ready {run_id}"), "READY", None),)


# --- the whole daemon -------------------------------------------------------------------------------------------------


def test_the_daemon_brings_a_run_to_ready_on_postgres(schema: Schema, tmp_path: Path) -> None:
    world = World(tmp_path / "world", {"authority_store_dsn": schema.dsn})
    made = world.make_run()
    world.drop(made["request"])
    done = world.serve()
    assert done.returncode == 0, done.stderr.decode()
    (signal_sent,) = world.signals("READY")
    run_id = signal_sent["payload"]["run_id"]
    assert world.query("status", run_id)[1]["state"] == "READY"
    assert world.query("explain", run_id)[0] == 0
    assert world.query("verify", run_id)[0] == 0
    for line in done.stderr.decode().splitlines():
        assert line.startswith("{"), "stderr holds JSON lines only"


def test_requests_that_arrive_while_the_server_is_down_are_served_after_its_return(
    server: Server, tmp_path: Path
) -> None:
    world = World(tmp_path / "world", {"authority_store_dsn": server.dsn})
    requests = [world.make_run(f"key-{number}")["request"] for number in range(3)]
    with world.start() as daemon:
        assert daemon.stderr is not None
        reader = threading.Thread(target=daemon.stderr.read, daemon=True)
        reader.start()
        try:
            world.drop(requests[0], "0.json")
            until(lambda: len(world.signals("READY")) == 1, 60)
            server.stop("immediate")
            for number in (1, 2):
                world.drop(requests[number], f"{number}.json")
            time.sleep(6)
            assert daemon.poll() is None
            server.start()
            until(lambda: len(world.signals("READY")) == 3, 30)
        finally:
            daemon.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            if daemon.poll() is None:
                os.kill(daemon.pid, signal.SIGKILL)


def until(happened: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
