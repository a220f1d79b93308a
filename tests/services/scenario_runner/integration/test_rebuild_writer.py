"""The writer of a rebuild: a run that the database cannot hold is a finding, and all others come back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import hex32
from restored_support import END, begun, event, restored, terminal

from scenario_runner.authority.rebuilds import NotStorableError
from scenario_runner.authority.values import AttemptRow
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.states import RunState
from scenario_runner.rebuild.rebuild import Rebuild, begin
from scenario_runner.rebuild.values import Restored
from scenario_runner.storage.filesystem import FilesystemStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from scenario_runner.audit.ledger_findings import LedgerFinding
    from scenario_runner.authority.acts import ActionRow
    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.rebuilds import RestoredRun
    from scenario_runner.rebuild.documents import RunToRead

pytestmark = pytest.mark.integration

HUGE = 2**63
ATTEMPT = AttemptRow(1, "a" * 32, "subprocess", "host|7|8", 1, HUGE)
UNSTORABLE: dict[str, dict[str, Any]] = {
    "a time": {"admitted_us": HUGE},
    "the time of an event": {"events": (event(1, "any", HUGE, {"seq": 1, "state": "OPEN"}),)},
    "a time limit of an attempt": {"attempts": (ATTEMPT,), "state": RunState.EXECUTING, "missing": ()},
    "an event that is there twice": {"events": (event(1, "any", 1, {"seq": 1, "state": "OPEN"}),) * 2},
    "a text that is no Unicode": {"reason_code": "\ud800"},
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_batch_that_cannot_be_stored_leaves_nothing(authority: Authority, name: str) -> None:
    unfinished = begun(authority)
    with pytest.raises(NotStorableError):
        authority.restore([terminal("good"), restored("bad", **UNSTORABLE[name])], unfinished.epoch, END)
    assert authority.runs(None, 10) == []
    assert authority.unfinished_rebuild() == unfinished


@pytest.mark.parametrize("error", [ValueError("not of a value"), MemoryError()])
def test_what_does_not_lie_in_a_value_keeps_no_run_out(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def failing(*_: object) -> None:
        raise error

    unfinished = begun(authority)
    module = "sqlite" if type(authority).__name__ == "SqliteAuthority" else "postgres"
    monkeypatch.setattr(f"scenario_runner.authority.{module}_rebuilds._run", failing)
    with pytest.raises(type(error)):
        authority.restore([terminal("good")], unfinished.epoch)
    assert authority.runs(None, 10) == []


def test_the_run_that_cannot_be_stored_is_a_finding_and_the_others_come_back(
    authority: Authority,
    tmp_path: Path,
) -> None:
    runs = {run.run_id: run for run in (restored(f"run {number}") for number in range(21))}
    bad = sorted(runs)[4], sorted(runs)[20]
    for run_id, name in zip(bad, ("a time", "a time limit of an attempt"), strict=True):
        runs[run_id] = replace(runs[run_id], **UNSTORABLE[name])
    report, findings = rebuilt(authority, tmp_path, runs)
    assert [(item.run_id, item.code.value) for item in findings] == [(run_id, "RECORD_DAMAGED") for run_id in bad]
    assert all(item.detail.startswith("the database cannot hold what its record says: ") for item in findings)
    assert {run.run_id for run in authority.runs(None, 100)} == set(runs) - set(bad)
    assert (report.runs, report.restored, dict(report.findings)) == (21, 19, {"RECORD_DAMAGED": 2})
    assert authority.unfinished_rebuild() is None
    (act,) = authority.actions("ledger")
    assert (act.outcome, act.detail) == ("FINDINGS", "21 runs read, 2 findings; terms")


@pytest.mark.parametrize(
    ("most", "size", "batches"), [(4, 1, [4, 4, 2]), (100, 15_000, [3, 3, 3, 1]), (100, 100_000, [1] * 10)]
)
def test_a_batch_ends_by_runs_and_by_bytes(
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    size: int,
    batches: list[int],
) -> None:
    monkeypatch.setattr("scenario_runner.rebuild.rebuild.BATCH", most)
    monkeypatch.setattr("scenario_runner.rebuild.rebuild.BATCH_BYTES", 50_000)
    restore, sizes = authority.restore, list[int]()

    def counted(batch: Sequence[RestoredRun], *more: Any) -> set[str]:
        sizes.append(len(batch))
        return restore(batch, *more)

    monkeypatch.setattr(authority, "restore", counted)
    text = "x" * size
    events = (event(1, "any", 1, {"seq": 1, "state": "WAITING_EVIDENCE", "text": text}),)
    given = [restored(f"run {number}", events=events, projected_seq=1) for number in range(10)]
    report, _ = rebuilt(authority, tmp_path, {run.run_id: run for run in given})
    assert report.restored == len(authority.runs(None, 100)) == 10
    assert sizes == [*batches, 0], "and the end"


def test_a_rebuild_that_another_process_ends_meanwhile_says_so(authority: Authority, tmp_path: Path) -> None:
    runs = {run.run_id: run for run in (terminal(f"run {number}") for number in range(3))}

    def read(run_id: str) -> None:
        if run_id == sorted(runs)[1]:
            authority.restore(list(runs.values()), begun(authority).epoch, END)

    mine = replace(END.action, action_key="mine")
    with pytest.raises(UsageError, match=r"another process has ended this rebuild, as act key of ops, REBUILT"):
        rebuilt(authority, tmp_path, runs, mine, read)
    assert authority.acts(["mine"]) == {}
    assert {run.run_id for run in authority.runs(None, 100)} == set(runs)


def test_a_rebuild_goes_on_on_terms_that_no_column_can_hold(authority: Authority, tmp_path: Path) -> None:
    assert authority.begin_rebuild("ops", "ledger /\udcff") is not None
    report, findings = rebuilt(authority, tmp_path, {hex32("a"): terminal("a")}, terms="ledger /\udcff")
    assert (report.restored, findings, authority.unfinished_rebuild()) == (1, [], None)


def rebuilt(
    authority: Authority,
    folder: Path,
    runs: dict[str, RestoredRun],
    act: ActionRow = END.action,
    on_read: Callable[[str], None] = lambda _: None,
    terms: str = "terms",
) -> tuple[Any, list[LedgerFinding]]:
    store, findings = FilesystemStore(str(folder / "store"), ".private"), list[Any]()
    for run_id in runs:
        store.create(f"fraud-platform/sr/run_record/{run_id}.jsonl", b"")

    def reading(wanted: Iterable[RunToRead]) -> Iterator[Restored]:
        for run in wanted:
            on_read(run.run_id)
            yield Restored(runs[run.run_id], None)

    rebuild = Rebuild(begin(authority, act, terms), store, reading, findings.append, lambda _: None, terms)
    return rebuild.run(act, END.identities), findings
