"""Runs of a ledger that are read in other processes come in their order, and what fails there is heard here."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, cast

import pytest

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.rebuild.documents import RunToRead
from scenario_runner.rebuild.reading import Reading, processes

pytestmark = pytest.mark.integration


KNOWN = (("object_store/x", "a" * 32),)


class Reader:
    """Names the process that reads; dies, or fails, at a run."""

    def __init__(self, dies: str = "", fails: str = "") -> None:
        self.dies, self.fails = dies, fails

    def expect(self, identities: object) -> None:
        assert identities == KNOWN

    def __call__(self, run: RunToRead) -> LedgerFinding:
        if run.run_id == self.dies:
            os._exit(9)
        if run.run_id == self.fails:
            raise Unavailable("the store does not answer")
        return LedgerFinding(FindingCode.RECORD_MISSING, run.run_id, str(os.getpid()), "")


def read(number: int, count: int, **reader: str) -> list[Any]:
    here, make = cast("Any", Reader()), cast("Any", partial(Reader, **reader))
    runs = [RunToRead(f"{number}") for number in range(count)]
    with processes(make, 0, number) as pool:
        return list(Reading(here, KNOWN, 0, pool)(runs))


@pytest.mark.parametrize("alone", [True, False], ids=["copies", "new processes"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_runs_come_in_their_order_and_from_other_processes(
    monkeypatch: pytest.MonkeyPatch, number: int, alone: bool
) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 1 if alone else 2)
    found = read(number, 500)
    assert [item.run_id for item in found] == [f"{number}" for number in range(500)]
    assert (os.getpid() in {int(item.object) for item in found}) is (number == 0)


@pytest.mark.parametrize("reader", [{"dies": "150"}, {"fails": "150"}])
def test_a_process_that_dies_or_fails_makes_the_rebuild_unavailable(reader: dict[str, str]) -> None:
    with pytest.raises(Unavailable) as raised:
        read(1, 200, **reader)
    assert ("was killed" in raised.value.detail) is ("dies" in reader)


def refused() -> Any:
    raise ConfigurationError("profile", "cannot be used", "use another one")


def test_what_keeps_a_process_from_reading_is_heard_where_it_is_asked() -> None:
    with processes(refused, 0, 1) as pool, pytest.raises(Unavailable, match="cannot be used"):
        list(Reading(cast("Any", Reader()), KNOWN, 0, pool)([RunToRead("0")]))


def test_an_interrupt_while_processes_start_is_heard_once_all_of_them_have(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    submit = ProcessPoolExecutor.submit

    def interrupted(pool: Any, task: Any, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        started.append(submit(pool, task, *given))
        return started[-1]

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt), processes(cast("Any", Reader), 0, 2):
        pytest.fail("the interrupt was lost")
    assert [item.result(60) for item in started] == [None, None]
