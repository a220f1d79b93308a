"""A batch decides nothing: what each run comes to is what its lifecycle alone comes to, in bytes and in rows."""

import json
import shutil
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from authority_support import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ForkedWorld, World

from scenario_runner.artifacts.budget import BATCH_SHARE, UNLIMITED, Share
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.evidence.cache import EvidenceCache
from scenario_runner.evidence.examiner import Examiner
from scenario_runner.intake.decode import Message
from scenario_runner.intake.validate import validate_message
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.runs.batch import RunDriver
from scenario_runner.runs.leases import Leases
from scenario_runner.service.compose import make_admission_policy, open_pack, open_schemas
from scenario_runner.storage.filesystem import FilesystemStore

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 3, "member_bytes": 64}
ROW = "state, reason_code, updated_us, due_us, wakes, retries, last_error, event_seq, report_digest, facts_view_digest"


class Place:
    """A store and an authority of their own, and a driver over a world's engine runs."""

    def __init__(self, folder: Path, world: World, cache: EvidenceCache | None, *, pooled: bool) -> None:
        wiring, policy = load_wiring(str(world.wiring)), load_policy(str(world.policy))
        pack = open_pack(wiring)
        self.rules, self.folder = make_admission_policy(wiring, policy, pack), folder
        self.authority = SqliteAuthority(str(folder / "a.db"), Clock())
        self.leases = Leases(self.authority, "w", 30.0, lambda: 0.0)
        ledger = Ledger(FilesystemStore(str(folder / "store"), ".private"), open_schemas(wiring))
        self.artifacts = LocalArtifacts([str(world.runs)], 1, DigestReuse(self.authority) if cache else None)
        self.pool = ThreadPoolExecutor(2)
        examiner = Examiner(self.artifacts, PinnedPacks(pack, ledger), cache, lambda _seconds: None)
        examination_pool = self.pool if pooled else None
        self.driver = RunDriver(self.authority, ledger, examiner, self.leases, examination_pool)

    def run(self, requests: list[bytes], share: Share) -> dict[str, Any]:
        """Admit all, drive all in one batch, and read what is there: rows by run, objects by path."""
        self.authority.admit(
            [validate_message(Message(str(n), data, 1), self.rules) for n, data in enumerate(requests)]
        )
        deferred = self.driver.drive(self.leases.claim(100), share)
        assert self.driver.drive([item.claim for item in deferred]) == []
        self.authority.close()
        self.artifacts.close()
        self.pool.shutdown()
        return self.found()

    def found(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with closing(sqlite3.connect(self.folder / "a.db")) as rows:
            for run_id, *row in rows.execute(f"SELECT run_id, {ROW} FROM runs"):
                events = "SELECT seq, kind, ts_us, details FROM run_events WHERE run_id = ? ORDER BY seq"
                signals = "SELECT message_id, kind, partition_key, attributes, payload FROM outbox WHERE run_id = ?"
                found[run_id] = [row, *(rows.execute(query, (run_id,)).fetchall() for query in (events, signals))]
        files = (path for path in (self.folder / "store/fraud-platform").rglob("*") if path.is_file())
        return found | {str(path.relative_to(self.folder)): _comparable(path) for path in files}


def _comparable(path: Path) -> bytes | dict[str, Any]:
    """An object's bytes. A receipt is shared by copies of an engine run: which copy wrote it first is free."""
    if path.name != "instance_receipt.json":
        return path.read_bytes()
    document = json.loads(path.read_bytes())
    del document["target_ref"]["path"]
    return dict(document)


@pytest.fixture(scope="module")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[bytes]]:
    """Requests of every kind: equal evidence under two keys, a copy of a root, and evidence that fails in all ways."""
    world = ForkedWorld(tmp_path_factory.mktemp("batches") / "world")
    outputs = ["outlet_catalogue", "arrival_events_5B"]
    good = world.make_run("good", outputs=outputs, **SMALL)["request"]
    requests = [good, good | {"run_equivalence_key": "twin"}]
    for place in ("copy", "tampered"):
        copy = world.runs / place
        shutil.copytree(good["engine_run_root"], copy)
        requests.append(good | {"run_equivalence_key": place, "engine_run_root": str(copy)})
    flag = min((world.runs / "tampered").rglob("_passed.flag"))
    flag.write_bytes(flag.read_bytes().replace(b"a", b"b"))
    for seed, damage in enumerate(
        ("flag_missing", "flag_says_fail", "output_missing", "index_not_json", "root_missing"), 3
    ):
        made = world.make_run(damage, outputs=["outlet_catalogue"], damage=damage, data_seed=seed, seed=seed, **SMALL)
        requests.append(made["request"])
    requests.append(requests[-2] | {"run_equivalence_key": "again"})
    return world, [json.dumps(item).encode() for item in requests]


def drive(world: World, requests: list[bytes], share: Share, cache: EvidenceCache | None, *, pooled: bool) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return Place(Path(folder), world, cache, pooled=pooled).run(requests, share)


def test_any_batch_comes_to_what_its_runs_come_to_alone(scenery: tuple[World, list[bytes]]) -> None:
    world, requests = scenery
    alone = [drive(world, [request], UNLIMITED, None, pooled=False) for request in requests]
    states = {row[0][0] for found in alone for row in found.values() if isinstance(row, list)}
    assert states == {"READY", "WAITING_EVIDENCE", "FAILED", "QUARANTINED"}
    kept = EvidenceCache()

    @settings(max_examples=25, deadline=None)
    @given(
        chosen=st.lists(st.sampled_from(range(len(requests))), min_size=2, max_size=len(requests), unique=True),
        share=st.sampled_from([BATCH_SHARE, UNLIMITED]),
        cache=st.sampled_from([None, kept]),
        pooled=st.booleans(),
    )
    def compare(chosen: list[int], share: Share, cache: EvidenceCache | None, pooled: bool) -> None:
        expected: dict[str, Any] = {}
        for number in chosen:
            expected |= alone[number]
        assert drive(world, [requests[number] for number in chosen], share, cache, pooled=pooled) == expected

    compare()
