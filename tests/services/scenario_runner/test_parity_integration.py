"""The installed command on S3 and Postgres: the same laws as everywhere.

Needs ``SR_TEST_S3_BUCKET`` and ``SR_TEST_PG_DSN``. What load and outages do is in test_parity_outages.py.
"""

import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from crashing import drained, until
from invariants_world import PREFIX, canonical, sha
from parity_fixtures import dsn, engines, no_faults_left, spot, world  # noqa: F401
from parity_load_support import running, state_of, until_sent
from parity_support import EngineRuns, ParityWorld, schema_in, settle_racy
from postgres_support import given_dsn
from s3_support import Spot, spot_on

from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import compose_daemon

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("server", ["first", "signed"])
def test_a_request_becomes_ready_on_s3_and_postgres_and_verifies(
    server: str, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with spot_on(server, monkeypatch.setenv) as spot:
        engines = EngineRuns(spot, "engine", tmp_path)
        made = engines.make()
        world = ParityWorld(tmp_path / "world", spot, engines, dsn)
        world.drop(made["request"])
        served = world.serve()
        assert served.returncode == 0, served.stderr.decode()
        code, told = world.query("status", made["run_id"])
        assert (code, told["state"]) == (0, "READY")
        assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]
        code, verified = world.query("verify", made["run_id"])
        assert (code, verified["outcome"]) == (0, "PASS"), verified
        assert world.query("explain", made["run_id"])[0] == 0
        view = world.document("run_facts_view", made["run_id"])
        assert all(item["path"].startswith(made["engine_run_root"] + "/") for item in view["locators"])
        secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
        assert world.checked(dropped=[json.dumps(made["request"]).encode()], secrets=[secret]) == []
        examined = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
        assert examined.returncode == 0, examined.stdout.decode()


def test_where_evidence_lies_on_s3_there_are_two_batches_at_a_time(world: ParityWorld) -> None:
    daemon = compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
    daemon.authority.close()
    assert daemon.batches == 2


def test_verify_notices_evidence_that_was_changed_on_s3_after_ready(world: ParityWorld, engines: EngineRuns) -> None:
    made = engines.make("verified-later", seed=11)
    world.drop(made["request"])
    drained(world)
    assert world.query("verify", made["run_id"])[0] == 0
    view = world.document("run_facts_view", made["run_id"])
    path = view["locators"][0]["path"].removeprefix(made["engine_run_root"] + "/").replace("*", "")
    key = next(key for key in objects_of(engines, made) if key.startswith(path.rstrip("/").rpartition("/")[0]))
    world.spot.put(engines.key(made, key), b"other bytes")
    code, verified = world.query("verify", made["run_id"])
    assert (code, verified["outcome"]) == (1, "FAIL")


def objects_of(engines: EngineRuns, made: dict[str, Any]) -> list[str]:
    """Paths of a run on S3."""
    engines.mirror.refresh()
    folder = engines.mirror.folder / made["engine_run_root"].removeprefix(engines.uri + "/")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_facts_view_is_a_function_of_plan_and_evidence(spot: Spot, engines: EngineRuns, tmp_path: Path) -> None:
    """Twice on S3 and Postgres: equal bytes. On files and SQLite: equal apart from where the engine run lies."""
    from support import World

    made = engines.make("pure", seed=12)
    views = []
    for name in ("one", "two"):
        with schema_in(given_dsn()) as dsn:
            world = ParityWorld(tmp_path / name, spot, engines, dsn)
            world.drop(made["request"])
            drained(world)
            views.append((world.ledger / "run_facts_view" / f"{made['run_id']}.json").read_bytes())
    assert views[0] == views[1]
    local = World(tmp_path / "files", {"engine_roots": [str(engines.maker.runs)]})
    local.drop({**made["request"], "engine_run_root": str(made["local"])})
    drained(local)
    on_files = local.document("run_facts_view", made["run_id"])
    on_s3 = json.loads(views[0].replace(made["engine_run_root"].encode(), str(made["local"]).encode()))
    for view in (on_files, on_s3):
        del view["bundle_hash"]
        for note in list(view):
            if note == "evidence_notes":
                view[note] = sorted(view[note])
    assert on_s3 == on_files


# ---------------------------------------------------------------- evidence that is wrong, late or contradicted


DAMAGES: dict[str, tuple[str, str]] = {
    "flag_bit_off": ("QUARANTINED", ""),
    "flag_empty": ("QUARANTINED", ""),
    "flag_huge": ("QUARANTINED", ""),
    "flag_directory": ("QUARANTINED", ""),
    "flag_says_fail": ("FAILED", "GATE_FAIL"),
    "flag_missing": ("FAILED", "EVIDENCE_MISSING_DEADLINE"),
    "index_absolute_path": ("QUARANTINED", ""),
    "index_parent_path": ("QUARANTINED", ""),
    "index_missing_member": ("QUARANTINED", ""),
    "index_empty_items": ("QUARANTINED", ""),
    "index_deep_nesting": ("QUARANTINED", ""),
    "member_tampered": ("QUARANTINED", ""),
    "member_tampered_flag_follows": ("QUARANTINED", ""),
    "member_missing": ("QUARANTINED", ""),
    "member_is_directory": ("QUARANTINED", ""),
    "member_extra_nested_flag": ("QUARANTINED", ""),
    "bundle_empty": ("QUARANTINED", ""),
    "concat_shift": ("QUARANTINED", ""),
    "output_missing": ("FAILED", "EVIDENCE_MISSING_DEADLINE"),
    "output_empty_directory": ("FAILED", "EVIDENCE_MISSING_DEADLINE"),
    "output_part_is_directory": ("QUARANTINED", ""),
    "root_missing": ("FAILED", "EVIDENCE_MISSING_DEADLINE"),
}


def test_damaged_evidence_ends_on_s3_as_it_does_on_files(
    spot: Spot, engines: EngineRuns, dsn: str, tmp_path: Path
) -> None:
    from support import World

    policy = {"evidence_wait_seconds": 0}
    on_s3 = ParityWorld(tmp_path / "s3", spot, engines, dsn, policy=policy)
    on_files = World(tmp_path / "files", {"engine_roots": [str(engines.maker.runs)]}, policy)
    runs, dropped = {}, []
    for number, kind in enumerate(DAMAGES):
        run = runs[kind] = engines.make(f"damaged-{kind}", seed=100 + number, damage=kind)
        on_s3.drop(run["request"], f"{kind}.json")
        on_files.drop({**run["request"], "engine_run_root": str(run["local"])}, f"{kind}.json")
        dropped.append(json.dumps(run["request"]).encode())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(drained, [on_s3, on_files]))
    ends: dict[str, dict[str, tuple[str, str]]] = {"s3": {}, "files": {}}
    for name, ledger in (("s3", on_s3.ledger), ("files", on_files.ledger)):
        for kind, run in runs.items():
            told = json.loads((ledger / "run_status" / f"{run['run_id']}.json").read_bytes())
            ends[name][kind] = told["state"], told.get("reason_code", "")
    assert ends["s3"] == ends["files"]
    for kind, (state, reason) in DAMAGES.items():
        assert ends["s3"][kind][0] == state, kind
        assert reason in ("", ends["s3"][kind][1]), kind
    assert on_s3.checked(dropped=dropped) == []


def test_evidence_that_appears_later_is_noticed(world: ParityWorld, engines: EngineRuns) -> None:
    whole = engines.make("late", seed=13, upload=False)
    flag = next(whole["local"].rglob("_passed.flag"))
    kept = flag.read_bytes()
    flag.unlink()
    engines.upload(whole["local"])
    absent = engines.make("later", seed=14, upload=False)
    for number, made in enumerate((whole, absent)):
        world.drop(made["request"], f"{number}.json")
    with running(world):
        for made in (whole, absent):
            until(lambda made=made: state_of(world, made) == "WAITING_EVIDENCE", "it waits", 20, pause=0.1)
        assert world.published() == 0
        flag.write_bytes(kept)
        world.spot.put(engines.key(whole, str(flag.relative_to(whole["local"]))), kept)
        engines.upload(absent["local"])
        until_sent(world, 2, 20)
    assert [state_of(world, made) for made in (whole, absent)] == ["READY", "READY"]
    assert world.checked() == []


def test_a_receipt_already_there_with_another_digest_quarantines_the_run(
    world: ParityWorld, engines: EngineRuns
) -> None:
    options = {"seed": 15, "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64,
               "outputs": ["s3_candidate_set_1A"]}  # fmt: skip
    ours, rival = (engines.make(f"rival-{number}", data_seed=number, **options) for number in (1, 2))
    world.drop(ours["request"], "1.json")
    drained(world)
    (receipt,) = list(world.ledger.rglob("instance_receipt.json"))
    before = receipt.read_bytes()
    world.drop(rival["request"], "2.json")
    drained(world)
    ended = world.document("run_status", rival["run_id"])
    assert (ended["state"], ended["reason_code"]) == ("QUARANTINED", "INSTANCE_RECEIPT_DRIFT")
    assert world.document("run_status", ours["run_id"])["state"] == "READY"
    assert receipt.read_bytes() == before
    assert world.checked() == []


def test_a_ledger_object_that_somebody_changed_is_drift_and_never_overwritten(
    world: ParityWorld, engines: EngineRuns
) -> None:
    made = engines.make("drift", seed=16, outputs=["s3_candidate_set_1A"])
    key = f"{world.name}/{PREFIX}/run_facts_view/{made['run_id']}.json"
    world.spot.put(key, b"{}")
    world.drop(made["request"])
    drained(world)
    ended = world.document("run_status", made["run_id"])
    assert (ended["state"], ended["reason_code"]) == ("QUARANTINED", "FACTS_VIEW_DRIFT")
    assert world.spot.data(key) == b"{}"
    assert world.signals("READY") == []


# ---------------------------------------------------------------- how many calls a run costs


def test_a_small_run_costs_few_calls_of_s3(spot: Spot, engines: EngineRuns, dsn: str, tmp_path: Path) -> None:
    """On a known world at most 8; on a new one at most 12 beyond listing and reading its artifacts once.

    The store's marker is read once a second at most, however many runs there are: it is not counted here.
    """
    world = ParityWorld(tmp_path / "world", spot, engines, dsn)
    known, new = (
        engines.make("cost-0", seed=20, members=6, parts=3),
        engines.make("cost-1", seed=21, members=6, parts=3),
    )
    settle_racy()
    with running(world):

        def cost(request: dict[str, Any], name: str) -> Counter[str]:
            before, log, began = world.published(), len(spot.proxy.log), time.monotonic()
            with spot.proxy.counting() as counts:
                world.drop(request, name)
                until_sent(world, before + 1)
            read = [key for operation, key, _ in spot.proxy.log[log:] if operation == "GET"]
            engine = [key for key in read if "/engine/" in key]
            assert len(engine) == len(set(engine)), "no artifact is read twice"
            markers = sum(key.endswith("/store.json") for key in read)
            assert markers <= time.monotonic() - began + 1
            return counts + Counter({"artifacts": len(engine), "GET": -len(engine) - markers})

        new_ones = [cost(made["request"], f"{number}.json") for number, made in enumerate((known, new))]
        known_ones = [
            cost({**known["request"], "run_equivalence_key": f"known-{number}"}, f"again-{number}.json")
            for number in range(5)
        ]
        before = world.published()
        with spot.proxy.counting() as together:
            for number in range(20):
                world.drop({**known["request"], "run_equivalence_key": f"together-{number}"}, f"t-{number}.json")
            until_sent(world, before + 20)
        with spot.proxy.counting() as idle:
            time.sleep(1.5)
    shown = {"new world": new_ones, "known world": known_ones, "20 together": [together]}
    print("\nS3 calls", {name: [dict(item) for item in counts] for name, counts in shown.items()})
    assert not idle, "an idle daemon asks S3 for nothing"
    for counts in new_ones:
        assert counts["artifacts"] > 50
        assert counts.total() - counts["artifacts"] - 1 <= 12, dict(counts)
    for counts in known_ones:
        assert counts.total() <= 8, dict(counts)
    assert together.total() / 20 <= 8, dict(together)
    assert world.checked() == []


# ---------------------------------------------------------------- Postgres fails during load


# ---------------------------------------------------------------- the checker reads what is there


def test_the_invariant_checker_reads_s3_and_postgres(world: ParityWorld, engines: EngineRuns) -> None:
    """A good final state is clean, and breaking one thing at a time turns it red."""
    made = engines.make("checked", seed=40, outputs=["s3_candidate_set_1A"])
    world.drop(made["request"])
    drained(world)
    dropped = [json.dumps(made["request"]).encode()]
    assert world.checked(dropped=dropped) == []
    key = f"{world.name}/{PREFIX}/run_facts_view/{made['run_id']}.json"
    view = world.spot.data(key)
    assert view is not None

    def broken(*invariants: str) -> None:
        found = {violation.invariant for violation in world.checked(dropped=dropped)}
        assert found & set(invariants), found

    world.spot.put(key, canonical({**json.loads(view), "bundle_hash": sha("x")}))
    broken("I1")
    world.spot.remove(key)
    broken("I1")
    world.spot.put(key, view)
    world.spot.put(f"{world.name}/elsewhere/object", b"x")
    broken("I15")
    world.spot.remove(f"{world.name}/elsewhere/object")
    member = next(path for path in objects_of(engines, made) if "s3_candidate_set" in path)
    kept = world.spot.data(engines.key(made, member))
    world.spot.put(engines.key(made, member), b"other")
    broken("I2")
    world.spot.put(engines.key(made, member), kept or b"")
    world.sql("UPDATE outbox SET sent_us = NULL")
    broken("I6")
    world.sql("UPDATE outbox SET sent_us = 1")
    world.sql("UPDATE runs SET state = 'FAILED', reason_code = 'GATE_FAIL'")
    broken("I4")
    world.sql("UPDATE runs SET state = 'READY', reason_code = ''")
    assert world.checked(dropped=dropped) == []
    assert world.checked(dropped=[*dropped, b"lost"])
    assert world.checked(secrets=[made["run_id"].encode()])
