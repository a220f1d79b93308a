"""Digests that S3 keeps in the place of reading: on a server that computes them, and on one that does not.

Needs ``SR_TEST_S3_BUCKET``; some of it ``SR_TEST_PG_DSN``, some of it ``SR_TEST_S3_SIGNED_ENDPOINT_URL``, a server that
stores the checksum that a client names without computing it.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault_proxy import afterwards, meanwhile
from parity_support import EngineRuns, ParityWorld, schema_in
from postgres_support import given_dsn
from s3_support import Spot, archived, spot_on
from support import World

from scenario_runner.artifacts.budget import UNLIMITED, ReadBudget
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import ConfigurationError, EvidenceChanged
from scenario_runner.contracts.plan import DEFAULT_BOUNDS
from scenario_runner.contracts.reasons import Reason
from scenario_runner.evidence.cache import EvidenceCache
from scenario_runner.evidence.examiner import Examiner
from scenario_runner.evidence.findings import Finding, Outcome
from scenario_runner.evidence.key import evidence_key
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import open_pack
from scenario_runner.storage.s3_checksums import StoredChecksum

pytest_plugins = ("s3_fixtures",)
pytestmark = pytest.mark.parity

WITH_SHA256 = {"ChecksumAlgorithm": "SHA256"}
STORED, READ = DigestSource.S3_CHECKSUM, DigestSource.READ
DEEP = {"output_digest_source": "s3_checksum"}
SMALL = ["s3_candidate_set_1A", "iso_country_reference"]
TOKENS = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")


@pytest.fixture
def spot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place on the server that computes checksums."""
    with spot_on("first", monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place on the server that believes its clients."""
    with spot_on("signed", monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def world(spot: Spot, tmp_path: Path) -> Iterator[ParityWorld]:
    """A world whose policy takes checksums, and whose engine has S3 keep them."""
    engines = EngineRuns(spot, "engine", tmp_path / "engines")
    engines.checksum = WITH_SHA256
    with schema_in(given_dsn()) as dsn:
        yield ParityWorld(tmp_path / "world", spot, engines, dsn, policy=DEEP)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Liar:
    """In the place of S3: says the same of every object."""

    def stored(self, _bucket: str, _entry: Any) -> StoredChecksum:
        return StoredChecksum("f" * 64, "")


def digested(spot: Spot, artifacts: Any, paths: list[str], source: DigestSource = STORED) -> dict[str, Any]:
    root = artifacts.open(spot.uri("root"), ReadBudget())
    return {item.files[0].path: item.files[0] for item in root.digest([[path] for path in paths], source)}


# --- reading


def test_a_whole_object_is_not_read_and_all_others_are(spot: Spot) -> None:
    spot.put("root/whole", b"whole", **WITH_SHA256)
    spot.put("root/empty", b"", **WITH_SHA256)
    spot.put("root/other", b"other", ChecksumAlgorithm="CRC32")
    upload = spot.client.create_multipart_upload(
        Bucket=spot.bucket_name, Key=f"{spot.prefix}/root/parts", **WITH_SHA256
    )
    target = {"Bucket": spot.bucket_name, "Key": f"{spot.prefix}/root/parts", "UploadId": upload["UploadId"]}
    part = spot.client.upload_part(**target, PartNumber=1, Body=b"in parts", **WITH_SHA256)
    named = {"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}
    spot.client.complete_multipart_upload(**target, MultipartUpload={"Parts": [named]})
    data = {"whole": b"whole", "empty": b"", "other": b"other", "parts": b"in parts"}
    with spot.proxy.counting() as counts:
        found = digested(spot, spot.artifacts(checksums=spot.checksums()), [*data])
    assert {path: item.sha256 for path, item in found.items()} == {path: sha(item) for path, item in data.items()}
    assert {path: item.bytes for path, item in found.items()} == {path: len(item) for path, item in data.items()}
    assert {path: item.source for path, item in found.items()} == {
        "whole": STORED, "empty": STORED, "other": READ, "parts": READ,
    }  # fmt: skip
    assert counts["GET"] == 2


def test_a_reader_without_proof_reads(spot: Spot) -> None:
    spot.put("root/whole", b"whole", **WITH_SHA256)
    with spot.proxy.counting() as counts:
        found = digested(spot, spot.artifacts(), ["whole"])
    assert found["whole"].source is READ
    assert (counts["GET"], counts["HEAD"]) == (1, 0)


def test_what_may_only_be_read_is_read(spot: Spot) -> None:
    spot.put("root/whole", b"whole", **WITH_SHA256)
    found = digested(spot, spot.artifacts(checksums=Liar()), ["whole"], READ)
    assert (found["whole"].source, found["whole"].sha256) == (READ, sha(b"whole"))


def test_digests_that_were_read_serve_both_depths_and_checksums_only_their_own(
    spot: Spot, writes_are_old: None
) -> None:
    spot.put_all({"root/a": b"a" * 10, "root/b": b"b" * 10}, **WITH_SHA256)
    artifacts = spot.artifacts(reuse=DigestReuse(), checksums=spot.checksums())
    assert digested(spot, artifacts, ["a"], READ)["a"].source is READ
    with spot.proxy.counting() as counts:
        assert {path: item.source for path, item in digested(spot, artifacts, ["a", "b"]).items()} == {
            "a": READ, "b": STORED,
        }  # fmt: skip
        assert {path: item.source for path, item in digested(spot, artifacts, ["a", "b"]).items()} == {
            "a": READ, "b": STORED,
        }  # fmt: skip
    assert (counts["GET"], counts["HEAD"]) == (0, 1), "a was read, and b's checksum is kept"
    with spot.proxy.counting() as counts:
        assert digested(spot, artifacts, ["b"], READ)["b"].source is READ
    assert counts["GET"] == 1


def test_a_checksum_is_kept_in_no_database(spot: Spot, writes_are_old: None) -> None:
    kept: dict[str, list[str]] = {}
    store: Any = SimpleNamespace(find_digests=kept.get, keep_digests=kept.__setitem__)
    spot.put("root/large", b"x" * (1 << 20), **WITH_SHA256)
    artifacts = spot.artifacts(reuse=DigestReuse(store), checksums=spot.checksums())
    assert digested(spot, artifacts, ["large"])["large"].source is STORED
    assert kept == {}


def test_an_object_that_is_replaced_while_it_is_asked_for_has_changed(spot: Spot) -> None:
    spot.put("root/file", b"old", **WITH_SHA256)
    checksums = spot.checksums()
    root = spot.artifacts(checksums=checksums).open(spot.uri("root"), ReadBudget())
    spot.proxy.add(meanwhile(lambda: spot.put("root/file", b"new", **WITH_SHA256)), "HEAD")
    with pytest.raises(EvidenceChanged):
        root.digest([["file"]], STORED)


def test_an_object_that_is_replaced_after_it_was_asked_for_is_not_confirmed(spot: Spot) -> None:
    spot.put("root/file", b"old", **WITH_SHA256)
    root = spot.artifacts(checksums=spot.checksums()).open(spot.uri("root"), ReadBudget())
    spot.proxy.add(afterwards(lambda: spot.put("root/file", b"newer", **WITH_SHA256)), "HEAD")
    root.digest([["file"]], STORED)
    with pytest.raises(EvidenceChanged):
        root.confirm(root.snapshot())


def test_many_checksums_are_asked_for_at_a_time_and_answered_in_order(spot: Spot) -> None:
    data = {f"root/{number:03d}": b"%d" % number for number in range(150)}
    spot.put_all(data, **WITH_SHA256)
    with spot.proxy.counting() as counts:
        found = digested(spot, spot.artifacts(checksums=spot.checksums()), [f"{number:03d}" for number in range(150)])
    assert [item.sha256 for item in found.values()] == [sha(item) for item in data.values()]
    assert (counts["HEAD"], counts["GET"]) == (150, 0)


# --- findings


def test_a_finding_with_checksums_is_never_used_where_bytes_must_be_read(
    spot: Spot, world: ParityWorld, writes_are_old: None
) -> None:
    made = world.engines.make("shared", outputs=SMALL)
    pack = open_pack(load_wiring(str(world.wiring)))
    tokens = {name: str(made.get(name, "")) for name in TOKENS}
    packs: Any = SimpleNamespace(get=lambda _digest: pack)
    artifacts = spot.artifacts(reuse=DigestReuse(), checksums=Liar(), root=world.engines.uri)
    examiner = Examiner(artifacts, packs, EvidenceCache(), lambda _seconds: None)

    def examined(source: DigestSource) -> Finding:
        key = evidence_key(
            made["engine_run_root"], pack, tokens, made["gate_ids"], made["output_ids"], DEFAULT_BOUNDS, source
        )
        return examiner.examine(key, lambda: None, UNLIMITED)

    lied, read = examined(STORED), examined(READ)
    assert (lied.outcome, read.outcome) == (Outcome.PASS, Outcome.PASS)
    assert lied.verified is not None
    assert read.verified is not None
    assert {file.sha256 for output in lied.verified.outputs for file in output.files} == {"f" * 64}
    assert "f" * 64 not in {file.sha256 for output in read.verified.outputs for file in output.files}
    assert all("verification_depth" not in item for item in read.report["outputs"])
    assert examined(STORED) is lied


# --- the installed command


def ready_of(world: World) -> dict[str, Any]:
    found = [json.loads(path.read_bytes()) for path in sorted(world.signals_folder.glob("*.json"))]
    (ready,) = [item for item in found if item["attributes"]["kind"] == "READY"]
    return dict(ready)


def shown(world: World, *arguments: str) -> dict[str, Any]:
    done = world.command(*arguments, "--wiring", str(world.wiring), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_the_depth_is_in_the_record_in_explain_in_verify_and_beside_the_facts_view(world: ParityWorld) -> None:
    made = world.engines.make("key-1", outputs=SMALL)
    key = world.engines.key(made, "")
    (again,) = [path for path in sorted(made["local"].rglob("*")) if path.is_file() and "candidate" in str(path)][:1]
    read = str(again.relative_to(made["local"]))
    world.spot.put(f"{key}{read}", again.read_bytes())  # S3 keeps no SHA-256 of this one
    world.drop(made["request"])
    assert world.serve().returncode == 0
    ready = ready_of(world)
    assert ready["attributes"]["verification_depth"] == "s3_checksum"
    run_id = ready["payload"]["run_id"]
    explained = shown(world, "explain", run_id)
    by_id = {item["output_id"]: item for item in explained["outputs"]}
    assert {item["verification_depth"] for item in by_id.values()} == {"s3_checksum"}
    assert by_id["s3_candidate_set_1A"]["read_files"] == [read]
    assert by_id["iso_country_reference"]["read_files"] is None
    record = (world.store / f"fraud-platform/sr/run_record/{run_id}.jsonl").read_text("utf-8")
    (committed,) = [item for item in map(json.loads, record.splitlines()) if item["event_kind"] == "RECEIPTS_COMMITTED"]
    assert [item["verification_depth"] for item in committed["details"]["outputs"]] == ["s3_checksum"] * 2
    view = (world.store / f"fraud-platform/sr/run_facts_view/{run_id}.json").read_text("utf-8")
    assert "depth" not in view
    verified = shown(world, "verify", run_id)
    assert (verified["outcome"], verified["verification_depth"]) == ("PASS", "s3_checksum")
    assert verified["depths"][1] == {"output_id": "s3_candidate_set_1A", "verification_depth": "s3_checksum",
                                     "read_files": [read]}  # fmt: skip
    text = world.command("explain", run_id, "--all", "--wiring", str(world.wiring)).stdout.decode()
    assert "verification_depth" in text
    assert read in text
    assert world.command("reemit", run_id, "--reason", "test", "--wiring", str(world.wiring)).returncode == 0
    (repeated,) = [json.loads(path.read_bytes()) for path in world.signals_folder.glob("*.reemit-*.json")]
    assert repeated["attributes"]["verification_depth"] == "s3_checksum"


def test_a_ready_that_hides_or_invents_its_depth_fails_verify(world: ParityWorld) -> None:
    made = world.engines.make("key-1", outputs=SMALL)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    (path,) = world.signals_folder.glob("*.json")
    ready = json.loads(path.read_bytes())
    for depth in (None, "read"):
        changed = json.loads(json.dumps(ready))
        changed["attributes"]["verification_depth"] = depth
        if depth is None:
            del changed["attributes"]["verification_depth"]
        path.chmod(0o600)
        path.write_text(json.dumps(changed), "utf-8")
        done = world.command("verify", ready["payload"]["run_id"], "--wiring", str(world.wiring), "--json")
        failed = [item["check"] for item in json.loads(done.stdout)["checks"] if not item["ok"]]
        assert (done.returncode, failed) == (1, ["READY's verification_depth is the record's"])


def test_where_all_files_were_read_ready_says_so(world: ParityWorld) -> None:
    world.engines.checksum = {}
    world.drop(world.engines.make("key-1", outputs=SMALL)["request"])
    assert world.serve().returncode == 0
    ready = ready_of(world)
    assert ready["attributes"]["verification_depth"] == "read"
    outputs = shown(world, "explain", ready["payload"]["run_id"])["outputs"]
    assert [(item["verification_depth"], item["read_files"]) for item in outputs] == [("read", None)] * 2


def test_a_daemon_whose_own_policy_reads_takes_no_checksum_of_a_run_that_was_admitted_under_another(
    world: ParityWorld,
) -> None:
    world.drop(world.engines.make("key-1", outputs=SMALL)["request"])
    assert world.serve("--role", "intake").returncode == 0
    world.policy_changes = {}
    world.write_profiles()
    with world.spot.proxy.counting() as counts:
        assert world.serve().returncode == 0
    assert counts["HEAD"] == 0
    assert ready_of(world)["attributes"]["verification_depth"] == "read"


def test_under_the_default_nothing_tells_of_depths(spot: Spot, tmp_path: Path) -> None:
    engines = EngineRuns(spot, "engine", tmp_path / "engines")
    engines.checksum = WITH_SHA256
    with schema_in(given_dsn()) as dsn:
        world = ParityWorld(tmp_path / "world", spot, engines, dsn)
        world.drop(engines.make("key-1", outputs=SMALL)["request"])
        assert world.serve().returncode == 0
        files = [path for folder in (world.store, world.bus) for path in folder.rglob("*") if path.is_file()]
        assert len(files) > 5
        assert [path for path in files if any(word in path.read_bytes() for word in (b"depth", b"digest_source"))] == []
        verified = shown(world, "verify", ready_of(world)["payload"]["run_id"])
        assert (verified["verification_depth"], verified["depths"]) == (None, None)
        assert not [item for item in verified["checks"] if "depth" in item["check"]]


# --- the proof


def test_a_server_that_computes_checksums_proves_it(spot: Spot) -> None:
    spot.checksums().prove(spot.bucket_name, f"{spot.prefix}/probe")


def test_a_server_that_believes_its_clients_is_refused(naive: Spot) -> None:
    with pytest.raises(ConfigurationError, match="wrong") as refused:
        naive.checksums().prove(naive.bucket_name, f"{naive.prefix}/probe")
    assert refused.value.reason is Reason.STORE_CHECKSUMS_UNSAFE


def on_s3(spot: Spot, root: Path, **wiring: Any) -> World:
    keys = {"object_store_root": spot.uri("ledger"), "s3_endpoint_url": spot.proxy.url,
            "s3_region": spot.place.region, "s3_path_style": True, "engine_roots": [spot.uri("engine")]}  # fmt: skip
    return World(root, {**keys, **wiring}, DEEP)


def examined(world: World) -> tuple[int, list[dict[str, Any]]]:
    done = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    return done.returncode, json.loads(done.stdout)["checks"]


def test_start_and_doctor_refuse_the_mode_on_a_server_that_believes_its_clients(naive: Spot, tmp_path: Path) -> None:
    world = on_s3(naive, tmp_path / "world")
    served = world.serve()
    assert served.returncode == 2
    assert b"STORE_CHECKSUMS_UNSAFE" in served.stderr
    assert b"output_digest_source" in served.stderr
    code, checks = examined(world)
    assert (code, [item["check"] for item in checks if not item["ok"]]) == (2, ["checksums"])
    world.policy_changes = {}
    world.write_profiles()
    assert world.serve().returncode == 0


def test_doctor_says_what_was_proved(spot: Spot, tmp_path: Path) -> None:
    world = on_s3(spot, tmp_path / "world")
    for started in (False, True):
        code, checks = examined(world)
        assert code == 0, checks
        (found,) = [item for item in checks if item["check"] == "checksums"]
        assert "refuses wrong ones" in found["detail"]
        if not started:
            assert world.serve().returncode == 0


def test_a_folder_can_prove_nothing_of_the_engines_bucket(spot: Spot, tmp_path: Path) -> None:
    world = on_s3(spot, tmp_path / "world", object_store_root=str(tmp_path / "world/object-store"))
    served = world.serve()
    assert served.returncode == 2
    assert b"STORE_CHECKSUMS_UNSAFE" in served.stderr
    assert examined(world)[0] == 2


def test_a_scrub_tells_tampering_beside_an_archived_object_and_goes_on_past_archived_ones(world: ParityWorld) -> None:
    made = world.engines.make("key-1", outputs=SMALL)
    for number in range(6):
        world.drop({**made["request"], "run_equivalence_key": f"key-{number}"}, f"{number}.json")
    assert world.serve().returncode == 0
    scrub = ("scrub", "--wiring", str(world.wiring), "--rate", "0")
    world.spot.proxy.add(archived("GLACIER"), "GET", "iso_country", times=None)
    done = world.command(*scrub)
    assert (done.returncode, done.stdout.count(b"UNREADABLE  ")) == (5, 6), done.stderr
    (first, *_) = [path for path in sorted(made["local"].rglob("*")) if path.is_file() and "candidate" in str(path)]
    world.spot.put(world.engines.key(made, "") + str(first.relative_to(made["local"])), b"tampered")
    done = world.command(*scrub)
    assert (done.returncode, done.stdout.count(b"DRIFT  output s3_candidate_set_1A re-hashes")) == (1, 6), done.stderr
