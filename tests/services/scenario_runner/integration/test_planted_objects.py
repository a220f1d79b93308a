"""Something else lies in the place of an object of ours: a finding about that run, and about nothing else.

Every damage to one kind of object is planted at once, each beside a run of its own, and a run that nobody touched
stands among them.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import ForkedWorld, World

from scenario_runner.contracts.times import format_micros

pytestmark = pytest.mark.integration

SPARSE = (64 << 20) + 1


def holding(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def oversized(path: Path) -> None:
    path.touch()
    os.truncate(path, SPARSE)


def looped(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILE: dict[str, Callable[[Path], None]] = {
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "link to itself": looped,
    "pipe": lambda path: os.mkfifo(path),  # noqa: PLW0108 - named at run time: Windows has none
    "oversized": oversized,
}
DAMAGES: dict[str, Callable[[Path], None]] = {
    **NO_FILE,
    "empty": lambda path: path.touch(),
    "not UTF-8": holding(b"\xff\xfe{}"),
    "not JSON": holding(b"see the wiki"),
    "list": holding(b"[]"),
    "object": holding(b"{}"),
    "null": holding(b"null"),
    "float": holding(b'{"run_id":1.5,"state":1e3,"target_ref":{"path":0.1}}'),
    "surrogate": holding(b'{"run_id":"\\ud800","state":"\\udfff","updated_at_utc":"\\ud800"}'),
    "huge number": holding(b'{"seed":' + b"9" * 10_000 + b"}"),
    "too deep": holding(b"[" * 100_000),
    "of another version": holding(b'{"version":"v9","run_id":null,"state":"ARCHIVED","target_ref":"elsewhere"}'),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


def make(world: World, name: str) -> dict[str, Any]:
    """A small sealed engine run that shares no receipt with another."""
    fingerprint = hashlib.sha256(name.encode()).hexdigest()
    return world.make_run(
        name, manifest_fingerprint=fingerprint, outputs=["outlet_catalogue"], members=3, member_bytes=64, part_bytes=64
    )


def drop_all(world: World, *made: dict[str, Any]) -> None:
    for item in made:
        world.drop(item["request"], f"{item['run_id']}.json")


def document_of(folder: str, suffix: str = "json") -> Callable[[World, dict[str, Any]], Path]:
    return lambda world, made: world.ledger / folder / f"{made['run_id']}.{suffix}"


def receipt_named(name: str) -> Callable[[World, dict[str, Any]], Path]:
    def place(world: World, made: dict[str, Any]) -> Path:
        request = made["request"]
        parts = f"manifest_fingerprint={request['manifest_fingerprint']}/seed={request['seed']}"
        return world.ledger / f"instance_receipts/output_id=outlet_catalogue/{parts}/{name}"

    return place


def plant(path: Path, damage: Callable[[Path], None]) -> str:
    """Plant it; returns the sha256 of its bytes, empty when it has none that can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    damage(path)
    readable = path.is_file() and not path.is_symlink() and path.stat().st_size < SPARSE
    return hashlib.sha256(path.read_bytes()).hexdigest() if readable else ""


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def ready_runs(world: World) -> set[str]:
    return {item["payload"]["run_id"] for item in world.signals("READY")}


VERDICTS = {
    "plan": (document_of("run_plan"), "PLAN_DRIFT"),
    "facts view": (document_of("run_facts_view"), "FACTS_VIEW_DRIFT"),
    "instance receipt": (receipt_named("instance_receipt.json"), "INSTANCE_RECEIPT_DRIFT"),
    "bundle manifest": (receipt_named("bundle_manifest.json"), "INSTANCE_RECEIPT_DRIFT"),
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_what_lies_in_the_place_of_a_write_once_object_quarantines_its_run_and_no_other(
    world: World, kind: str
) -> None:
    place, code = VERDICTS[kind]
    innocent = make(world, "innocent")
    victims = {name: make(world, name) for name in DAMAGES}
    actual = {name: plant(place(world, made), DAMAGES[name]) for name, made in victims.items()}
    drop_all(world, *victims.values(), innocent)
    served = world.serve(timeout=60)
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    assert b"Traceback" not in served.stderr
    assert ready_runs(world) == {innocent["run_id"]}
    assert len(world.signals("TERMINAL")) == len(victims)
    for name, made in victims.items():
        _, explained = world.query("explain", made["run_id"])
        assert (explained["state"], explained["reason_code"]) == ("QUARANTINED", code), name
        drift = explained["drift"]
        assert (drift["object"], drift["actual"]) == (str(place(world, made)), actual[name]), name
        assert len(drift["expected"]) == 64
        assert drift["expected"] in explained["detail"]
        assert drift["actual"] in explained["detail"]
        assert world.document("quarantine", made["run_id"])["report"]["drift"] == drift
        assert world.document("run_record", made["run_id"], "jsonl")[-1]["details"]["report"]["drift"] == drift


OWED = {
    "record": (document_of("run_record", "jsonl"), "RECORD_DRIFT"),
    "status": (document_of("run_status"), "RECORD_DRIFT"),
    "ready signal": (document_of("ready_signal"), "READY_SIGNAL_DRIFT"),
}


@pytest.mark.parametrize("kind", OWED)
def test_what_lies_in_the_place_of_a_projection_keeps_its_run_owed_until_it_is_moved_away(
    world: World, kind: str
) -> None:
    place, code = OWED[kind]
    innocent = make(world, "innocent")
    damages = {name: damage for name, damage in DAMAGES.items() if (kind, name) != ("record", "empty")}
    victims = {name: make(world, name) for name in damages}
    for name, made in victims.items():
        plant(place(world, made), damages[name])
    drop_all(world, *victims.values(), innocent)
    for _ in range(2):
        served = world.serve(timeout=60)
        assert served.returncode == 5, served.stderr.decode()[-2000:]
        assert b"Traceback" not in served.stderr
        assert ready_runs(world) == {innocent["run_id"]}
    assert b'"relay.drift": ' in served.stderr
    for name, made in victims.items():
        code_shown, explained = world.query("explain", made["run_id"])
        assert (code_shown, explained["state"]) == (0, "READY"), name
        owed = explained["documents_owed"]
        assert owed["error"].startswith(f"{code}: {place(world, made)}"), name
        assert (owed["tries"], owed["since_utc"] < owed["next_try"]) == (1, True)
        assert world.query("status", made["run_id"])[1]["documents_owed"] == owed
        clear(place(world, made))
    served = world.serve(timeout=60)
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    assert ready_runs(world) == {innocent["run_id"], *(made["run_id"] for made in victims.values())}
    assert world.query("explain", victims["list"]["run_id"])[1]["documents_owed"] is None
    assert world.query("verify", victims["list"]["run_id"])[0] == 0


def test_what_lies_in_the_place_of_a_signal_on_the_spool_holds_up_no_other_signal(world: World) -> None:
    innocent = make(world, "innocent")
    victims = {name: make(world, name) for name in DAMAGES}
    drop_all(world, *victims.values(), innocent)
    assert world.serve("--role", "intake").returncode == 0
    assert world.serve("--role", "runner").returncode == 0
    places = {}
    for name, made in victims.items():
        (signal,) = world.query("explain", made["run_id"])[1]["signals"]
        places[name] = world.signals_folder / f"{signal['message_id']}.json"
        plant(places[name], DAMAGES[name])
    for _ in range(2):
        served = world.serve(timeout=60)
        assert served.returncode == 5, served.stderr.decode()[-2000:]
        assert b"Traceback" not in served.stderr
        (signal,) = world.query("explain", innocent["run_id"])[1]["signals"]
        assert signal["sent_at_utc"]
    assert b'"relay.signal_drift": ' in served.stderr
    for path in places.values():
        clear(path)
    assert world.serve(timeout=60).returncode == 0
    assert ready_runs(world) == {innocent["run_id"], *(made["run_id"] for made in victims.values())}


def test_a_plan_that_says_the_same_in_other_bytes_is_drift_as_well(world: World) -> None:
    """Admitted by one daemon, so the plan's only right bytes are known; then somebody's tool formats it."""
    made, innocent = make(world, "formatted"), make(world, "innocent")
    drop_all(world, made, innocent)
    assert world.serve("--role", "intake").returncode == 0
    with closing(sqlite3.connect(world.database)) as connection:
        admitted_us, deadline_us = connection.execute(
            "SELECT admitted_us, deadline_us FROM runs WHERE run_id = ?", (made["run_id"],)
        ).fetchone()
    (world.root / "plan.json").write_text(json.dumps(made["request"]))
    shown = json.loads(
        world.command("plan", "--wiring", str(world.wiring), "--policy", str(world.policy),
                      str(world.root / "plan.json"), "--json").stdout
    )  # fmt: skip
    plan = {
        "run_id": made["run_id"], "plan_hash": shown["plan_hash"], "policy_rev": shown["policy_rev"],
        "strategy": shown["strategy"], "intended_outputs": shown["intended_outputs"],
        "required_gates": shown["required_gates"], "evidence_deadline_utc": format_micros(deadline_us),
        "attempt_limit": 3, "created_at_utc": format_micros(admitted_us),
    }  # fmt: skip
    path = document_of("run_plan")(world, made)
    plant(path, holding(json.dumps(plan, indent=2, sort_keys=True).encode()))
    assert world.serve().returncode == 0
    _, explained = world.query("explain", made["run_id"])
    canonical = json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()
    assert explained["reason_code"] == "PLAN_DRIFT"
    assert explained["drift"]["expected"] == hashlib.sha256(canonical).hexdigest()
    assert ready_runs(world) == {innocent["run_id"]}


@pytest.fixture
def finished(world: World) -> tuple[World, dict[str, Any]]:
    made = make(world, "finished")
    drop_all(world, made)
    assert world.serve().returncode == 0
    assert world.query("verify", made["run_id"])[0] == 0
    return world, made


ANSWERED = ("folder", "oversized", "list", "surrogate", "too deep")


def test_verify_explain_and_status_answer_whatever_lies_in_the_place_of_an_object(
    finished: tuple[World, dict[str, Any]],
) -> None:
    world, made = finished
    (signal,) = world.signals()
    places = {
        **{kind: place(world, made) for kind, (place, _) in (VERDICTS | OWED).items()},
        "signal": world.signals_folder / f"{signal['message_id']}.json",
    }
    for number, (kind, path) in enumerate(places.items()):
        kept = path.rename(world.root / "kept")
        for name in (ANSWERED[number % 5], ANSWERED[(number + 2) % 5]):
            plant(path, DAMAGES[name])
            verified = world.command("verify", made["run_id"], "--wiring", str(world.wiring), "--json", timeout=20)
            assert b"Traceback" not in verified.stderr, (kind, name, verified.stderr.decode()[-800:])
            if kind != "record":  # which tells a reader nothing that the authority does not tell better
                assert verified.returncode == 1, (kind, name, verified.stdout.decode()[-800:])
                assert json.loads(verified.stdout)["outcome"] == "FAIL"
            clear(path)
        kept.rename(path)
    for command in ("explain", "status"):
        assert world.query(command, made["run_id"])[0] == 0
