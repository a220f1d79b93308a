"""Each check of ``verify`` fails by its own name for what it checks, also where no authority can be asked.

Without the authority no other check can stand in for a missing one: the facts view that it announced is not known.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import World, need_posix

from scenario_runner.audit import recomputed
from scenario_runner.cli.verify import NamedFiles, verify_target
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import EvidenceChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

Json = dict[str, Any]


class Published:
    """A READY run whose authority is lost, with what was published for it."""

    def __init__(self, world: World, run_id: str, engine_run: Path) -> None:
        self.world, self.run_id, self.engine_run = world, run_id, engine_run

    def ledger(self, folder: str) -> Path:
        return self.world.ledger / folder / f"{self.run_id}.json"

    @property
    def view(self) -> Path:
        return self.ledger("run_facts_view")

    @property
    def message(self) -> Path:
        [path] = self.world.signals_folder.glob("*.json")
        return path

    def receipt(self, name: str) -> Path:
        [path] = (self.world.ledger / "instance_receipts/output_id=outlet_catalogue").rglob(name)
        return path

    def artifact(self, pattern: str) -> Path:
        return next(self.engine_run.glob(pattern))

    def verify(self) -> Json:
        document, _ = verify_target(str(self.world.wiring), str(self.view), NamedFiles())
        return document


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Published:
    need_posix()
    world = World(tmp_path_factory.mktemp("published") / "world")
    made = world.make_run(outputs=["outlet_catalogue", "arrival_events_5B"], members=3, member_bytes=64, part_bytes=64)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    for path in world.root.glob("authority.db*"):
        path.unlink()
    return Published(world, made["run_id"], Path(made["engine_run_root"]))


@pytest.fixture
def published(original: Published) -> Iterator[Published]:
    """The same for each test: what a test changes is put back."""
    kept = original.world.root.with_name("kept")
    shutil.copytree(original.world.root, kept, symlinks=True)
    yield original
    shutil.rmtree(original.world.root)
    kept.rename(original.world.root)


def edited(path: Path, edit: Callable[[Json], object]) -> None:
    """Change a JSON document and write it canonically."""
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_bytes(canonical_bytes(document))


def in_view(edit: Callable[[Json], object]) -> Callable[[Published], None]:
    return lambda published: edited(published.view, edit)


def in_plan(edit: Callable[[Json], object]) -> Callable[[Published], None]:
    return lambda published: edited(published.ledger("run_plan"), edit)


def in_message(edit: Callable[[Json], object]) -> Callable[[Published], None]:
    return lambda published: edited(published.message, edit)


def under_another_root(view: Json, count: int) -> None:
    for receipt in view["gate_receipts"][:count]:
        receipt["artifacts"]["passed_flag_path"] = f"/elsewhere{receipt['artifacts']['passed_flag_path']}"


def set_every(items: list[Json], **values: Any) -> None:
    for item in items:
        item.update(values)


def as_another_gate(view: Json) -> None:
    view["gate_receipts"][0]["gate_id"] = "gate.of.nobody"


OTHER = "0" * 32
OTHER_DIGEST = {"algo": "sha256", "hex": "0" * 64}
# what is changed, and the check that must notice it
CHECKS: dict[str, tuple[Callable[[Published], object], str]] = {
    "no facts view": (lambda p: p.view.write_bytes(b"{}"), "facts view is well formed"),
    "no JSON": (lambda p: p.view.write_bytes(b"\xff"), "facts view is well formed"),
    "white space": (lambda p: p.view.write_bytes(p.view.read_bytes() + b"\n"), "facts view is canonical"),
    "pins of another run": (in_view(lambda d: d["pins"].update(run_id=OTHER)), "pins name the run"),
    "plan_ref": (in_view(lambda d: d.update(plan_ref=d["record_ref"])), "plan_ref is the run's"),
    "record_ref": (in_view(lambda d: d.update(record_ref=d["plan_ref"])), "record_ref is the run's"),
    "status_ref": (in_view(lambda d: d.update(status_ref=d["plan_ref"])), "status_ref is the run's"),
    "bundle_hash": (in_view(lambda d: d.update(bundle_hash="0" * 64)), "bundle_hash recomputes"),
    "output without a locator": (
        in_view(lambda d: d["intended_outputs"].append("site_locations")),
        "intended outputs are located or declared absent",
    ),
    "output located and absent": (
        in_view(lambda d: d.update(evidence_notes=["OPTIONAL_OUTPUT_ABSENT:outlet_catalogue"])),
        "intended outputs are located or declared absent",
    ),
    "no output at all": (
        in_view(lambda d: d.update(intended_outputs=[], locators=[])),
        "intended outputs are located or declared absent",
    ),
    "failed gate": (in_view(lambda d: set_every(d["gate_receipts"], status="FAIL")), "every gate receipt is a PASS"),
    "ready_signal of another facts view": (
        lambda p: edited(p.ledger("ready_signal"), lambda d: d.update(bundle_hash="0" * 64)),
        "ready_signal points at this facts view",
    ),
    "no ready_signal": (lambda p: p.ledger("ready_signal").unlink(), "ready_signal points at this facts view"),
    "ready_signal that is a list": (
        lambda p: p.ledger("ready_signal").write_bytes(b"[]"), "ready_signal points at this facts view",
    ),
    "no message": (lambda p: p.message.unlink(), "READY is on the control bus"),
    "empty message": (lambda p: p.message.write_bytes(b""), "READY on the control bus is well formed"),
    "message that is no envelope": (lambda p: p.message.write_bytes(b"[]"), "READY on the control bus is well formed"),
    "message of another topic": (in_message(lambda d: d.update(topic="other")), "READY's envelope is the run's"),
    "message of another kind": (
        in_message(lambda d: d["attributes"].update(kind="TERMINAL")), "READY's envelope is the run's",
    ),
    "message about another bundle": (
        in_message(lambda d: d["payload"].update(bundle_hash="0" * 64)), "READY's payload points at this facts view",
    ),
    "message about another digest": (
        in_message(lambda d: d["attributes"].update(facts_view_digest="0" * 64)),
        "READY's facts_view_digest is this facts view's",
    ),
    "status": (
        lambda p: edited(p.ledger("run_status"), lambda d: d.update(state="FAILED")), "run_status is READY",
    ),
    "no status": (lambda p: p.ledger("run_status").unlink(), "run_status is READY"),
    "no plan": (lambda p: p.ledger("run_plan").unlink(), "run_plan is there"),
    "policy of the plan": (
        in_plan(lambda d: d["policy_rev"].update(revision="other")), "policy of plan and facts view agree",
    ),
    "outputs of the plan": (in_plan(lambda d: d.update(intended_outputs=[])), "outputs of plan and facts view agree"),
    "gates of the plan": (in_plan(lambda d: d.update(required_gates=[])), "gates of plan and facts view agree"),
    "fewer gates than the pack requires": (
        in_view(lambda d: d["gate_receipts"].pop()), "required gates recompute from the pinned pack",
    ),
    "outputs that the pack does not have": (
        in_view(lambda d: d.update(intended_outputs=["nothing.of.this.name"])),
        "required gates recompute from the pinned pack",
    ),
    "two roots": (in_view(lambda d: under_another_root(d, 1)), "all evidence lies under one run root"),
    "gate that the pack does not have": (in_view(as_another_gate), "all evidence lies under one run root"),
    "flag of another name": (
        in_view(lambda d: set_every(d["gate_receipts"], artifacts={"passed_flag_path": "/elsewhere"})),
        "all evidence lies under one run root",
    ),
    "tampered member": (
        lambda p: p.artifact("data/layer1/1A/validation/**/index.json").with_name("planted.json").write_bytes(b"{}"),
        "the evidence as a whole passes",
    ),
    "no flag": (
        lambda p: p.artifact("data/layer1/1A/validation/**/_passed.flag").unlink(), "the evidence as a whole passes",
    ),
    "gate digest": (
        in_view(lambda d: set_every(d["gate_receipts"], digest=OTHER_DIGEST)), "gate {gate} re-hashes",
    ),
    "gate receipt": (
        in_view(lambda d: d["gate_receipts"][0].update(scope={"seed": 1, "manifest_fingerprint": "0" * 64})),
        "gate {gate} re-hashes",
    ),
    "output digest": (
        in_view(lambda d: set_every(d["locators"], content_digest=OTHER_DIGEST)), "output outlet_catalogue re-hashes",
    ),
    "locator": (
        in_view(lambda d: set_every(d["locators"], path="/elsewhere")), "locators are what the evidence gives",
    ),
    "instance receipts": (
        in_view(lambda d: d.update(instance_receipts=[])), "instance receipts are what the evidence gives",
    ),
    "stored receipt": (
        lambda p: p.receipt("instance_receipt.json").write_bytes(b"{}"),
        "instance receipt of outlet_catalogue is stored",
    ),
    "stored manifest": (
        lambda p: p.receipt("bundle_manifest.json").unlink(), "bundle manifest of outlet_catalogue is stored",
    ),
}  # fmt: skip


def test_what_was_published_passes_and_every_check_is_made(original: Published) -> None:
    document = original.verify()
    assert document["outcome"] == "PASS"
    made = {item["check"].replace("arrival_events_5B", "outlet_catalogue") for item in document["checks"]}
    gates = {item["gate_id"] for item in json.loads(original.view.read_bytes())["gate_receipts"]}
    named = {check.replace("{gate}", gate) for _, check in CHECKS.values() for gate in gates}
    assert named - made == {"READY on the control bus is well formed"}, "made only where it fails"
    missing = {item["check"] for item in document["checks"] if item.get("not_possible")}
    assert made - named - missing == {"interface pack is named by the operator or pinned by the authority"}


@pytest.mark.parametrize("name", CHECKS)
def test_a_change_fails_the_check_that_is_about_it(published: Published, name: str) -> None:
    change, check = CHECKS[name]
    gate = json.loads(published.view.read_bytes())["gate_receipts"][0]["gate_id"]
    change(published)
    document = published.verify()
    assert document["outcome"] == "FAIL"
    assert check.replace("{gate}", gate) in {item["check"] for item in document["checks"] if not item["ok"]}


@pytest.mark.parametrize(("changes", "outcome"), [(2, "PASS"), (3, "FAIL")])
def test_evidence_that_changes_while_it_is_read_is_examined_three_times(
    original: Published, monkeypatch: pytest.MonkeyPatch, changes: int, outcome: str
) -> None:
    real, left = recomputed.examine, [changes]

    def changing(*given: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise EvidenceChanged("a file changed", path="file")
        return real(*given)

    monkeypatch.setattr(recomputed, "examine", changing)
    document = original.verify()
    failed = [item["check"] for item in document["checks"] if not item["ok"]]
    assert (document["outcome"], failed) == (outcome, ["the engine run can be read"] if outcome == "FAIL" else [])
