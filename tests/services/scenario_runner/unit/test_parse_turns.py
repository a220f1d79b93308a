"""Large documents are parsed one at a time by bulk workers; small ones, and a batch, wait for nobody."""

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.contracts.errors import LeaseLostError
from scenario_runner.evidence import parse_turns
from scenario_runner.evidence.parse_turns import parse_in_turn

pytestmark = pytest.mark.unit

LARGE = 4 << 20


def budget(*, patient: bool) -> Any:
    def beat() -> None:
        raise LeaseLostError("it ran out while it waited")

    return SimpleNamespace(share=SimpleNamespace(patient=patient), beat=beat)


@pytest.mark.parametrize(
    ("size", "patient", "waits"),
    [(LARGE, True, True), (LARGE, False, False), (1024, True, False), (1024, False, False)],
    ids=["large, bulk worker", "large, batch", "small, bulk worker", "small, batch"],
)
def test_only_a_bulk_worker_with_a_large_document_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch, size: int, patient: bool, waits: bool
) -> None:
    monkeypatch.setattr(parse_turns, "_BEAT_SECONDS", 0.01)
    with parse_turns._TURN:
        if waits:
            with pytest.raises(LeaseLostError):
                parse_in_turn(budget(patient=patient), size, lambda: "parsed")
        else:
            assert parse_in_turn(budget(patient=patient), size, lambda: "parsed") == "parsed"
