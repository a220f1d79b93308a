"""The rate of a scrub, what is kept of the last one, and what it calls an outage."""

from typing import Any

import pytest

from scenario_runner.audit.recomputed import EvidenceCheck
from scenario_runner.audit.scrub import Clock, Pace, SharedEvidence
from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.scrubs import LastScrub, last_scrub
from scenario_runner.contracts.errors import EvidenceArchived, EvidenceMissing, Unavailable
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
    for done in (50, 100, 100, 30, 130):  # the fourth begins another examination
        pace.note(done, 1000)
    assert (pace.read, time.slept) == (230, pytest.approx(2.3))


def test_a_pause_is_not_made_up_for_by_a_burst() -> None:
    time = FakeTime()
    pace = Pace(100, time.clock())
    time.now = 60
    pace.note(100, 100)
    assert time.slept == pytest.approx(1.0)


def test_without_a_bound_nothing_waits() -> None:
    time = FakeTime()
    pace = Pace(0, time.clock())
    pace.note(10**12, 10**12)
    assert (pace.read, time.slept) == (10**12, 0)


def test_a_scrub_of_some_runs_takes_no_drift_back() -> None:
    found = LastScrub(5, 2).after(9, 0, whole=False)
    assert (found, found.after(9, 0, whole=True)) == (LastScrub(5, 2), LastScrub(9, 0))
    assert LastScrub(5, 2).after(9, 3, whole=False) == LastScrub(5, 3)


def test_the_last_scrub_is_read_as_it_was_kept() -> None:
    kept = LastScrub(17, 3)
    action = ActionRow("scrub/last", 0, "a", "cli", "scrub", "scrub/last", "r", "DONE", kept.text())
    assert last_scrub(action) == kept
    assert last_scrub(None) == LastScrub()


def test_daemons_show_what_the_last_scrub_found_and_when_one_of_all_runs_ended() -> None:
    assert scrub_gauges(LastScrub(3_000_000, 2)) == {
        ("sr_scrub_drifted_runs", ""): 2.0, ("sr_scrub_last_end_timestamp_seconds", ""): 3.0,
    }  # fmt: skip


def finding_of(refusal: EvidenceMissing) -> Finding:
    report = Report()
    report.classify(refusal)
    return report.finding(None)


def test_a_scrub_calls_an_archived_object_unreadable_and_a_missing_one_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing: Any = None
    evidence = SharedEvidence(nothing, nothing, Pace(0, FakeTime().clock()))
    missing = finding_of(EvidenceMissing("part is not there", path="part"))
    monkeypatch.setattr(EvidenceCheck, "_examine", lambda *_: missing)
    assert evidence._examine(nothing, nothing) is missing
    archived = finding_of(EvidenceArchived("part is archived in GLACIER; restore it", path="part"))
    monkeypatch.setattr(EvidenceCheck, "_examine", lambda *_: archived)
    with pytest.raises(Unavailable, match="GLACIER"):
        evidence._examine(nothing, nothing)
