"""Bad profiles, policies, schemas and packs: `serve` refuses to start, says where and what to do, creates nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import PACK, REPO, ForkedWorld, World

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.integration

Change = Callable[[World], Any]
CATALOGUE = (PACK / "engine_outputs.catalogue.yaml").read_text("utf-8")
GATE_MAP = (PACK / "engine_gates.map.yaml").read_text("utf-8")


def wiring(**keys: Any) -> Change:
    return lambda world: world.write_profiles(**keys)


def text(name: str, change: Callable[[str], str]) -> Change:
    """Change the text of ``wiring.yaml`` or ``policy.yaml``."""

    def apply(world: World) -> None:
        path = world.root / name
        path.write_text(change(path.read_text("utf-8")), "utf-8")

    return apply


def raw(name: str, data: bytes) -> Change:
    return lambda world: (world.root / name).write_bytes(data)


def policy(**keys: Any) -> Change:
    """Change policy keys without changing the digest."""

    def apply(world: World) -> None:
        document = yaml.safe_load(world.policy.read_text("utf-8")) | keys
        world.policy.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}), "utf-8")

    return apply


def digested(**keys: Any) -> Change:
    """Change policy keys, and let the digest follow."""

    def apply(world: World) -> None:
        policy(**keys)(world)
        digest = world.command("policy", "digest", str(world.policy)).stdout.decode().strip()
        policy(content_digest=digest or "0" * 64)(world)

    return apply


def pack_text(catalogue: str | None = None, gate_map: str | None = None) -> Change:
    def apply(world: World) -> None:
        (world.root / "catalogue.yaml").write_text(CATALOGUE if catalogue is None else catalogue, "utf-8")
        (world.root / "gates.yaml").write_text(GATE_MAP if gate_map is None else gate_map, "utf-8")
        world.write_profiles(
            engine_catalogue_path=str(world.root / "catalogue.yaml"), gate_map_path=str(world.root / "gates.yaml")
        )

    return apply


def output(number: int = 0, **keys: Any) -> Change:
    """Change one output of the catalogue; None leaves a key out."""

    def apply(world: World) -> None:
        pack_text(catalogue=_changed(CATALOGUE, "outputs", number, keys))(world)

    return apply


def gate(number: int = 0, **keys: Any) -> Change:
    def apply(world: World) -> None:
        pack_text(gate_map=_changed(GATE_MAP, "gates", number, keys))(world)

    return apply


def method(number: int = 2, **keys: Any) -> Change:
    given = _document(GATE_MAP)["gates"][number]["verification_method"] | keys
    return gate(number, verification_method={k: v for k, v in given.items() if v is not None})


@cache
def _document(source: str) -> Any:
    """What the text says; whoever changes it changes a copy."""
    return yaml.safe_load(source)


def _changed(source: str, key: str, number: int, keys: dict[str, Any]) -> str:
    document = _document(source)
    entries = list(document[key])
    entries[number] = {k: v for k, v in (entries[number] | keys).items() if v is not None}
    return yaml.safe_dump(document | {key: entries}, sort_keys=False)


def schemas(change: Callable[[Path], object], key: str = "schema_root") -> Change:
    source = {
        "schema_root": REPO / "config/platform/contracts/scenario_runner",
        "engine_contracts_root": PACK / "contracts",
    }

    def apply(world: World) -> None:
        shutil.copytree(source[key], world.root / "schemas")
        change(world.root / "schemas")
        world.write_profiles(**{key: str(world.root / "schemas")})

    return apply


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(10))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TAG = "!!python/object/apply:os.system ['touch pwned']"

# name: (what is done to the profile, what standard error must name: the file or key, and what is wrong)
REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    # wiring
    "unknown wiring key": (wiring(auth_mod="allowlist"), ("wiring.yaml", "auth_mod")),
    "unknown wiring key in upper case": (wiring(AUTH_MODE="disabled"), ("wiring.yaml", "AUTH_MODE")),
    "no auth_mode": (wiring(auth_mode=None), ("wiring.yaml", "auth_mode")),
    "auth_mode off as yaml reads it": (
        text("wiring.yaml", lambda t: t.replace("auth_mode: disabled", "auth_mode: off")),
        ("wiring.yaml", "auth_mode"),
    ),
    "auth_mode unknown": (wiring(auth_mode="none"), ("wiring.yaml", "auth_mode")),
    "auth_mode empty by environment": (wiring(auth_mode="${SR_TEST_UNSET_AUTH:-}"), ("wiring.yaml", "auth_mode")),
    "auth_mode allowlist with nobody": (wiring(auth_mode="allowlist"), ("wiring.yaml", "auth_allowlist")),
    "auth_mode allowlist with an empty name": (
        wiring(auth_mode="allowlist", auth_allowlist=[""]),
        ("wiring.yaml", "auth_allowlist"),
    ),
    "an empty engine root": (wiring(engine_roots=["${SR_TEST_UNSET_ROOT:-}"]), ("wiring.yaml", "engine_roots")),
    "an engine root that is blank": (wiring(engine_roots=[" "]), ("wiring.yaml", "engine_roots")),
    "an engine root on s3 with a bad bucket": (wiring(engine_roots=["s3://Bu_cket/runs"]), ("engine_roots", "s3://")),
    "an engine root on s3 that climbs": (wiring(engine_roots=["s3://bucket/../runs"]), ("engine_roots", "s3://")),
    "unset variable": (
        wiring(object_store_root="${SR_TEST_UNSET_STORE}/x"),
        ("wiring.yaml", "line", "SR_TEST_UNSET_STORE"),
    ),
    "key twice": (text("wiring.yaml", lambda t: t + "auth_mode: allowlist\n"), ("wiring.yaml", "line", "auth_mode")),
    "key twice, quoted": (
        text("wiring.yaml", lambda t: t + '"auth_mode": disabled\n'),
        ("wiring.yaml", "line", "auth_mode"),
    ),
    "merge key": (text("wiring.yaml", lambda t: t + "<<: {auth_mode: disabled}\n"), ("wiring.yaml", "<<")),
    "object tag": (text("wiring.yaml", lambda t: t + f"x: {TAG}\n"), ("wiring.yaml", "line", "tag")),
    "binary tag": (text("wiring.yaml", lambda t: t + "x: !!binary aGk=\n"), ("wiring.yaml", "line", "tag")),
    "two documents": (text("wiring.yaml", lambda t: t + "---\n" + t), ("wiring.yaml", "line")),
    "bomb in the wiring": (text("wiring.yaml", lambda t: t + BOMB), ("wiring.yaml",)),
    "an alias of itself": (text("wiring.yaml", lambda t: t + "x: &x [*x]\n"), ("wiring.yaml", "line")),
    "nested 100,000 deep": (text("wiring.yaml", lambda t: t + "x: " + "[" * 100_000 + "]" * 100_000), ("wiring.yaml",)),
    "mappings nested 100,000 deep": (
        text("wiring.yaml", lambda t: t + "x: " + "{a: " * 100_000 + "}" * 100_000),
        ("wiring.yaml",),
    ),
    "block sequence nested deep": (
        text("wiring.yaml", lambda t: t + "x:\n  " + "- " * 20_000 + "a\n"),
        ("wiring.yaml",),
    ),
    "broken yaml": (text("wiring.yaml", lambda t: t + "x: [\n"), ("wiring.yaml", "line")),
    "tabs": (text("wiring.yaml", lambda t: t + "x:\n\ty: 1\n"), ("wiring.yaml", "line")),
    "not utf-8": (raw("wiring.yaml", b"profile_id: \xff\n"), ("wiring.yaml",)),
    "nul": (raw("wiring.yaml", b"profile_id: a\0b\n"), ("wiring.yaml",)),
    "empty": (raw("wiring.yaml", b""), ("wiring.yaml", "empty")),
    "a list": (raw("wiring.yaml", b"[1]\n"), ("wiring.yaml",)),
    "no file": (lambda world: world.wiring.unlink(), ("wiring.yaml",)),
    "a folder": (lambda world: (world.wiring.unlink(), world.wiring.mkdir()), ("wiring.yaml",)),
    "missing key": (wiring(gate_map_path=None), ("wiring.yaml", "gate_map_path")),
    "wrong type": (wiring(lease_seconds="soon"), ("wiring.yaml", "lease_seconds")),
    "yes as a number": (wiring(runner_workers=True), ("wiring.yaml", "runner_workers")),
    "negative number": (wiring(hash_workers=-1), ("wiring.yaml", "hash_workers")),
    "topic with a slash": (wiring(control_bus_topic="../x"), ("wiring.yaml", "control_bus_topic")),
    "topic that is the request folder": (wiring(control_bus_topic="requests"), ("wiring.yaml", "control_bus_topic")),
    "spool without a root": (wiring(control_bus_root=None), ("wiring.yaml", "control_bus_root")),
    "bus kind unknown": (wiring(control_bus_kind="kafka"), ("wiring.yaml", "control_bus_kind")),
    "digest_reuse unknown": (wiring(digest_reuse="always"), ("wiring.yaml", "digest_reuse")),
    "authority of another kind": (wiring(authority_store_dsn="mysql://user:hunter2@host/db"), ("authority_store_dsn",)),
    "authority without a file": (wiring(authority_store_dsn="sqlite:///"), ("authority_store_dsn",)),
    # policy
    "policy digest of something else": (policy(evidence_wait_seconds=1), ("policy.yaml", "content_digest")),
    "policy digest missing": (policy(content_digest=None), ("policy.yaml", "content_digest")),
    "policy digest in upper case": (
        text("policy.yaml", lambda t: t.replace("content_digest: ", "content_digest: A")),
        ("policy.yaml", "content_digest"),
    ),
    "policy key unknown": (digested(skip_gates=True), ("policy.yaml", "skip_gates")),
    "policy key missing": (digested(attempt_limit=None), ("policy.yaml", "attempt_limit")),
    "policy key twice": (
        text("policy.yaml", lambda t: t + "attempt_limit: 3\n"),
        ("policy.yaml", "line", "attempt_limit"),
    ),
    "policy enum unknown": (digested(reuse_policy="MAYBE"), ("policy.yaml", "reuse_policy")),
    "policy enum as yaml reads yes": (digested(reuse_policy=True), ("policy.yaml", "reuse_policy")),
    "policy waits for less than nothing": (
        digested(evidence_wait_seconds=-1),
        ("policy.yaml", "evidence_wait_seconds"),
    ),
    "policy waits for a fraction": (policy(evidence_wait_seconds=1.5), ("policy.yaml",)),
    "policy without attempts": (digested(attempt_limit=0), ("policy.yaml", "attempt_limit")),
    "policy outputs as text": (digested(traffic_output_ids="arrival_events_5B"), ("policy.yaml", "traffic_output_ids")),
    "policy with a tag": (text("policy.yaml", lambda t: t + f"x: {TAG}\n"), ("policy.yaml", "line", "tag")),
    "policy bomb": (text("policy.yaml", lambda t: t + BOMB), ("policy.yaml",)),
    "policy not there": (lambda world: world.policy.unlink(), ("policy.yaml",)),
    # schemas
    "schema missing": (schemas(lambda p: (p / "run_facts_view.schema.yaml").unlink()), ("run_facts_view.schema.yaml",)),
    "schema no yaml": (schemas(lambda p: (p / "run_plan.schema.yaml").write_text("[")), ("run_plan.schema.yaml",)),
    "schema no schema": (
        schemas(lambda p: (p / "run_plan.schema.yaml").write_text("type: 7\n")),
        ("run_plan.schema.yaml",),
    ),
    "schema empty": (schemas(lambda p: (p / "run_plan.schema.yaml").write_text("")), ("run_plan.schema.yaml",)),
    "schema pattern broken": (
        schemas(lambda p: (p / "run_plan.schema.yaml").write_text("properties: {run_id: {pattern: '['}}\n")),
        ("run_plan.schema.yaml",),
    ),
    "boundary schema missing": (
        schemas(lambda p: (p / "gate_receipt.schema.yaml").unlink(), "engine_contracts_root"),
        ("gate_receipt.schema.yaml",),
    ),
    "schema folder missing": (wiring(schema_root="/nowhere"), ("/nowhere",)),
    # pack
    "catalogue not there": (wiring(engine_catalogue_path="/nowhere/c.yaml"), ("/nowhere/c.yaml",)),
    "gate map empty": (pack_text(gate_map=""), ("gates.yaml",)),
    "gate map of no gates": (pack_text(gate_map="version: '1'\ngates: []\n"), ("gates.yaml",)),
    "gate map without gates": (pack_text(gate_map="version: '1'\n"), ("gates.yaml", "gates")),
    "catalogue of no outputs": (pack_text(catalogue="version: '1'\noutputs: []\n"), ("catalogue.yaml",)),
    "pack bomb": (pack_text(gate_map=GATE_MAP + BOMB), ("gates.yaml",)),
    "pack tag": (pack_text(catalogue=CATALOGUE + f"\nx: {TAG}\n"), ("catalogue.yaml", "line", "tag")),
    "pack key twice": (
        pack_text(
            catalogue=CATALOGUE.replace(
                "\n    availability: optional", "\n    availability: optional\n    availability: required", 1
            )
        ),
        ("catalogue.yaml", "line", "availability"),
    ),
    "output listed twice": (
        output(1, output_id="outlet_catalogue"),
        ("catalogue.yaml", "outlet_catalogue"),
    ),
    "gate listed twice": (gate(1, gate_id="gate.layer1.1A.validation"), ("gates.yaml", "gate.layer1.1A.validation")),
    "output requires a dangling gate": (
        output(read_requires_gates=["gate.none"]),
        ("catalogue.yaml", "outlet_catalogue", "gate.none"),
    ),
    "gate depends on a dangling gate": (
        gate(1, upstream_gate_dependencies=["gate.none"]),
        ("gates.yaml", "1B", "gate.none"),
    ),
    "gate authorises a dangling output": (gate(1, authorizes_outputs=["none"]), ("gates.yaml", "1B", "none")),
    "gate depends on itself": (gate(1, upstream_gate_dependencies=["gate.layer1.1B.validation"]), ("gates.yaml", "1B")),
    "gates in a circle": (gate(0, upstream_gate_dependencies=["gate.layer1.2A.validation"]), ("gates.yaml", "1A")),
    "law unknown": (method(kind="sha1_bundle"), ("gates.yaml", "2A", "kind")),
    "law missing": (method(kind=None), ("gates.yaml", "2A", "kind")),
    "law null": (method(kind="~"), ("gates.yaml", "2A", "kind")),
    "ordering unknown": (method(ordering="random"), ("gates.yaml", "2A", "ordering")),
    "ordering missing": (method(ordering=None), ("gates.yaml", "2A", "ordering")),
    "ordering of another law": (method(0, ordering="index_order"), ("gates.yaml", "1A", "ordering")),
    "path base unknown": (method(path_base="file_system_root"), ("gates.yaml", "2A", "path_base")),
    "digest field missing": (method(digest_field=None), ("gates.yaml", "2A", "digest_field")),
    "exclude with a path": (method(exclude_filenames=["sub/x"]), ("gates.yaml", "2A", "exclude_filenames")),
    "exclude as text": (method(exclude_filenames="_passed.flag"), ("gates.yaml", "2A", "exclude_filenames")),
    "no verification method": (gate(2, verification_method=None), ("gates.yaml", "2A")),
    "index law without an index": (gate(2, index_path_template=None), ("gates.yaml", "2A", "index_path_template")),
    "gate scope unknown": (gate(2, scope="galaxy"), ("gates.yaml", "2A", "scope")),
    "gate path absolute": (gate(2, bundle_root_template="/etc/"), ("gates.yaml", "2A", "bundle_root_template")),
    "gate path climbs": (
        gate(2, passed_flag_path_template="../{run_id}/_passed.flag"),
        ("gates.yaml", "2A", "passed_flag"),
    ),
    "gate path is the run root": (gate(2, bundle_root_template="./"), ("gates.yaml", "2A", "bundle_root_template")),
    "gate path with a wildcard": (
        gate(2, index_path_template="data/*.json"),
        ("gates.yaml", "2A", "index_path_template"),
    ),
    "gate path per day": (gate(2, passed_flag_path_template="data/{utc_day}/f"), ("gates.yaml", "2A", "utc_day")),
    "output scope unknown": (output(scope="scope_galaxy"), ("catalogue.yaml", "outlet_catalogue", "scope")),
    "output scope without prefix": (output(scope="seed"), ("catalogue.yaml", "outlet_catalogue", "scope")),
    "output scope missing": (output(scope=None), ("catalogue.yaml", "outlet_catalogue", "scope")),
    "availability as yaml reads no": (
        output(availability=False),
        ("catalogue.yaml", "outlet_catalogue", "availability"),
    ),
    "output path climbs": (output(path_template="a/../../x"), ("catalogue.yaml", "outlet_catalogue", "path_template")),
    "output path absolute": (
        output(path_template="/etc/passwd"),
        ("catalogue.yaml", "outlet_catalogue", "path_template"),
    ),
    "output path on s3": (
        output(path_template="s3://bucket/x"),
        ("catalogue.yaml", "outlet_catalogue", "path_template"),
    ),
    "output path with stray braces": (
        output(path_template="a/{seed/x"),
        ("catalogue.yaml", "outlet_catalogue", "path_template"),
    ),
    "output path with a wildcard in front": (
        output(path_template="*/x"),
        ("catalogue.yaml", "outlet_catalogue", "path_template"),
    ),
    "output id climbs": (output(output_id="../x"), ("catalogue.yaml", "output_id")),
    "output id a number": (output(output_id=7), ("catalogue.yaml", "output_id")),
    "required gates as text": (
        output(read_requires_gates="gate.layer1.1A.validation"),
        ("catalogue.yaml", "read_requires_gates"),
    ),
    "output is text": (pack_text(catalogue="outputs: [outlet_catalogue]\n"), ("catalogue.yaml", "output 1")),
}


def tree(world: World) -> set[Path]:
    return {path for path in world.root.rglob("*") if "schemas" not in path.parts}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


@pytest.mark.parametrize("name", REFUSED)
def test_serve_refuses_to_start_naming_file_place_and_remedy_and_creates_nothing(world: World, name: str) -> None:
    REFUSED[name][0](world)
    before = tree(world)
    assert_refused(world.serve(timeout=60), name)
    assert tree(world) == before
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ["unknown wiring key", "nested 100,000 deep", "gates in a circle"])
def test_the_installed_command_refuses_the_same(tmp_path: Path, name: str) -> None:
    world = World(tmp_path / "world")
    REFUSED[name][0](world)
    assert_refused(world.serve(), name)


def assert_refused(served: subprocess.CompletedProcess[bytes], name: str) -> None:
    log = served.stderr.decode()
    assert served.returncode == 2, log[-1500:]
    for word in REFUSED[name][1]:
        assert word in log, log
    assert "Traceback" not in log
    assert "emedy" in log
    assert "hunter2" not in log
    assert served.stdout == b""


def test_a_merge_key_in_the_pack_is_honoured_or_refused_but_never_dropped(world: World) -> None:
    """``<<: *gated`` means that the output requires the gate; leaving it out would weaken what is verified."""
    gates = yaml.safe_load(GATE_MAP)["gates"][:2]
    gates[0]["authorizes_outputs"], gates[1]["authorizes_outputs"] = ["outlet_catalogue"], []
    catalogue = (
        "version: '1'\nx-gated: &gated {read_requires_gates: [gate.layer1.1B.validation]}\noutputs:\n- <<: *gated\n"
        "  output_id: outlet_catalogue\n  path_template: data/{manifest_fingerprint}/part-*.parquet\n"
        "  partitions: [manifest_fingerprint]\n  scope: scope_manifest_fingerprint\n"
    )
    request = world.make_run(outputs=["outlet_catalogue"])["request"]
    pack_text(catalogue, yaml.safe_dump({"version": "1", "gates": gates}))(world)
    (world.root / "request.json").write_text(json.dumps(request), "utf-8")
    planned = world.command(
        "plan", "--wiring", str(world.wiring), "--policy", str(world.policy), str(world.root / "request.json"), "--json"
    )
    if planned.returncode == 2:
        assert b"<<" in planned.stderr
        return
    assert json.loads(planned.stdout)["required_gates"] == ["gate.layer1.1A.validation", "gate.layer1.1B.validation"]


def test_a_pack_of_340_outputs_with_unknown_keys_aliases_and_trailing_blanks_is_fine(world: World) -> None:
    document = yaml.safe_load(CATALOGUE)
    first = document["outputs"][0]
    shared = ["gate.layer1.1A.validation"]
    for number in range(340):
        document["outputs"].append(
            first
            | {
                "output_id": f"more_{number}",
                "read_requires_gates": shared,
                "colour": {"deep": [number]},
                "path_template": f"data/more_{number}/part-*.parquet  \n",
            }
        )
    pack_text(catalogue=yaml.safe_dump(document, sort_keys=False))(world)
    made = world.make_run(catalogue=world.root / "catalogue.yaml", outputs=["more_339"])
    world.drop(made["request"])
    assert world.serve().returncode == 0
    assert world.query("status", made["run_id"])[1]["state"] == "READY"


JUNK = (b"", b"[]", b"{}", b"not json", b'{"outputs": [], "gates": []}', b"[1, 2]", b"[" * 100_000)


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_a_pinned_pack_that_was_tampered_with_refuses_start_up(world: World, junk: bytes) -> None:
    assert world.serve().returncode == 0
    pinned = next((world.ledger / "interface_pack").iterdir())
    pinned.write_bytes(junk)
    served = world.serve(timeout=20)
    assert served.returncode == 2, served.stderr.decode()[-500:]  # configuration: a person must put it right
    assert str(pinned).encode() in served.stderr
    assert b"Traceback" not in served.stderr
    assert pinned.read_bytes() == junk


def admitted_under_an_older_pack(world: World) -> tuple[dict[str, Any], Path]:
    """A run that was admitted before another pack was deployed, and its pinned pack in the ledger."""
    made = world.make_run("old", outputs=["outlet_catalogue"], data_seed=1)
    world.drop(made["request"])
    assert world.serve("--role", "intake").returncode == 0
    pinned = next((world.ledger / "interface_pack").iterdir())
    gate(1, authorizes_outputs=[])(world)  # now another pack is deployed, and the pinned one is needed
    return made, pinned


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_a_run_whose_pinned_pack_was_tampered_with_is_quarantined_with_both_digests_and_harms_no_other(
    world: World, junk: bytes
) -> None:
    made, pinned = admitted_under_an_older_pack(world)
    pinned.write_bytes(junk)
    good = world.make_run("new", outputs=["outlet_catalogue"], data_seed=2)
    world.drop(good["request"])
    served = world.serve(timeout=20)
    assert served.returncode == 0, served.stderr.decode()[-1500:]
    assert b"Traceback" not in served.stderr
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [good["run_id"]]
    code, explained = world.query("explain", made["run_id"])
    assert (code, explained["state"], explained["reason_code"]) == (4, "QUARANTINED", "PACK_DRIFT")
    drift = {"object": str(pinned), "expected": pinned.stem, "actual": hashlib.sha256(junk).hexdigest()}
    assert explained["drift"] == drift
    assert world.document("quarantine", made["run_id"])["report"]["drift"] == drift
    assert pinned.read_bytes() == junk


def test_a_run_whose_pinned_pack_is_absent_waits_for_it(world: World) -> None:
    made, pinned = admitted_under_an_older_pack(world)
    right = pinned.read_bytes()
    pinned.unlink()
    assert world.serve(timeout=20).returncode == 5
    code, explained = world.query("explain", made["run_id"])
    assert code == 3
    assert pinned.stem in explained["last_infrastructure_error"]
    assert explained["infrastructure_retries"] >= 1
    pinned.write_bytes(right)
    deadline = time.monotonic() + 20
    while world.query("status", made["run_id"])[0] == 3 and time.monotonic() < deadline:
        world.serve(timeout=20)
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
