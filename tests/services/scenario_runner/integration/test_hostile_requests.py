"""Hostile records on the control bus: each gets its disposition, nothing else is touched, the daemon goes on.

All records of one table are dropped into one world and drained by one ``serve``; the tests look at what became of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile_records import IGNORED, MIB, REJECTED, Make, Request, changed, encoded, envelope, without
from hostile_requests_support import Drained, drain, name_of, rows
from support import SMALL, World

from scenario_runner.contracts.ids import run_id_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("requests") / "world")
    good = [world.make_run(f"good-{number}", data_seed=number + 1, **SMALL) for number in range(3)]
    (world.root / "runs10").mkdir()
    return drain(world, {case: make for case, (make, _, _) in REJECTED.items()} | IGNORED, good)


def test_the_daemon_goes_on_and_the_good_requests_dropped_along_become_ready(drained: Drained) -> None:
    assert drained.code == 0, drained.log[-2000:]
    ready = {item["payload"]["run_id"] for item in drained.world.signals("READY")}
    assert ready == set(drained.good)
    assert "Traceback" not in drained.log


@pytest.mark.parametrize("case", REJECTED)
def test_a_hostile_record_is_rejected_with_its_reason_and_kept(drained: Drained, case: str) -> None:
    _, reason_code, says = REJECTED[case]
    drained.assert_refused(name_of(case), reason_code, says)


@pytest.mark.parametrize("case", IGNORED)
def test_what_is_not_for_us_is_ignored_counted_and_not_kept(drained: Drained, case: str) -> None:
    name, record = name_of(case), drained.record(name_of(case))
    assert (record["disposition"], record["run_id"], record["reason_code"]) == ("IGNORED", "", "")
    key = record["record_key"]
    assert rows(drained.world, "SELECT * FROM dead_letters WHERE record_key = ?", key) == []
    refusals = drained.world.signals("REQUEST_REJECTED")
    assert key not in {item["payload"]["record_key"] for item in refusals}
    assert (drained.world.bus / "consumed" / name).read_bytes() == drained.sent[name]
    assert name not in {item["record"] for item in drained.world.rejected()}


def test_no_hostile_record_makes_a_run_or_a_document(drained: Drained) -> None:
    runs = {row["run_id"] for row in rows(drained.world, "SELECT run_id FROM runs")}
    assert runs == set(drained.good)
    for folder in ("run_plan", "run_record", "run_status", "run_facts_view", "ready_signal", "quarantine"):
        place = drained.world.ledger / folder
        names = {path.name.partition(".")[0] for path in place.iterdir()} if place.is_dir() else set()
        assert names <= runs, folder
    assert {path.name for path in drained.world.ledger.iterdir()} <= {
        "run_plan",
        "run_record",
        "run_status",
        "run_facts_view",
        "ready_signal",
        "instance_receipts",
        "interface_pack",
        ".private",
    }
    receipts = list((drained.world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    assert len(receipts) == len(drained.good)
    beside = {path.name for path in drained.world.root.iterdir()}
    assert beside <= {
        "runs",
        "runs10",
        "object-store",
        "control-bus",
        "requests-made",
        "wiring.yaml",
        "policy.yaml",
        "authority.db",
        "authority.db-wal",
        "authority.db-shm",
    }


def test_every_record_has_exactly_one_disposition_and_none_is_left(drained: Drained) -> None:
    assert not list((drained.world.bus / "requests").iterdir())
    counted = rows(drained.world, "SELECT disposition, count(*) FROM intake_records GROUP BY disposition")
    assert {row[0]: row[1] for row in counted} == {
        "ACCEPTED": len(drained.good),
        "REJECTED": len(REJECTED),
        "IGNORED": len(IGNORED),
    }
    assert rows(drained.world, "SELECT count(*) FROM dead_letters")[0][0] == len(REJECTED)


def test_a_refused_record_that_names_a_run_id_is_told_on_the_bus_once(drained: Drained) -> None:
    signals = drained.world.signals("REQUEST_REJECTED")
    keys = [item["payload"]["record_key"] for item in signals]
    assert len(keys) == len(set(keys))
    assert not set(drained.good) & {item["payload"]["run_id"] for item in signals}
    assert {item["partition_key"] == item["payload"]["run_id"] for item in signals} == {True}


# --- unusual requests that are nevertheless right


def test_unusual_but_valid_requests_become_ready(world: World) -> None:
    seeds = world.make_run("seed", seed=2**64 - 1, data_seed=1, **SMALL)
    padded = world.make_run("padded", data_seed=2, **SMALL)
    keyed = world.make_run("ключ \u00a0 \U0001f600", data_seed=3, **SMALL)
    place = world.make_run("place", data_seed=4, **SMALL)
    wrapped = world.make_run("wrapped", data_seed=5, **SMALL)
    world.drop(seeds["request"], "seed.json")
    world.drop(encoded(padded["request"]).ljust(MIB), "padded.json")
    world.drop(json.dumps(keyed["request"], ensure_ascii=False).encode(), "keyed.json")
    slashed = place["engine_run_root"].replace("/runs/", "//runs/.//") + "/"
    world.drop(place["request"] | {"engine_run_root": f"file://{slashed}"}, "place.json")
    world.drop(
        envelope(wrapped["request"], attributes={"kind": "RUN_REQUEST", "traceparent": "x", "more": [1.5, None]}),
        "wrapped.json",
    )
    assert world.serve().returncode == 0
    assert {item["payload"]["run_id"] for item in world.signals("READY")} == {
        made["run_id"] for made in (seeds, padded, keyed, place, wrapped)
    }


# --- the same key again


def test_a_repeated_intent_is_a_duplicate_and_another_intent_a_conflict(world: World) -> None:
    made = world.make_run("same", **SMALL)
    good: Request = made["request"]
    assert world.serve().returncode == 0
    world.drop(good, "0-first.json")
    shifted = {
        "window_start_utc": "2026-01-01T02:00:00+02:00",
        "window_end_utc": "2026-01-01T19:00:00.000-05:00",
        "window_tz": "UTC",
    }
    duplicates = {
        "same bytes": good,
        "other offset": good | {"window": shifted},
        "repeated output": good | {"output_ids": ["outlet_catalogue", "outlet_catalogue"]},
        "other invoker": good | {"invoker": "somebody else", "notes": "n", "request_id": "r"},
        "other spelling of the root": good | {"engine_run_root": "file://" + good["engine_run_root"] + "/./"},
    }
    conflicts = {
        "seed": good | {"seed": 8},
        "manifest": good | {"manifest_fingerprint": "0" * 64},
        "parameters": good | {"parameter_hash": "0" * 64},
        "scenario": good | {"scenario": {"scenario_id": "other"}},
        "scenario set": good | {"scenario": {"scenario_set": [made["scenario_id"]]}},
        "window": good | {"window": good["window"] | {"window_end_utc": "2026-01-03T00:00:00Z"}},
        "outputs": good | {"output_ids": ["iso_country_reference", "outlet_catalogue"]},
        "strategy": good | {"requested_strategy": "AUTO"},
        "root": good | {"engine_run_root": str(world.runs)},
        "no outputs named": {key: value for key, value in good.items() if key != "output_ids"},
    }
    for case, document in {**duplicates, **conflicts}.items():
        world.drop(document, name_of(case))
    assert world.serve().returncode == 0
    before = {
        path: path.read_bytes() for path in world.ledger.rglob("*") if path.is_file() and ".private" not in path.parts
    }
    for case, document in conflicts.items():  # and again, now that the run is final
        world.drop(document, "late-" + name_of(case))
    assert world.serve().returncode == 0
    after = {
        path: path.read_bytes() for path in world.ledger.rglob("*") if path.is_file() and ".private" not in path.parts
    }
    assert after == before
    found = {
        row["record_key"].partition("#")[0].removeprefix("spool/"): (row["disposition"], row["reason_code"])
        for row in rows(world, "SELECT * FROM intake_records")
    }
    assert found.pop("0-first.json") == ("ACCEPTED", "")
    assert {name: found.pop(name) for name in map(name_of, duplicates)} == dict.fromkeys(
        map(name_of, duplicates), ("DUPLICATE", "")
    )
    assert set(found.values()) == {("CONFLICT", "EQUIV_KEY_COLLISION")}
    assert {item["reason_code"] for item in world.rejected()} == {"EQUIV_KEY_COLLISION"}
    assert len(world.rejected()) == 2 * len(conflicts)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]


# --- who may ask, and what the policy says


def test_only_listed_invokers_get_runs(tmp_path: Path) -> None:
    world = World(tmp_path / "w", {"auth_mode": "allowlist", "auth_allowlist": ["alice", "make_engine_run"]})
    made = world.make_run(**SMALL)
    good: Request = made["request"]
    denied: dict[str, Make] = {
        "nobody": without("invoker"),
        "mallory": changed(invoker="mallory"),
        "other case": changed(invoker="Alice"),
        "with a space": changed(invoker="alice "),
        "list as text": changed(invoker="alice,make_engine_run"),
        "look-alike": changed(invoker="\u0430lice"),
        "named by the envelope": lambda r: encoded(
            envelope(
                {k: v for k, v in r.items() if k != "invoker"}, attributes={"kind": "RUN_REQUEST", "invoker": "alice"}
            )
        ),
    }
    done = drain(world, denied, [made])
    assert done.code == 0, done.log[-2000:]
    for case in denied:
        done.assert_refused(name_of(case), "AUTH_DENIED", "invoker")
    assert [row["run_id"] for row in rows(world, "SELECT run_id FROM runs")] == [run_id_of(good["run_equivalence_key"])]
    assert len(world.signals("READY")) == 1


@pytest.mark.parametrize("allowlist", [[""], ["", " "], "${SR_TEST_UNSET_INVOKERS:-} , "])
def test_an_empty_entry_of_the_allowlist_never_lets_an_unnamed_caller_in(tmp_path: Path, allowlist: Any) -> None:
    world = World(tmp_path / "w", {"auth_mode": "allowlist", "auth_allowlist": allowlist})
    request = world.make_run(**SMALL)["request"]
    request.pop("invoker")
    world.drop(request)
    served = world.serve()
    assert served.returncode in (0, 2)  # refused at start-up, or the request is refused
    assert world.signals("READY") == []


def test_a_request_that_insists_on_reuse_is_refused_when_the_policy_denies_it(tmp_path: Path) -> None:
    world = World(tmp_path / "w", policy_changes={"reuse_policy": "DENY"})
    made = world.make_run(**SMALL)
    world.drop(made["request"])
    world.drop(made["request"] | {"requested_strategy": "AUTO"}, "auto.json")
    assert world.serve().returncode == 0
    codes = sorted(item["reason_code"] for item in world.rejected())
    assert codes == ["ENGINE_COMMAND_MISSING", "REUSE_NOT_ALLOWED"]
    assert world.signals("READY") == []


def test_a_request_without_outputs_under_a_policy_without_any_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path / "w", policy_changes={"traffic_output_ids": []})
    request = world.make_run(**SMALL)["request"]
    request.pop("output_ids")
    world.drop(request)
    assert world.serve().returncode == 0
    assert [item["reason_code"] for item in world.rejected()] == ["NO_OUTPUTS"]


def test_an_engine_root_behind_a_symlink_is_quarantined_wherever_the_link_is(world: World) -> None:
    made = {name: world.make_run(name, data_seed=number, **SMALL) for number, name in enumerate("abcd", 1)}
    real = {name: Path(item["engine_run_root"]) for name, item in made.items()}
    outside = world.root / "outside"
    outside.mkdir()
    real["a"].rename(outside / "a")
    real["a"].symlink_to(outside / "a")  # the run root itself
    (world.runs / "linked").symlink_to(world.runs / "local_full_run-1")  # a parent, within the allowed root
    world.drop(made["a"]["request"], "a.json")
    world.drop(made["b"]["request"] | {"engine_run_root": str(world.runs / "linked" / real["b"].name)}, "b.json")
    real["c"].rename(real["c"].with_name("moved"))
    real["c"].symlink_to("moved")  # to a sibling
    world.drop(made["c"]["request"], "c.json")
    world.drop(made["d"]["request"] | {"engine_run_root": f"{real['d']}/run_receipt.json"}, "d.json")  # a file
    assert world.serve().returncode == 0
    states = {name: world.query("status", item["run_id"])[1]["state"] for name, item in made.items()}
    assert states == dict.fromkeys("abcd", "QUARANTINED")
    assert world.signals("READY") == []
