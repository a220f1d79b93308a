"""What goes on while a ledger is read: a daemon that writes is no finding, and a thread that makes room is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from scenario_runner.audit.ledger_check import LedgerCheck
from scenario_runner.authority.connect import connect_views
from scenario_runner.cli.rebuild_reader import Terms, make_reader
from scenario_runner.contracts import refs
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.rebuild.bus import Witness
from scenario_runner.rebuild.documents import RunToRead
from scenario_runner.rebuild.values import Restored
from scenario_runner.storage.filesystem import FilesystemStore

if TYPE_CHECKING:
    from rebuild_support import Lost

    from scenario_runner.audit.ledger_findings import LedgerFinding
    from scenario_runner.storage.base import StoredObject

pytest_plugins = ("rebuild_fixtures",)
pytestmark = pytest.mark.integration


class BusyStore(FilesystemStore):
    """A store in which a run moves on before its record is read, some times."""

    def __init__(self, lost: Lost, times: int) -> None:
        super().__init__(str(lost.world.store), refs.PRIVATE)
        self._lost, self.times = lost, times

    def read(self, key: str, limit: int) -> StoredObject | None:
        run = self._lost.runs["ready"]
        if key == refs.record_ref(run) and self.times:
            self.times -= 1
            wiring = str(self._lost.world.wiring)
            done = self._lost.world.command("reemit", run, "--wiring", wiring, "--reason", "x")
            assert done.returncode == 0
        return super().read(key, limit)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_moves_on_while_it_is_looked_at_is_no_finding(lost: Lost, times: int) -> None:
    findings: list[LedgerFinding] = []
    views, store = connect_views(f"sqlite:///{lost.world.database}", "test"), BusyStore(lost, times)
    try:
        LedgerCheck(store, views, None, lambda: time.time_ns() // 1000, findings.append, lambda _: None).everything()
    finally:
        views.close()
    assert (store.times, findings) == (0, [])


class ClearedByAnother(dict[Any, Any]):
    """What was examined, which another thread clears once it was asked whether something is there."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.clear()
        return found


def test_what_another_thread_has_just_cleared_is_examined_again(lost: Lost) -> None:
    wiring = load_wiring(str(lost.world.wiring))
    identities = tuple(lost.sql("SELECT name, identity FROM store_identities"))
    read = make_reader(wiring, Terms(None, Witness.BUS))
    read.expect(identities)
    prover: Any = read.restorer._prove_ready.__self__  # type: ignore[attr-defined]
    prover._examined = ClearedByAnother()
    for _ in range(2):
        prover._right.clear()
        assert isinstance(read(RunToRead(lost.runs["ready"])), Restored)
