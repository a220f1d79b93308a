"""Objects of a ledger by the run that they are of, apart from those that no run can have."""

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.audit import ledger_listing
from scenario_runner.audit.ledger_listing import ListedRun, listed_runs

pytestmark = pytest.mark.unit


def test_a_run_has_its_own_objects_and_foreign_ones_are_listed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    item: list[Any] = [SimpleNamespace(number=number) for number in range(6)]
    named = {
        "a": [("1", "a", "r1", item[0]), ("2", "a", "", item[1]), ("3", "a", "", item[2])],
        "b": [("1", "b", "r1", item[3]), ("3", "b", "r3", item[4]), ("4", "b", "r4", item[5])],
    }
    monkeypatch.setattr(ledger_listing, "RUN_FOLDERS", ("a", "b"))
    monkeypatch.setattr(ledger_listing, "_named", lambda _store, folder: iter(named[folder]))
    store: Any = None
    assert list(listed_runs(store)) == [
        ListedRun("r1", {"a": item[0], "b": item[3]}),
        ListedRun("", {}, (item[1],)),
        ListedRun("r3", {"b": item[4]}),
        ListedRun("", {}, (item[2],)),
        ListedRun("r4", {"b": item[5]}),
    ]
