"""Hostile engine runs: none becomes READY, each ends explained, and none harms the daemon.

The expected outcomes are written from hardening.md sections 1 and 4, not from the code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import COMMAND, PACK, ForkedWorld, World

from scenario_runner.artifacts import local
from scenario_runner.artifacts.base import MAX_DOCUMENT_BYTES
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.audit.explain import explain_run
from scenario_runner.cli.status import find_run
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.plan import EvidenceBounds
from sr_tools import engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZES: dict[str, Any] = {"members": 3, "member_bytes": 64, "parts": 2, "part_bytes": 64}
SMALL: dict[str, Any] = {"outputs": ["outlet_catalogue"], **SIZES}
MISSING, MALFORMED, CONFLICT = "EVIDENCE_MISSING_DEADLINE", "EVIDENCE_MALFORMED", "EVIDENCE_CONFLICT"
LARGE, CHANGED, SAYS_NO = "EVIDENCE_TOO_LARGE", "EVIDENCE_CHANGED", "GATE_FAIL"

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
OUTPUT_TARGETS = ("outlet_catalogue", "s3_candidate_set_1A", "s0_sealed_inputs_1A")  # glob, directory, file
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


def fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def make(world: World, key: str, **options: Any) -> dict[str, Any]:
    """A small run of an identity of its own, so no receipt of one is about another."""
    chosen = {
        **SMALL,
        "manifest_fingerprint": fingerprint(f"m{key}"),
        "parameter_hash": fingerprint(f"p{key}"),
        **options,
    }
    return world.make_run(key, **chosen)


def flag_of(made: dict[str, Any], segment: str = "1A") -> Path:
    return next(Path(made["engine_run_root"]).glob(f"data/layer*/{segment}/validation/*/_passed.flag"))


def index_of(made: dict[str, Any], segment: str = "2A") -> Path:
    return next(path for path in flag_of(made, segment).parent.glob("*index*.json"))


def entries_of(document: Any) -> list[dict[str, Any]]:
    return engine.index_entries(document)


def explain(world: World, made: dict[str, Any]) -> dict[str, Any]:
    return find_run(str(world.wiring), made["run_id"], explain_run)


def state_of(world: World, made: dict[str, Any]) -> tuple[str, str]:
    document = explain(world, made)
    return document["state"], document.get("reason_code") or ""


def drain(world: World) -> subprocess.CompletedProcess[bytes]:
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    assert b"Traceback" not in served.stderr
    return served


@contextmanager
def polling(seconds: float = 30.0) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Gives ``until(check)``: waits until a check is true, looking often."""
    end = time.monotonic() + seconds
    pause = threading.Event()

    def until(check: Callable[[], Any]) -> Any:
        while not (value := check()):
            assert time.monotonic() < end, "waited too long"
            pause.wait(0.02)
        return value

    yield until


@dataclass
class Drained:
    """All damaged runs after one ``serve``."""

    world: World
    made: dict[tuple[str, str], dict[str, Any]]
    control: dict[str, Any]
    log: str

    @cached_property
    def signals(self) -> list[dict[str, Any]]:
        return self.world.signals()

    @cached_property
    def receipts(self) -> str:
        """Paths of all instance receipts."""
        return "\n".join(map(str, (self.world.ledger / "instance_receipts").rglob("*.json")))


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


# --- attacks of our own on flag, index and bundle


def rewrite_flag(change: Callable[[str], str], segment: str = "1A") -> Callable[[dict[str, Any]], None]:
    def damage(made: dict[str, Any]) -> None:
        path = flag_of(made, segment)
        digest = next(word for word in path.read_text("utf-8").replace('"', " ").split() if len(word) == 64)
        path.write_bytes(change(digest).encode("utf-8", "surrogatepass"))

    return damage


def rewrite_index(change: Callable[[Any], Any], segment: str = "2A") -> Callable[[dict[str, Any]], None]:
    def damage(made: dict[str, Any]) -> None:
        path = index_of(made, segment)
        path.write_text(json.dumps(change(json.loads(path.read_bytes()))), "utf-8")

    return damage


def first_entry(**fields: Any) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        entries_of(document)[0].update(fields)
        return document

    return change


def one_more(**entry: Any) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        entries_of(document).append(entry)
        return document

    return change


def two_lists(document: Any) -> Any:
    return {"items": entries_of(document), "files": entries_of(document)}


def linked(find: Callable[[dict[str, Any]], Path], where: str) -> Callable[[dict[str, Any]], None]:
    """Replace a path by a link to where it was moved: beside it, or out of the run root."""

    def damage(made: dict[str, Any]) -> None:
        path = find(made)
        aside = (
            path.with_name(path.name + ".aside") if where == "beside" else Path(made["engine_run_root"] + ".outside")
        )
        path.rename(aside)
        path.symlink_to(aside)

    return damage


def written(
    name: bytes, data: bytes = b"x", folder: Callable[[dict[str, Any]], Path] = lambda m: flag_of(m).parent
) -> Any:
    def damage(made: dict[str, Any]) -> None:
        path = os.fsencode(folder(made)) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    return damage


def output_folder(made: dict[str, Any]) -> Path:
    return next(Path(made["engine_run_root"]).glob("data/layer1/1A/s3_candidate_set_1A/*/*"))


def nested_excluded_member(made: dict[str, Any]) -> None:
    """An index-law bundle lists a payload that is named like the flag, and the payload is tampered with."""
    path = index_of(made)
    payload = path.parent / "sub" / "_passed.flag"
    payload.parent.mkdir()
    payload.write_bytes(b"right")
    document = json.loads(path.read_bytes())
    entries_of(document).append({"path": "sub/_passed.flag", "sha256_hex": fingerprint("wrong")})
    path.write_text(json.dumps(document), "utf-8")


ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], object], set[str]]] = {
    # flags: what must never be a pass
    **{
        f"flag {name}": (rewrite_flag(change), {"QUARANTINED", "FAILED"})
        for name, change in {
            "of two lines": lambda h: f"sha256_hex = {h}\nsha256_hex = {'0' * 64}\n",
            "that fails on its second line": lambda h: f"sha256_hex = {h}\nstatus = FAIL\n",
            "with a key twice": lambda h: f'{{"sha256_hex": "{"0" * 64}", "sha256_hex": "{h}"}}',
            "in upper-case json": lambda h: f'{{"sha256_hex": "{h.upper()}"}}',
            "with a byte order mark": lambda h: f"\ufeffsha256_hex = {h}\n",
            "with nul": lambda h: f"sha256_hex = {h}\0\n",
            "in utf-16": lambda h: "".join(f"{char}\0" for char in f"sha256_hex = {h}\n"),
            "with a prefix": lambda h: f"sha256_hex = sha256:{h}\n",
            "in quotes": lambda h: f'sha256_hex = "{h}"\n',
            "with something after": lambda h: f"sha256_hex = {h} # checked\n",
            "one character longer": lambda h: f"sha256_hex = {h}0\n",
            "in full-width digits": lambda h: "sha256_hex = " + "\uff10" * 64,
            "as a list": lambda h: f'["sha256_hex", "{h}"]',
            "as json text": lambda h: f'"sha256_hex = {h}"',
            "with a digest in a list": lambda h: f'{{"sha256_hex": ["{h}"]}}',
            "with null": lambda h: '{"sha256_hex": null}',
            "with the field in upper case": lambda h: f"SHA256_HEX = {h}\n",
            "that says status fail": lambda h: f'{{"sha256_hex": "{h}", "status": "FAIL"}}',
            "that says passed false": lambda h: f'{{"sha256_hex": "{h}", "passed": false}}',
            "that says verdict null": lambda h: f'{{"sha256_hex": "{h}", "verdict": null}}',
            "that says Status FAIL": lambda h: f'{{"sha256_hex": "{h}", "Status": "FAIL"}}',
            "that says ok false": lambda h: f'{{"sha256_hex": "{h}", "ok": false}}',
            "with another digest beside it": lambda h: f'{{"sha256_hex": "{h}", "bundle_digest_sha256": "{"0" * 64}"}}',
            "with nan": lambda h: f'{{"sha256_hex": "{h}", "note": NaN}}',
            "nested deep": lambda h: f'{{"sha256_hex": "{h}", "note": {"[" * 30_000}{"]" * 30_000}}}',
        }.items()
    },
    # flags: white space may or may not be liked
    **{
        f"flag {name}": (rewrite_flag(change), {"QUARANTINED", "READY"})
        for name, change in {
            "with a carriage return": lambda h: f"sha256_hex = {h}\r\n",
            "with white space": lambda h: f"\n  sha256_hex\t=   {h}  \n\n",
            "without white space": lambda h: f"sha256_hex={h}",
            "that says passed true": lambda h: f'{{"sha256_hex": "{h}", "passed": true}}',
        }.items()
    },
    # indexes
    "index with two lists": (rewrite_index(two_lists), {"QUARANTINED"}),
    "index without a known list": (rewrite_index(lambda d: {"contents": entries_of(d)}), {"QUARANTINED"}),
    "index whose list is an object": (rewrite_index(lambda d: {"items": {"0": entries_of(d)[0]}}), {"QUARANTINED"}),
    "index of plain names": (rewrite_index(lambda d: [item["path"] for item in entries_of(d)]), {"QUARANTINED"}),
    "index that is text": (rewrite_index(lambda _: "items"), {"QUARANTINED"}),
    "index that is null": (rewrite_index(lambda _: None), {"QUARANTINED"}),
    "index path null": (rewrite_index(first_entry(path=None)), {"QUARANTINED"}),
    "index path empty": (rewrite_index(first_entry(path="")), {"QUARANTINED"}),
    "index path a list": (rewrite_index(first_entry(path=["a"])), {"QUARANTINED"}),
    "index path with nul": (rewrite_index(first_entry(path="a\0b")), {"QUARANTINED"}),
    "index path with a newline": (rewrite_index(first_entry(path="a\nb")), {"QUARANTINED"}),
    "index path with a backslash": (rewrite_index(first_entry(path="..\\a")), {"QUARANTINED"}),
    "index path with a lone surrogate": (rewrite_index(first_entry(path="\ud800")), {"QUARANTINED"}),
    "index path with a trailing slash": (rewrite_index(one_more(path="checks/")), {"QUARANTINED"}),
    "index path doubled slash": (rewrite_index(one_more(path="checks//summary.bin")), {"QUARANTINED"}),
    "index path a directory": (rewrite_index(one_more(path="checks")), {"QUARANTINED"}),
    "index path below a file": (rewrite_index(one_more(path="Zeta_report.bin/x")), {"QUARANTINED"}),
    "index path one name too long": (rewrite_index(one_more(path="n" * 300)), {"QUARANTINED"}),
    "index names a member in a folder that is absent": (
        rewrite_index(one_more(path="nowhere/at/all.bin", sha256_hex="0" * 64)),
        {"QUARANTINED"},
    ),
    "index path too long": (rewrite_index(one_more(path="/".join(["n" * 200] * 30))), {"QUARANTINED"}),
    "index digest null": (rewrite_index(first_entry(sha256_hex=None)), {"QUARANTINED"}),
    "index digest in upper case": (rewrite_index(first_entry(sha256_hex="A" * 64)), {"QUARANTINED"}),
    "index digest with a newline": (rewrite_index(first_entry(sha256_hex="a" * 64 + "\n")), {"QUARANTINED"}),
    "index digest a number": (rewrite_index(first_entry(sha256_hex=7)), {"QUARANTINED"}),
    "index digest of the other field wrong": (
        rewrite_index(first_entry(bundle_digest_sha256="0" * 64, sha256_hex="0" * 64), "5A"),
        {"QUARANTINED"},
    ),
    "index digest under another name wrong": (rewrite_index(first_entry(sha256="0" * 64)), {"QUARANTINED"}),
    "index lists a nested file named like the flag": (nested_excluded_member, {"QUARANTINED"}),
    "index with a byte order mark": (
        lambda m: index_of(m).write_bytes(b"\xef\xbb\xbf" + index_of(m).read_bytes()),
        {"QUARANTINED"},
    ),
    "index in utf-16": (
        lambda m: index_of(m).write_bytes(index_of(m).read_text("utf-8").encode("utf-16")),
        {"QUARANTINED"},
    ),
    "member digests without one": (
        rewrite_index(lambda d: (entries_of(d)[0].pop("sha256_hex", None), d)[1], "3A"),
        {"QUARANTINED"},
    ),
    # links, wherever they stand on the way
    "bundle root is a link beside": (linked(lambda m: flag_of(m).parent, "beside"), {"QUARANTINED"}),
    "bundle root is a link out": (linked(lambda m: flag_of(m).parent, "outside"), {"QUARANTINED"}),
    "a parent is a link": (linked(lambda m: Path(m["engine_run_root"]) / "data", "beside"), {"QUARANTINED"}),
    "a parent is a link out": (
        linked(lambda m: Path(m["engine_run_root"]) / "data/layer1", "outside"),
        {"QUARANTINED"},
    ),
    "index is a link": (linked(index_of, "beside"), {"QUARANTINED"}),
    "output directory is a link": (linked(output_folder, "outside"), {"QUARANTINED"}),
    "a parent is a file": (
        lambda m: (
            shutil.rmtree(flag_of(m).parents[1]),
            Path(m["engine_run_root"], "data/layer1/1A/validation").touch(),
        ),
        {"QUARANTINED", "FAILED"},
    ),
    # what lies in a bundle or an output directory
    "bundle holds one more file": (written(b"more.bin"), {"QUARANTINED"}),
    "bundle holds a nested flag": (written(b"sub/_passed.flag"), {"QUARANTINED"}),
    "bundle holds a name that is not utf-8": (written(b"\xff\xfe.bin"), {"QUARANTINED"}),
    "bundle holds a name with a newline": (written(b"a\nb.bin"), {"QUARANTINED"}),
    "bundle holds a name with a backslash": (written(b"a\\b.bin"), {"QUARANTINED"}),
    "bundle holds a dangling link": (lambda m: (flag_of(m).parent / "x").symlink_to("nowhere"), {"QUARANTINED"}),
    "bundle holds a fifo": (lambda m: os.mkfifo(flag_of(m).parent / "x"), {"QUARANTINED"}),
    "bundle nested 40 deep": (written(b"d/" * 40 + b"x"), {"QUARANTINED"}),
    "output holds a name that is not utf-8": (written(b"\xff.bin", folder=output_folder), {"QUARANTINED"}),
    "output holds a name with a newline": (written(b"part\n.bin", folder=output_folder), {"QUARANTINED"}),
    "output holds a fifo": (lambda m: os.mkfifo(output_folder(m) / "x"), {"QUARANTINED"}),
    "output holds a link to a folder": (lambda m: (output_folder(m) / "x").symlink_to("/"), {"QUARANTINED"}),
    "output nested 40 deep": (written(b"d/" * 40 + b"x", folder=output_folder), {"QUARANTINED"}),
    "output of empty folders": (
        lambda m: (shutil.rmtree(output_folder(m)), (output_folder_parent(m) / "seed=7/empty").mkdir(parents=True)),
        {"FAILED", "QUARANTINED"},
    ),
    "output is a file instead of a folder": (
        lambda m: (shutil.rmtree(output_folder(m)), (output_folder_parent(m) / "seed=7").touch()),
        {"QUARANTINED"},
    ),
    # no attacks: these are fine
    "members are hard links": (
        lambda m: os.link(flag_of(m).parent / "Zeta_report.bin", Path(m["engine_run_root"], "elsewhere.bin")),
        {"READY"},
    ),
    "output holds an empty file": (written(b"empty.bin", b"", folder=output_folder), {"READY"}),
    "output nested 20 deep": (written(b"d/" * 20 + b"x", folder=output_folder), {"READY"}),
    "output with a name in many letters": (
        written("\u00fc \U0001f600 'x'.bin".encode(), folder=output_folder),
        {"READY"},
    ),
    "flag in another file beside": (lambda m: Path(m["engine_run_root"], "_passed.flag").touch(), {"READY"}),
}


def output_folder_parent(made: dict[str, Any]) -> Path:
    return next(Path(made["engine_run_root"]).glob("data/layer1/1A/s3_candidate_set_1A/*"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("attacked") / "world", policy_changes={"evidence_wait_seconds": 0})
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for name, (attack, _) in ATTACKS.items():
        outputs = ["s3_candidate_set_1A", "zone_alloc" if "member digests" in name else "site_timezones"]
        if "other field" in name:
            outputs = ["merchant_class_profile_5A"]
        made[name, ""] = make(world, name, outputs=outputs)
        attack(made[name, ""])
        world.drop(made[name, ""]["request"], f"{len(made):04d}.json")
    served = drain(world)
    return Drained(world, made, {}, served.stderr.decode())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_evidence_ends_as_it_must_and_is_explained(attacked: Drained, name: str) -> None:
    made = attacked.made[name, ""]
    document = explain(attacked.world, made)
    assert document["state"] in ATTACKS[name][1], (document["state"], document.get("detail"))
    ready = made["run_id"] in {
        item["partition_key"] for item in attacked.signals if item["attributes"]["kind"] == "READY"
    }
    assert ready is (document["state"] == "READY")
    if ready:
        assert attacked.world.query("verify", made["run_id"])[0] == 0
    else:
        assert document["reason_code"] in (MALFORMED, CONFLICT, LARGE, MISSING, SAYS_NO)
        blamed = [item for item in (*document["gates"], *document["outputs"]) if item.get("reason_code")]
        assert blamed
        assert all(item["detail"] for item in blamed)


# --- poison: evidence that once stopped the daemon, or would hold a run for ever


def assert_a_poisoned_run_ends_alone(
    world: World, poison: Callable[[dict[str, Any]], object], **options: Any
) -> dict[str, Any]:
    bad = make(world, "bad", **options)
    good = make(world, "good")
    poison(bad)
    world.drop(bad["request"], "a.json")
    served = world.serve()
    world.drop(good["request"], "b.json")
    again = world.serve()
    assert b"Traceback" not in served.stderr + again.stderr, (served.stderr + again.stderr).decode()[-1500:]
    assert (served.returncode, again.returncode) == (0, 0)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [good["run_id"]]
    document = explain(world, bad)
    assert document["state"] in ("QUARANTINED", "FAILED"), document
    return document


def test_a_flag_whose_verdict_is_no_unicode_text_ends_only_its_own_run(world: World) -> None:
    assert_a_poisoned_run_ends_alone(world, rewrite_flag(lambda h: f'{{"sha256_hex": "{h}", "status": "\\ud800"}}'))


def test_a_flag_whose_verdict_is_a_control_sequence_is_shown_harmlessly(world: World) -> None:
    assert_a_poisoned_run_ends_alone(world, rewrite_flag(lambda h: f'{{"sha256_hex": "{h}", "status": "\\u001b[2J"}}'))
    text = world.command(
        "explain", next(iter(world.signals("TERMINAL")))["partition_key"], "--wiring", str(world.wiring)
    )
    assert b"\x1b" not in text.stdout


@pytest.mark.parametrize("segment", ["1A", "2A", "2B", "3A"])
def test_an_index_path_of_two_thousand_segments_ends_only_its_own_run(world: World, segment: str) -> None:
    outputs = {"1A": "outlet_catalogue", "2A": "site_timezones", "2B": "s1_site_weights_2B", "3A": "zone_alloc"}
    change = one_more(path="/".join("a" * 2000), sha256_hex="0" * 64)
    assert_a_poisoned_run_ends_alone(world, rewrite_index(change, segment), outputs=[outputs[segment]])


def test_an_index_path_of_seven_million_characters_makes_no_document_of_its_size(world: World) -> None:
    change = one_more(path="a" * 7 * MIB)
    assert_a_poisoned_run_ends_alone(world, rewrite_index(change), outputs=["site_timezones"])
    sizes = {path: path.stat().st_size for path in world.ledger.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 256 * 1024, max(sizes, key=lambda path: sizes[path])


def test_an_output_of_fifteen_hundred_folders_is_read_under_the_usual_limit_of_open_files(world: World) -> None:
    made = make(world, "folders", outputs=["s3_candidate_set_1A"])
    for number in range(1500):
        folder = output_folder(made) / f"day={number}"
        folder.mkdir()
        (folder / "part.bin").write_bytes(b"x")
    world.drop(made["request"])
    served = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -n 1024; exec "$@"',
            "bash",
            COMMAND,
            "serve",
            "--wiring",
            str(world.wiring),
            "--policy",
            str(world.policy),
            "--until-idle",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert served.returncode == 0
    assert state_of(world, made) == ("READY", ""), served.stderr.decode()[-800:]


# --- bounded memory and time


MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
sys.stderr.buffer.write(done.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_maxrss, used.ru_utime + used.ru_stime]))
"""
"""Measures a command from a small process: the kernel adds what a child shared with its parent before its exec."""


def peak_mib(world: World) -> tuple[int, float]:
    """Drain; returns the daemon's peak resident memory in MiB, and the seconds of a core that it took."""
    command = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, check=True, timeout=120)
    code, peak_kib, seconds = json.loads(done.stdout)
    assert code == 0, done.stderr.decode()[-2000:]
    return peak_kib // 1024, seconds


def test_huge_and_million_entry_indexes_are_refused_in_bounded_memory_and_time(world: World) -> None:
    made = [
        make(
            world, f"{kind} {segment}", outputs=[output], damage=kind, damage_target=f"gate.layer1.{segment}.validation"
        )
        for kind in ("index_huge", "index_million_entries")
        for segment, output in (("1A", "outlet_catalogue"), ("2A", "site_timezones"), ("3A", "zone_alloc"))
    ]
    for item in made:
        if item["damage"] == "index_huge":
            os.truncate(index_of(item, item["damage_target"].split(".")[2]), 50 * 10**9)
        world.drop(item["request"], f"{item['run_id']}.json")
    peak, seconds = peak_mib(world)
    assert {state_of(world, item) for item in made} == {("QUARANTINED", LARGE)}
    assert peak < 300, f"{peak} MiB"
    assert seconds < 20


@pytest.mark.parametrize("runs", [1, 4])
def test_indexes_just_under_the_cap_are_refused_in_bounded_memory(world: World, runs: int) -> None:
    piece = b"[[]],"  # as many objects per byte as JSON can hold
    for number in range(runs):
        made = make(world, f"dense {number}", outputs=["site_timezones"])
        index_of(made).write_bytes(b"[" + (piece * ((MAX_DOCUMENT_BYTES - 2) // len(piece)))[:-1] + b"]")
        world.drop(made["request"], f"{number}.json")
    peak, seconds = peak_mib(world)
    assert world.signals("READY") == []
    assert len(world.signals("TERMINAL")) == runs
    assert peak < 300, f"{peak} MiB"
    assert seconds < 20


def test_listings_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_FILES", 20)
    for folder, count in (("few", 20), ("many", 21), ("spread/a", 11), ("spread/b", 11)):
        (tmp_path / "run" / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "run" / folder / f"{number}").touch()
    artifacts = local.LocalArtifacts([str(tmp_path)], 1, None)
    root = artifacts.open(str(tmp_path / "run"), ReadBudget(bounds=EvidenceBounds(max_output_files=20)))
    assert len(root.files_under("few")) == 20
    for look in (
        lambda: root.files_under("many"),
        lambda: root.files_under("spread"),
        lambda: root.files_matching("many/*"),
    ):
        with pytest.raises(EvidenceRefused) as refused:
            look()
        assert refused.value.reason == LARGE
    root.close()
    artifacts.close()


# --- evidence that changes


@pytest.mark.parametrize("what", ["output touched", "output appended to", "member touched", "files come and go"])
def test_evidence_that_keeps_changing_is_looked_at_again_and_then_quarantined(tmp_path: Path, what: str) -> None:
    world = ForkedWorld(tmp_path / "w", {"digest_reuse": "off"})  # every look reads everything
    made = make(world, what, outputs=["s3_candidate_set_1A"])
    folder = output_folder(made)
    part = sorted(folder.iterdir())[0]
    with (folder / "large.bin").open("wb") as file:
        file.truncate(128 * MIB)  # one look takes long enough for a disturbance to fall into it
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            if what == "output touched":
                os.utime(part)
            elif what == "output appended to":
                with part.open("ab") as file:
                    file.write(b"x")
            elif what == "member touched":
                os.utime(flag_of(made).parent / "Zeta_report.bin")
            else:
                (folder / f"new-{number % 50}").touch()
                (folder / f"new-{(number + 25) % 50}").unlink(missing_ok=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        world.drop(made["request"])
        served = world.serve()
    finally:
        stop.set()
        thread.join()
    assert served.returncode == 0
    assert world.signals("READY") == []
    assert state_of(world, made) == ("QUARANTINED", CHANGED)


def test_evidence_that_is_completed_between_two_looks_becomes_ready(world: World) -> None:
    made = make(world, "late")
    flag = flag_of(made)
    text = flag.read_bytes()
    flag.unlink()
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made)[0] == "WAITING_EVIDENCE"
    flag.write_bytes(text)
    drain(world)
    assert state_of(world, made)[0] == "READY"


# --- digest reuse


def tamper_unseen(path: Path) -> None:
    """Other bytes, the same size and modification time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size


def aged(made: dict[str, Any]) -> None:
    """Wait until the whole run is old enough for its digests to be kept."""
    newest = max(path.stat().st_ctime for path in Path(made["engine_run_root"]).rglob("*"))
    with polling() as until:
        until(lambda: time.time() > newest + 2.2)


def kept_digests(world: World) -> int:
    with closing(sqlite3.connect(world.database)) as connection:
        return int(connection.execute("SELECT count(*) FROM digest_reuse").fetchone()[0])


def test_tampering_behind_an_unchanged_time_is_seen_though_digests_are_reused(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", {"poll_seconds": 0.05})
    made = make(
        world, "first", outputs=["outlet_catalogue", "s3_candidate_set_1A"], member_bytes=2 * MIB, part_bytes=2 * MIB
    )
    second = made["request"] | {"run_equivalence_key": "second"}
    third = made["request"] | {"run_equivalence_key": "third"}
    fourth = made["request"] | {"run_equivalence_key": "fourth"}
    part = sorted(output_folder(made).iterdir())[0]
    member = flag_of(made).parent / "Zeta_report.bin"
    aged(made)
    daemon = world.start()
    try:
        with polling() as until:
            world.drop(made["request"], "1.json")
            until(lambda: len(world.signals("READY")) == 1)
            world.drop(second, "2.json")
            until(lambda: len(world.signals("READY")) == 2)
            assert kept_digests(world) > 0  # or nothing is tried here
            tamper_unseen(part)
            world.drop(third, "3.json")
            until(lambda: len(world.signals("TERMINAL")) == 1)
            tamper_unseen(part)  # back to the right bytes
            tamper_unseen(member)
            world.drop(fourth, "4.json")
            until(lambda: len(world.signals("TERMINAL")) == 2)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert sorted(item["payload"]["reason_code"] for item in world.signals("TERMINAL")) == [
        CONFLICT,
        "INSTANCE_RECEIPT_DRIFT",
    ]
    assert len(world.signals("READY")) == 2


def test_tampering_between_two_daemons_is_seen_though_digests_outlive_them(world: World) -> None:
    made = make(world, "first", member_bytes=2 * MIB, part_bytes=2 * MIB)
    aged(made)
    world.drop(made["request"], "1.json")
    drain(world)
    assert kept_digests(world) > 0
    tamper_unseen(flag_of(made).parent / "Zeta_report.bin")
    world.drop(made["request"] | {"run_equivalence_key": "second"}, "2.json")
    drain(world)
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == [CONFLICT]
    assert world.query("verify", made["run_id"])[0] == 1  # and a careful reader of the first run sees it too


def test_digests_of_files_changed_a_moment_ago_are_not_kept(world: World) -> None:
    made = make(world, "young", member_bytes=2 * MIB, part_bytes=2 * MIB)
    for path in Path(made["engine_run_root"]).rglob("*.parquet"):
        os.utime(path, ns=(0, 0))  # an old modification time does not make a file old
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made)[0] == "READY"
    assert kept_digests(world) == 0


# --- what is already in the ledger or on the bus


def first_ready(world: World) -> dict[str, Any]:
    made = make(world, "first")
    world.drop(made["request"], "1.json")
    drain(world)
    assert state_of(world, made)[0] == "READY"
    return made


def forget(world: World) -> None:
    """Lose the authority's rows; ledger and bus stay."""
    for path in world.root.glob("authority.db*"):
        path.unlink()


def test_a_receipt_with_another_digest_for_the_same_scope_is_drift(world: World) -> None:
    made = first_ready(world)
    receipt = next((world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    before = receipt.read_bytes()
    other = make(world, "second", **{key: made[key] for key in ("manifest_fingerprint", "parameter_hash")}, data_seed=2)
    world.drop(other["request"], "2.json")
    drain(world)
    assert state_of(world, other) == ("QUARANTINED", "INSTANCE_RECEIPT_DRIFT")
    assert str(receipt) in explain(world, other)["detail"] or "bundle_manifest" in explain(world, other)["detail"]
    assert receipt.read_bytes() == before
    assert len(world.signals("READY")) == 1


@pytest.mark.parametrize("junk", [b"", b"{}", b"not json", b"[]", b"x" * 100_000])
def test_junk_in_the_place_of_a_receipt_is_drift(world: World, junk: bytes) -> None:
    made = first_ready(world)
    receipt = next((world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    receipt.write_bytes(junk)
    world.drop(made["request"] | {"run_equivalence_key": "second"}, "2.json")
    drain(world)
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == ["INSTANCE_RECEIPT_DRIFT"]
    assert receipt.read_bytes() == junk


@pytest.mark.parametrize(
    ("folder", "reason_code"), [("run_facts_view", "FACTS_VIEW_DRIFT"), ("run_plan", "PLAN_DRIFT")]
)
@pytest.mark.parametrize("junk", [b"", b'{"run_id": "x"}', b"x" * 100_000])
def test_another_document_in_the_place_of_a_write_once_one_is_drift(
    world: World, folder: str, reason_code: str, junk: bytes
) -> None:
    made = make(world, "first")
    place = world.ledger / folder / f"{made['run_id']}.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(junk)
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("QUARANTINED", reason_code)
    assert place.read_bytes() == junk
    assert world.signals("READY") == []
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == [reason_code]


def test_another_ready_signal_in_the_ledger_keeps_ready_off_the_bus_until_it_is_moved_away(world: World) -> None:
    made = make(world, "first")
    place = world.ledger / "ready_signal" / f"{made['run_id']}.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"{}")
    world.drop(made["request"])
    served = world.serve(timeout=15)
    assert served.returncode == 5
    assert b"READY_SIGNAL_DRIFT" in served.stderr
    assert b"Traceback" not in served.stderr
    assert world.signals() == []
    assert place.read_bytes() == b"{}"
    place.unlink()
    with polling() as until:
        until(lambda: world.serve().returncode == 0)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]


def test_a_forged_envelope_around_the_right_payload_is_not_taken_for_our_own_publication(world: World) -> None:
    made = first_ready(world)
    path = next(world.signals_folder.glob("*.json"))
    right = json.loads(path.read_bytes())
    shutil.rmtree(world.store)
    forget(world)
    forged = right | {"attributes": {"kind": "READY", "facts_view_digest": "0" * 64}}
    path.write_text(json.dumps(forged), "utf-8")
    world.drop(made["request"], "2.json")
    served = world.serve()
    told = json.loads(path.read_bytes())["attributes"]["facts_view_digest"] == right["attributes"]["facts_view_digest"]
    assert told or served.returncode == 5  # published rightly, or still owed and said so


def test_a_run_status_that_only_looks_newer_does_not_stand_after_ready(world: World) -> None:
    made = make(world, "first")
    place = world.ledger / "run_status" / f"{made['run_id']}.json"
    place.parent.mkdir(parents=True)
    place.write_text('{"state": "OPEN", "updated_at_utc": "zzz"}', "utf-8")
    world.drop(made["request"])
    served = world.serve()
    assert b"Traceback" not in served.stderr
    assert world.signals("READY") == [] or json.loads(place.read_bytes())["state"] == "READY"


@pytest.mark.parametrize("folder", ["run_record", "run_status", "ready_signal", "run_facts_view"])
def test_an_object_too_large_to_be_ours_does_not_stop_the_daemon(world: World, folder: str) -> None:
    bad, good = make(world, "bad"), make(world, "good")
    place = world.ledger / folder / f"{bad['run_id']}.{'jsonl' if folder == 'run_record' else 'json'}"
    place.parent.mkdir(parents=True)
    with place.open("wb") as file:
        file.truncate(65 * MIB)
    world.drop(bad["request"], "a.json")
    world.drop(good["request"], "b.json")
    served = world.serve(timeout=15)
    assert b"Traceback" not in served.stderr, served.stderr.decode()[-1500:]
    assert served.returncode in (0, 5)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [good["run_id"]]


# --- scopes, optional outputs, whole packs


def test_every_addressable_output_of_the_pack_becomes_ready_and_verifies(world: World) -> None:
    made = make(world, "all", outputs=None, all_outputs=True)
    assert len(made["output_ids"]) > 40
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("READY", "")
    code, verified = world.query("verify", made["run_id"])
    assert (code, verified["outcome"]) == (0, "PASS")
    view = world.document("run_facts_view", made["run_id"])
    assert {item["output_id"] for item in view["locators"]} == set(made["output_ids"])
    assert all(item["content_digest"] for item in view["locators"])


def test_optional_outputs_may_be_absent_but_not_all_and_not_half(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", policy_changes={"evidence_wait_seconds": 0})
    absent = make(world, "absent", outputs=["site_locations", "rng_event_site_jitter_1B"], skip_optional=True)
    alone = make(world, "alone", outputs=["rng_event_site_jitter_1B"], skip_optional=True)
    empty = make(world, "empty", outputs=["site_locations", "s4_case_timeline_6B"], skip_optional=True)
    half = make(
        world,
        "half",
        outputs=["site_locations", "rng_event_site_jitter_1B"],
        damage="output_part_is_directory",
        damage_target="rng_event_site_jitter_1B",
    )
    shared = make(world, "global", outputs=["iso_country_reference"])
    timeline = (
        f"data/layer3/6B/s4_case_timeline_6B/parameter_hash={empty['parameter_hash']}/manifest_fingerprint="
        f"{empty['manifest_fingerprint']}/seed=7/scenario_id={empty['scenario_id']}"
    )
    Path(empty["engine_run_root"], timeline).mkdir(parents=True)
    for name, item in {"absent": absent, "alone": alone, "empty": empty, "half": half, "shared": shared}.items():
        world.drop(item["request"], f"{name}.json")
    drain(world)
    assert state_of(world, absent) == ("READY", "")
    view = world.document("run_facts_view", absent["run_id"])
    assert [item["output_id"] for item in view["locators"]] == ["site_locations"]
    assert any("rng_event_site_jitter_1B" in note for note in view["evidence_notes"])
    assert state_of(world, alone) == ("FAILED", MISSING)
    assert state_of(world, empty) == ("FAILED", MISSING)
    assert state_of(world, half) == ("QUARANTINED", MALFORMED)
    assert state_of(world, shared) == ("READY", "")
    view = world.document("run_facts_view", shared["run_id"])
    assert view["instance_receipts"] == []
    assert view["locators"][0]["manifest_fingerprint"] == shared["manifest_fingerprint"]
    for item in (absent, shared):
        assert world.query("verify", item["run_id"])[0] == 0


def custom_pack(world: World, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> dict[str, Any]:
    """A pack of one output and one gate, changed; returns the options for making a run of it."""
    outputs = yaml.safe_load((PACK / "engine_outputs.catalogue.yaml").read_text("utf-8"))["outputs"]
    gates = yaml.safe_load((PACK / "engine_gates.map.yaml").read_text("utf-8"))["gates"]
    output = next(item for item in outputs if item["output_id"] == "outlet_catalogue")
    gate = gates[0] | {"authorizes_outputs": ["outlet_catalogue"]}
    change(output, gate)
    catalogue, gate_map = world.root / "catalogue.yaml", world.root / "gates.yaml"
    catalogue.write_text(yaml.safe_dump({"version": "1", "outputs": [output]}), "utf-8")
    gate_map.write_text(yaml.safe_dump({"version": "1", "gates": [gate]}), "utf-8")
    world.write_profiles(engine_catalogue_path=str(catalogue), gate_map_path=str(gate_map))
    return {"catalogue": catalogue, "gate_map": gate_map}


@pytest.mark.parametrize("output", OUTPUT_TARGETS, ids=["glob", "directory", "file"])
def test_an_output_of_another_shape_than_its_path_template_is_refused_as_that(world: World, output: str) -> None:
    made = make(world, "shape", outputs=[output])
    files = (path for path in sorted(Path(made["engine_run_root"]).rglob("*")) if path.is_file())
    file = next(path for path in files if output in str(path))
    if output == OUTPUT_TARGETS[-1]:
        file.unlink()
        file.mkdir()
    else:
        shutil.rmtree(file.parent)
        file.parent.touch()
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("QUARANTINED", MALFORMED)
    assert "which the path template does not mean" in explain(world, made)["detail"]


@pytest.mark.parametrize("template", ["part-*.parquet\n", "parts/\n", "whole.parquet\n"], ids=str.strip)
@pytest.mark.parametrize("availability", ["required", "optional"])
def test_outputs_at_the_run_root_itself_are_found(world: World, availability: str, template: str) -> None:
    pack = custom_pack(world, lambda output, _: output.update(path_template=template, availability=availability))
    made = make(world, "top", **pack)
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("READY", ""), explain(world, made)["detail"]


def test_an_index_outside_its_bundle_is_read_too(world: World) -> None:
    """The bundle law with the index elsewhere: a wrong listed digest is a contradiction all the same."""
    pack = custom_pack(world, lambda _, gate: gate.update(index_path_template="index/{manifest_fingerprint}.json"))
    made = make(world, "outside", **pack)
    path = Path(made["engine_run_root"], f"index/{made['manifest_fingerprint']}.json")
    document = json.loads(path.read_bytes())
    entries_of(document)[0]["sha256_hex"] = "0" * 64
    path.write_text(json.dumps(document), "utf-8")
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("QUARANTINED", CONFLICT)


CANONICAL_ONLY = b'{ "b": 1, "a": 2 }'
OUTSIDE: dict[str, tuple[dict[str, str], str]] = {
    "nothing more": ({}, "READY"),
    "a file with the digest of its bytes": (
        {"path": "more.json", "sha256_hex": hashlib.sha256(CANONICAL_ONLY).hexdigest()},
        "READY",
    ),
    "a file with the digest of its canonical form, which is for another law": (
        {"path": "more.json", "sha256_hex": hashlib.sha256(b'{"a":2,"b":1}').hexdigest()},
        CONFLICT,
    ),
    "a file that is not there": ({"path": "absent.json"}, CONFLICT),
    "a folder": ({"path": "folder"}, MALFORMED),
    "a folder with a digest": ({"path": "folder", "sha256_hex": hashlib.sha256(b"x").hexdigest()}, MALFORMED),
}


@pytest.mark.parametrize("more", OUTSIDE)
def test_what_an_index_names_beside_the_bundle_is_read_under_the_bundles_own_law(world: World, more: str) -> None:
    entry, wanted = OUTSIDE[more]

    def index_outside(_: dict[str, Any], gate: dict[str, Any]) -> None:
        gate["index_path_template"] = "index/{manifest_fingerprint}.json"

    def from_the_run_root(_: dict[str, Any], gate: dict[str, Any]) -> None:
        index_outside(_, gate)
        gate["verification_method"] = gate["verification_method"] | {"path_base": "run_root"}

    made = make(world, "outside", **custom_pack(world, index_outside))
    custom_pack(world, from_the_run_root)
    root = Path(made["engine_run_root"])
    (root / "more.json").write_bytes(CANONICAL_ONLY)
    (root / "folder").mkdir()
    (root / "folder" / "x").write_bytes(b"x")
    path = root / f"index/{made['manifest_fingerprint']}.json"
    document = json.loads(path.read_bytes())
    for item in entries_of(document):
        item["path"] = str((flag_of(made).parent / item["path"]).relative_to(root))
    entries_of(document).extend([entry] if entry else [])
    path.write_text(json.dumps(document), "utf-8")
    world.drop(made["request"])
    drain(world)
    assert wanted in state_of(world, made), explain(world, made)["detail"]


def test_a_gate_of_the_bundle_law_needs_no_index_in_the_pack_either(world: World) -> None:
    made = make(world, "none", **custom_pack(world, lambda _, gate: gate.pop("index_path_template")))
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("READY", ""), explain(world, made)["detail"]


def test_a_bundle_without_an_index_passes_by_its_law_and_its_receipt_names_no_index(world: World) -> None:
    made = make(
        world, "k", outputs=["outlet_catalogue"], damage="index_missing", damage_target="gate.layer1.1A.validation"
    )
    world.drop(made["request"])
    drain(world)
    (receipt,) = world.document("run_facts_view", made["run_id"])["gate_receipts"]
    assert receipt["status"] == "PASS"
    assert "index_path" not in receipt["artifacts"]
    assert world.query("verify", made["run_id"])[0] == 0
