"""Runs of a ledger that are read in other processes come in their order, and what fails there is heard here."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, cast

import pytest

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.rebuild import reading
from scenario_runner.rebuild.reading import Reading, RunToRead

pytestmark = pytest.mark.integration


class Reader:
    """Names the process that reads; dies, or fails, at a run."""

    def __init__(self, dies: str = "", fails: str = "") -> None:
        self.dies, self.fails = dies, fails

    def __call__(self, run: RunToRead) -> LedgerFinding:
        if run.run_id == self.dies:
            os._exit(9)
        if run.run_id == self.fails:
            raise Unavailable("the store does not answer")
        return LedgerFinding(FindingCode.RECORD_MISSING, run.run_id, str(os.getpid()), "")


def read(monkeypatch: pytest.MonkeyPatch, count: int, **reader: str) -> list[Any]:
    monkeypatch.setattr(reading, "FEW", 5)
    here, make = cast("Any", Reader()), cast("Any", partial(Reader, **reader))
    runs = [RunToRead(f"{number}") for number in range(count)]
    return list(Reading(here, make, threads=0, processes=1)(runs))


def test_runs_come_in_their_order_and_many_from_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, elsewhere in ((5, False), (200, True)):
        found = read(monkeypatch, count)
        assert [item.run_id for item in found] == [f"{number}" for number in range(count)]
        assert ({item.object for item in found} != {str(os.getpid())}) is elsewhere


@pytest.mark.parametrize("reader", [{"dies": "150"}, {"fails": "150"}])
def test_a_process_that_dies_or_fails_makes_the_rebuild_unavailable(
    monkeypatch: pytest.MonkeyPatch, reader: dict[str, str]
) -> None:
    with pytest.raises(Unavailable) as raised:
        read(monkeypatch, 200, **reader)
    assert ("was killed" in raised.value.detail) is ("dies" in reader)
