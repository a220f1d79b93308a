"""Bounds of the evidence are pinned with a run, and are no news to runs of policies that name none."""

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.contracts.canonical import canonical_sha256
from scenario_runner.contracts.errors import EvidenceRefused, Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import (
    DEFAULT_BOUNDS,
    EvidenceBounds,
    PlanInputs,
    plan_hash,
    plan_inputs_from_document,
)
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Strategy
from scenario_runner.evidence.bounds import check_extent

pytestmark = pytest.mark.unit

INTENT = Intent("0" * 32, "key", "a" * 64, "b" * 64, 7, "s", (), "from", "to", ("out",), Strategy.AUTO, "/runs/1")


def inputs(**more: EvidenceBounds) -> PlanInputs:
    return PlanInputs("d" * 64, {"policy_id": "p"}, Strategy.AUTO, ("out",), ("gate",), (), 60, 3, **more)


def test_a_policy_without_bounds_gives_the_documents_and_hashes_that_it_always_gave() -> None:
    document = {
        "pack_digest": "d" * 64, "policy_rev": {"policy_id": "p"}, "strategy": "AUTO", "outputs": ["out"],
        "gates": ["gate"], "traffic": [], "evidence_wait_seconds": 60, "attempt_limit": 3,
    }  # fmt: skip
    assert inputs().document() == document
    by_hand = canonical_sha256({"intent": INTENT.document(), "inputs": document, "run_id": INTENT.run_id})
    assert plan_hash(INTENT, inputs()) == by_hand
    assert plan_inputs_from_document(document) == inputs()
    assert plan_inputs_from_document(document).bounds == DEFAULT_BOUNDS


def test_bounds_of_a_policy_are_part_of_the_plan_and_come_back_from_the_row() -> None:
    bounds = EvidenceBounds(max_output_files=5)
    pinned = inputs(bounds=bounds)
    assert pinned.document()["bounds"] == {
        "max_output_bytes": 1 << 40, "max_output_files": 5, "max_look_seconds": 3600,
    }  # fmt: skip
    assert plan_inputs_from_document(pinned.document()) == pinned
    assert plan_hash(INTENT, pinned) != plan_hash(INTENT, inputs())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"key_of_tomorrow": 1}, "key_of_tomorrow"),
        ({"bounds": {"max_of_tomorrow": 1}}, "bounds.max_of_tomorrow"),
        ({"output_digest_source": "of_tomorrow"}, "output_digest_source of_tomorrow"),
    ],
)
def test_a_run_with_something_pinned_that_this_release_does_not_know_is_put_off(
    more: dict[str, Any], named: str
) -> None:
    with pytest.raises(Unavailable, match=f"admitted by a newer release; .* {named} "):
        plan_inputs_from_document(inputs().document() | more)


@pytest.mark.parametrize(
    ("files", "size", "refused"),
    [
        (3, 100, ""),
        (4, 100, "out holds 4 files, the policy's max_output_files allows 3"),
        (3, 101, "out holds 101 bytes, the policy's max_output_bytes allows 100"),
    ],
    ids=["just within both", "one file too many", "one byte too many"],
)
def test_what_is_beyond_a_bound_is_refused_before_anything_is_hashed(files: int, size: int, refused: str) -> None:
    bounds = EvidenceBounds(max_output_bytes=100, max_output_files=3)
    root: Any = SimpleNamespace(budget=SimpleNamespace(bounds=bounds), size=lambda _files: size)
    given = (root, "out", [f"out/{number}" for number in range(files)])
    if not refused:
        check_extent(*given)
        return
    with pytest.raises(EvidenceRefused, match=refused) as raised:
        check_extent(*given)
    assert (raised.value.reason, raised.value.path) == (Reason.EVIDENCE_TOO_LARGE, "out")
