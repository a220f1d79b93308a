"""Hostile engine runs: none becomes READY, each ends explained, and none harms the daemon.

The expected outcomes are written from hardening.md sections 1 and 4, not from the code.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hostile_evidence_support import (
    CONFLICT,
    LARGE,
    MALFORMED,
    MISSING,
    OUTPUT_TARGETS,
    SAYS_NO,
    Drained,
    drain,
    explain,
    make,
    state_of,
)
from support import ForkedWorld, World

from sr_tools import engine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


# gate: an output that needs it, and no gate after it. Every law, ordering and path base is among them.
GATES = {
    "gate.layer1.1A.validation": "outlet_catalogue",  # bundle law
    "gate.layer1.2A.validation": "site_timezones",  # index law, by path
    "gate.layer1.2B.validation": "s1_site_weights_2B",  # index law, from the run root
    "gate.layer1.3A.validation": "zone_alloc",  # member digests
    "gate.layer2.5A.validation": "merchant_class_profile_5A",  # index law, another digest field
    "gate.layer3.6A.validation": "s1_party_base_6A",  # index law, in index order
    "gate.layer3.6B.validation": "s2_flow_anchor_baseline_6B",  # index law, excluding the index
}
LAW_OF = {
    "gate.layer1.1A.validation": engine.BUNDLE_LAW,
    "gate.layer1.3A.validation": engine.CONCAT_LAW,
}  # the rest: index law
EXPECTED: dict[str, tuple[str, str]] = {
    "flag_missing": ("FAILED", MISSING),
    "flag_empty": ("QUARANTINED", MALFORMED),
    "flag_binary": ("QUARANTINED", MALFORMED),
    "flag_huge": ("QUARANTINED", LARGE),
    "flag_wrong_field": ("QUARANTINED", MALFORMED),
    "flag_upper_case": ("QUARANTINED", MALFORMED),
    "flag_bit_off": ("QUARANTINED", CONFLICT),
    "flag_symlink": ("QUARANTINED", MALFORMED),
    "flag_directory": ("QUARANTINED", MALFORMED),
    "flag_fifo": ("QUARANTINED", MALFORMED),
    "flag_says_fail": ("FAILED", SAYS_NO),
    "index_missing": ("FAILED", MISSING),
    "index_empty_items": ("QUARANTINED", MALFORMED),
    "index_not_json": ("QUARANTINED", MALFORMED),
    "index_duplicate_key": ("QUARANTINED", MALFORMED),
    "index_item_without_path": ("QUARANTINED", MALFORMED),
    "index_absolute_path": ("QUARANTINED", MALFORMED),
    "index_parent_path": ("QUARANTINED", MALFORMED),
    "index_dot_path": ("QUARANTINED", MALFORMED),
    "index_duplicate_path": ("QUARANTINED", MALFORMED),
    "index_missing_member": ("QUARANTINED", CONFLICT),
    "index_huge": ("QUARANTINED", LARGE),
    "index_million_entries": ("QUARANTINED", LARGE),
    "index_deep_nesting": ("QUARANTINED", MALFORMED),
    "index_wrong_listed_digest": ("QUARANTINED", CONFLICT),
    "member_tampered": ("QUARANTINED", CONFLICT),
    "member_tampered_flag_follows": ("QUARANTINED", CONFLICT),
    "member_missing": ("QUARANTINED", CONFLICT),
    "member_symlink": ("QUARANTINED", MALFORMED),
    "member_is_directory": ("QUARANTINED", MALFORMED),
    "member_extra_nested_flag": ("QUARANTINED", CONFLICT),
    "bundle_empty": ("QUARANTINED", MALFORMED),
    "concat_shift": ("QUARANTINED", CONFLICT),
    "output_missing": ("FAILED", MISSING),
    "output_empty_directory": ("FAILED", MISSING),
    "output_part_is_directory": ("QUARANTINED", MALFORMED),
    "output_part_symlink": ("QUARANTINED", MALFORMED),
    "output_part_fifo": ("QUARANTINED", MALFORMED),
    "output_root_symlink": ("QUARANTINED", MALFORMED),
    "root_missing": ("FAILED", MISSING),
}
# Without its index a bundle-law gate with an empty bundle misses something rather than contradicting itself.
ALSO_RIGHT = {("bundle_empty", "gate.layer1.1A.validation"): ("FAILED", MISSING)}
SLOW_TO_MAKE = ("index_million_entries", "flag_huge")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


def cases() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for kind in engine.DAMAGE_KINDS:
        if kind == "root_missing":
            found.append((kind, ""))
        elif kind in engine.OUTPUT_DAMAGES:
            forms = engine.TARGET_FORMS.get(kind, ("glob", "directory", "file"))
            found += [
                (kind, target)
                for target, form in zip(OUTPUT_TARGETS, ("glob", "directory", "file"), strict=True)
                if form in forms
            ]
        else:
            laws = engine.TARGET_LAWS.get(kind, engine.LAWS)
            able = [gate for gate in GATES if LAW_OF.get(gate, engine.INDEX_LAW) in laws]
            if kind == "index_missing":  # the bundle law is complete without one: docs/adr/0009
                able = [gate for gate in able if LAW_OF.get(gate, engine.INDEX_LAW) != engine.BUNDLE_LAW]
            found += [(kind, gate) for gate in (able[:2] if kind in SLOW_TO_MAKE else able)]
    return found


CASES = cases()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("damaged") / "world", policy_changes={"evidence_wait_seconds": 0})
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for kind, target in CASES:
        outputs = [GATES[target]] if target in GATES else list(OUTPUT_TARGETS)
        key = f"{kind} {target}"
        made[kind, target] = make(world, key, outputs=outputs, damage=kind, damage_target=target or None)
        world.drop(made[kind, target]["request"], f"{len(made):04d}.json")
    control = make(world, "control", outputs=[*GATES.values(), *OUTPUT_TARGETS])
    world.drop(control["request"], "control.json")
    served = drain(world)
    return Drained(world, made, control, served.stderr.decode())


def test_every_damage_kind_has_an_expected_outcome_and_is_tried() -> None:
    assert set(EXPECTED) == set(engine.DAMAGE_KINDS) == {kind for kind, _ in CASES}


def test_only_the_undamaged_run_is_ready(damaged: Drained) -> None:
    ready = [item["payload"]["run_id"] for item in damaged.signals if item["attributes"]["kind"] == "READY"]
    names = {item["run_id"]: case for case, item in damaged.made.items()} | {damaged.control["run_id"]: "control"}
    assert [names[run_id] for run_id in ready] == ["control"]
    assert {path.stem for path in (damaged.world.ledger / "run_facts_view").iterdir()} == {damaged.control["run_id"]}


@pytest.mark.parametrize(("kind", "target"), CASES, ids=[" ".join(case).strip() for case in CASES])
def test_a_damaged_run_ends_as_it_must_and_says_why(damaged: Drained, kind: str, target: str) -> None:
    made = damaged.made[kind, target]
    document = explain(damaged.world, made)
    right = {EXPECTED[kind], ALSO_RIGHT.get((kind, target), EXPECTED[kind])}
    assert (document["state"], document.get("reason_code")) in right, document["detail"]
    assert document["detail"]
    assert document["sentence"]
    assert_the_report_names_the_culprit(document, kind, target)
    assert_the_end_is_published(damaged, made, document)
    assert made["manifest_fingerprint"] not in damaged.receipts
    assert made["parameter_hash"] not in damaged.receipts


def assert_the_report_names_the_culprit(document: dict[str, Any], kind: str, target: str) -> None:
    if kind == "root_missing":
        assert document["engine_run_root"] in document["detail"]
        return
    gates = {item["gate_id"]: item for item in document["gates"]}
    outputs = {item["output_id"]: item for item in document["outputs"]}
    found = gates[target] if target in gates else outputs[target]
    assert (
        found["outcome"] == {"FAILED": "MISSING", "QUARANTINED": "CONFLICT"}[document["state"]]
        or kind == "flag_says_fail"
    )
    assert found["detail"]
    assert found.get("path") or found.get("missing") or found.get("flag")
    if found["reason_code"] == CONFLICT:
        assert found["expected"] != found["actual"]
        assert found["path"]
    if found["reason_code"] == MISSING:
        assert found["missing"] in document["missing"]
    if target in gates:
        assert {item["outcome"] for item in outputs.values()} == {"NOT_READ"}
        others = {item["outcome"] for gate_id, item in gates.items() if gate_id != target}
        assert others <= {"PASS", "BLOCKED"}
    else:
        assert {item["outcome"] for item in gates.values()} == {"PASS"}


def assert_the_end_is_published(damaged: Drained, made: dict[str, Any], document: dict[str, Any]) -> None:
    run_id, state = made["run_id"], document["state"]
    found = [item for item in damaged.signals if item["partition_key"] == run_id]
    assert [item["attributes"]["kind"] for item in found] == ["TERMINAL"]
    status = (damaged.world.ledger / "run_status" / f"{run_id}.json").read_bytes()
    digest = hashlib.sha256(status).hexdigest()
    message_id = hashlib.sha256(f"terminal|{run_id}|{state}|{digest}".encode()).hexdigest()
    payload = found[0]["payload"]
    assert (found[0]["message_id"], payload["reemit_key"]) == (message_id, message_id)
    assert (payload["status_state"], payload["reason_code"]) == (state, document["reason_code"])
    quarantine = damaged.world.document("quarantine", run_id)
    assert (quarantine is not None) is (state == "QUARANTINED")
    if quarantine is not None:
        assert quarantine["reason_code"] == document["reason_code"]
        assert quarantine["detail"]
    record = damaged.world.document("run_record", run_id, "jsonl")
    assert record[-1]["event_kind"] == f"RUN_{state}"
    assert not {"GATES_PASSED", "RECEIPTS_COMMITTED"} & {line["event_kind"] for line in record}


def test_gates_behind_one_that_has_not_passed_are_blocked_by_name_and_the_daemon_goes_on(world: World) -> None:
    """Each has evidence of its own that is right; it counts only after what it depends on."""
    first, second, last = (f"gate.layer1.{segment}.validation" for segment in ("1A", "1B", "2A"))
    bad = make(world, "bad", outputs=["site_timezones"], damage="flag_bit_off", damage_target=first)
    good = make(world, "good", outputs=["site_timezones"])
    for made in (bad, good):
        world.drop(made["request"], f"{made['run_id']}.json")
    drain(world)
    assert state_of(world, good) == ("READY", "")
    document = explain(world, bad)
    assert (document["state"], document["reason_code"]) == ("QUARANTINED", CONFLICT)
    gates = {item["gate_id"]: item for item in document["gates"]}
    assert {gate_id: item["outcome"] for gate_id, item in gates.items()} == {
        first: "CONFLICT", second: "BLOCKED", last: "BLOCKED"
    }  # fmt: skip
    assert (gates[second]["blocked_by"], gates[last]["blocked_by"]) == ([first], [first, second])


def test_evidence_that_is_missing_is_waited_for_until_the_deadline(world: World) -> None:
    kinds = ("flag_missing", "index_missing", "output_missing", "root_missing", "output_empty_directory")
    made = [make(world, kind, damage=kind, outputs=["outlet_catalogue", "site_timezones"]) for kind in kinds]
    for item in made:
        world.drop(item["request"], f"{item['damage']}.json")
    drain(world)
    assert [state_of(world, item) for item in made] == [("WAITING_EVIDENCE", "")] * len(kinds)
    assert world.signals() == []
    assert all(explain(world, item).get("missing") or item["damage"] == "root_missing" for item in made)


@pytest.mark.parametrize("output", OUTPUT_TARGETS, ids=["glob", "directory", "file"])
def test_what_is_missing_of_a_required_output_is_its_path(world: World, output: str) -> None:
    made = make(world, "missing", outputs=[output], damage="output_missing", damage_target=output)
    world.drop(made["request"])
    drain(world)
    document = explain(world, made)
    (found,) = document["outputs"]
    assert document["missing"] == [found["path"]]
    assert output in found["path"]
    assert "/" in found["path"]
