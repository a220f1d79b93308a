"""``verify`` sees every kind of later tampering with what made a run READY."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from commands_support import UNKNOWN, attributes, edit
from support import SMALL, ForkedWorld, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def run_root(world: World) -> Path:
    return next((world.runs / "local_full_run-1").iterdir())


def output_part(world: World) -> Path:
    return next(run_root(world).rglob("part-00000.parquet"))


def in_bundle(name: str) -> Callable[[World], Path]:
    return lambda world: next(run_root(world).glob(f"data/layer1/1A/validation/*/{name}"))


def in_ledger(pattern: str) -> Callable[[World], Path]:
    return lambda world: next(world.ledger.rglob(pattern))


def bus_message(world: World) -> Path:
    return next(world.signals_folder.glob("*.json"))


TAMPERINGS: dict[str, tuple[Callable[[World], Path], Callable[[Path], object]]] = {
    "output byte": (output_part, flip),
    "output part removed": (output_part, os.unlink),
    "output part added": (output_part, lambda path: path.with_name("part-99999.parquet").touch()),
    "output part swapped for a link": (
        output_part,
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
    ),
    "gate member": (in_bundle("checks/summary.bin"), flip),
    "gate member added": (in_bundle("_passed.flag"), lambda path: path.with_name("more.bin").write_bytes(b"x")),
    "gate flag": (in_bundle("_passed.flag"), lambda path: path.write_text("sha256_hex = " + "0" * 64)),
    "gate flag removed": (in_bundle("_passed.flag"), os.unlink),
    "gate index": (in_bundle("index.json"), lambda path: path.write_bytes(path.read_bytes() + b" ")),
    "run root removed": (run_root, shutil.rmtree),
    "receipt digest": (
        in_ledger("instance_receipt.json"),
        edit(lambda d: d | {"target_digest": {"algo": "sha256", "hex": "0" * 64}}),
    ),
    "receipt removed": (in_ledger("instance_receipt.json"), os.unlink),
    "receipt junk": (in_ledger("instance_receipt.json"), lambda path: path.write_bytes(b"[]")),
    "bundle manifest": (in_ledger("bundle_manifest.json"), lambda path: path.write_bytes(path.read_bytes() + b" ")),
    "facts view bytes": (in_ledger("run_facts_view/*.json"), lambda path: path.write_bytes(path.read_bytes() + b" ")),
    "facts view locator": (
        in_ledger("run_facts_view/*.json"),
        edit(lambda d: d | {"locators": [d["locators"][0] | {"path": "/elsewhere"}]}),
    ),
    "facts view without its gates": (in_ledger("run_facts_view/*.json"), edit(lambda d: d | {"gate_receipts": []})),
    "facts view without a digest of a gate": (
        in_ledger("run_facts_view/*.json"),
        edit(lambda d: d | {"gate_receipts": [{k: v for k, v in d["gate_receipts"][0].items() if k != "digest"}]}),
    ),
    "facts view without intended outputs": (
        in_ledger("run_facts_view/*.json"),
        edit(lambda d: {k: v for k, v in d.items() if k != "intended_outputs"}),
    ),
    "facts view roles": (
        in_ledger("run_facts_view/*.json"),
        edit(lambda d: d | {"output_roles": {"outlet_catalogue": "business_traffic"}}),
    ),
    "facts view removed": (in_ledger("run_facts_view/*.json"), os.unlink),
    "facts view empty": (in_ledger("run_facts_view/*.json"), lambda path: path.write_bytes(b"")),
    "facts view nested deep": (in_ledger("run_facts_view/*.json"), lambda path: path.write_bytes(b"[" * 100_000)),
    "ready signal": (in_ledger("ready_signal/*.json"), edit(lambda d: d | {"bundle_hash": "0" * 64})),
    "ready signal removed": (in_ledger("ready_signal/*.json"), os.unlink),
    "ready signal a list": (in_ledger("ready_signal/*.json"), lambda path: path.write_bytes(b"[]")),
    "status": (in_ledger("run_status/*.json"), edit(lambda d: d | {"state": "QUARANTINED"})),
    "status removed": (in_ledger("run_status/*.json"), os.unlink),
    "plan outputs": (in_ledger("run_plan/*.json"), edit(lambda d: d | {"intended_outputs": ["iso_country_reference"]})),
    "plan gates": (in_ledger("run_plan/*.json"), edit(lambda d: d | {"required_gates": []})),
    "plan removed": (in_ledger("run_plan/*.json"), os.unlink),
    "message removed": (bus_message, os.unlink),
    "message payload": (bus_message, edit(lambda d: d | {"payload": d["payload"] | {"bundle_hash": "0" * 64}})),
    "message digest": (bus_message, attributes(facts_view_digest="0" * 64)),
    "message without digest": (bus_message, edit(lambda d: d | {"attributes": {"kind": "READY"}})),
    "message of another kind": (bus_message, attributes(kind="TERMINAL")),
    "message of no kind": (
        bus_message,
        edit(lambda d: d | {"attributes": {"facts_view_digest": d["attributes"]["facts_view_digest"]}}),
    ),
    "message id": (bus_message, edit(lambda d: d | {"message_id": "0" * 64})),
    "message topic": (bus_message, edit(lambda d: d | {"topic": "fp.bus.other.v1"})),
    "message partition key": (bus_message, edit(lambda d: d | {"partition_key": UNKNOWN})),
    "message attributes a list": (bus_message, edit(lambda d: d | {"attributes": []})),
    "message payload a list": (bus_message, edit(lambda d: d | {"payload": []})),
    "message a list": (bus_message, edit(lambda _: [])),
    "message junk": (bus_message, lambda path: path.write_bytes(b"\xff")),
    "message padded over the cap": (bus_message, lambda path: path.write_bytes(path.read_bytes().ljust(2 << 20))),
}


@pytest.fixture(scope="module")
def ready_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = ForkedWorld(tmp_path_factory.mktemp("ready") / "world")
    world.drop(world.make_run(**SMALL)["request"])
    assert world.serve().returncode == 0
    return world


@pytest.mark.parametrize("name", TAMPERINGS)
def test_verify_sees_every_kind_of_later_tampering(ready_world: World, name: str) -> None:
    world = ready_world
    run_id = bus_run_id(world)
    kept = world.root.with_name("kept")
    shutil.copytree(world.root, kept, symlinks=True)
    try:
        find, tamper = TAMPERINGS[name]
        tamper(find(world))
        found = world.command("verify", run_id, "--wiring", str(world.wiring), "--json")
    finally:
        shutil.rmtree(world.root)
        kept.rename(world.root)
    assert b"Traceback" not in found.stderr, found.stderr.decode()[-800:]
    assert found.returncode == 1, found.stdout.decode()[-800:]
    document = json.loads(found.stdout)
    assert document["outcome"] == "FAIL"
    assert any(not check["ok"] for check in document["checks"])


def bus_run_id(world: World) -> str:
    return str(world.signals("READY")[0]["payload"]["run_id"])


def test_verify_of_a_file_that_is_no_facts_view_is_negative_or_a_usage_error(ready_world: World) -> None:
    path = ready_world.root / "junk.json"
    for data in (b"", b"{}", b"[]", b"\xff", b'{"run_id": "x"}', b"[" * 100_000):
        path.write_bytes(data)
        found = ready_world.command("verify", str(path), "--wiring", str(ready_world.wiring), "--json")
        assert found.returncode in (1, 2)
        assert b"Traceback" not in found.stderr
        json.loads(found.stdout)
    path.unlink()
    for place in (str(path), str(ready_world.root)):
        assert ready_world.command("verify", place, "--wiring", str(ready_world.wiring)).returncode == 2
