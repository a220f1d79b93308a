"""Schema folders of the platform's own shape: references between files, and documents that only SR knows."""

from __future__ import annotations

import copy
import os
import re
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from support import PACK, REPO, ForkedWorld, World

from scenario_runner.contracts.documents import BOUNDARY_DOCUMENTS, DOCUMENTS
from scenario_runner.contracts.errors import ConfigurationError, SequenceError
from scenario_runner.ledger import schema_files
from scenario_runner.ledger.schema_files import SchemaFiles, tree_of
from scenario_runner.ledger.schemas import Schemas

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

OURS = {
    "control_bus_envelope",
    "quarantine_record",
    "request_rejected",
    "run_supersedes_signal",
    "bundle_manifest_entry",
    "evidence_arrived",
}
SHARED = "../layer-1/specs/contracts/1A/schemas.layer1.yaml"
KINDS = {"^[0-9a-f]{64}$": "hex64", "^[0-9a-f]{32}$": "hex32"}


@dataclass
class Platform:
    """Schema folders as the platform has them, and a world whose profile names them."""

    root: Path

    @property
    def engine(self) -> Path:
        return self.root / "data-engine/interface_pack/contracts"

    @property
    def ours(self) -> Path:
        return self.root / "platform/contracts/scenario_runner"

    @property
    def shared(self) -> Path:
        return self.root / "data-engine/layer-1/specs/contracts/1A/schemas.layer1.yaml"

    def make(self) -> None:
        shared: dict[str, Any] = {}
        for source, target in ((PACK / "contracts", self.engine),
                               (REPO / "config/platform/contracts/scenario_runner", self.ours)):  # fmt: skip
            for file in source.glob("*.schema.yaml"):
                document = yaml.safe_load(file.read_text("utf-8"))
                if file.name.partition(".")[0] not in OURS:
                    write(target / file.name, outsourced(document, shared) if target == self.engine else document)
        write(self.shared, {"$id": "schemas.layer1.yaml", "$defs": shared})

    def open(self) -> Schemas:
        return Schemas(str(self.ours), str(self.engine))

    def change(self, path: Path, change: Callable[[Any], object]) -> None:
        document = yaml.safe_load(path.read_text("utf-8"))
        change(document)
        write(path, document)

    def refer(self, reference: str, folder: Path | None = None) -> Path:
        """Let the schema of a document of a folder hold a reference; returns its file."""
        path = (folder or self.engine) / ("run_plan.schema.yaml" if folder == self.ours else "gate_receipt.schema.yaml")
        self.change(path, lambda document: document["properties"].update(notes={"$ref": reference}))
        return path


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")


def outsourced(node: Any, shared: dict[str, Any]) -> Any:
    """A schema with its patterns of digests and its times moved into a shared file."""
    if isinstance(node, list):
        return [outsourced(item, shared) for item in node]
    if not isinstance(node, dict):
        return node
    kind = KINDS.get(str(node.get("pattern"))) or ("time" if node.get("format") == "date-time" else None)
    if kind is None:
        return {key: outsourced(value, shared) for key, value in node.items()}
    shared.setdefault(kind, copy.deepcopy(node))
    return {"$ref": f"{SHARED}#/$defs/{kind}"}


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    made = Platform(tmp_path / "platform-repo")
    made.make()
    return made


def world_of(platform: Platform) -> World:
    return ForkedWorld(platform.root.parent / "w", {"schema_root": str(platform.ours),
                                                    "engine_contracts_root": str(platform.engine)})  # fmt: skip


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_run_becomes_ready_on_the_platforms_own_folders(platform: Platform) -> None:
    world = world_of(platform)
    made = world.make_run(members=2, parts=1)
    world.drop(made["request"])
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    assert world.query("verify", made["run_id"])[0] == 0
    said = world.command("doctor", "--wiring", str(world.wiring)).stdout.decode()
    line = next(line for line in said.splitlines() if "schemas:" in line)
    assert line.startswith("ok")
    assert all(name in line for name in OURS)


def test_the_folders_of_the_repository_need_nothing_of_the_package() -> None:
    schemas = Schemas(str(REPO / "config/platform/contracts/scenario_runner"), str(PACK / "contracts"))
    assert schemas.from_package == []


def test_a_reference_binds_as_the_definition_it_leads_to(platform: Platform) -> None:
    receipt = {"gate_id": "g", "status": "PASS", "scope": {"manifest_fingerprint": "0" * 64}}
    schemas = platform.open()
    schemas.check("gate_receipt", receipt)
    with pytest.raises(SequenceError, match="gate_receipt: scope/manifest_fingerprint"):
        schemas.check("gate_receipt", receipt | {"scope": {"manifest_fingerprint": "0" * 63}})


def test_another_validator_reads_the_bundled_schema_alike(platform: Platform) -> None:
    files = SchemaFiles([tree_of(str(platform.engine))])
    for name in set(BOUNDARY_DOCUMENTS) - OURS:
        bundle = files.bundle(str(platform.engine / f"{name}.schema.yaml"))
        jsonschema.Draft202012Validator.check_schema(bundle)
        original = yaml.safe_load((PACK / f"contracts/{name}.schema.yaml").read_text("utf-8"))
        for document in ({}, {"run_id": "0" * 32}, {"gate_id": 7}, {"output_id": "x", "path": "p", "run_id": "f" * 32}):
            judged = [jsonschema.Draft202012Validator(schema).is_valid(document) for schema in (bundle, original)]
            assert judged[0] == judged[1], (name, document)


def test_references_may_lead_into_the_other_configured_folder_and_to_anchors_and_siblings(platform: Platform) -> None:
    platform.change(platform.shared, lambda d: d["$defs"]["hex32"].update({"$anchor": "short"}))
    either = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    platform.change(platform.ours / "run_plan.schema.yaml", lambda d: d.setdefault("$defs", {}).update(either=either))
    for reference in (
        "../../../data-engine/interface_pack/contracts/gate_receipt.schema.yaml",
        "../../../data-engine/layer-1/specs/contracts/1A/schemas.layer1.yaml#short",
        "run_status.schema.yaml#/properties/run_id",
        "./run%5Fstatus.schema.yaml#/properties/run_id",
        "#/properties/run_id",
        "#/$defs/either/anyOf/1",
    ):
        platform.refer(reference, platform.ours)
        platform.open()


def test_a_schema_may_refer_to_itself_further_inside_a_value(platform: Platform) -> None:
    tree = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/tree"}, "all": {"items": {"$ref": "#/$defs/tree"}}},
    }
    path = platform.refer("#/$defs/tree")
    platform.change(path, lambda document: document.setdefault("$defs", {}).update(tree=tree))
    schemas = platform.open()
    receipt = {"gate_id": "g", "status": "PASS", "scope": {"manifest_fingerprint": "0" * 64}}
    schemas.check("gate_receipt", receipt | {"notes": {"next": {"next": {"all": []}}}})
    with pytest.raises(SequenceError, match="gate_receipt: notes/next/next"):
        schemas.check("gate_receipt", receipt | {"notes": {"next": {"next": 7}}})


def test_what_looks_like_a_reference_in_data_is_data(platform: Platform) -> None:
    path = platform.engine / "gate_receipt.schema.yaml"
    data = {"$ref": "https://example.org/x"}
    more = {"const": data, "examples": [data], "default": data, "properties": {"$ref": {"type": "string"}}}
    platform.change(path, lambda document: document["properties"].update(notes=more))
    platform.open()


def test_a_folder_behind_links_as_kubernetes_mounts_them_works(platform: Platform, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    shutil.copytree(platform.ours, mounted / "..2026")
    (mounted / "..data").symlink_to("..2026")
    for file in (mounted / "..2026").iterdir():
        (mounted / file.name).symlink_to(f"..data/{file.name}")
    shutil.rmtree(platform.ours)
    platform.ours.symlink_to(mounted)
    platform.refer("run_status.schema.yaml#/properties/run_id", platform.ours)
    platform.open()


# --- what is refused --------------------------------------------------------------------------------------------------

OUT = "leads out of"
REFUSED = {
    "../../../../outside.yaml#/$defs/x": OUT,
    "../../../../missing.yaml": OUT,
    "../../../../../../../../etc/hostname": OUT,
    "/etc/hostname": OUT,
    "..%2F..%2F..%2F..%2Foutside.yaml": OUT,
    "https://json-schema.org/draft/2020-12/schema": "URL",
    "http://localhost:9/x.yaml#/$defs/hex64": "URL",
    "file:///etc/hostname": "URL",
    "urn:example:x": "URL",
    "//localhost/x.yaml": "URL",
    "nothing.yaml#/$defs/x": "nothing",
    "../layer-1/nothing.yaml": "nothing",
    f"{SHARED}#/$defs/nothing": "nothing",
    f"{SHARED}#/$defs/hex64/pattern": "nothing",
    f"{SHARED}#nothing": "nothing",
    "#/$defs/nothing": "nothing",
    "#/required/99": "nothing",
    "#/required/x": "nothing",
    "#/required/\N{SUPERSCRIPT TWO}": "nothing",
    "#/properties/gate_id/minLength/0": "nothing",
    "a%0Ab.yaml": OUT,
    ".": "nothing",
    "#/properties/notes": "back to itself",
    "gate_receipt.schema.yaml#/properties/notes": "back to itself",
}


@pytest.mark.parametrize("reference", REFUSED)
@pytest.mark.parametrize("which", ["engine", "ours"])
def test_a_reference_that_must_not_be_followed_is_refused_naming_file_and_reference(
    platform: Platform, reference: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)  # nothing may be fetched
    (platform.root.parent / "outside.yaml").write_text("$defs: {x: {type: string}}\n", "utf-8")
    word = REFUSED[reference]
    if which == "ours" and SHARED in reference:
        reference = reference.replace("../layer-1", "../../../data-engine/layer-1")
    if which == "ours" and reference.startswith("gate_receipt"):
        reference = reference.replace("gate_receipt", "run_plan")
    if which == "ours":
        reference = reference.replace("/gate_id/", "/run_id/")
    path = platform.refer(reference, getattr(platform, which))
    with pytest.raises(ConfigurationError) as refused:
        platform.open()
    assert refused.value.place == str(path)
    assert repr(reference) in refused.value.problem
    assert word in refused.value.problem


def test_a_circle_over_several_files_is_refused_and_a_circle_that_nobody_refers_to_is_not(platform: Platform) -> None:
    definitions = {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"if": {"$ref": "#/$defs/a"}}}
    platform.change(platform.shared, lambda document: document["$defs"].update(definitions))
    platform.open()
    platform.refer(f"{SHARED}#/$defs/a")
    with pytest.raises(ConfigurationError, match="for ever back to itself") as refused:
        platform.open()
    assert refused.value.place == str(platform.shared)


def test_a_link_out_of_the_tree_is_refused(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("type: string\n", "utf-8")
    (platform.engine / "shared.yaml").symlink_to(tmp_path / "outside.yaml")
    path = platform.refer("shared.yaml")
    with pytest.raises(ConfigurationError, match="by a link") as refused:
        platform.open()
    assert refused.value.place == str(path)
    path.unlink()
    path.symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        platform.open()


def test_a_link_out_of_the_tree_that_leads_to_nothing_does_not_hide_the_file_beside_the_pack(
    platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (platform.engine.parent / "shared").symlink_to(tmp_path / "outside")
    write(platform.engine.parent.parent / "shared/types.yaml", {"$defs": {"text": {"type": "string"}}})
    platform.refer("../shared/types.yaml#/$defs/text")
    platform.open()
    (tmp_path / "outside/types.yaml").touch()
    with pytest.raises(ConfigurationError, match="by a link"):
        platform.open()


@pytest.mark.parametrize(
    ("keyword", "anchor"), [("$dynamicRef", "$dynamicAnchor"), ("$recursiveRef", "$recursiveAnchor")]
)
def test_a_reference_that_is_looked_up_while_judging_is_refused_by_its_keyword(
    platform: Platform, keyword: str, anchor: str
) -> None:
    path = platform.ours / "run_status.schema.yaml"
    platform.change(path, lambda document: document["properties"].update(notes={anchor: "x", keyword: "#x"}))
    with pytest.raises(ConfigurationError, match=f"{re.escape(keyword)}, which is not read") as refused:
        platform.open()
    assert refused.value.place == str(path)


def test_a_file_that_is_no_regular_one_is_refused_without_waiting(platform: Platform) -> None:
    os.mkfifo(platform.engine / "pipe.yaml")
    platform.refer("pipe.yaml")
    with pytest.raises(ConfigurationError, match="no file"):
        platform.open()


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) | set(BOUNDARY_DOCUMENTS)))
def test_a_document_that_every_pack_must_bring_is_missed_by_its_file(platform: Platform, name: str) -> None:
    path = (platform.ours if name in DOCUMENTS else platform.engine) / f"{name}.schema.yaml"
    if name in OURS:
        assert not path.exists()
        path.write_text("type: 7\n", "utf-8")  # what is there is not replaced by the package's
    else:
        path.unlink()
    with pytest.raises(ConfigurationError) as refused:
        platform.open()
    assert refused.value.place == str(path)


@pytest.mark.parametrize(
    "change",
    [{"$schema": "http://json-schema.org/draft-07/schema#"}, {"$schema": "https://example.org/meta"}, {"type": 7},
     {"properties": []}, {"required": "x"}, {"$dynamicRef": "#x"}, {"$ref": 7}],
    ids=repr,
)  # fmt: skip
def test_a_file_that_is_no_schema_of_the_draft_is_refused_by_name(platform: Platform, change: dict[str, Any]) -> None:
    path = platform.ours / "run_status.schema.yaml"
    platform.change(path, lambda document: document.update(change))
    with pytest.raises(ConfigurationError) as refused:
        platform.open()
    assert refused.value.place == str(path)
    assert "\n" not in str(refused.value)


def test_files_and_schemas_are_bounded(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(platform.engine / f"x{number}.yaml", {"properties": {"a": {"$ref": f"x{number + 1}.yaml"}}})
    write(platform.engine / "x20.yaml", {"type": "object"})
    platform.refer("x0.yaml")
    platform.open()
    monkeypatch.setattr(schema_files, "_MAX_SCHEMAS", 10)
    with pytest.raises(ConfigurationError, match="more than 10"):
        platform.open()
    monkeypatch.undo()
    monkeypatch.setattr(schema_files, "_MAX_FILES", 10)
    with pytest.raises(ConfigurationError, match="more than 10 schema files"):
        platform.open()


def test_the_tree_of_a_folder_is_never_all_of_the_file_system(tmp_path: Path) -> None:
    assert tree_of("/interface_pack/contracts") == "/interface_pack"
    assert tree_of("/x/interface_pack/contracts") == "/x"
    assert tree_of("/x/interface_pack/y/interface_pack/contracts") == "/x/interface_pack/y"
    assert tree_of("/x/contracts") == "/x/contracts"


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_the_commands_refuse_in_a_line_and_make_nothing(platform: Platform, command: str) -> None:
    platform.refer("https://example.org/x.yaml")
    world = world_of(platform)
    done = world.command(command, "--wiring", str(world.wiring), "--policy", str(world.policy))
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 2
    assert any(
        "gate_receipt.schema.yaml" in line and "https://example.org/x.yaml" in line for line in said.splitlines()
    )
    assert "Traceback" not in said
