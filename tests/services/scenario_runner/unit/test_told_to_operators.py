"""What operators are told of a run and of the spool counts only what is meant: no other rows, acts and files."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from authority_support import SECOND, START, hex32

from scenario_runner.audit.explain import _attempt, _findings, _reemits, status_of_record, supersession_of_run
from scenario_runner.audit.findings import Findings
from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.values import Admitted, AttemptRow, SignalRow, StoredEvent
from scenario_runner.contracts.states import Disposition, EventKind, RunState
from scenario_runner.intake import kinesis, spool_check, spool_files
from scenario_runner.intake.kcl_processor import ShardProcessor
from scenario_runner.intake.kinesis import KinesisIntake
from scenario_runner.intake.letters import redrives_of
from scenario_runner.intake.redrive import _predict_run
from scenario_runner.intake.spool import SpoolConsumer
from scenario_runner.intake.spool_check import remove_probes
from scenario_runner.intake.spool_files import oldest_drop
from scenario_runner.kcl.shard_status import ProcessorState

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


def test_a_request_that_could_not_be_taken_is_tried_again_when_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool_files, "dropped", lambda _folders: (["a.json", "b.json"], []))
    monkeypatch.setattr(spool_check, "overlooked", lambda _folders, _names: {})
    for now, names in ((9.0, ["b.json"]), (10.0, ["a.json", "b.json"])):
        consumer: Any = SimpleNamespace(
            _monotonic=lambda now=now: now, _unclaimable={"a.json": 10.0, "gone.json": 10.0}, _names=[], _warned=set()
        )
        SpoolConsumer._list_requests(consumer, None)  # type: ignore[arg-type]
        assert consumer._names == names
        assert consumer._unclaimable == {"a.json": 10.0}


def test_only_records_that_were_refused_just_now_are_logged_one_by_one() -> None:
    def admitted(key: str, disposition: Disposition, *, repeated: bool = False) -> Admitted:
        return Admitted(key, disposition, "CODE", "why", hex32(key), repeated=repeated)

    processor: Any = SimpleNamespace(_shard_id="s")
    with structlog.testing.capture_logs() as logs:
        ShardProcessor._log_admitted(processor, [
            admitted("good", Disposition.ACCEPTED), admitted("bad", Disposition.REJECTED),
            admitted("known", Disposition.REJECTED, repeated=True),
        ])  # fmt: skip
    assert [line["record"] for line in logs if line["event"] == "record refused"] == ["bad"]
    assert [(line["ACCEPTED"], line["REJECTED"], line["repeated"]) for line in logs if "repeated" in line] == [
        (1, 2, 1)
    ]


def test_a_shard_that_has_ended_has_no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinesis, "_lag", lambda status, _now, _wall: status.shard_id)
    statuses = {
        state: SimpleNamespace(shard_id=state.value, state=state) for state in ProcessorState
    }  # fmt: skip
    running = SimpleNamespace(supervisor=SimpleNamespace(statuses=lambda: statuses))
    intake: Any = SimpleNamespace(_running=running, _monotonic=lambda: 0.0)
    assert KinesisIntake.lags(intake) == [state.value for state in ProcessorState if state is not ProcessorState.ENDED]


def test_a_redrive_of_a_run_that_another_one_corrects_is_predicted_as_a_duplicate() -> None:
    correction = SimpleNamespace(new_run_id="other", supersession="a supersession")
    known = SimpleNamespace(run_equivalence_key="k", intent={})
    reader: Any = SimpleNamespace(run=lambda _run_id: known, supersessions=lambda _run_id: [correction])
    run: Any = SimpleNamespace(run_id="r", run_equivalence_key="k", intent={}, supersession=None)
    assert _predict_run(reader, run) == (Disposition.DUPLICATE, "", "")
