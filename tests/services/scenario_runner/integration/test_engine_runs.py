"""Runs whose engine is invoked, from the request to the verdict, with real processes and the installed command."""

import json
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import REPO, World, need_posix

pytestmark = pytest.mark.integration

SAMPLE = [
    sys.executable, str(REPO / "scripts/make_engine_run.py"), "--run-root", "{engine_run_root}", "--run-id", "{run_id}",
    "--manifest-fingerprint", "{manifest_fingerprint}", "--parameter-hash", "{parameter_hash}", "--seed", "{seed}",
    "--scenario-id", "{scenario_id}", "--engine-run-id", "derived", "--force",
]  # fmt: skip
BREAKS = "import os, sys; print('working'); print('it broke', file=sys.stderr); sys.exit(3)"


def engine(world: World, command: list[str], **wiring: Any) -> None:
    """Give a world an engine that counts its launches."""
    counting = world.root / "counting.py"
    counting.write_text(
        "import os, sys\n"
        f"with open({str(world.root / 'launches')!r}, 'a') as file: file.write(os.environ['SR_ATTEMPT_ID'] + '\\n')\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    world.write_profiles(
        engine_command=[sys.executable, str(counting), *command],
        engine_attempts_dir=str(world.root / "attempts"),
        engine_run_root_template=f"{world.runs}/made/{{run_id}}",
        **wiring,
    )


def launches(world: World) -> list[str]:
    path = world.root / "launches"
    return path.read_text().splitlines() if path.exists() else []


def request(world: World, key: str = "key-1", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = world.make_run(key, number=9, force=True)["request"]
    del made["engine_run_root"]
    return made | {"requested_strategy": "FORCE_INVOKE"} | changes


def run_one(world: World, document: dict[str, Any], *more: str) -> tuple[int, dict[str, Any]]:
    """``scenario-runner run`` of a request."""
    need_posix()
    path = world.root / "one.json"
    path.write_text(json.dumps(document))
    done = world.command(
        "run", str(path), "--wiring", str(world.wiring), "--policy", str(world.policy), "--json", *more
    )
    return done.returncode, json.loads(done.stdout or b"{}")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def kinds(world: World, run_id: str) -> list[str]:
    return [line["event_kind"] for line in world.document("run_record", run_id, "jsonl")]


def test_an_engine_is_invoked_and_its_run_is_ready(world: World) -> None:
    engine(world, SAMPLE)
    code, status = run_one(world, request(world))
    assert (code, status["state"], status["disposition"]) == (0, "READY", "ACCEPTED")
    run_id = status["run_id"]
    assert kinds(world, run_id)[:8] == [
        "RUN_ADMITTED", "PLAN_COMMITTED", "GOV_POLICY_REV", "GOV_PLAN_HASH", "ENGINE_ATTEMPT_LAUNCH_REQUESTED",
        "ENGINE_JOB_SUBMITTED", "ENGINE_ATTEMPT_FINISHED", "VERIFICATION_STARTED",
    ]  # fmt: skip
    assert len(launches(world)) == 1
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [run_id]
    assert world.query("verify", run_id)[0] == 0
    (attempt,) = world.query("explain", run_id)[1]["attempts"]
    assert (attempt["outcome"], attempt["exit_code"], attempt["invoker"]) == ("SUCCEEDED", 0, "subprocess")
    logs = world.ledger / f"engine_attempt_logs/run_id={run_id}/attempt_no=1"
    assert b"engine_run_root" in (logs / "stdout.log").read_bytes()
    again = run_one(world, request(world))
    assert (again[0], again[1]["state"], len(launches(world))) == (0, "READY", 1), "a second call drives nothing"


def test_an_engine_that_breaks_is_invoked_as_often_as_the_policy_allows(world: World) -> None:
    world.policy_changes["attempt_limit"] = 2
    engine(world, [sys.executable, "-c", BREAKS])
    code, status = run_one(world, request(world))
    assert (code, status["state"], status["reason_code"]) == (1, "FAILED", "ENGINE_EXIT_NONZERO")
    assert len(launches(world)) == len(set(launches(world))) == 2
    explained = world.query("explain", status["run_id"])[1]
    assert [item["exit_code"] for item in explained["attempts"]] == [3, 3]
    assert explained["attempts"][0]["stderr_tail"] == "it broke"
    assert "attempt 2 of at most 2" in explained["detail"]
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == ["ENGINE_EXIT_NONZERO"]
    explain = ("explain", status["run_id"], "--wiring", str(world.wiring))
    short = world.command(*explain).stdout.decode()
    assert "2 attempts, the last FAILED, exit code 3" in short
    assert "stderr:   it broke" in short
    text = world.command(*explain, "--all").stdout.decode()
    assert "attempt 1: FAILED" in text
    assert "stderr | it broke" in text


def test_a_program_that_is_not_there_fails_the_run(world: World) -> None:
    world.write_profiles(
        engine_command=["/no/such/program"], engine_attempts_dir=str(world.root / "attempts"),
        engine_run_root_template=f"{world.runs}/made/{{run_id}}", engine_launch_retries=0,
    )  # fmt: skip
    code, status = run_one(world, request(world))
    assert (code, status["state"], status["reason_code"]) == (1, "FAILED", "ENGINE_LAUNCH_FAILED")


def test_an_engine_that_hangs_is_ended(world: World) -> None:
    world.policy_changes["attempt_limit"] = 1
    engine(world, ["/bin/sleep", "600"], engine_command_timeout_seconds=1)
    code, status = run_one(world, request(world))
    assert (code, status["state"], status["reason_code"]) == (1, "FAILED", "ENGINE_TIMEOUT")


def test_evidence_is_reused_where_it_is_and_made_where_it_is_not(world: World) -> None:
    world.policy_changes |= {"auto_invoke": "at_once"}
    engine(world, SAMPLE)
    there = world.make_run("there")["request"] | {"requested_strategy": "AUTO"}
    assert run_one(world, there)[1]["state"] == "READY"
    assert launches(world) == []
    made = request(world, "made", requested_strategy="AUTO")
    assert run_one(world, made)[1]["state"] == "READY"
    assert len(launches(world)) == 1


def test_the_deadline_invokes_the_engine_once(world: World) -> None:
    world.policy_changes |= {"evidence_wait_seconds": 1}
    engine(world, [sys.executable, "-c", "import sys; sys.exit(0)"])
    code, status = run_one(world, request(world, requested_strategy="AUTO"))
    assert (code, status["reason_code"]) == (1, "ENGINE_RECEIPT_MISSING")
    assert len(launches(world)) == 3


def test_a_request_that_is_refused_makes_no_run(world: World) -> None:
    engine(world, SAMPLE)
    code, status = run_one(world, request(world) | {"seed": "7"})
    assert (code, status["state"], status["reason_code"]) == (1, "REJECTED", "REQUEST_SCHEMA_INVALID")
    assert "correct the request" in status["next_action"]
    assert launches(world) == []


def test_bytes_that_were_refused_keep_that_answer_and_are_said_to(world: World) -> None:
    made = world.make_run("denied")["request"] | {"invoker": "me"}
    world.write_profiles(auth_mode="allowlist", auth_allowlist=["somebody"])
    assert run_one(world, made)[1]["reason_code"] == "AUTH_DENIED"
    world.write_profiles()
    code, status = run_one(world, made)
    assert (code, status["reason_code"]) == (1, "AUTH_DENIED")
    assert "give it another request_id" in status["next_action"]
    assert run_one(world, made | {"request_id": "again"})[0] == 0


def test_a_run_without_evidence_is_left_when_the_time_is_over_and_goes_on_later(world: World) -> None:
    made = world.make_run("late", damage="root_missing")["request"]
    code, status = run_one(world, made, "--timeout", "1")
    assert (code, status["state"]) == (3, "WAITING_EVIDENCE")
    world.make_run("late")
    code, status = run_one(world, made)
    assert (code, status["state"]) == (0, "READY")


FLAKY = """
import os, subprocess, sys
seen = sys.argv[1]
if not os.path.exists(seen):
    open(seen, "w").close()
    sys.exit(1)
sys.exit(subprocess.call(sys.argv[2:]))
"""


def test_a_drain_waits_for_engines_and_for_the_next_attempt(world: World) -> None:
    flaky = world.root / "flaky.py"
    flaky.write_text(FLAKY)
    engine(world, [sys.executable, str(flaky), str(world.root / "seen"), *SAMPLE])
    world.drop(request(world))
    done = world.serve()
    assert done.returncode == 0, done.stderr.decode()
    assert len(launches(world)) == 2
    (signal,) = world.signals()
    assert signal["attributes"]["kind"] == "READY"


# --- others that wait where an engine writes


def waiting_where_another_run_will_write(world: World) -> dict[str, Any]:
    """A run that waits, and is due by its schedule long after the test; returns its request."""
    engine(world, SAMPLE, evidence_watch="off")
    document = request(world, "waits", requested_strategy="FORCE_REUSE", engine_run_root=str(world.runs / "made-once"))
    world.drop(document)
    assert world.serve().returncode == 0
    with closing(sqlite3.connect(world.database)) as connection, connection:
        connection.execute("UPDATE runs SET due_us = due_us + 100000000 WHERE state = 'WAITING_EVIDENCE'")
    return document | {"run_equivalence_key": "makes", "requested_strategy": "FORCE_INVOKE"}


def rows(world: World) -> list[Any]:
    with closing(sqlite3.connect(world.database)) as connection:
        return connection.execute("SELECT * FROM runs WHERE run_equivalence_key = 'waits'").fetchall()


def test_the_end_of_an_engine_is_told_to_runs_that_wait_where_it_wrote(world: World) -> None:
    world.drop(waiting_where_another_run_will_write(world), "second.json")
    daemon = world.start()
    deadline = time.monotonic() + 60
    while len(world.signals("READY")) < 2:
        assert time.monotonic() < deadline, "the run that waited was not told"
        time.sleep(0.05)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert len(launches(world)) == 1


def test_one_shot_tells_no_other_run(world: World) -> None:
    makes = waiting_where_another_run_will_write(world)
    before = rows(world)
    assert run_one(world, makes)[0] == 0
    assert rows(world) == before
