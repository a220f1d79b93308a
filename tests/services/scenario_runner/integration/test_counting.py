"""What is counted of runs: after the commit, once, and without a consequence for any run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import START, WAIT, Clock, asking, claim_one, commit, disposed, failed, ready, retried, waiting
from support import ForkedWorld

from scenario_runner import counters
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import Disposition
from scenario_runner.counters import counted, durations
from scenario_runner.intake.counting import count_admitted
from scenario_runner.runs import counting
from scenario_runner.runs.batch import RunDriver
from scenario_runner.runs.counting import count_transition
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.member import Member

if TYPE_CHECKING:
    from scenario_runner.authority.values import Admission

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def none_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_counts", {})
    monkeypatch.setattr(counters, "_durations", {})


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    made = SqliteAuthority(str(tmp_path / "a.db"), Clock())
    yield made
    made.close()


def driver(authority: Any) -> RunDriver:
    nothing: Any = None
    return RunDriver(authority, nothing, nothing, Leases(authority, "w1", 30.0, lambda: 0.0))


def member_with(transition: Any) -> Member:
    def steps() -> Any:
        yield from ()

    return Member(transition.claim, steps(), transition=transition)


def test_the_end_of_a_run_is_counted_when_it_is_committed(authority: Any) -> None:
    authority.admit([asking("a"), asking("b")])
    first, second = authority.claim("w1", 2, WAIT)
    assert driver(authority)._commit([member_with(ready(first))]) == 1
    count_transition(failed(second))
    assert counted() == {"sr_runs_failed_total{GATE_FAIL}": 1, "sr_runs_ready_total": 1}
    assert sum(durations()["sr_ready_commit_latency_seconds"][0]) == 1
    assert "sr_evidence_wait_duration_seconds" not in durations(), "its evidence was there at once"


def test_nothing_is_counted_of_a_transition_that_was_not_committed(
    authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.admit([asking("a")])
    claim = claim_one(authority)
    stale = ready(claim)
    commit(authority, waiting(claim, START + WAIT))
    assert driver(authority)._commit([member_with(stale)]) == 0
    assert counted() == {"sr_lease_lost_total": 1}

    def away(_transitions: Any) -> Any:
        raise Unavailable("the database is away")

    monkeypatch.setattr(authority, "commit", away)
    assert driver(authority)._commit([member_with(stale)]) == 0
    assert counted() == {"sr_lease_lost_total": 1}


def test_a_run_that_waited_is_counted_with_its_wait_and_one_that_is_put_off_is_not_an_end(authority: Any) -> None:
    authority.admit([asking("a")])
    claim = claim_one(authority)
    count_transition(waiting(claim, START + WAIT))
    count_transition(retried(claim, START + WAIT, "the store is away"))
    assert counted() == {"runs.postponed": 1}
    commit(authority, waiting(claim, START))
    count_transition(failed(claim_one(authority)))
    assert sum(durations()["sr_evidence_wait_duration_seconds"][0]) == 1


def test_records_are_counted_once_by_kind_and_disposition(authority: Any) -> None:
    records: list[Admission] = [asking("a"), asking("a", "again"), asking("a", "conflict", "other"),
                                disposed("bad", Disposition.REJECTED)]  # fmt: skip
    for _ in range(2):  # delivered twice
        count_admitted(records, authority.admit(records))
    assert counted() == {
        "sr_run_requests_total{RUN_REQUEST}": 4, "sr_runs_accepted_total": 1,
        "sr_runs_rejected_total{EQUIV_KEY_COLLISION}": 1, "sr_runs_rejected_total{RECORD_NOT_JSON}": 1,
    }  # fmt: skip


def test_a_count_that_fails_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: Any, **_named: Any) -> None:
        raise RuntimeError("the metric is broken")

    monkeypatch.setattr(counting, "count", broken)
    monkeypatch.setattr(counting, "observe", broken)
    world = ForkedWorld(tmp_path / "world")
    made = world.make_run("one", outputs=["outlet_catalogue"], members=3, member_bytes=64)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
