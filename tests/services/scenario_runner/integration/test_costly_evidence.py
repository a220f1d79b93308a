"""Evidence that costs its writer nothing and its reader much: bounded by the policy, never at the cost of others."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import PACK, ForkedWorld, World

from scenario_runner.artifacts.base import MAX_DOCUMENT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

TIB = 1 << 40
OUTPUT = "outlet_catalogue"  # a glob behind one gate
MEMBERS_OUTPUT, MEMBERS_GATE = "zone_alloc", "gate.layer1.3A.validation"  # behind the law of member digests
TOO_LARGE = ("QUARANTINED", "EVIDENCE_TOO_LARGE")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part_of(made: dict[str, Any], output: str = OUTPUT) -> Path:
    return next(Path(made["engine_run_root"]).rglob(f"{output}/**/part-*"))


def bundle_of(made: dict[str, Any], gate_id: str = MEMBERS_GATE) -> Path:
    pack = yaml.safe_load((PACK / "engine_gates.map.yaml").read_text("utf-8"))
    gate = next(gate for gate in pack["gates"] if gate["gate_id"] == gate_id)
    template = gate["bundle_root_template"].strip()
    return Path(made["engine_run_root"]) / template.format(manifest_fingerprint=made["manifest_fingerprint"])


def add_members(made: dict[str, Any], members: dict[str, tuple[bytes, str]]) -> None:
    """Members of the gate 3A, each with its bytes and the digest that the index lists; the flag follows."""
    bundle = bundle_of(made)
    index = bundle / "index.json"
    document = json.loads(index.read_bytes())
    rows = document if isinstance(document, list) else next(v for v in document.values() if isinstance(v, list))
    for name, (data, digest) in members.items():
        (bundle / name).write_bytes(data)
        rows.append({"path": name, "sha256_hex": digest})
    index.write_text(json.dumps(document), "utf-8")
    flag = bundle / "_passed.flag"
    whole = sha("".join(row["sha256_hex"] for row in rows).encode())
    was = flag.read_text("utf-8")
    flag.write_text(json.dumps({"sha256_hex": whole}) if was.startswith("{") else f"sha256_hex = {whole}\n", "utf-8")


def verdict(world: World, made: dict[str, Any]) -> tuple[tuple[str, str], str]:
    """State and reason, and the detail, after one drain."""
    world.drop(made["request"])
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    explained = world.query("explain", made["run_id"])[1]
    return (explained["state"], explained["reason_code"] or ""), explained["detail"]


def grow(made: dict[str, Any]) -> None:
    os.truncate(part_of(made), 15 * TIB)


def grow_a_little(made: dict[str, Any]) -> None:
    os.truncate(part_of(made), 100_001)


def multiply(made: dict[str, Any]) -> None:
    part = part_of(made)
    for number in range(40):
        (part.parent / f"part-x{number}{part.suffix}").touch()


def grow_members(made: dict[str, Any]) -> None:
    data = b"x" * 3_000_000
    add_members(made, {f"m{number}.bin": (data, sha(data)) for number in range(2)})


def multiply_members(made: dict[str, Any]) -> None:
    add_members(made, {f"m{number}.bin": (b"x", sha(b"x")) for number in range(40)})


COSTLY: dict[str, tuple[dict[str, int], str, Callable[[dict[str, Any]], None], tuple[str, ...]]] = {
    "a sparse output": ({}, OUTPUT, grow, ("max_output_bytes", str(TIB), str(15 * TIB + 64))),
    "an output over the policy's bytes": (
        {"max_output_bytes": 100_000}, OUTPUT, grow_a_little, ("max_output_bytes", "100000", "100065 bytes"),
    ),
    "an output of too many files": ({"max_output_files": 30}, OUTPUT, multiply, ("max_output_files", "30", "42 files")),
    "members over the policy's bytes": (
        {"max_output_bytes": 5_000_000}, MEMBERS_OUTPUT, grow_members, ("max_output_bytes", "5000000", "validation"),
    ),
    "too many members": (
        {"max_output_files": 30}, MEMBERS_OUTPUT, multiply_members, ("max_output_files", "30", "validation"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_evidence_beyond_a_bound_is_refused_naming_the_bound_its_value_and_what_was_found(
    tmp_path: Path, name: str
) -> None:
    bounds, output, make_costly, words = COSTLY[name]
    world = ForkedWorld(tmp_path / "w", policy_changes=bounds)
    made = world.make_run("costly", outputs=[output], members=3, member_bytes=20, parts=2, part_bytes=64)
    make_costly(made)
    found, detail = verdict(world, made)
    assert found == TOO_LARGE
    assert all(word in detail for word in words), detail


def test_evidence_just_within_the_bounds_becomes_ready_and_verifies(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", policy_changes={"max_output_bytes": 6_000_200, "max_output_files": 60})
    made = world.make_run("fits", outputs=[MEMBERS_OUTPUT], members=3, member_bytes=20, parts=2, part_bytes=64)
    grow_members(made)
    assert verdict(world, made)[0] == ("READY", "")
    assert world.query("verify", made["run_id"])[0] == 0


def test_a_run_is_examined_under_the_bounds_that_it_was_admitted_with(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", policy_changes={"max_output_files": 30})
    made = world.make_run("pinned", outputs=[OUTPUT], parts=2, part_bytes=64)
    part = part_of(made)
    hidden = part.rename(part.parent / ".held")
    hidden.rename(world.root / "held")
    for other in part.parent.glob("part-*"):
        other.unlink()
    assert verdict(world, made)[0][0] == "WAITING_EVIDENCE"
    world.policy_changes = {"revision": "v1", "max_output_files": 100}
    world.write_profiles()
    (world.root / "held").rename(part)
    multiply(made)
    world.serve()
    assert world.query("status", made["run_id"])[1].get("reason_code") == "EVIDENCE_TOO_LARGE"


def test_an_examination_that_takes_longer_than_the_policy_allows_is_refused(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", policy_changes={"max_look_seconds": 1})
    made = world.make_run("long", outputs=[OUTPUT])
    os.truncate(part_of(made), TIB - (1 << 30))
    found, detail = verdict(world, made)
    assert found == TOO_LARGE
    assert "max_look_seconds is 1" in detail


# --- members that are documents


def listed_by_canonical_form(size: int) -> tuple[bytes, str]:
    """A JSON text of at least so many bytes, and the digest of its canonical form, which is another."""
    value = [1] * (size // 3 + 1)
    return json.dumps(value).encode(), sha(json.dumps(value, separators=(",", ":")).encode())


def test_members_that_are_listed_by_their_canonical_form_pass_and_are_too_large_beyond_the_documents_bound(
    tmp_path: Path,
) -> None:
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("fits", outputs=[MEMBERS_OUTPUT])
    add_members(made, {"m.json": listed_by_canonical_form(300_000)})
    assert verdict(world, made)[0] == ("READY", "")
    other = world.make_run("beyond", outputs=[MEMBERS_OUTPUT], seed=8, manifest_fingerprint="a" * 64)
    add_members(other, {"m.json": listed_by_canonical_form(MAX_DOCUMENT_BYTES + 10)})
    found, detail = verdict(world, other)
    assert found == TOO_LARGE
    assert all(word in detail for word in ("m.json", str(MAX_DOCUMENT_BYTES), "canonical"))


def test_a_large_member_that_is_listed_by_the_digest_of_its_bytes_is_not_parsed(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("large", outputs=[MEMBERS_OUTPUT])
    data = b" " * (MAX_DOCUMENT_BYTES + 10)
    add_members(made, {"m.json": (data, sha(data))})
    assert verdict(world, made)[0] == ("READY", "")


def test_a_member_that_is_an_empty_folder_is_no_evidence(tmp_path: Path) -> None:
    """The digest of nothing is well known."""
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("hollow", outputs=[MEMBERS_OUTPUT])
    add_members(made, {"hollow": (b"", sha(b""))})
    (bundle_of(made) / "hollow").unlink()
    (bundle_of(made) / "hollow").mkdir()
    found, detail = verdict(world, made)
    assert found == ("QUARANTINED", "EVIDENCE_MALFORMED")
    assert "is an empty directory" in detail


# --- others, and the end of the process


def until(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return value


def state_of(world: World, made: dict[str, Any]) -> str:
    with closing(sqlite3.connect(f"file:{world.database}?mode=ro", uri=True, timeout=10)) as connection:
        row = connection.execute("SELECT state FROM runs WHERE run_id = ?", (made["run_id"],)).fetchone()
    return row[0] if row else ""


def test_runs_become_ready_while_every_worker_of_the_long_lane_is_busy_and_a_stop_ends_them(tmp_path: Path) -> None:
    """As many as there are workers, each with nearly a TiB of zeros: large runs still have their turns."""
    world = World(tmp_path / "w", {"runner_workers": 1, "shutdown_seconds": 2})
    hostile = [world.make_run(f"hostile {number}", outputs=[OUTPUT], seed=100 + number) for number in range(1)]
    for made in hostile:
        os.truncate(part_of(made), TIB - (1 << 30))
    small = world.make_run("small", outputs=[OUTPUT], seed=1)
    large = world.make_run("large", outputs=[OUTPUT], seed=2, part_bytes=6 << 20)
    daemon = world.start()
    try:
        until(world.database.exists)
        for number, made in enumerate(hostile):
            world.drop(made["request"], f"h{number}.json")
        until(lambda: len(list(world.bus.glob("consumed/h*.json"))) == len(hostile))
        world.drop(small["request"], "s.json")
        world.drop(large["request"], "l.json")
        until(lambda: state_of(world, small) == "READY")
        until(lambda: state_of(world, large) == "READY")
        assert {state_of(world, made) for made in hostile} == {"VERIFYING"}
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(10) == 0
    finally:
        daemon.kill()
        daemon.wait()
    with closing(sqlite3.connect(world.database)) as connection:
        left = connection.execute("SELECT state, lease_until_us, retries FROM runs WHERE due_us IS NOT NULL").fetchall()
    assert left == [("VERIFYING", 0, 0)] * len(hostile), "given back undecided"
    for made in hostile:
        os.truncate(part_of(made), 10)
        assert not world.document("quarantine", made["run_id"])
    assert world.serve().returncode == 0
    assert {state_of(world, made) for made in hostile} == {"READY"}


# --- roots that a profile does not allow


@pytest.mark.parametrize("mistake", ["another folder", "nothing allowed", "a mount that is gone"])
def test_a_mistake_in_engine_roots_ends_no_run_that_was_admitted(tmp_path: Path, mistake: str) -> None:
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("waits", outputs=[OUTPUT])
    root = Path(made["engine_run_root"])
    root.rename(world.root / "later")
    assert verdict(world, made)[0][0] == "WAITING_EVIDENCE"
    if mistake == "a mount that is gone":
        world.runs.rename(world.root / "unmounted")
    else:
        world.write_profiles(engine_roots=[f"{world.runs}x"] if mistake == "another folder" else [])
    served = world.serve()
    assert served.returncode == 5, served.stderr
    assert b"engine_roots" in served.stderr
    assert world.query("status", made["run_id"])[1]["state"] not in ("FAILED", "QUARANTINED")
    if mistake == "a mount that is gone":
        (world.root / "unmounted").rename(world.runs)
    world.write_profiles()
    (world.root / "later").rename(root)
    until(lambda: world.serve().returncode == 0)
    assert world.query("status", made["run_id"])[1]["state"] == "READY"


# --- an engine run with an id of its own


RUN_ID_OUTPUT = "rng_event_outlet_draws_1A"


def test_an_output_whose_path_needs_the_run_id_is_refused_at_once_from_another_engine_run(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("foreign", outputs=[OUTPUT, RUN_ID_OUTPUT], engine_run_id="derived")
    found, detail = verdict(world, made)
    assert found == ("FAILED", "OUTPUT_OF_ANOTHER_RUN")
    assert all(word in detail for word in (RUN_ID_OUTPUT, made["run_id"], made["engine_run_id"]))
    outputs = {item["output_id"]: item for item in world.query("explain", made["run_id"])[1]["outputs"]}
    assert (outputs[RUN_ID_OUTPUT]["outcome"], outputs[OUTPUT]["outcome"]) == ("FAIL", "NOT_READ")
    other = made["request"] | {"run_equivalence_key": "without it", "output_ids": [OUTPUT]}
    world.drop(other, "other.json")
    world.serve()
    assert len(world.signals("READY")) == 1, "other outputs of that engine run may be used by any run"


def test_without_a_run_receipt_an_output_whose_path_needs_the_run_id_is_waited_for(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("foreign", outputs=[RUN_ID_OUTPUT], engine_run_id="derived")
    (Path(made["engine_run_root"]) / "run_receipt.json").unlink()
    assert verdict(world, made)[0][0] == "WAITING_EVIDENCE"


def test_an_engine_run_with_the_runs_own_id_holds_such_outputs(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run("own", outputs=[OUTPUT, RUN_ID_OUTPUT])
    assert verdict(world, made)[0] == ("READY", "")
