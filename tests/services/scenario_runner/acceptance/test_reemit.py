"""``reemit`` and REEMIT_REQUEST on files: the same message, the same bytes, and nothing else changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from crashing import until
from invariants import check, paths_of
from support import COMMAND, ForkedWorld, World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}


class Scene:
    """A world with a run of each end, and one that waits."""

    def __init__(self, root: Path, **wiring: Any) -> None:
        self.world = ForkedWorld(root, wiring)
        self.runs = {}
        damages = {"ready": None, "quarantined": "flag_bit_off", "waiting": "flag_missing"}
        for seed, (name, damage) in enumerate(damages.items()):
            more = {"damage": damage} if damage else {}
            made = self.world.make_run(name, seed=seed, **SMALL, **more)
            self.runs[name] = str(made["run_id"])
            self.world.drop(made["request"], f"{name}.json")
        self.drain()

    def drain(self) -> None:
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()

    def reemit(self, run: str, *more: str, reason: str = "a test") -> tuple[int, dict[str, Any]]:
        run_id = self.runs.get(run, run)
        done = self.world.command(
            "reemit", run_id, "--wiring", str(self.world.wiring), "--reason", reason, *more, "--json"
        )
        return done.returncode, json.loads(done.stdout or b"{}")

    def many(self, *more: str) -> tuple[int, list[dict[str, Any]], str]:
        done = self.world.command("reemit", "--wiring", str(self.world.wiring), "--json", *more)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()

    def files(self) -> dict[str, dict[str, Any]]:
        return {path.name: json.loads(path.read_bytes()) for path in self.world.signals_folder.glob("*.json")}

    def events(self, run: str) -> list[str]:
        return [line["event_kind"] for line in self.world.document("run_record", self.runs[run], "jsonl")]

    def documents(self) -> dict[str, bytes]:
        """Everything in the ledger but the run records."""
        found = (path for path in self.world.ledger.rglob("*.json") if ".private" not in path.parts)
        return {str(path): path.read_bytes() for path in found}

    def view(self, run: str = "ready") -> Path:
        return self.world.ledger / "run_facts_view" / f"{self.runs[run]}.json"

    def request(self, run: str, name: str, **payload: Any) -> None:
        """Drop a REEMIT_REQUEST."""
        envelope = {
            "topic": "fp.bus.control.v1", "message_id": f"ask-{name}", "published_at_utc": "2026-01-01T00:00:00Z",
            "attributes": {"kind": "REEMIT_REQUEST"}, "partition_key": "any",
            "payload": {"run_id": self.runs.get(run, run), "reemit_kind": "BOTH", **payload},
        }  # fmt: skip
        self.world.drop(envelope, f"{name}.json")

    def sound(self) -> None:
        assert check(paths_of(self.world)) == []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "w")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A scene for tests that change nothing."""
    return Scene(tmp_path_factory.mktemp("untouched") / "w")


# --- one run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "kind"), [("ready", "READY"), ("quarantined", "TERMINAL")])
def test_a_signal_is_published_again_beside_the_first(scene: Scene, run: str, kind: str) -> None:
    documents, before = scene.documents(), scene.files()
    for number in (1, 2):
        code, answer = scene.reemit(run)
        assert (code, answer["outcome"], answer["kind"], answer["emission"]) == (
            0,
            "PUBLISHED",
            f"{kind}_REEMIT",
            number,
        )
    first = next(item for item in before.values() if item["payload"]["run_id"] == scene.runs[run])
    added = {name: item for name, item in scene.files().items() if name not in before}
    assert set(added) == {f"{first['message_id']}.reemit-{number}.json" for number in (1, 2)}
    for item in added.values():
        assert item["attributes"] == {**first["attributes"], "kind": f"{kind}_REEMIT", "run_id": scene.runs[run]}
        unchanged = ("message_id", "payload", "partition_key", "topic")
        assert {key: item[key] for key in unchanged} == {key: first[key] for key in unchanged}
        assert item["published_at_utc"] > first["published_at_utc"]
    assert scene.events(run)[-4:] == ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"] * 2
    assert scene.documents() == documents, "status, facts view, ready signal and quarantine object stay as they are"
    scene.sound()


def test_status_explain_and_verify_tell_of_it(scene: Scene) -> None:
    scene.reemit("ready", "--requested-by", "ops")
    assert scene.world.query("status", scene.runs["ready"])[1]["reemits"]["sent"] == 1
    code, document = scene.world.query("explain", scene.runs["ready"])
    assert (code, document["state"], document["detail"]) == (0, "READY", "")
    assert [(item["kind"], item["emission"]) for item in document["signals"]] == [("READY", 0), ("READY_REEMIT", 1)]
    (act,) = document["actions"]
    assert (act["actor"], act["via"], act["action"], act["reason"], act["outcome"]) == (
        "ops", "cli", "reemit", "a test", "PUBLISHED",
    )  # fmt: skip
    assert scene.world.query("verify", scene.runs["ready"])[0] == 0
    text = scene.world.command("explain", scene.runs["ready"], "--wiring", str(scene.world.wiring)).stdout.decode()
    assert "acts:     reemit by ops: PUBLISHED" in text


def test_verify_accepts_the_repetition_where_the_first_was_lost_with_its_spool(scene: Scene) -> None:
    (first,) = [name for name, item in scene.files().items() if item["attributes"]["kind"] == "READY"]
    (scene.world.signals_folder / first).unlink()
    assert scene.world.query("verify", scene.runs["ready"])[0] == 1
    assert scene.reemit("ready")[0] == 0
    assert scene.world.query("verify", scene.runs["ready"])[0] == 0


@pytest.mark.parametrize(
    ("run", "kind", "code"),
    [
        ("ready", "TERMINAL_ONLY", "REEMIT_TERMINAL_ONLY_MISMATCH"),
        ("quarantined", "READY_ONLY", "REEMIT_READY_ONLY_MISMATCH"),
        ("waiting", "READY_ONLY", "REEMIT_READY_ONLY_MISMATCH"),
        ("waiting", "BOTH", "REEMIT_READY_ONLY_MISMATCH"),
    ],
)
def test_a_signal_that_the_run_does_not_have_is_refused(scene: Scene, run: str, kind: str, code: str) -> None:
    files, documents, events = scene.files(), scene.documents(), scene.events(run)
    exit_code, answer = scene.reemit(run, "--kind", kind)
    assert (exit_code, answer["outcome"], answer["reason_code"]) == (1, code, code)
    assert (scene.files(), scene.documents()) == (files, documents)
    scene.drain()
    told = [] if run == "waiting" else ["REEMIT_REQUESTED", "REEMIT_FAILED"]
    assert scene.events(run) == events + told
    scene.sound()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("../x", "--reason", "r"), "RUN_NOT_FOUND"),
        (("0" * 32, "--reason", "r"), "RUN_NOT_FOUND"),
        (("0" * 32,), "--reason"),
        (("0" * 32, "--reason", " "), "--reason"),
        (("0" * 32, "--reason", "r", "--kind", "ALL"), "READY_ONLY"),
        (("0" * 32, "--reason", "r", "--requested-by", "x" * 300), "--requested-by"),
        (("0" * 32, "--state", "READY", "--since", "2026-01-01T00:00:00Z", "--reason", "r"), "RUN_ID"),
        (("--reason", "r"), "--since"),
        (("--state", "READY", "--reason", "r"), "--since"),
        (("--state", "OPEN", "--since", "2026-01-01T00:00:00Z", "--reason", "r"), "QUARANTINED"),
        (("--state", "READY", "--since", "yesterday", "--reason", "r"), "--since"),
        (("--resume", "nothing"), "batch"),
        (("--resume", "nothing", "--state", "READY"), "--resume"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error(untouched: Scene, arguments: tuple[str, ...], words: str) -> None:
    files = untouched.files()
    done = untouched.world.command("reemit", *arguments, "--wiring", str(untouched.world.wiring))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert untouched.files() == files


def test_nothing_is_made_where_no_daemon_ever_started(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    done = world.command("reemit", "0" * 32, "--reason", "r", "--wiring", str(world.wiring))
    assert (done.returncode, b"RUN_NOT_FOUND" in done.stderr) == (2, True)
    assert not world.database.exists()
    assert not world.store.exists()


# --- the facts view ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["FACTS_VIEW_MISSING", "FACTS_VIEW_DRIFT"])
def test_ready_is_not_published_again_without_its_facts_view(scene: Scene, code: str) -> None:
    data, files = scene.view().read_bytes(), scene.files()
    status = scene.world.document("run_status", scene.runs["ready"])
    if code == "FACTS_VIEW_MISSING":
        scene.view().unlink()
    else:
        scene.view().write_bytes(data.replace(b"PASS", b"FAIL", 1))
    for more in ((), ("--dry-run",)):
        exit_code, answer = scene.reemit("ready", *more)
        assert (exit_code, answer["reason_code"], answer["message_id"]) == (1, code, None)
    assert scene.files() == files
    assert scene.world.document("run_status", scene.runs["ready"]) == status
    assert scene.world.query("status", scene.runs["ready"])[0] == 0
    scene.drain()
    assert scene.events("ready")[-3:] == ["REEMIT_REQUESTED", "REEMIT_FAILED", "REEMIT_DRY_RUN"]
    scene.view().write_bytes(data)
    assert scene.reemit("ready")[1]["emission"] == 1
    scene.sound()


def test_a_store_that_is_away_is_waited_for(scene: Scene) -> None:
    away = scene.world.root / "away"
    scene.world.store.rename(away)
    code, answer = scene.reemit("ready")
    assert (code, answer["error"]["reason_code"]) == (5, "UNAVAILABLE")
    away.rename(scene.world.store)
    assert scene.reemit("ready")[0] == 0


def test_what_a_bus_did_not_take_is_delivered_by_the_next_daemon(scene: Scene) -> None:
    folder = scene.world.signals_folder
    parked = folder.with_name("parked")
    folder.rename(parked)
    folder.write_bytes(b"a file in the place of the folder")
    code, answer = scene.reemit("ready")
    assert (code, answer["error"]["reason_code"]) == (5, "UNAVAILABLE")
    assert scene.world.query("status", scene.runs["ready"])[1]["reemits"] == {
        "sent": 0, "owed": 1, "last_sent_at_utc": None,
    }  # fmt: skip
    folder.unlink()
    parked.rename(folder)
    scene.drain()
    assert scene.world.query("status", scene.runs["ready"])[1]["reemits"]["sent"] == 1
    scene.sound()


# --- who, and how often -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wiring",
    [
        {"auth_mode": "allowlist", "auth_allowlist": ["ops", "me"], "reemit_allowlist": ["ops"]},
        {"auth_mode": "disabled", "reemit_allowlist": ["ops"]},
        {"auth_mode": "allowlist", "auth_allowlist": ["ops"]},
    ],
)
def test_a_caller_who_is_not_on_the_list_is_denied_and_writes_nothing(tmp_path: Path, wiring: dict[str, Any]) -> None:
    scene = Scene(tmp_path / "w")
    scene.world.wiring_changes |= wiring
    scene.world.write_profiles()
    record = scene.world.ledger / "run_record" / f"{scene.runs['ready']}.jsonl"
    before, files = record.read_bytes(), scene.files()
    for more in ((), ("--requested-by", "me"), ("--requested-by", "me", "--dry-run")):
        code, answer = scene.reemit("ready", *more)
        assert (code, answer["reason_code"]) == (1, "AUTH_DENIED")
    code, lines, said = scene.many("--state", "READY", "--since", "2020-01-01T00:00:00Z", "--reason", "r")
    assert (code, lines, "AUTH_DENIED" in said) == (1, [], True)
    scene.request("ready", "denied", requested_by="me")
    scene.drain()
    assert record.read_bytes() == before
    reasons = {item["record_key"].partition("#")[0]: item["reason_code"] for item in scene.world.rejected()}
    assert reasons == {"spool/denied.json": "AUTH_DENIED"}
    kinds = [item["attributes"]["kind"] for name, item in scene.files().items() if name not in files]
    assert kinds == ["REQUEST_REJECTED"]
    assert scene.reemit("ready", "--requested-by", "ops")[0] == 0
    acts = scene.world.query("explain", scene.runs["ready"])[1]["actions"]
    assert [act["outcome"] for act in acts] == ["AUTH_DENIED"] * 4 + ["PUBLISHED"]


def test_a_loop_is_stopped_by_the_rate_limit_and_every_attempt_is_on_record(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", reemit_rate_limit_max=2, reemit_rate_limit_window_seconds=3600)
    outcomes = [scene.reemit("ready")[1]["outcome"] for _ in range(5)]
    assert outcomes == ["PUBLISHED"] * 2 + ["REEMIT_RATE_LIMIT"] * 3
    assert scene.reemit("ready", "--dry-run")[0] == 0
    assert len(scene.world.query("explain", scene.runs["ready"])[1]["actions"]) == 6
    outcomes = [scene.reemit("quarantined", "--kind", "READY_ONLY")[1]["outcome"] for _ in range(4)]
    assert outcomes == ["REEMIT_READY_ONLY_MISMATCH"] * 2 + ["REEMIT_RATE_LIMIT"] * 2
    scene.drain()
    assert scene.events("ready").count("REEMIT_FAILED") == 1
    scene.sound()


def test_a_dry_run_publishes_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", reemit_rate_limit_max=2)
    files = scene.files()
    for _ in range(3):
        code, answer = scene.reemit("ready", "--dry-run")
        assert (code, answer["outcome"], answer["dry_run"]) == (0, "DRY_RUN", True)
    assert scene.files() == files
    scene.drain()
    assert scene.events("ready")[-3:] == ["REEMIT_DRY_RUN"] * 3
    assert scene.reemit("ready")[0] == 0


# --- on the bus -------------------------------------------------------------------------------------------------------


def test_requests_on_the_bus_are_disposed_of_and_carried_out(scene: Scene) -> None:
    scene.request("ready", "a", requested_by="ops", reason="lost", requested_at_utc="2026-01-01T00:00:00Z")
    scene.request("ready", "b", reemit_kind="TERMINAL_ONLY")
    scene.request("quarantined", "c", dry_run=True)
    scene.request("0" * 32, "d")
    scene.request("ready", "e", reemit_kind="ALL")
    scene.request("../x", "f")
    scene.drain()
    reasons = {item["record_key"].partition("#")[0]: item["reason_code"] for item in scene.world.rejected()}
    assert reasons == {
        "spool/b.json": "REEMIT_TERMINAL_ONLY_MISMATCH", "spool/d.json": "RUN_NOT_FOUND",
        "spool/e.json": "REQUEST_SCHEMA_INVALID", "spool/f.json": "REQUEST_SCHEMA_INVALID",
    }  # fmt: skip
    consumed = {path.name for path in (scene.world.bus / "consumed").iterdir()}
    assert {"a.json", "c.json"} <= {name.partition(".json")[0] + ".json" for name in consumed}
    assert [item["payload"]["run_id"] for item in scene.world.signals("READY_REEMIT")] == [scene.runs["ready"]]
    assert scene.world.signals("TERMINAL_REEMIT") == []
    assert scene.events("ready")[-4:] == ["REEMIT_REQUESTED", "REEMIT_REQUESTED", "REEMIT_FAILED", "REEMIT_PUBLISHED"]
    assert scene.events("quarantined")[-1] == "REEMIT_DRY_RUN"
    act = scene.world.query("explain", scene.runs["ready"])[1]["actions"][0]
    assert (act["actor"], act["via"], act["reason"]) == ("ops", "bus", "lost")
    scene.sound()


def test_a_request_whose_facts_view_is_missing_is_accepted_and_fails_when_it_is_delivered(scene: Scene) -> None:
    scene.view().unlink()
    scene.request("ready", "a")
    scene.drain()
    assert scene.world.rejected() == []
    assert scene.world.signals("READY_REEMIT") == []
    assert scene.events("ready")[-2:] == ["REEMIT_REQUESTED", "REEMIT_FAILED"]


def test_run_takes_no_request_to_publish_again(scene: Scene) -> None:
    path = scene.world.root / "reemit.json"
    scene.request("ready", "a")
    (scene.world.bus / "requests/a.json").rename(path)
    done = scene.world.command(
        "run", str(path), "--wiring", str(scene.world.wiring), "--policy", str(scene.world.policy), "--json"
    )
    assert (done.returncode, json.loads(done.stdout)["error"]["reason_code"]) == (1, "KIND_NOT_SERVED")
    assert scene.world.signals("READY_REEMIT") == []


# --- many -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path / "w")
    made = scene.world.make_run("many", seed=9, **SMALL)
    for number in range(9):
        scene.world.drop({**made["request"], "run_equivalence_key": f"many-{number}"}, f"many-{number}.json")
    scene.drain()
    return scene


SINCE = ("--since", "2020-01-01T00:00:00Z", "--reason", "rehydrate")


def test_many_are_published_again_and_each_is_a_line(many: Scene) -> None:
    code, lines, said = many.many("--state", "READY", *SINCE, "--dry-run")
    assert (code, len(lines), {line["outcome"] for line in lines}) == (0, 10, {"DRY_RUN"})
    assert many.world.signals("READY_REEMIT") == []
    assert "REEMIT_DRY_RUN" not in many.events("ready"), "a dry run of many writes into no record"
    code, lines, said = many.many("--state", "READY", *SINCE)
    assert (code, {line["outcome"] for line in lines}) == (0, {"PUBLISHED"})
    assert "10 PUBLISHED" in said
    again = {item["payload"]["run_id"] for item in many.world.signals("READY_REEMIT")}
    assert again == {line["run_id"] for line in lines}
    assert [line["first_sent_at_utc"] for line in lines] == sorted(line["first_sent_at_utc"] for line in lines)
    code, lines, _ = many.many("--state", "QUARANTINED", *SINCE)
    assert (code, [line["outcome"] for line in lines]) == (0, ["PUBLISHED"])
    code, lines, _ = many.many("--state", "READY", "--since", "2999-01-01T00:00:00Z", "--reason", "r")
    assert (code, lines) == (0, [])
    many.sound()


def test_one_that_is_refused_is_told_and_the_others_go_on(many: Scene) -> None:
    many.view().unlink()
    for more in (("--dry-run",), ()):
        code, lines, _ = many.many("--state", "READY", *SINCE, *more)
        outcomes = {line["run_id"]: line["reason_code"] for line in lines}
        assert (code, outcomes.pop(many.runs["ready"])) == (1, "FACTS_VIEW_MISSING")
        assert set(outcomes.values()) == {None}
    assert len(many.world.signals("READY_REEMIT")) == 9


def test_a_batch_that_was_killed_goes_on_and_publishes_nothing_twice(many: Scene) -> None:
    """Two a second, so that it is killed with some of it done."""
    command = [COMMAND, "reemit", "--wiring", str(many.world.wiring), "--state", "READY", *SINCE, "--rate", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        batch = process.stderr.readline().split()[1].rstrip(b";").decode()
        until(lambda: len(many.world.signals("READY_REEMIT")) >= 2, "some are published")
        os.kill(process.pid, signal.SIGKILL)
    code, lines, _ = many.many("--resume", batch, "--rate", "0")
    assert (code, len(lines), {line["outcome"] for line in lines}) == (0, 10, {"PUBLISHED"})
    again = [item["payload"]["run_id"] for item in many.world.signals("READY_REEMIT")]
    assert sorted(again) == sorted(line["run_id"] for line in lines)
    many.drain()
    many.sound()
