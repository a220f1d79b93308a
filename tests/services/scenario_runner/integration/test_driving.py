"""Driving a batch: what is compared with which clock, and what a drain that cannot deliver everything says."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from authority_support import LEASE, SECOND, Clock
from structlog.testing import capture_logs
from support import ForkedWorld, World

from scenario_runner.artifacts.budget import BATCH_SHARE, UNLIMITED, ReadBudget, Share
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.values import Claim
from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    LeaseLostError,
    Refusal,
    Unavailable,
)
from scenario_runner.contracts.ids import terminal_message_id
from scenario_runner.contracts.refs import plan_ref
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.evidence.examiner import Examiner
from scenario_runner.intake.decode import Message
from scenario_runner.intake.validate import validate_message
from scenario_runner.ledger.documents import status_document
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.runs.batch import Deferred, RunDriver
from scenario_runner.runs.leases import Leases
from scenario_runner.service.compose import make_admission_policy, open_pack, open_schemas
from scenario_runner.storage.filesystem import FilesystemStore

pytestmark = pytest.mark.integration


class Slow:
    """Engine runs that are not there, and a look at them that takes a while."""

    remote = False

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds, self.looks = clock, 0.0, 0
        self.refusal: Refusal | None = None
        self.costs: list[int] = []

    def open(self, engine_run_root: str, budget: ReadBudget) -> Any:
        self.looks += 1
        self.clock.pass_seconds(self.seconds)
        budget.hashing(self.costs.pop(0) if self.costs else 0)
        if self.refusal is not None:
            raise self.refusal
        raise EvidenceMissing(f"{engine_run_root} is not there", path=engine_run_root)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


class Bench:
    """A driver with a clock that is moved by hand."""

    def __init__(self, world: World) -> None:
        world.write_profiles()
        wiring, policy = load_wiring(str(world.wiring)), load_policy(str(world.policy))
        pack = open_pack(wiring)
        self.rules = make_admission_policy(wiring, policy, pack)
        self.clock = Clock()
        self.artifacts = Slow(self.clock)
        self.authority = SqliteAuthority(str(world.root / "own.db"), self.clock)
        store = FilesystemStore(str(world.root / "own-store"), ".private")
        self.ledger = Ledger(store, open_schemas(wiring))
        self.leases = Leases(self.authority, "w", LEASE / SECOND, lambda: 0.0)
        examiner = Examiner(self.artifacts, PinnedPacks(pack, self.ledger), None, lambda _seconds: None)
        self.driver = RunDriver(self.authority, self.ledger, examiner, self.leases)

    def drive(self, share: Share = BATCH_SHARE, waiting: float = 0.0) -> list[Deferred]:
        claims = self.leases.claim(10)
        self.clock.pass_seconds(waiting)
        return self.driver.drive(claims, share)


def validated(request: dict[str, Any], bench: Bench) -> Any:
    """What intake hands to the authority for a request."""
    return validate_message(Message("r", json.dumps(request).encode(), 1), bench.rules)


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    made = Bench(world)
    yield made
    made.authority.close()


def test_a_look_that_began_before_the_deadline_is_not_too_late_however_long_it_takes(
    world: World, bench: Bench
) -> None:
    """Evidence may have arrived while others were looked at: only a look that began after the deadline ends the run."""
    made = world.make_run("slow")
    (admitted,) = bench.authority.admit([validated(made["request"], bench)])
    run_id = admitted.run_id
    wait = bench.rules.policy.evidence_wait_seconds
    bench.clock.pass_seconds(wait - 1)
    bench.artifacts.seconds = 3600.0
    bench.drive()
    found = bench.authority.run(run_id)
    assert found is not None
    assert (found.state, bench.artifacts.looks) == (RunState.WAITING_EVIDENCE, 1)
    assert found.due_us == found.deadline_us
    bench.drive()
    found = bench.authority.run(run_id)
    assert found is not None
    assert (found.state, found.reason_code) == (RunState.FAILED, "EVIDENCE_MISSING_DEADLINE")


def test_a_run_that_waited_for_the_long_lane_is_judged_and_dated_by_the_clock_when_its_look_began(
    world: World, bench: Bench
) -> None:
    made = world.make_run("queued")
    (admitted,) = bench.authority.admit([validated(made["request"], bench)])
    bench.drive(share=UNLIMITED, waiting=100.0)
    found = bench.authority.run(admitted.run_id)
    assert found is not None
    assert found.updated_us == bench.clock.now
    assert found.due_us == bench.clock.now + SECOND, "the pause is not over before it began"
    bench.clock.now = found.due_us
    bench.drive(share=UNLIMITED, waiting=(found.deadline_us - found.due_us) / SECOND)
    found = bench.authority.run(admitted.run_id)
    assert found is not None
    assert found.reason_code == "EVIDENCE_MISSING_DEADLINE"


def admit(world: World, bench: Bench, key: str) -> str:
    made = world.make_run(key)
    (admitted,) = bench.authority.admit([validated(made["request"], bench)])
    return admitted.run_id


@pytest.mark.parametrize("share", [BATCH_SHARE, UNLIMITED], ids=["in a batch", "by a bulk worker"])
@pytest.mark.parametrize("state", ["QUARANTINED", "FAILED", "WAITING_EVIDENCE"])
def test_what_an_examination_came_to_is_on_record_at_its_end_and_its_deadline_is_compared_with_its_begin(
    world: World, bench: Bench, state: str, share: Share
) -> None:
    """contracts.md section 6, two clocks in a verdict."""
    run_id = admit(world, bench, "slow")
    wait = bench.rules.policy.evidence_wait_seconds
    bench.artifacts.seconds = 6.5
    bench.artifacts.refusal = EvidenceRefused("it contradicts itself") if state == "QUARANTINED" else None
    bench.clock.pass_seconds(wait if state == "FAILED" else wait - 1)
    began = bench.clock.now
    bench.drive(share)
    ended = began + round(6.5 * SECOND)
    found, last = bench.authority.run(run_id), bench.authority.events(run_id)[-1]
    assert found is not None
    assert (found.state, found.updated_us, last.ts_us) == (RunState(state), ended, ended)
    if state == "WAITING_EVIDENCE":
        return
    ((message_id, *_),) = bench.authority.signals(run_id).rows
    status = status_document(run_id, found.state, found.reason_code, ended)
    assert message_id == terminal_message_id(run_id, state, status)
    bench.authority.claim_projections("relay", 100, SECOND)
    bench.authority.mark_projected("relay", [(run_id, found.event_seq)])
    (signal,) = bench.authority.claim_signals("relay", 1, LEASE)
    assert (signal.created_us, parse_json(signal.payload)["reemit_key"]) == (ended, message_id)


@pytest.mark.parametrize("fault", ["before the commit", "after the commit"])
def test_a_verdict_whose_commit_was_not_heard_of_has_one_signal_with_the_time_of_what_is_on_record(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    run_id = admit(world, bench, "unheard")
    bench.artifacts.seconds, bench.artifacts.refusal = 2.0, EvidenceRefused("it contradicts itself")
    commit = bench.authority.commit

    def lost(transitions: Any) -> list[LeaseLostError | None]:
        if fault == "after the commit":
            commit(transitions)
        raise Unavailable("the answer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(bench.authority, "commit", lost)
        bench.drive()
    bench.clock.pass_seconds(LEASE / SECOND + 1)
    bench.drive()
    found = bench.authority.run(run_id)
    assert found is not None
    assert found.state is RunState.QUARANTINED
    ((message_id, *_),) = bench.authority.signals(run_id).rows
    status = status_document(run_id, found.state, found.reason_code, found.updated_us)
    assert message_id == terminal_message_id(run_id, "QUARANTINED", status)
    kinds = [event.kind for event in bench.authority.events(run_id)]
    assert kinds.count(EventKind.RUN_QUARANTINED) == 1


def test_what_is_missing_carries_a_code_of_its_own_until_the_deadline_and_news_alone_are_told_at_info(
    world: World, bench: Bench
) -> None:
    run_id = admit(world, bench, "missing")
    with capture_logs() as logs:
        bench.drive()
        for _ in range(3):
            run = bench.authority.run(run_id)
            assert run is not None
            assert run.due_us is not None
            bench.clock.now = run.due_us
            bench.drive()
    waits = [(item["log_level"], item["new_findings"]) for item in logs if item["event"] == "run waits for evidence"]
    assert waits == [("info", True), *[("debug", False)] * 3]
    last = bench.authority.events(run_id)[-1]
    assert (last.kind, last.details["reason_code"]) == (EventKind.EVIDENCE_MISSING, "EVIDENCE_MISSING")
    assert last.details["report"]["reason_code"] == "EVIDENCE_MISSING"
    bench.clock.pass_seconds(bench.rules.policy.evidence_wait_seconds)
    bench.drive()
    run, last = bench.authority.run(run_id), bench.authority.events(run_id)[-1]
    assert run is not None
    assert (run.state, run.reason_code) == (RunState.FAILED, "EVIDENCE_MISSING_DEADLINE")
    assert last.details["reason_code"] == "EVIDENCE_MISSING_DEADLINE"


def test_a_gate_and_an_output_that_wait_say_so_with_their_own_code(world: World) -> None:
    made = world.make_run("gate", outputs=["outlet_catalogue"], damage="flag_missing", members=3, member_bytes=64)
    other = world.make_run("out", outputs=["outlet_catalogue"], damage="output_missing", members=3, data_seed=3)
    for item in (made, other):
        world.drop(item["request"], f"{item['run_id']}.json")
    world.serve()
    gates = world.query("explain", made["run_id"])[1]["gates"]
    outputs = world.query("explain", other["run_id"])[1]["outputs"]
    for found in (gates, outputs):
        assert {item["reason_code"] for item in found if item["outcome"] == "MISSING"} == {"EVIDENCE_MISSING"}


def test_a_run_that_costs_too_much_for_a_batch_is_not_tried_there_again_until_it_has_become_cheap(
    world: World, bench: Bench
) -> None:
    made = world.make_run("costly")
    bench.authority.admit([validated(made["request"], bench)])
    bench.artifacts.costs = [100 << 20]
    (deferred,) = bench.drive()
    assert (deferred.claim.run_id, bench.artifacts.looks) == (made["run_id"], 1)
    bench.artifacts.costs = [100 << 20]
    assert bench.driver.drive([deferred.claim]) == [], "a bulk worker drives it to its end"
    bench.clock.pass_seconds(60)
    (deferred,) = bench.drive()
    assert bench.artifacts.looks == 2, "the batch knows without looking"
    assert bench.driver.drive([deferred.claim]) == [], "its digests are known by now"
    bench.clock.pass_seconds(60)
    assert bench.drive() == []
    assert bench.artifacts.looks == 4


@pytest.mark.parametrize(("bounds", "looks"), [({}, 1), ({"max_output_files": 5}, 2)], ids=["equal", "other"])
def test_runs_of_a_batch_share_an_examination_only_under_equal_bounds(
    world: World, bench: Bench, bounds: dict[str, int], looks: int
) -> None:
    request = world.make_run("shared")["request"]
    others = replace(bench.rules, policy=bench.rules.policy.model_copy(update=bounds))
    for key, rules in (("one", bench.rules), ("two", others)):
        record = Message(key, json.dumps(request | {"run_equivalence_key": key}).encode(), 1)
        bench.authority.admit([validate_message(record, rules)])
    bench.drive()
    assert bench.artifacts.looks == looks


@pytest.mark.parametrize("share", [BATCH_SHARE, UNLIMITED], ids=["in a batch", "by a bulk worker"])
def test_evidence_that_changes_meanwhile_is_not_waited_for_by_a_batch(world: World, bench: Bench, share: Share) -> None:
    run_id = admit(world, bench, "changing")
    bench.artifacts.refusal = EvidenceChanged("it changed while it was read", path="flag")
    deferred = bench.drive(share)
    found = bench.authority.run(run_id)
    assert found is not None
    if share is BATCH_SHARE:
        assert ([item.claim.run_id for item in deferred], bench.artifacts.looks) == ([run_id], 1)
        assert found.state is RunState.VERIFYING
    else:
        assert (deferred, bench.artifacts.looks) == ([], 3)
        assert (found.state, found.reason_code) == (RunState.QUARANTINED, "EVIDENCE_CHANGED")


class Vanishing:
    """An engine run root in which a file is removed just before it is digested, once."""

    def __init__(self, inner: Any, file: Path) -> None:
        self._inner, self._file = inner, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def digest(self, sequences: Any, *source: Any) -> Any:
        if any(str(self._file).endswith(path) for sequence in sequences for path in sequence):
            self._file.unlink(missing_ok=True)
        return self._inner.digest(sequences, *source)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [("**/outlet_catalogue/**/part-*", RunState.READY), ("**/1A/validation/*/*.bin", RunState.QUARANTINED)],
    ids=["a part of an output", "a member of a bundle"],
)
def test_a_file_that_disappears_while_it_is_read_is_a_change_and_not_something_to_wait_for(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch, pattern: str, wanted: RunState
) -> None:
    """What is left is examined again: one part less is another output, one member less another bundle."""
    made = world.make_run(
        "vanishing", outputs=["outlet_catalogue"], damage="index_missing",
        damage_target="gate.layer1.1A.validation", parts=2,
    )  # fmt: skip
    (admitted,) = bench.authority.admit(
        [validate_message(Message("r", json.dumps(made["request"]).encode(), 1), bench.rules)]
    )
    artifacts = LocalArtifacts([str(world.runs)], 1, None)
    file = sorted(Path(made["engine_run_root"]).glob(pattern))[-1]
    monkeypatch.setattr(bench.artifacts, "open", lambda *given: Vanishing(artifacts.open(*given), file))
    bench.drive(UNLIMITED)
    artifacts.close()
    found = bench.authority.run(admitted.run_id)
    assert found is not None
    assert found.state is wanted, (found.reason_code, found.last_error)
    assert not file.exists()


class Archived(Vanishing):
    """An engine run root one of whose files the store has put into an archive."""

    def digest(self, sequences: Any, *source: Any) -> Any:
        digests = self._inner.digest(sequences, *source)
        gone = EvidenceArchived(f"{self._file.name} is archived; restore it", path=self._file.name)
        held = [any(str(self._file).endswith(path) for path in sequence) for sequence in sequences]
        return [gone if hit else digest for hit, digest in zip(held, digests, strict=True)]


@pytest.mark.parametrize("pattern", ["**/outlet_catalogue/**/part-*", "**/1A/validation/*/*.bin"])
def test_a_file_that_was_put_into_an_archive_is_waited_for(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    made = world.make_run("archived", outputs=["outlet_catalogue"])
    (admitted,) = bench.authority.admit(
        [validate_message(Message("r", json.dumps(made["request"]).encode(), 1), bench.rules)]
    )
    artifacts = LocalArtifacts([str(world.runs)], 1, None)
    file = next(Path(made["engine_run_root"]).glob(pattern))
    monkeypatch.setattr(bench.artifacts, "open", lambda *given: Archived(artifacts.open(*given), file))
    bench.drive(UNLIMITED)
    artifacts.close()
    found, last = bench.authority.run(admitted.run_id), bench.authority.events(admitted.run_id)[-1]
    assert found is not None
    assert found.state is RunState.WAITING_EVIDENCE, found.reason_code
    assert "is archived; restore it" in last.details["detail"]


def lose(bench: Bench, claim: Claim) -> None:
    """Let this process believe that a lease ran out, which the authority still knows."""
    bench.leases.release(claim)


def test_a_run_whose_lease_ran_out_is_not_ended_by_another_plan_in_the_place_of_its_own(
    world: World, bench: Bench
) -> None:
    """Whoever has the lease meanwhile finds that plan too, and decides."""
    run_id = admit(world, bench, "lost")
    plan = world.root / "own-store" / plan_ref(run_id)
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"another plan")
    (claim,) = bench.leases.claim(10)
    lose(bench, claim)
    bench.driver.drive([claim])
    found = bench.authority.run(run_id)
    assert found is not None
    assert found.state is RunState.VERIFYING
    bench.clock.pass_seconds(LEASE / SECOND + 1)
    bench.drive()
    found = bench.authority.run(run_id)
    assert found is not None
    assert (found.state, found.reason_code) == (RunState.QUARANTINED, "PLAN_DRIFT")


def test_a_lease_that_runs_out_during_a_shared_examination_is_one_runs_loss_only(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = world.make_run("shared")["request"]
    for key in ("one", "two", "three"):
        message = Message(key, json.dumps(request | {"run_equivalence_key": key}).encode(), 1)
        bench.authority.admit([validate_message(message, bench.rules)])
    claims = bench.leases.claim(10)
    real = bench.artifacts.open

    def lose_then_open(root: str, budget: ReadBudget) -> Any:
        lose(bench, claims[0])
        return real(root, budget)

    monkeypatch.setattr(bench.artifacts, "open", lose_then_open)
    bench.driver.drive(claims)
    states = {}
    for claim in claims:
        found = bench.authority.run(claim.run_id)
        assert found is not None
        states[claim.run_id] = found.state
    assert states == {
        claims[0].run_id: RunState.VERIFYING,
        claims[1].run_id: RunState.WAITING_EVIDENCE,
        claims[2].run_id: RunState.WAITING_EVIDENCE,
    }
    assert bench.artifacts.looks == 2, "the third run shares the examination of the second"


@pytest.mark.parametrize("why", ["a store that is away", "a defect"])
def test_what_hinders_one_run_is_tried_again_and_decides_nothing(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    run_id = admit(world, bench, "hindered")
    failure = Unavailable("the store is away") if why == "a store that is away" else KeyError("a defect")

    def fail(*_: Any) -> Any:
        raise failure

    monkeypatch.setattr(bench.artifacts, "open", fail)
    bench.drive()
    found = bench.authority.run(run_id)
    assert found is not None
    assert (found.state, found.retries, found.lease_owner) == (RunState.VERIFYING, 1, "")
    assert ("the store is away" if why == "a store that is away" else "KeyError") in found.last_error


def test_what_was_not_finished_when_the_process_stops_is_given_back_undecided(world: World, bench: Bench) -> None:
    made = world.make_run("cut")
    bench.authority.admit([validated(made["request"], bench)])
    bench.leases.end_in(-1.0)
    assert bench.drive() == []
    bench.leases.give_back()
    found = bench.authority.run(made["run_id"])
    assert found is not None
    assert (found.state, found.retries, found.lease_until_us) == (RunState.VERIFYING, 0, 0)
    assert [item.run_id for item in bench.authority.claim("another", 10, LEASE)] == [made["run_id"]]


def test_a_drain_that_cannot_deliver_what_is_owed_exits_5_and_the_next_one_delivers(world: World) -> None:
    made = world.make_run("owed")
    world.drop(made["request"])
    somebodys = world.ledger / "run_record" / f"{made['run_id']}.jsonl"
    somebodys.parent.mkdir(parents=True)
    somebodys.write_bytes(b"not ours\n")
    served = world.serve()
    assert served.returncode == 5, served.stderr.decode()[-2000:]
    assert b"RECORD_DRIFT" in served.stderr
    assert not list(world.signals_folder.glob("*.json")), "READY was published without its record"
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    somebodys.unlink()
    deliver(world)
    assert [path for path in world.signals_folder.glob("*.json") if b'"READY"' in path.read_bytes()]


def deliver(world: World) -> None:
    """Serve until what is owed and put off for some seconds is delivered."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if world.serve().returncode == 0:
            return
        time.sleep(0.5)
    raise AssertionError("what is owed is never delivered")
