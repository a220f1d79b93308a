"""When a run whose evidence is missing is looked at again: a pure function of how long nothing new was found."""

from dataclasses import replace

import pytest
from test_lifecycle import ADMITTED, SECOND, claim

from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.canonical import canonical_sha256
from scenario_runner.contracts.errors import EvidenceMissing, SequenceError
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.evidence.findings import Finding, Outcome, refused_without_report
from scenario_runner.runs.effects import Examined
from scenario_runner.runs.waits import MOST_ROOT_BYTES, waiting_or_failed

pytestmark = pytest.mark.unit

FLAG_MISSING = refused_without_report(Outcome.MISSING, EvidenceMissing("the flag is not there", path="g/_passed.flag"))
ROOT_ABSENT = replace(
    refused_without_report(Outcome.MISSING, EvidenceMissing("nothing is there", path="")), root_absent=True
)
DAY = 86_400


def waits(finding: Finding, **row: object) -> Claim:
    """A run that waits since its admission, of which this finding is on record."""
    found = {"state": RunState.WAITING_EVIDENCE, "report_digest": canonical_sha256(finding.report), "wakes": 20,
             "updated_us": ADMITTED, "deadline_us": ADMITTED + DAY * SECOND}  # fmt: skip
    return claim(**{**found, **row})


def looked_at(run: Claim, finding: Finding, seconds: float, root: str = "/engine/run") -> Transition:
    """What becomes of it when it is examined so many seconds after its last change."""
    now_us = run.updated_us + round(seconds * SECOND)
    return waiting_or_failed(run, now_us, Examined(finding, now_us), root)


def pause(run: Claim, finding: Finding, seconds: float) -> float:
    found = looked_at(run, finding, seconds)
    assert found.due_us is not None
    assert found.to_state is RunState.WAITING_EVIDENCE
    return (found.due_us - run.updated_us) / SECOND - seconds


@pytest.mark.parametrize(
    ("quiet", "least", "most"),
    [
        (0, 60, 60), (479, 60, 60), (480, 60, 60), (600, 60, 75), (960, 60, 120), (3600, 390, 450), (4800, 540, 600),
        (3 * 3600, 540, 600), (20 * 3600, 540, 600),
    ],
)  # fmt: skip
def test_the_pause_is_about_an_eighth_of_the_time_that_nothing_new_was_found(quiet: int, least: int, most: int) -> None:
    assert least <= pause(waits(FLAG_MISSING), FLAG_MISSING, quiet) <= most


def test_runs_that_lack_the_same_are_due_at_the_same_moments_and_others_at_others() -> None:
    def moments(root: str, finding: Finding) -> set[int]:
        found = [looked_at(waits(finding), finding, seconds, root).due_us for seconds in range(7200, 9000, 7)]
        return {due_us % (60 * SECOND) for due_us in found if due_us is not None}

    other = refused_without_report(Outcome.MISSING, EvidenceMissing("an index is not there", path="g/index.json"))
    found = [moments("/one", FLAG_MISSING), moments("/two", FLAG_MISSING), moments("/one", other)]
    assert [len(item) for item in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3
    roots = [moments(f"/root-{number}", FLAG_MISSING) for number in range(600)]
    assert len(set.union(*roots)) > 30, "a herd with a root each is spread"


def test_a_young_wait_is_looked_at_after_one_two_four_seconds() -> None:
    assert [pause(waits(FLAG_MISSING, wakes=wakes), FLAG_MISSING, 7) for wakes in range(8)] == [
        1, 2, 4, 8, 16, 32, 60, 60,
    ]  # fmt: skip


def test_something_new_begins_the_schedule_anew() -> None:
    run = waits(FLAG_MISSING, wakes=20, report_digest="another report")
    assert pause(run, FLAG_MISSING, 3 * 3600) == 60
    assert looked_at(run, FLAG_MISSING, 3 * 3600).events[-1].kind is EventKind.EVIDENCE_MISSING


def test_no_pause_is_longer_than_what_is_left_until_the_deadline() -> None:
    assert looked_at(waits(FLAG_MISSING), FLAG_MISSING, DAY - 5).due_us == ADMITTED + DAY * SECOND
    assert looked_at(waits(ROOT_ABSENT), ROOT_ABSENT, 5).due_us == ADMITTED + 65 * SECOND
    soon = waits(ROOT_ABSENT, deadline_us=ADMITTED + 30 * SECOND)
    assert looked_at(soon, ROOT_ABSENT, 29).due_us == ADMITTED + 30 * SECOND


def test_a_clock_that_was_set_back_makes_no_pause_shorter_or_longer() -> None:
    assert pause(waits(FLAG_MISSING), FLAG_MISSING, -3600) == 60
    assert looked_at(waits(ROOT_ABSENT), ROOT_ABSENT, -3600).absent_root == ""


@pytest.mark.parametrize("quiet", [60, 3600, 20 * 3600])
def test_a_run_whose_root_stays_absent_is_due_at_its_deadline_and_its_root_is_named(quiet: int) -> None:
    found = looked_at(waits(ROOT_ABSENT), ROOT_ABSENT, quiet)
    assert (found.due_us, found.absent_root) == (ADMITTED + DAY * SECOND, "/engine/run")
    assert (found.events, found.at_us, found.keep_lease) == ((), ADMITTED, False)


def test_a_run_whose_root_was_absent_a_moment_ago_is_looked_at_itself() -> None:
    run = waits(ROOT_ABSENT, wakes=4)
    assert pause(run, ROOT_ABSENT, 59) == 16
    assert looked_at(run, ROOT_ABSENT, 59).absent_root == ""


def test_a_run_whose_root_has_too_long_a_name_for_an_index_is_looked_at_itself() -> None:
    run, longest = waits(ROOT_ABSENT), "/" + "é" * ((MOST_ROOT_BYTES - 1) // 2)
    assert looked_at(run, ROOT_ABSENT, 3600, longest).absent_root == longest
    found = looked_at(run, ROOT_ABSENT, 3600, longest + "éé")
    assert found.absent_root == ""
    assert found.due_us is not None
    assert found.due_us <= ADMITTED + 4200 * SECOND


def test_a_run_that_waits_for_a_part_of_its_root_is_looked_at_itself() -> None:
    assert looked_at(waits(FLAG_MISSING), FLAG_MISSING, DAY - 3600).absent_root == ""


@pytest.mark.parametrize("finding", [FLAG_MISSING, ROOT_ABSENT])
def test_at_the_deadline_there_is_a_verdict_however_long_the_pauses_were(finding: Finding) -> None:
    found = looked_at(waits(finding), finding, DAY)
    assert (found.to_state, found.reason_code) == (RunState.FAILED, "EVIDENCE_MISSING_DEADLINE")


def test_only_a_waiting_run_waits_for_its_root() -> None:
    with pytest.raises(SequenceError, match="only a waiting run"):
        replace(looked_at(waits(FLAG_MISSING), FLAG_MISSING, DAY), absent_root="/engine/run")
