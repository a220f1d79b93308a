"""Corrections by the installed command on files: both records, object, signal, both ends, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from invariants import check, paths_of
from support import ForkedWorld

from scenario_runner.contracts.documents import RunSupersedes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}


class Scene:
    """A world with a READY run, a FAILED one and one that waits, and requests for more."""

    def __init__(self, root: Path) -> None:
        self.world = ForkedWorld(root, {})
        self.runs: dict[str, str] = {}
        self.requests: dict[str, dict[str, Any]] = {}
        damages = {
            "ready": None,
            "bad": "flag_bit_off",
            "waiting": "flag_missing",
            "new": None,
            "broken": "flag_bit_off",
        }
        for seed, (name, damage) in enumerate(damages.items()):
            made = self.world.make_run(name, seed=seed, **SMALL, **({"damage": damage} if damage else {}))
            self.runs[name], self.requests[name] = str(made["run_id"]), made["request"]
        for name in ("ready", "bad", "waiting"):
            self.world.drop(self.requests[name], f"{name}.json")
        self.drain()

    def drain(self) -> None:
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()

    def submit(self, name: str, *more: str) -> tuple[int, dict[str, Any]]:
        file = self.world.root / f"{name}.request.json"
        file.write_text(json.dumps(self.requests[name]), "utf-8")
        done = self.world.command("submit", str(file), "--wiring", str(self.world.wiring), "--json", *more)
        return done.returncode, json.loads(done.stdout or b"{}")

    def shown(self, *command: str) -> dict[str, Any]:
        found = json.loads(self.world.command(*command, "--wiring", str(self.world.wiring), "--json").stdout)
        assert isinstance(found, dict)
        return found

    def text(self, *command: str) -> str:
        return self.world.command(*command, "--wiring", str(self.world.wiring)).stdout.decode()

    def signals(self, kind: str) -> list[dict[str, Any]]:
        found = [json.loads(path.read_bytes()) for path in self.world.signals_folder.glob("*.json")]
        return [item for item in found if item["attributes"]["kind"] == kind]

    def dropped(self) -> list[Path]:
        """Requests that lie on the control bus."""
        return list((self.world.bus / "requests").glob("*.json"))

    def drop(self, name: str, key: str = "", **attributes: Any) -> None:
        """Drop a request in an envelope, as another producer may."""
        payload = {**self.requests[name], **({"run_equivalence_key": key} if key else {})}
        self.world.drop(
            {
                "topic": "fp.bus.control.v1", "message_id": f"ask {name} {sorted(attributes.items())}"[:200],
                "published_at_utc": "2026-01-01T00:00:00Z", "attributes": {"kind": "RUN_REQUEST", **attributes},
                "partition_key": "any", "payload": payload,
            },
            f"{hashlib.sha256(repr((name, key, attributes)).encode()).hexdigest()[:12]}.json",
        )  # fmt: skip

    def refusals(self) -> list[str]:
        return sorted(item["payload"]["reason_code"] for item in self.signals("REQUEST_REJECTED"))

    def record(self, name: str) -> list[dict[str, Any]]:
        return list(self.world.document("run_record", self.runs[name], "jsonl"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "w")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A scene for tests that change nothing."""
    return Scene(tmp_path_factory.mktemp("untouched") / "w")


@pytest.mark.parametrize("old", ["ready", "bad"])
def test_a_correction_supersedes_when_it_is_ready_and_both_ends_show_it(scene: Scene, old: str) -> None:
    old_id, new_id = scene.runs[old], scene.runs["new"]
    status = (scene.world.ledger / "run_status" / f"{old_id}.json").read_bytes()
    record = (scene.world.ledger / "run_record" / f"{old_id}.jsonl").read_bytes()
    code, answer = scene.submit("new", "--supersedes", old_id[:12], "--purpose", "late data", "--reason-code", "LATE")
    assert (code, answer["run_id"]) == (0, new_id)
    scene.drain()

    view = f"fraud-platform/sr/run_facts_view/{old_id}.json" if old == "ready" else ""
    payload = {
        "old_run_id": old_id, "new_run_id": new_id, "purpose": "late data", "reason_code": "LATE",
        "old_facts_view_ref": view, "new_facts_view_ref": f"fraud-platform/sr/run_facts_view/{new_id}.json",
    }  # fmt: skip
    (signal,) = scene.signals("RUN_SUPERSEDES")
    assert signal["payload"] == payload
    assert signal["message_id"] == hashlib.sha256(f"supersedes|{old_id}|{new_id}|late data".encode()).hexdigest()
    assert signal["partition_key"] == signal["attributes"]["run_id"] == new_id
    assert json.loads((scene.world.ledger / "supersession" / f"{new_id}.json").read_bytes()) == payload
    assert scene.record("new")[-1]["event_kind"] == "SUPERSEDES"
    assert scene.record(old)[-1]["event_kind"] == "SUPERSEDED_BY"
    assert (scene.world.ledger / "run_record" / f"{old_id}.jsonl").read_bytes().startswith(record)
    assert (scene.world.ledger / "run_status" / f"{old_id}.json").read_bytes() == status, "its status stays as it was"

    ends = {"purpose": "late data", "reason_code": "LATE"}
    for command in ("status", "explain"):
        assert scene.shown(command, new_id)["supersedes"] == {"run_id": old_id, **ends, "in_force": True}
        assert scene.shown(command, old_id)["superseded_by"] == [{"run_id": new_id, **ends}]
        assert old_id in scene.text(command, new_id)
        assert new_id in scene.text(command, old_id)
    listed = {item["run_id"]: item for item in scene.shown("runs", "list")["runs"]}
    assert (listed[new_id]["supersedes"], listed[new_id]["superseded_by"]) == (old_id, [])
    assert (listed[old_id]["supersedes"], listed[old_id]["superseded_by"]) == (None, [new_id])
    assert f"superseded by {new_id}" in scene.text("runs", "list")
    verified = scene.shown("verify", new_id)
    assert (verified["outcome"], verified["supersedes"]) == ("PASS", payload)
    assert "RUN_SUPERSEDES on the control bus says the same" in [item["check"] for item in verified["checks"]]
    assert scene.shown("verify", old_id)["superseded_by"] == [payload]
    assert check(paths_of(scene.world)) == []


def test_the_signal_of_a_correction_has_every_field_also_when_the_sender_gives_no_code(scene: Scene) -> None:
    assert scene.submit("new", "--supersedes", scene.runs["bad"], "--purpose", "late data")[0] == 0
    scene.drain()
    (signal,) = scene.signals("RUN_SUPERSEDES")
    assert signal["payload"] == {
        "old_run_id": scene.runs["bad"], "new_run_id": scene.runs["new"], "purpose": "late data", "reason_code": "",
        "old_facts_view_ref": "", "new_facts_view_ref": f"fraud-platform/sr/run_facts_view/{scene.runs['new']}.json",
    }  # fmt: skip
    assert scene.shown("verify", scene.runs["new"])["outcome"] == "PASS"
    assert RunSupersedes.model_validate(signal["payload"]).wire() == signal["payload"]
    assert check(paths_of(scene.world)) == []


def test_a_correction_that_does_not_become_ready_supersedes_nothing(scene: Scene) -> None:
    assert scene.submit("broken", "--supersedes", scene.runs["ready"], "--purpose", "try")[0] == 0
    scene.drain()
    assert scene.shown("status", scene.runs["broken"])["supersedes"]["in_force"] is False
    assert scene.shown("status", scene.runs["ready"])["superseded_by"] == []
    assert scene.signals("RUN_SUPERSEDES") == []
    assert not (scene.world.ledger / "supersession").exists()
    assert check(paths_of(scene.world)) == []


def test_what_cannot_be_corrected_is_refused_at_intake(scene: Scene) -> None:
    ready = scene.runs["ready"]
    wanted = {"supersession_purpose": "p"}
    scene.drop("new", supersedes_run_id="f" * 32, **wanted)
    scene.drop("new", supersedes_run_id=scene.runs["waiting"], **wanted)
    scene.drop("new", supersedes_run_id=scene.runs["new"], **wanted)
    scene.drop("new", supersedes_run_id=ready)
    scene.drop("new", supersedes_run_id="no id", **wanted)
    scene.drop("new", **wanted)
    scene.drain()
    assert scene.refusals() == [
        "ENVELOPE_INVALID", "ENVELOPE_INVALID", "ENVELOPE_INVALID", "SUPERSEDED_RUN_NOT_ENDED",
        "SUPERSEDED_RUN_NOT_FOUND", "SUPERSESSION_CYCLE",
    ]  # fmt: skip
    scene.drop("new", supersedes_run_id=ready, **wanted)
    scene.drain()
    assert scene.shown("status", scene.runs["new"])["state"] == "READY", "the key was left free"
    scene.drop("new", supersedes_run_id=scene.runs["bad"], **wanted)
    scene.drop("new")
    scene.drop("ready", supersedes_run_id=scene.runs["new"], **wanted)
    scene.drain()
    assert scene.refusals().count("EQUIV_KEY_COLLISION") == 3, "another target, none, and a circle"
    assert len(scene.signals("RUN_SUPERSEDES")) == 1


def test_a_one_shot_correction_that_comes_too_early_is_told_what_can_be_done(scene: Scene) -> None:
    """The same bytes keep their answer in a one-shot run: to send them again is no advice."""
    envelope = {
        "topic": "fp.bus.control.v1", "message_id": "early", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {
            "kind": "RUN_REQUEST", "supersedes_run_id": scene.runs["waiting"], "supersession_purpose": "late data",
        },
        "partition_key": "any", "payload": scene.requests["new"],
    }  # fmt: skip
    file = scene.world.root / "early.json"
    file.write_text(json.dumps(envelope), "utf-8")
    key = f"cli/{hashlib.sha256(file.read_bytes()).hexdigest()}"
    profiles = ("--wiring", str(scene.world.wiring), "--policy", str(scene.world.policy), "--json")
    for _ in range(2):
        done = scene.world.command("run", str(file), "--timeout", "0", *profiles)
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["reason_code"]) == (1, "SUPERSEDED_RUN_NOT_ENDED")
        assert "request_id" in answer["detail"]
        assert "another request_id" in answer["next_action"]
        assert f"dead-letter redrive {key}" in answer["next_action"]
    redrive = json.loads(scene.world.command("dead-letter", "redrive", key, "--dry-run", *profiles).stdout)
    assert (redrive["letter"], redrive["predicted"]["reason_code"]) == (key, "SUPERSEDED_RUN_NOT_ENDED")
    envelope["payload"] = {**scene.requests["new"], "request_id": "again"}
    envelope["attributes"] = envelope["attributes"] | {"supersedes_run_id": scene.runs["bad"]}
    file.write_text(json.dumps(envelope), "utf-8")
    done = scene.world.command("run", str(file), "--timeout", "60", *profiles)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "READY")


def test_a_reemit_of_a_correction_repeats_its_ready_only(scene: Scene) -> None:
    scene.submit("new", "--supersedes", scene.runs["ready"], "--purpose", "p")
    scene.drain()
    assert scene.shown("reemit", scene.runs["new"], "--reason", "r")["outcome"] == "PUBLISHED"
    assert (len(scene.signals("READY_REEMIT")), len(scene.signals("RUN_SUPERSEDES"))) == (1, 1)
    assert check(paths_of(scene.world)) == []


def test_half_a_correction_is_a_usage_error(untouched: Scene) -> None:
    whole = ["--supersedes", "f" * 32]
    for flags in (whole, ["--purpose", "p"], ["--reason-code", "R"], [*whole, "--purpose", ""]):
        assert untouched.submit("new", *flags)[0] == 2
    assert untouched.dropped() == []


def test_envelopes_name_their_run_and_records_hold_the_governance_events(untouched: Scene) -> None:
    ready, bad = untouched.signals("READY")[0], untouched.signals("TERMINAL")[0]
    assert ready["attributes"]["run_id"] == untouched.runs["ready"]
    assert (bad["attributes"]["run_id"], bad["attributes"]["state"]) == (untouched.runs["bad"], "QUARANTINED")
    facts = {line["event_kind"]: line["details"] for line in untouched.record("ready")}
    plan = untouched.world.document("run_plan", untouched.runs["ready"])
    assert {key: facts["GOV_POLICY_REV"][key] for key in plan["policy_rev"]} == plan["policy_rev"]
    assert facts["GOV_PLAN_HASH"]["plan_hash"] == plan["plan_hash"]
    assert facts["GOV_BUNDLE_HASH"]["bundle_hash"] == ready["payload"]["bundle_hash"]
    assert facts["GOV_REEMIT_KEY"]["reemit_key"] == ready["message_id"]
    ended = {line["event_kind"]: line["details"] for line in untouched.record("bad")}
    assert ended["GOV_REEMIT_KEY"]["reemit_key"] == bad["message_id"]
    assert "GOV_BUNDLE_HASH" not in ended


def test_submit_with_a_policy_sends_nothing_that_intake_would_refuse(scene: Scene) -> None:
    scene.requests["new"]["output_ids"] = ["no_such_output"]
    code, answer = scene.submit("new", "--policy", str(scene.world.policy))
    assert (code, answer["error"]["reason_code"]) == (1, "UNKNOWN_OUTPUT_ID")
    assert scene.dropped() == []
    del scene.requests["new"]["output_ids"]
    assert scene.submit("new", "--policy", str(scene.world.policy))[0] == 0
    assert len(scene.dropped()) == 1
    many = scene.world.root / "many.jsonl"
    wrong = {**scene.requests["broken"], "output_ids": ["no_such_output"]}
    many.write_text(f"{json.dumps(wrong)}\n{json.dumps(scene.requests['broken'])}\n", "utf-8")
    done = scene.world.command(
        "submit", "--jsonl", str(many), "--wiring", str(scene.world.wiring), "--policy", str(scene.world.policy)
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [item["outcome"] for item in found] == ["REFUSED", "SUBMITTED"]
    assert found[0]["error"]["reason_code"] == "UNKNOWN_OUTPUT_ID"
