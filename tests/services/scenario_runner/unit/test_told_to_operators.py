"""What operators are told of a run and of the spool counts only what is meant: no other rows, acts and files."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from authority_support import SECOND, START, hex32

from scenario_runner.audit.explain import _attempt, _findings, _reemits, status_of_record, supersession_of_run
from scenario_runner.audit.findings import Findings
from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.values import AttemptRow, SignalRow, StoredEvent
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.intake.letters import redrives_of
from scenario_runner.intake.spool_check import remove_probes
from scenario_runner.intake.spool_files import oldest_drop

pytestmark = pytest.mark.unit


def test_only_redrives_of_a_letter_are_redrives() -> None:
    acts = [ActionRow(f"{n}", n, "ops", "cli", action, "spool/x", "why", "ADMITTED", "")
            for n, action in enumerate(("redrive", "another", "redrive"))]  # fmt: skip
    reader: Any = SimpleNamespace(actions=lambda _letter: acts)
    assert [act.action_key for act in redrives_of(reader, "spool/x")] == ["0", "2"]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def written(path: Path, seconds_ago: float) -> None:
    path.write_bytes(b"{}")
    os.utime(path, times=(time.time() - seconds_ago,) * 2)


def test_probes_of_processes_that_are_gone_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name, age in (("probe-old", 7200), ("probe-new", 60), ("lot", 7200)):
        written(tmp_path / name, age)
    with opened(tmp_path) as fd:
        assert remove_probes(SimpleNamespace(claimed=fd)) == 1  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["lot", "probe-new"]


def test_the_oldest_request_is_no_file_that_is_taken_for_none(tmp_path: Path) -> None:
    with opened(tmp_path) as fd:
        folders: Any = SimpleNamespace(requests=fd)
        written(tmp_path / "notes.txt", 9000)
        written(tmp_path / ".hidden.json", 9000)
        assert oldest_drop(folders, 10) is None
        written(tmp_path / "a.json", 500)
        written(tmp_path / "b.json", 100)
        dropped = oldest_drop(folders, 10)
    assert dropped is not None
    assert 400 < time.time() - dropped < 600


def test_a_run_tells_of_its_own_supersession_and_of_ready_corrections_of_it() -> None:
    def row(new: str, old: str, state: RunState) -> Any:
        said = SimpleNamespace(old_run_id=old, purpose="p", reason_code="")
        return SimpleNamespace(new_run_id=new, supersession=said, state=state, admitted_us=START)

    rows = [row("b", "a", RunState.READY), row("c", "b", RunState.FAILED), row("d", "b", RunState.READY)]
    reader: Any = SimpleNamespace(supersessions=lambda _run_id: rows)
    told = supersession_of_run(reader, "b")
    assert told["supersedes"]["run_id"] == "a"
    assert [item["run_id"] for item in told["superseded_by"]] == ["d"]
    rows[:] = rows[1:]
    assert supersession_of_run(reader, "b")["supersedes"] is None


def test_a_record_that_no_intake_has_disposed_of_has_no_status_though_another_of_its_run_has() -> None:
    reader: Any = SimpleNamespace(records=lambda _run_id: [SimpleNamespace(raw_sha256="a" * 64)])
    assert status_of_record(reader, hex32("k"), "b" * 64) is None


def test_findings_of_a_report_are_those_that_it_has() -> None:
    report = {"outcome": "MISSING", "gates": [{"gate_id": "g"}], "outputs": []}
    event = StoredEvent(5, EventKind.EVIDENCE_MISSING, START, {"report": report})
    assert _findings([event]) == {"gates": [{"gate_id": "g"}], "outputs": []}


def test_publications_of_a_signal_that_count_as_repeated_come_after_the_first() -> None:
    first = SignalRow("m", "READY", START)
    again, owed = (SignalRow("m", "READY_REEMIT", at, n, "", f"{n}") for n, at in ((1, START + SECOND), (2, None)))
    assert _reemits(SimpleNamespace(rows=(first,))) == {}  # type: ignore[arg-type]
    told = _reemits(SimpleNamespace(rows=(first, again, owed)))["reemits"]  # type: ignore[arg-type]
    assert (told["sent"], told["owed"]) == (1, 1)
    assert _reemits(SimpleNamespace(rows=(SignalRow("m", "READY", None),))) == {}  # type: ignore[arg-type]


def test_of_an_attempt_that_ended_only_what_was_said_is_told() -> None:
    ended = AttemptRow(
        1, hex32("a"), "subprocess", "h", START, SECOND, ended_us=START + 1, outcome="FAILED", detail="no"
    )
    told = _attempt(ended)
    assert told["detail"] == "no"
    assert not {"stop_code", "stderr_tail"} & told.keys()


def test_checks_that_are_not_possible_prove_nothing() -> None:
    found = Findings()
    found.not_possible("one", "why")
    assert not found.ok
    found.expect("two", ok=True)
    assert found.ok
