"""The rate of a scrub, what is kept of the last one, and what it calls an outage."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.audit import recomputed
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.recomputed import EvidenceCheck
from scenario_runner.audit.scrub import Clock, EvidenceUnreadError, Pace, SharedEvidence, drift_digest
from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.scrubs import LastScrub, last_scrub
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.errors import EvidenceArchived, EvidenceChanged, EvidenceMissing, Unavailable
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.evidence.findings import Finding, Report
from scenario_runner.service.observer import scrub_gauges

pytestmark = pytest.mark.unit


class FakeTime:
    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)


def test_reading_is_held_to_the_rate_over_many_examinations() -> None:
    time = FakeTime()
    pace = Pace(100, time.clock())
    for more in (50, 50, 0, 30, 100):
        pace.note(more)
    assert (pace.read, time.slept) == (230, pytest.approx(2.3))


def test_a_pause_is_not_made_up_for_by_a_burst() -> None:
    time = FakeTime()
    pace = Pace(100, time.clock())
    time.now = 60
    pace.note(100)
    assert time.slept == pytest.approx(1.0)


def test_without_a_bound_nothing_waits() -> None:
    time = FakeTime()
    pace = Pace(0, time.clock())
    pace.note(10**12)
    assert (pace.read, time.slept) == (10**12, 0)


def test_a_scrub_takes_back_only_what_was_found_before_it_began() -> None:
    found = LastScrub().after(5, "a", 2)
    assert (found.ended_us, found.drifted) == (0, 2)
    assert found.after(9, "b", 0) == found, "one of some runs takes nothing back"
    assert found.after(9, "b", 3).drifted == 3
    assert found.after(9, "b", 0, 6) == LastScrub(9), "found before it began"
    assert found.after(9, "b", 0, 4) == LastScrub(9, found.found), "and since it began"
    assert found.after(9, "a", 1, 4).drifted == 1, "but for what itself has told"


def test_few_findings_of_scrubs_are_kept_and_the_most_drift_and_the_newest_among_them() -> None:
    last = LastScrub().after(1, "first", 99)
    for number in range(2, 50):
        last = last.after(number, str(number), 1)
    assert (len(last.found), last.drifted, last.found[-1][0]) == (16, 99, 49)
    assert last.after(60, "whole", 0, 50).drifted == 0


def test_the_last_scrub_is_read_as_it_was_kept() -> None:
    def act(detail: str) -> ActionRow:
        return ActionRow("scrub/last", 0, "a", "cli", "scrub", "scrub/last", "r", "DONE", detail)

    kept = LastScrub(17, ((3, "a", 2), (9, "b", 1)))
    assert last_scrub(act(kept.text())) == kept
    assert parse_json(kept.text().encode())["drifted"] == 2, "daemons of an older release ask for it"
    assert last_scrub(act('{"drifted":3,"ended_us":17}')) == LastScrub(17, ((17, "", 3),)), "as an older release wrote"
    assert last_scrub(None) == last_scrub(act("")) == LastScrub()


def test_daemons_show_what_the_last_scrub_found_and_when_one_of_all_runs_ended() -> None:
    assert scrub_gauges(LastScrub(3_000_000, ((1, "a", 2),))) == {
        ("sr_scrub_drifted_runs", ""): 2.0, ("sr_scrub_last_end_timestamp_seconds", ""): 3.0,
    }  # fmt: skip


VIEW: Any = SimpleNamespace(document={"pins": {}})
PACK: Any = SimpleNamespace(digest="d")


class Scripted:
    """An examination of two outputs under one gate, as SharedEvidence meets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, examine: Callable[[], Finding]) -> None:
        nothing: Any = None
        self.time, self.calls = FakeTime(), 0
        self.evidence = SharedEvidence(nothing, nothing, Pace(0, self.time.clock()))

        def check(check: SharedEvidence, _view: object, pack: Any, _gates: object, found: Findings) -> None:
            finding = check._examine(pack, nothing)
            for item in [*finding.report["gates"], *finding.report["outputs"]]:
                found.expect(item["name"], ok=item["outcome"] == "PASS" and not item.get("differs"),
                             detail=str(item.get("detail", "")))  # fmt: skip
            found.expect("the evidence as a whole passes", ok=not finding.reason, detail=finding.detail)

        def examined(*_: object) -> Finding:
            self.calls += 1
            return examine()

        monkeypatch.setattr(EvidenceCheck, "check", check)
        monkeypatch.setattr(EvidenceCheck, "_examine", examined)

    def checked(self) -> list[Json]:
        found = Findings()
        self.evidence.check(VIEW, PACK, (), found)
        return found.checks


def archived_with(*others: Json, gate: bool = False) -> Finding:
    report = Report()
    entry = {"name": "archived"} | report.classify(EvidenceArchived("part is in GLACIER; restore it", path="part"))
    (report.gates if gate else report.outputs).append(entry)
    report.outputs.extend(others)
    return report.finding(None)


def test_what_is_archived_is_unreadable_and_so_is_what_was_not_reached_because_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    not_read = {"name": "output", "outcome": "NOT_READ", "detail": "its gates have not passed"}
    scripted = Scripted(monkeypatch, lambda: archived_with(not_read, gate=True))
    for _ in range(2):
        (check,) = scripted.checked()
        assert (check["ok"], check["not_possible"]) == (True, True)
        assert "GLACIER" in check["detail"]
    assert scripted.calls == 1, "evidence that could not be read is remembered"


def test_an_archived_object_hides_no_drift_of_other_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    tampered = {"name": "tampered", "outcome": "PASS", "differs": True}
    scripted = Scripted(monkeypatch, lambda: archived_with(tampered))
    assert [(check["check"], check["ok"]) for check in scripted.checked()] == [("tampered", False)]

    def missing_too() -> Finding:
        report = Report()
        for refusal in (EvidenceMissing("gone", path="b"), EvidenceArchived("in GLACIER", path="a")):
            report.outputs.append({"name": refusal.path} | report.classify(refusal))
        return report.finding(None)

    checks = Scripted(monkeypatch, missing_too).checked()
    assert [check["check"] for check in checks] == ["b", "the evidence as a whole passes"]


def test_an_outage_is_met_once_for_all_runs_over_the_same_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine() -> Finding:
        raise Unavailable("no route to host")

    scripted = Scripted(monkeypatch, examine)
    with pytest.raises(Unavailable, match="no route"):
        scripted.checked()
    (check,) = scripted.checked()
    assert check["not_possible"]
    assert "no route" in check["detail"]
    assert scripted.calls == 1


def test_evidence_that_never_keeps_still_is_read_again_after_a_pause_and_then_unreadable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = EvidenceCheck._examine
    scripted = Scripted(monkeypatch, archived_with)
    monkeypatch.setattr(EvidenceCheck, "_examine", real)
    tries: list[float] = []

    def changed(*_: object) -> None:
        tries.append(scripted.time.now)
        raise EvidenceChanged("part changed before it was read", path="part")

    monkeypatch.setattr(recomputed, "examine", changed)
    artifacts: Any = SimpleNamespace(open=lambda *_: SimpleNamespace(close=lambda: None))
    key: Any = SimpleNamespace(root="r", bounds=EvidenceBounds(1, 1, 1))
    scripted.evidence._artifacts = artifacts
    with pytest.raises(EvidenceUnreadError, match="changed each time"):
        scripted.evidence._examine(PACK, key)
    assert tries == [0.0, 2.0, 4.0]


def test_threads_that_hash_together_read_what_each_of_them_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they overtake each other between two reports: no byte counts twice, and none is waited for twice."""
    real = EvidenceCheck._examine
    scripted = Scripted(monkeypatch, archived_with)
    monkeypatch.setattr(EvidenceCheck, "_examine", real)
    time = FakeTime()
    scripted.evidence._pace = Pace(1000, time.clock())

    def hashed(budget: Any) -> Any:
        def one(_: int) -> None:
            for _ in range(5000):
                budget.beat(10)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
        return (Report().finding(None), None)

    monkeypatch.setattr(recomputed, "examine", lambda budget, *_: hashed(budget))
    artifacts: Any = SimpleNamespace(open=lambda _root, budget: Closing(budget))
    key: Any = SimpleNamespace(root="r", bounds=EvidenceBounds(1, 1, 1))
    scripted.evidence._artifacts = artifacts
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        scripted.evidence._examine(PACK, key)
    finally:
        sys.setswitchinterval(before)
    assert scripted.evidence._pace.read == 8 * 5000 * 10


class Closing:
    """A run root whose examination only reports what it has read."""

    def __init__(self, budget: Any) -> None:
        self.beat = budget.beat

    def close(self) -> None:
        """Nothing is open."""


def test_drift_is_the_same_whatever_words_tell_of_it() -> None:
    found = {"check": "output a re-hashes", "ok": False, "expected": "1", "actual": "2", "detail": "said so"}
    assert drift_digest([found]) == drift_digest([found | {"detail": "said otherwise", "law": "l"}])
    others = [found | {"check": "output b re-hashes"}, found | {"actual": "3"}, found | {"expected": "0"}]
    gone = [found | {"actual": None}, found | {"actual": "", "detail": "elsewhere"}]
    assert len({drift_digest([item]) for item in [found, *others, *gone]}) == 6
    assert drift_digest([found, others[0]]) != drift_digest([found])
