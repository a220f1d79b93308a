"""Every command: exit codes, documents on stdout, diagnostics on stderr, no side effects.

``test_json_contract`` asks each as the installed binary, too.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from commands_support import UNKNOWN, snapshot, write_request
from support import PACK, REPO, SMALL, ForkedWorld, World

from scenario_runner.contracts.ids import run_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration


STATES = ("READY", "FAILED", "QUARANTINED", "WAITING_EVIDENCE")


def until(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until a check is true, looking often."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not (value := check()):
        assert time.monotonic() < end, "waited too long"
        pause.wait(0.05)
    return value


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, str]]:
    """A world with a run in each resting state, and the run ids by state; REJECTED is a request that was refused."""
    world = World(tmp_path_factory.mktemp("settled") / "world")
    damage = {
        "READY": None,
        "FAILED": "flag_says_fail",
        "QUARANTINED": "flag_bit_off",
        "WAITING_EVIDENCE": "flag_missing",
    }
    runs = {
        state: world.make_run(state, data_seed=number, damage=kind, **SMALL)
        for number, (state, kind) in enumerate(damage.items(), 1)
    }
    for state, run in runs.items():
        world.drop(run["request"], f"{state}.json")
    world.drop(runs["READY"]["request"] | {"run_equivalence_key": "refused", "seed": "7"}, "refused.json")
    assert world.serve().returncode == 0
    return world, {state: run["run_id"] for state, run in runs.items()} | {"REJECTED": run_id_of("refused")}


# --- status, explain, runs list


@pytest.mark.parametrize("command", ["status", "explain"])
@pytest.mark.parametrize(
    ("state", "code"), [("READY", 0), ("FAILED", 1), ("REJECTED", 1), ("WAITING_EVIDENCE", 3), ("QUARANTINED", 4)]
)
def test_status_and_explain_tell_the_state_in_words_json_and_exit_code(
    settled: tuple[World, dict[str, str]], command: str, state: str, code: int
) -> None:
    world, ids = settled
    found = world.command(command, ids[state], "--wiring", str(world.wiring), "--json")
    document = json.loads(found.stdout)
    assert (found.returncode, document["state"], document["run_id"]) == (code, state, ids[state])
    assert found.stderr == b""
    if state in ("FAILED", "QUARANTINED", "REJECTED"):
        assert document["reason_code"]
        assert document["sentence"]
    text = world.command(command, ids[state], "--wiring", str(world.wiring))
    assert text.returncode == code
    assert ids[state].encode() in text.stdout
    assert state.encode() in text.stdout
    assert text.stderr == b""
    if command == "explain":
        assert document["next_action"]
        assert document["next_action"].encode() in text.stdout


def test_explain_names_gate_output_path_law_digests_what_is_missing_and_the_deadline(
    settled: tuple[World, dict[str, str]],
) -> None:
    world, ids = settled
    conflict = world.query("explain", ids["QUARANTINED"])[1]
    gate = conflict["gates"][0]
    assert gate["gate_id"] == "gate.layer1.1A.validation"
    assert gate["law"] == "sha256_bundle_digest"
    assert gate["path"].endswith("_passed.flag")
    assert re.fullmatch("[0-9a-f]{64}", gate["expected"])
    assert re.fullmatch("[0-9a-f]{64}", gate["actual"])
    assert gate["expected"] != gate["actual"]
    waiting = world.query("explain", ids["WAITING_EVIDENCE"])[1]
    assert waiting["missing"][0].endswith("_passed.flag")
    assert waiting["evidence_deadline_utc"] > waiting["updated_at_utc"]
    ready = world.query("explain", ids["READY"])[1]
    assert ready["gates"][0]["outcome"] == ready["outputs"][0]["outcome"] == "PASS"
    assert ready["outputs"][0]["output_id"] == "outlet_catalogue"
    for more in ([], ["--all"]):
        text = world.command("explain", ids["QUARANTINED"], "--wiring", str(world.wiring), *more).stdout.decode()
        for part in (gate["gate_id"], gate["law"], gate["expected"], gate["actual"]):
            assert part in text
        assert (gate["path"] in text) is bool(more), "a long path is shortened"
        text = world.command("explain", ids["WAITING_EVIDENCE"], "--wiring", str(world.wiring), *more).stdout.decode()
        assert (waiting["missing"][0] in text) is bool(more)
        assert waiting["evidence_deadline_utc"][11:19] in text


def test_runs_list_shows_runs_of_one_state_or_all(settled: tuple[World, dict[str, str]]) -> None:
    world, ids = settled
    everything = world.command("runs", "list", "--wiring", str(world.wiring), "--json")
    assert everything.returncode == 0
    assert {item["run_id"]: item["state"] for item in json.loads(everything.stdout)["runs"]} == {
        ids[state]: state for state in STATES
    }
    for state in STATES:
        one = world.command("runs", "list", "--wiring", str(world.wiring), "--state", state)
        assert one.returncode == 0
        assert [line.split()[:2] for line in one.stdout.decode().splitlines()] == [[ids[state], state]]
    for options in (["--state", "ready"], ["--state", "NO_SUCH"], ["--limit", "0"], ["--limit", "x"]):
        assert world.command("runs", "list", "--wiring", str(world.wiring), *options).returncode == 2
    limited = world.command("runs", "list", "--wiring", str(world.wiring), "--limit", "2", "--json")
    assert len(json.loads(limited.stdout)["runs"]) == 2


@pytest.mark.parametrize("command", ["status", "explain", "verify"])
@pytest.mark.parametrize(
    "run_id",
    ["../x", "..", "/etc/passwd", "", " ", "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "*", "%2e%2e/x", "a/b"],
)
def test_what_is_no_run_id_is_a_usage_error_on_every_command(
    settled: tuple[World, dict[str, str]], command: str, run_id: str
) -> None:
    world = ForkedWorld(settled[0].root)
    found = world.command(command, run_id, "--wiring", str(world.wiring), "--json")
    takes_a_path_too = run_id == "/etc/passwd" and command == "verify"
    assert found.returncode == (1 if takes_a_path_too else 2)
    assert b"Traceback" not in found.stderr
    assert found.stderr or takes_a_path_too
    if found.stdout and not takes_a_path_too:
        assert json.loads(found.stdout)["error"]["reason_code"]


@pytest.mark.parametrize("command", ["status", "explain", "verify"])
def test_an_unknown_run_id_is_a_usage_error_that_says_so(settled: tuple[World, dict[str, str]], command: str) -> None:
    world = ForkedWorld(settled[0].root)
    found = world.command(command, UNKNOWN, "--wiring", str(world.wiring), "--json")
    assert found.returncode == 2
    assert json.loads(found.stdout)["error"]["reason_code"] == "RUN_NOT_FOUND"
    assert UNKNOWN.encode() in found.stderr


def test_looking_at_a_world_that_was_never_started_creates_nothing(world: World) -> None:
    before = snapshot(world.root)
    assert world.command("status", UNKNOWN, "--wiring", str(world.wiring)).returncode == 2
    assert world.command("explain", UNKNOWN, "--wiring", str(world.wiring)).returncode == 2
    assert world.command("verify", UNKNOWN, "--wiring", str(world.wiring)).returncode == 2
    listed = world.command("runs", "list", "--wiring", str(world.wiring), "--json")
    assert (listed.returncode, json.loads(listed.stdout)) == (0, {"schema_version": 1, "runs": [], "next": None})
    assert snapshot(world.root) == before


def test_commands_without_or_with_a_bad_profile_are_usage_errors(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    write_request(world, {})
    request = str(world.root / "request.json")
    policy = ["--policy", str(world.policy)]
    commands = (
        ["status", UNKNOWN],
        ["explain", UNKNOWN],
        ["verify", UNKNOWN],
        ["runs", "list"],
        ["submit", request],
        ["plan", *policy, request],
        ["serve", *policy],
        ["doctor"],
    )
    for command in commands:
        assert world.command(*command).returncode == 2
        missing = world.command(*command, "--wiring", str(world.root / "nowhere.yaml"))
        assert missing.returncode == 2, command
        assert b"nowhere.yaml" in missing.stderr + missing.stdout
        assert b"Traceback" not in missing.stderr


# --- verify


def test_verify_passes_a_ready_run_by_id_and_by_path(settled: tuple[World, dict[str, str]]) -> None:
    world, ids = settled
    by_id = world.command("verify", ids["READY"], "--wiring", str(world.wiring), "--json")
    path = world.ledger / "run_facts_view" / f"{ids['READY']}.json"
    by_path = world.command("verify", str(path), "--wiring", str(world.wiring), "--json")
    copy = world.root / "copy.json"
    copy.write_bytes(path.read_bytes())
    by_copy = world.command("verify", str(copy), "--wiring", str(world.wiring), "--json")
    for found in (by_id, by_path, by_copy):
        document = json.loads(found.stdout)
        assert (found.returncode, document["outcome"], document["run_id"]) == (0, "PASS", ids["READY"])
        assert all(check["ok"] for check in document["checks"])
    text = world.command("verify", ids["READY"], "--wiring", str(world.wiring))
    assert b"PASS" in text.stdout
    assert b"FAIL" not in text.stdout


@pytest.mark.parametrize(("state", "code"), [("FAILED", 1), ("QUARANTINED", 4), ("WAITING_EVIDENCE", 3)])
def test_verify_of_a_run_that_is_not_ready_is_negative(
    settled: tuple[World, dict[str, str]], state: str, code: int
) -> None:
    world, ids = settled
    found = world.command("verify", ids[state], "--wiring", str(world.wiring), "--json")
    assert (found.returncode, json.loads(found.stdout)["outcome"]) == (code, "FAIL")


# --- policy digest, contracts export, doctor, help


def test_policy_digest_prints_what_the_file_should_carry(world: World) -> None:
    right = yaml.safe_load(world.policy.read_text("utf-8"))["content_digest"]
    found = world.command("policy", "digest", str(world.policy))
    assert (found.returncode, found.stdout.decode().strip()) == (0, right)
    world.policy.write_text(world.policy.read_text("utf-8").replace(right, "0" * 64), "utf-8")
    again = world.command("policy", "digest", str(world.policy), "--json")
    assert right in json.loads(again.stdout).values()
    world.policy.write_text("a: 1.5\n", "utf-8")
    assert world.command("policy", "digest", str(world.policy)).returncode == 2
    assert world.command("policy", "digest", str(world.root / "nowhere.yaml")).returncode == 2
    committed = REPO / "config/platform/sr/policy_v0.yaml"
    digest = yaml.safe_load(committed.read_text("utf-8"))["content_digest"]
    assert world.command("policy", "digest", str(committed)).stdout.decode().strip() == digest


def test_contracts_export_equals_the_committed_files(world: World) -> None:
    target = world.root / "exported"
    found = world.command("contracts", "export", str(target), "--json")
    assert found.returncode == 0
    assert json.loads(found.stdout)["written"]
    written = {path.relative_to(target): path.read_bytes() for path in target.rglob("*.yaml")}
    committed = {
        path.relative_to(REPO / "config"): path.read_bytes() for path in (REPO / "config").rglob("*.schema.yaml")
    }
    assert written == committed
    (world.root / "file").touch()
    assert world.command("contracts", "export", str(world.root / "file")).returncode == 5


def test_doctor_is_content_with_a_good_profile(world: World) -> None:
    found = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    document = json.loads(found.stdout)
    assert (found.returncode, document["ok"]) == (0, True), document
    names = " ".join(check["check"] for check in document["checks"])
    for word in ("wiring", "policy", "pack", "store", "authority", "clock", "bus", "roots", "schemas"):
        assert word in names
    text = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy))
    assert text.returncode == 0
    assert b"FAIL" not in text.stdout


def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")

    def bad(**keys: Any) -> tuple[int, list[dict[str, Any]]]:
        world.write_profiles(**keys)
        found = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
        assert b"Traceback" not in found.stderr, found.stderr.decode()[-800:]
        document = json.loads(found.stdout)
        assert document["ok"] is False
        return found.returncode, [check for check in document["checks"] if not check["ok"]]

    (world.root / "folder.db").mkdir()
    (world.root / "a-file").touch()
    (world.root / "junk.db").write_bytes(b"not a database" * 100)
    expected = {
        "wiring": (2, bad(auth_mod="x")),
        "roots": (2, bad(engine_roots=[str(world.root / "nowhere")])),
        "pack": (2, bad(gate_map_path="/nowhere.yaml")),
        "schemas": (2, bad(schema_root="/nowhere")),
        "authority": (5, bad(authority_store_dsn=f"sqlite:///{world.root / 'folder.db'}")),
        "object store": (5, bad(object_store_root=str(world.root / "a-file" / "store"))),
        "bus": (5, bad(control_bus_root=str(world.root / "a-file" / "bus"))),
    }
    for name, (code, (returned, failed)) in expected.items():
        assert returned == code, (name, failed)
        assert any(name in check["check"] for check in failed), (name, failed)
        assert all(check["remedy"] for check in failed)
    assert bad(authority_store_dsn=f"sqlite:///{world.root / 'junk.db'}")[0] == 5
    world.write_profiles()
    world.policy.write_text(world.policy.read_text("utf-8").replace("3600", "3601"), "utf-8")
    found = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy))
    assert found.returncode == 2
    assert b"content_digest" in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            (),
            (
                "READY",
                "Exit codes",
                "serve",
                "submit",
                "status",
                "explain",
                "runs",
                "plan",
                "verify",
                "policy",
                "contracts",
                "doctor",
            ),
        ),
        (("serve",), ("daemon", "--wiring", "--policy", "--role", "--until-idle")),
        (("submit",), ("request", "--wiring", "FILE", "-")),
        (("status",), ("RUN_ID", "--wiring", "--json", "exit code")),
        (("explain",), ("RUN_ID", "--wiring", "missing")),
        (("runs",), ("list",)),
        (("runs", "list"), ("--state", "--limit", "newest")),
        (("plan",), ("without side effects", "--policy", "FILE")),
        (("verify",), ("RUN_ID|FACTS_VIEW_PATH", "--wiring")),
        (("policy", "digest"), ("digest", "FILE")),
        (("contracts", "export"), ("JSON Schema", "DIRECTORY")),
        (("doctor",), ("--wiring", "--policy")),
    ],
)
def test_help_says_what_each_command_does(world: World, command: tuple[str, ...], words: tuple[str, ...]) -> None:
    found = world.command(*command, "--help")
    assert found.returncode == 0
    text = " ".join(found.stdout.decode().split())
    for word in words:
        assert word in text
    assert found.stderr == b""


def test_unknown_commands_options_roles_and_levels_are_usage_errors(world: World) -> None:
    serve = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    for arguments in (
        ["no-such"],
        ["serve", "--no-such"],
        [*serve, "--role", "king"],
        [*serve, "--log-level", "loud"],
        ["status"],
        ["runs"],
        [],
    ):
        found = world.command(*arguments)
        assert found.returncode == 2, arguments
        assert b"Traceback" not in found.stderr
    assert not world.database.exists()
    assert world.command("--version").stdout.startswith(b"scenario-runner ")


# --- serve


def test_serve_logs_to_standard_error_only_one_json_object_a_line(world: World) -> None:
    world.drop(world.make_run(**SMALL)["request"])
    served = world.serve()
    assert (served.returncode, served.stdout) == (0, b"")
    for line in served.stderr.splitlines():
        assert "event" in json.loads(line)


@pytest.mark.parametrize("thing", ["directory", "junk"])
def test_an_unavailable_authority_is_exit_5_everywhere(world: World, thing: str) -> None:
    run = world.make_run(**SMALL)
    world.drop(run["request"])
    if thing == "directory":
        world.database.mkdir()
    else:
        world.database.write_bytes(b"this is no database " * 500)
    before = sorted((world.bus / "requests").iterdir())
    for arguments in (["status", run["run_id"]], ["explain", run["run_id"]], ["runs", "list"]):
        found = world.command(*arguments, "--wiring", str(world.wiring), "--json")
        assert found.returncode == 5
        assert json.loads(found.stdout)["error"]["reason_code"] == "UNAVAILABLE"
        assert b"Traceback" not in found.stderr
    served = world.serve()
    assert served.returncode == 5
    assert b"Traceback" not in served.stderr
    assert sorted((world.bus / "requests").iterdir()) == before  # nothing was lost


def test_roles_do_their_part_and_together_the_whole(world: World) -> None:
    run = world.make_run(**SMALL)
    world.drop(run["request"])
    assert world.serve("--role", "intake").returncode == 0
    assert world.query("status", run["run_id"])[1]["state"] == "PLANNED"
    assert not list((world.bus / "requests").iterdir())
    assert world.serve("--role", "housekeeping").returncode == 0
    assert world.serve("--role", "runner").returncode == 0
    assert world.query("status", run["run_id"])[1]["state"] == "READY"
    assert world.signals() == []
    assert world.serve("--role", "relay").returncode == 0
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [run["run_id"]]


def test_a_waiting_run_wakes_by_itself_when_its_evidence_appears(world: World) -> None:
    run = world.make_run(**SMALL)
    place = Path(run["engine_run_root"])
    place.rename(world.root / "not-yet")
    daemon = world.start()
    try:
        world.drop(run["request"])
        until(lambda: world.query("status", run["run_id"])[1].get("state") == "WAITING_EVIDENCE")
        (world.root / "not-yet").rename(place)
        until(lambda: world.signals("READY"))
    finally:
        daemon.terminate()
        _, log = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, log.decode()[-1000:]
    assert world.query("verify", run["run_id"])[0] == 0
    record = world.document("run_record", run["run_id"], "jsonl")
    assert "EVIDENCE_MISSING" in [line["event_kind"] for line in record]


def test_a_waiting_run_fails_at_its_deadline_also_until_idle(tmp_path: Path) -> None:
    world = World(tmp_path / "w", policy_changes={"evidence_wait_seconds": 1})
    run = world.make_run(damage="flag_missing", **SMALL)
    world.drop(run["request"])
    assert world.serve().returncode == 0
    assert world.query("status", run["run_id"])[0] == 3

    def drained_and_final() -> bool:
        assert world.serve().returncode == 0
        return world.query("status", run["run_id"])[0] != 3

    until(drained_and_final)
    code, document = world.query("status", run["run_id"])
    assert (code, document["state"], document["reason_code"]) == (1, "FAILED", "EVIDENCE_MISSING_DEADLINE")
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == ["EVIDENCE_MISSING_DEADLINE"]
    world.drop(run["request"] | {"notes": "again"}, "again.json")
    assert world.serve().returncode == 0
    assert world.query("status", run["run_id"])[1]["state"] == "FAILED"  # terminal is for ever


def test_a_pack_replaced_between_admission_and_verification_does_not_change_what_is_verified(world: World) -> None:
    catalogue, gate_map = world.root / "catalogue.yaml", world.root / "gates.yaml"
    shutil.copy(PACK / "engine_outputs.catalogue.yaml", catalogue)
    shutil.copy(PACK / "engine_gates.map.yaml", gate_map)
    world.write_profiles(engine_catalogue_path=str(catalogue), gate_map_path=str(gate_map))
    good, bad = (
        world.make_run(
            name,
            data_seed=seed,
            damage=damage,
            damage_target=damage and "gate.layer1.1A.validation",
            outputs=["site_locations"],
        )
        for name, seed, damage in (("good", 1, None), ("bad", 2, "flag_bit_off"))
    )
    world.drop(good["request"], "good.json")
    world.drop(bad["request"], "bad.json")
    assert world.serve("--role", "intake").returncode == 0
    document = yaml.safe_load(gate_map.read_text("utf-8"))
    document["gates"][1]["upstream_gate_dependencies"] = []  # the weaker pack would not look at 1A at all
    gate_map.write_text(yaml.safe_dump(document), "utf-8")
    assert world.serve().returncode == 0
    assert world.query("status", bad["run_id"])[1]["state"] == "QUARANTINED"
    view = world.document("run_facts_view", good["run_id"])
    assert len(view["gate_receipts"]) == 2
    assert world.query("verify", good["run_id"])[0] == 0  # verify uses the pinned pack too
