"""Guards that look as if nothing depended on them: each of these tests fails when its guard is deleted."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from crashing import KILLED, Moment, launch
from support import REPO, ForkedWorld

from scenario_runner.artifacts.base import Snapshot
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.contracts.errors import EvidenceChanged
from scenario_runner.contracts.plan import DEFAULT_BOUNDS
from scenario_runner.evidence.cache import EvidenceCache
from scenario_runner.evidence.examine import examine
from scenario_runner.evidence.findings import Finding, Outcome
from scenario_runner.evidence.key import EvidenceKey, evidence_key
from scenario_runner.intake.admission_policy import plan_request
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.integration

SMALL: Mapping[str, Any] = {"outputs": ["outlet_catalogue"], "members": 3, "member_bytes": 64}


@pytest.fixture
def world(tmp_path: Path) -> ForkedWorld:
    return ForkedWorld(tmp_path / "world")


def events(world: ForkedWorld) -> list[str]:
    with closing(sqlite3.connect(f"file:{world.database}?mode=ro", uri=True, timeout=30)) as rows:
        return [str(kind) for (kind,) in rows.execute("SELECT kind FROM run_events ORDER BY seq")]


def test_the_passes_of_the_gates_are_committed_before_the_first_receipt_is_written(world: ForkedWorld) -> None:
    made = world.make_run(**SMALL)
    world.drop(made["request"])
    moment = Moment("os:link", match="instance_receipts")
    with launch(world, moment, "--until-idle") as daemon:
        assert daemon.wait(60) == KILLED
    assert not list(world.ledger.glob("instance_receipts/**/*.json"))
    assert "GATES_PASSED" in events(world)


def test_a_facts_view_that_is_not_of_its_schema_is_not_written(world: ForkedWorld) -> None:
    schemas = world.root / "schemas"
    shutil.copytree(REPO / "config/platform/contracts/scenario_runner", schemas)
    path = schemas / "run_facts_view.schema.yaml"
    schema = yaml.safe_load(path.read_text("utf-8"))
    schema["required"].append("a_field_that_none_has")
    path.write_text(yaml.safe_dump(schema), "utf-8")
    world.write_profiles(schema_root=str(schemas))
    made = world.make_run(**SMALL)
    world.drop(made["request"])
    served = world.serve()
    assert served.returncode != 0, "a defect of ours, never a verdict"
    assert not list(world.ledger.glob("run_facts_view/*.json"))
    assert not world.signals()


def test_two_requests_for_one_scope_in_two_roots_share_nothing(world: ForkedWorld) -> None:
    """One root is a copy of the other with one bit of a flag flipped: it must not be READY by the other's evidence."""
    made = world.make_run(**SMALL)
    request = made["request"]
    root = Path(request["engine_run_root"])
    copy = world.runs / "copy"
    shutil.copytree(root, copy)
    flag = next(iter(sorted(copy.rglob("_passed.flag"))))
    data = bytearray(flag.read_bytes())
    data[-10] ^= 1
    flag.write_bytes(bytes(data))
    for number, folder in enumerate((root, copy)):
        other = {**request, "engine_run_root": str(folder), "run_equivalence_key": f"key-{number}"}
        world.drop(other, f"{number}.json")
    assert world.serve().returncode == 0
    states = {document["run_id"]: document["state"] for document in _statuses(world)}
    assert sorted(states.values()) == ["QUARANTINED", "READY"]
    assert len(world.signals("READY")) == 1


def test_digests_of_files_that_may_change_unseen_are_not_kept(world: ForkedWorld) -> None:
    """Changed within one tick of the clock a file looks as before (the racily-clean rule)."""
    made = world.make_run(outputs=["outlet_catalogue"], members=3, parts=1, part_bytes=2 << 20)
    soon = time.time() + 3600
    for path in Path(made["request"]["engine_run_root"]).rglob("*"):
        os.utime(path, (soon, soon))
    world.drop(made["request"])
    world.serve()
    assert len(world.signals("READY")) == 1
    with closing(sqlite3.connect(f"file:{world.database}?mode=ro", uri=True, timeout=30)) as rows:
        assert rows.execute("SELECT count(*) FROM digest_reuse").fetchone() == (0,)


def _statuses(world: ForkedWorld) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in world.ledger.glob("run_status/*.json")]


class _Unchanged:
    """A root whose files are what they were."""

    def confirm(self, _snapshot: Snapshot) -> None:
        """Nothing changed that can be seen."""


class _Changed:
    def confirm(self, _snapshot: Snapshot) -> None:
        raise EvidenceChanged("it changed", path="flag")


PASSED = Finding(Outcome.PASS, None, "", {}, verified=object())  # type: ignore[arg-type]
LONG_AGO = Snapshot({"flag": (1,)}, {}, {}, stable=True)


@pytest.mark.parametrize(
    ("snapshot", "finding", "root", "kept"),
    [
        (LONG_AGO, PASSED, _Unchanged(), True),
        (replace(LONG_AGO, stable=False), PASSED, _Unchanged(), False),
        (LONG_AGO, replace(PASSED, verified=None), _Unchanged(), False),
        (LONG_AGO, PASSED, _Changed(), False),
    ],
    ids=["unchanged for long", "changed a moment ago", "not passed", "changed since"],
)
def test_a_finding_is_used_again_only_when_equal_identities_mean_equal_bytes(
    snapshot: Snapshot, finding: Finding, root: Any, kept: bool
) -> None:
    cache, key = EvidenceCache(), EvidenceKey("/r", "d", (), (), (), DEFAULT_BOUNDS)
    cache.put(key, finding, snapshot)
    assert cache.get(key, root) is (finding if kept else None)


@pytest.mark.parametrize("changed", ["nothing", "a flag", "a member", "an output", "a listing"])
def test_everything_that_was_read_is_seen_unchanged_before_there_is_a_finding(world: ForkedWorld, changed: str) -> None:
    made = world.make_run(**SMALL)
    world.write_profiles()
    wiring, policy = load_wiring(str(world.wiring)), load_policy(str(world.policy))
    pack = open_pack(wiring)
    intent, inputs = plan_request(parse_run_request(made["request"]), make_admission_policy(wiring, policy, pack))
    key = evidence_key(intent.engine_run_root, pack, intent.tokens(), inputs.gates, inputs.outputs, inputs.bounds)
    folder = Path(intent.engine_run_root)
    victims = {"a flag": "_passed.flag", "a member": "*.bin", "an output": "part-*"}
    with closing(LocalArtifacts([str(world.runs)], 1, None)) as artifacts, ReadBudget(bounds=inputs.bounds) as budget:
        root: Any = artifacts.open(intent.engine_run_root, budget)
        real = root.snapshot

        def snapshot_and_change() -> Snapshot:
            seen: Snapshot = real()
            if changed == "a listing":
                (next(folder.rglob("part-*")).parent / "part-99999.parquet").touch()
            elif changed != "nothing":
                os.utime(next(folder.rglob(victims[changed])), (0, 0))
            return seen

        root.snapshot = snapshot_and_change
        if changed == "nothing":
            assert examine(root, pack, key)[0].outcome is Outcome.PASS
        else:
            with pytest.raises(EvidenceChanged):
                examine(root, pack, key)
        root.close()
