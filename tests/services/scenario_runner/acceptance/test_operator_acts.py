"""Acts of an operator with the installed command: letters redriven, quarantine acknowledged, waiting runs woken."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from invariants import check, paths_of
from support import COMMAND, ForkedWorld

from scenario_runner.contracts.ids import run_id_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}
HOSTILE = b'{"run_equivalence_key": "\xe2\x80\xae\xc2\x9b2J evil", "notes": "\\u001b]0;x\\u0007"}'


class Scene:
    """A world, and its commands."""

    def __init__(self, root: Path, **wiring: Any) -> None:
        self.world = ForkedWorld(root, wiring)

    def ask(self, key: str, *, seed: int = 1, name: str = "", damage: str = "", **changes: Any) -> str:
        """Drop a request for an engine run of its own; returns the run id."""
        more = {"damage": damage} if damage else {}
        made = self.world.make_run(key, seed=seed, **SMALL, **more)
        self.world.drop(made["request"] | changes, f"{name or key}.json")
        return str(made["run_id"])

    def drain(self) -> None:
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()

    def do(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return self.world.command(*arguments, "--wiring", str(self.world.wiring))

    def told(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = self.do(*arguments, "--json")
        return done.returncode, json.loads(done.stdout or b"{}")

    def redrive(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        return self.told("dead-letter", "redrive", *arguments, "--policy", str(self.world.policy))

    def many(self, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        done = self.do("dead-letter", "redrive", *arguments, "--policy", str(self.world.policy), "--json")
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()

    def letters(self) -> list[dict[str, Any]]:
        _, found = self.told("dead-letter", "list")
        return list(found["dead_letters"])

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.world.database)) as connection:
            return connection.execute(statement).fetchall()

    def actions(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT action, subject, actor, reason, outcome FROM operator_actions ORDER BY action_id")

    def sound(self) -> None:
        assert check(paths_of(self.world)) == []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "world")


def unprintable(output: bytes) -> list[str]:
    return [char for char in output.decode() if not char.isprintable() and char != "\n"]


# --- redrive: one letter ----------------------------------------------------------------------------------------------


@pytest.fixture
def denied(tmp_path: Path) -> Scene:
    """A request that was refused because its invoker is not on the allow-list."""
    scene = Scene(tmp_path / "world", auth_mode="allowlist", auth_allowlist=["someone"])
    scene.ask("k", invoker="nightly")
    scene.drain()
    assert [item["reason_code"] for item in scene.letters()] == ["AUTH_DENIED"]
    return scene


def test_a_letter_is_redriven_to_ready_once_the_profile_is_right_and_stays_a_letter(denied: Scene) -> None:
    (letter,) = denied.letters()
    key = letter["record_key"]
    code, first = denied.redrive(key, "--requested-by", "ops", "--why", "too early")
    assert (code, first["outcome"], first["record_key"]) == (1, "AUTH_DENIED", f"redrive/1/{key}"), "no bypass"

    denied.world.write_profiles(auth_allowlist=["nightly"])
    code, done = denied.redrive(key, "--requested-by", "ops", "--why", "invoker added")
    assert (code, done["outcome"], done["record_key"]) == (0, "ADMITTED", f"redrive/2/{key}")
    assert (done["repeated"], done["predicted"]["outcome"], done["letter"]) == (False, "ADMITTED", key)
    denied.drain()
    assert denied.world.query("status", run_id_of("k"))[0] == 0
    assert denied.actions() == [
        ("redrive", key, "ops", "too early", "AUTH_DENIED"), ("redrive", key, "ops", "invoker added", "ADMITTED"),
    ]  # fmt: skip
    assert {item["record_key"] for item in denied.letters()} == {key, f"redrive/1/{key}"}, "nothing is deleted"
    records = denied.rows("SELECT record_key, disposition FROM intake_records ORDER BY record_id")
    assert records == [(key, "REJECTED"), (f"redrive/1/{key}", "REJECTED"), (f"redrive/2/{key}", "ACCEPTED")]
    denied.sound()


def test_a_repeat_says_what_it_came_to_and_who_was_first_until_pack_or_policy_change(denied: Scene) -> None:
    key = denied.letters()[0]["record_key"]
    denied.world.write_profiles(auth_allowlist=["nightly"])
    _, first = denied.redrive(key, "--requested-by", "ops")
    assert first["earlier"] is None
    assert denied.redrive(key, "--dry-run")[1]["earlier"] == first["record_key"]
    text = denied.do("dead-letter", "redrive", key, "--policy", str(denied.world.policy)).stdout.decode()
    assert "has come to this under this pack and policy" in text
    code, again = denied.redrive(key, "--requested-by", "another")
    assert (code, again["repeated"], again["requested_by"]) == (0, True, "ops")
    assert (again["record_key"], again["outcome"], again["at_utc"]) == (
        first["record_key"], "ADMITTED", first["at_utc"],
    )  # fmt: skip
    denied.world.policy_changes["revision"] = "v1"
    denied.world.write_profiles(auth_allowlist=["nightly"])
    code, under_another = denied.redrive(key)
    assert (code, under_another["outcome"], under_another["record_key"]) == (0, "DUPLICATE", f"redrive/2/{key}")
    assert len(denied.actions()) == 2


def test_a_redrive_that_is_refused_again_is_the_same_letter(denied: Scene) -> None:
    key = denied.letters()[0]["record_key"]
    denied.redrive(key)
    assert denied.redrive(f"redrive/1/{key}")[1]["repeated"]
    denied.world.write_profiles(auth_allowlist=["nightly"])
    _, done = denied.redrive(f"redrive/1/{key}")
    assert (done["letter"], done["record_key"], done["outcome"]) == (key, f"redrive/2/{key}", "ADMITTED")


def test_a_dry_run_predicts_and_writes_nothing(denied: Scene) -> None:
    key = denied.letters()[0]["record_key"]
    before = denied.rows("SELECT * FROM intake_records")
    code, document = denied.redrive(key, "--dry-run")
    assert (code, document["predicted"]["reason_code"], document["outcome"]) == (1, "AUTH_DENIED", None)
    denied.world.write_profiles(auth_allowlist=["nightly"])
    code, document = denied.redrive(key, "--dry-run")
    assert (code, document["predicted"]["disposition"], document["run_id"]) == (0, "ACCEPTED", run_id_of("k"))
    assert (denied.rows("SELECT * FROM intake_records"), denied.actions()) == (before, [])


def test_predictions_of_a_taken_key_are_what_the_redrive_comes_to(scene: Scene) -> None:
    scene.ask("k")
    made = scene.world.make_run("k2", seed=2, **SMALL)
    scene.drain()
    scene.world.drop(made["request"] | {"run_equivalence_key": "k"}, "other.json")
    scene.drain()
    (letter,) = scene.letters()
    assert letter["reason_code"] == "EQUIV_KEY_COLLISION"
    code, predicted = scene.redrive(str(letter["number"]), "--dry-run")
    assert (code, predicted["predicted"]["disposition"]) == (1, "CONFLICT")
    code, done = scene.redrive(str(letter["number"]))
    assert (code, done["reason_code"]) == (1, "EQUIV_KEY_COLLISION")
    assert scene.world.query("status", run_id_of("k"))[1]["state"] == "READY"


def test_a_reemit_request_is_redriven_and_publishes_once(scene: Scene) -> None:
    run_id = scene.ask("k", name="request")
    envelope = {
        "topic": "fp.bus.control.v1", "message_id": "ask", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "REEMIT_REQUEST"}, "partition_key": "any",
        "payload": {"run_id": run_id, "reemit_kind": "BOTH", "reason": "lost", "requested_by": "index"},
    }  # fmt: skip
    claimed = scene.world.bus / "requests" / "request.json"
    request = claimed.read_bytes()
    claimed.unlink()
    scene.world.drop(envelope, "reemit.json")
    scene.drain()
    (letter,) = scene.letters()
    assert letter["reason_code"] == "RUN_NOT_FOUND"
    scene.world.drop(request, "request.json")
    scene.drain()
    key = letter["record_key"]
    assert scene.redrive(key, "--dry-run")[1]["predicted"]["outcome"] == "ADMITTED"
    assert scene.redrive(key)[1]["outcome"] == "ADMITTED"
    assert scene.redrive(key)[1]["repeated"]
    scene.drain()
    repeated = [path.name for path in scene.world.signals_folder.glob("*.reemit-*.json")]
    assert len(repeated) == 1
    assert sorted((action, outcome) for action, _, _, _, outcome in scene.actions()) == [
        ("redrive", "ADMITTED"), ("reemit", "PUBLISHED"), ("reemit", "RUN_NOT_FOUND"),
    ]  # fmt: skip
    scene.sound()


def test_bytes_that_are_not_kept_whole_are_refused_with_a_code_of_their_own(scene: Scene) -> None:
    scene.world.drop(b"{" + b" " * (1 << 20) + b"}", "large.json")
    (scene.world.bus / "requests" / "link.json").symlink_to("/etc/hostname")
    scene.world.drop(b"[]", "damaged.json")
    scene.drain()
    codes = {item["reason_code"]: item for item in scene.letters()}
    assert set(codes) == {"RECORD_TOO_LARGE", "RECORD_UNREADABLE", "RECORD_NOT_JSON"}
    with closing(sqlite3.connect(scene.world.database)) as connection:
        damaged = codes["RECORD_NOT_JSON"]["record_key"]
        connection.execute("UPDATE dead_letters SET raw = x'7b7d' WHERE record_key = ?", (damaged,))
        connection.commit()
    for item in codes.values():
        done = scene.do("dead-letter", "redrive", item["record_key"], "--policy", str(scene.world.policy), "--json")
        assert done.returncode == 1, done.stderr
        assert json.loads(done.stdout)["error"]["reason_code"] == "LETTER_BYTES_NOT_KEPT"
    assert scene.actions() == []


def test_what_is_no_letter_is_named_and_a_beginning_of_many_lists_them(scene: Scene) -> None:
    scene.world.drop(b"[]", "one.json")
    scene.world.drop(b"[1]", "two.json")
    scene.ask("k")
    scene.drain()
    keys = sorted(item["record_key"] for item in scene.letters())
    code, refused = scene.redrive("spool/")
    assert (code, refused["error"]["reason_code"]) == (2, "USAGE")
    assert all(key in refused["error"]["detail"] for key in keys)
    assert scene.redrive(keys[0][:-3], "--dry-run")[1]["letter"] == keys[0], "a beginning of one"
    ((accepted,),) = scene.rows("SELECT record_key FROM intake_records WHERE disposition = 'ACCEPTED'")
    for name in (accepted, "99", "nothing", "\x1b[2J", "0" * 5000):
        assert scene.redrive(name)[0] == 2
    assert scene.redrive(keys[0], "--since", "1h")[0] == 2, "a letter and a filter"
    assert scene.redrive(keys[0], "--requested-by", "\x07")[0] == 2


def test_nothing_of_hostile_bytes_reaches_the_terminal(scene: Scene) -> None:
    scene.world.drop(HOSTILE, "hostile.json")
    scene.drain()
    (letter,) = scene.letters()
    for more in (["--dry-run"], ["--why", "\x1b[2J\u202e"], ["--why", "\x1b[2J\u202e"]):
        done = scene.do("dead-letter", "redrive", letter["record_key"], "--policy", str(scene.world.policy), *more)
        assert done.returncode == 1
        assert unprintable(done.stdout + done.stderr) == []
    shown = scene.do("dead-letter", "show", letter["record_key"])
    assert unprintable(shown.stdout) == []
    assert b"redriven by" in shown.stdout


def test_two_people_at_once_redrive_a_letter_once(denied: Scene) -> None:
    key = denied.letters()[0]["record_key"]
    denied.world.write_profiles(auth_allowlist=["nightly"])
    profiles = ["--wiring", str(denied.world.wiring), "--policy", str(denied.world.policy)]
    commands = [
        subprocess.Popen(
            [COMMAND, "dead-letter", "redrive", key, *profiles, "--requested-by", f"p{number}", "--json"],
            stdout=subprocess.PIPE,
        )
        for number in range(3)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in commands]
    assert {(item["outcome"], item["record_key"]) for item in answers} == {("ADMITTED", f"redrive/1/{key}")}
    assert sorted(item["repeated"] for item in answers) == [False, True, True]
    assert len({item["requested_by"] for item in answers}) == 1
    assert len(denied.actions()) == 1


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_kill_at_the_commit_of_a_redrive_leaves_it_done_once_or_not_at_all(denied: Scene, place: str) -> None:
    key = denied.letters()[0]["record_key"]
    denied.world.write_profiles(auth_allowlist=["nightly"])
    code = (
        "import os, sys\n"
        "from scenario_runner.authority import sqlite\n"
        "from scenario_runner.cli.main import main\n"
        "commit = sqlite._commit\n"
        "def killed(connection):\n"
        "    rows = connection.execute(\"SELECT count(*) FROM operator_actions WHERE action = 'redrive'\").fetchone()\n"
        "    if rows[0] and sys.argv[0] == 'before': os.kill(os.getpid(), 9)\n"
        "    commit(connection)\n"
        "    if rows[0]: os.kill(os.getpid(), 9)\n"
        "sqlite._commit = killed\n"
        "place, sys.argv = sys.argv[1], ['x', *sys.argv[2:]]\n"
        "sys.argv[0] = place\n"
        "main()\n"
    )
    import sys

    arguments = ["dead-letter", "redrive", key, "--wiring", str(denied.world.wiring), "--policy",
                 str(denied.world.policy)]  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", code, place, *arguments], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    done = place == "after"
    assert len(denied.actions()) == len(denied.rows("SELECT * FROM runs")) == int(done)
    code_of_repeat, again = denied.redrive(key)
    assert (code_of_repeat, again["outcome"], again["repeated"]) == (0, "ADMITTED", done)
    assert (len(denied.actions()), len(denied.rows("SELECT * FROM runs"))) == (1, 1)


def test_an_authority_that_is_gone_is_said_with_its_exit_code(denied: Scene) -> None:
    key = denied.letters()[0]["record_key"]
    denied.world.write_profiles(authority_store_dsn="postgresql://sr:secret@127.0.0.1:9/none?connect_timeout=1")
    for arguments in (
        ["dead-letter", "redrive", key, "--policy", str(denied.world.policy)],
        ["quarantine", "ack", "k", "--reason", "r"],
        ["runs", "wake", "k"],
    ):
        done = denied.do(*arguments)
        assert done.returncode == 5, done.stderr
        assert b"UNAVAILABLE" in done.stderr
        assert b"secret" not in done.stderr


def test_nothing_is_made_where_no_daemon_was_ever_started(scene: Scene) -> None:
    assert scene.redrive("1")[0] == 2
    assert scene.many("--yes")[0:2] == (0, [])
    assert scene.told("quarantine", "ack", "k", "--reason", "r")[0] == 2
    assert scene.told("runs", "wake", "k")[0] == 2
    assert not scene.world.database.exists()
    assert not scene.world.store.exists()


# --- quarantine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quarantined(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path / "world")
    for number, (key, damage) in enumerate({"q1": "flag_bit_off", "q2": "flag_bit_off", "fine": ""}.items()):
        scene.ask(key, seed=number, damage=damage)
    scene.drain()
    return scene


def listed(scene: Scene, *arguments: str) -> list[str]:
    return [item["run_equivalence_key"] for item in scene.told("quarantine", "list", *arguments)[1]["runs"]]


def test_an_acknowledgement_is_on_record_and_changes_neither_state_nor_verdict(quarantined: Scene) -> None:
    before = quarantined.rows("SELECT * FROM runs"), quarantined.rows("SELECT * FROM run_events")
    code, first = quarantined.told("quarantine", "ack", "q1", "--reason", "index sealed twice", "--requested-by", "ann")
    assert (code, first["state"], first["acked_by"], first["repeated"]) == (0, "QUARANTINED", "ann", False)
    code, again = quarantined.told("quarantine", "ack", "q1", "--reason", "me too", "--requested-by", "bob")
    assert (code, again["acked_by"], again["ack_reason"], again["repeated"]) == (0, "ann", "index sealed twice", True)
    assert quarantined.actions() == [("quarantine_ack", run_id_of("q1"), "ann", "index sealed twice", "ACKED")]
    assert (quarantined.rows("SELECT * FROM runs"), quarantined.rows("SELECT * FROM run_events")) == before
    assert quarantined.world.query("status", "q1")[0] == 4
    assert quarantined.told("quarantine", "show", "q1")[1]["acked_by"] == "ann"
    assert quarantined.told("quarantine", "show", "q2")[1]["acked_by"] is None
    _, explained = quarantined.world.query("explain", "q1")
    assert [item["action"] for item in explained["actions"]] == ["quarantine_ack"]


def test_the_list_shows_who_has_seen_what_and_filters_by_it(quarantined: Scene) -> None:
    assert listed(quarantined, "--open") == listed(quarantined) != []
    quarantined.told("quarantine", "ack", "q1", "--reason", "r", "--requested-by", "ann\u202e")
    quarantined.told("quarantine", "ack", "q1", "--reason", "r", "--requested-by", "ann")
    assert listed(quarantined, "--acked") == ["q1"]
    assert listed(quarantined, "--open") == ["q2"]
    reason = quarantined.told("quarantine", "show", "q1")[1]["reason_code"]
    assert listed(quarantined, "--open", "--reason", reason) == ["q2"]
    assert sorted(listed(quarantined)) == ["q1", "q2"]
    text = quarantined.do("quarantine", "list").stdout.decode()
    assert {line.split("  ")[-1] for line in text.splitlines()} == {"acked by ann", "open"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fine", "--reason", "r"], "RUN_NOT_QUARANTINED"),
        (["nothing", "--reason", "r"], "RUN_NOT_FOUND"),
        (["q1"], "USAGE"),
        (["q1", "--reason", " "], "USAGE"),
        (["q1", "--reason", "r" * 5000], "USAGE"),
    ],
)
def test_an_acknowledgement_of_anything_else_is_refused(quarantined: Scene, arguments: list[str], reason: str) -> None:
    code, refused = quarantined.told("quarantine", "ack", *arguments)
    assert (code, refused["error"]["reason_code"]) == (2, reason)
    assert quarantined.actions() == []


# --- wake -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def waits(tmp_path: Path) -> Scene:
    """Two runs that wait for a flag, and one that is READY."""
    scene = Scene(tmp_path / "world")
    for number, (key, damage) in enumerate({"w1": "flag_missing", "w2": "flag_missing", "fine": ""}.items()):
        scene.ask(key, seed=number, damage=damage)
    scene.drain()
    with closing(sqlite3.connect(scene.world.database)) as connection:
        connection.execute("UPDATE runs SET due_us = due_us + 50000000 WHERE state = 'WAITING_EVIDENCE'")
        connection.commit()
    return scene


def test_a_run_is_woken_and_its_deadline_stays(waits: Scene) -> None:
    deadline = waits.rows("SELECT run_id, deadline_us FROM runs")
    code, dry = waits.told("runs", "wake", "w1", "--dry-run")
    assert (code, dry["outcome"], dry["dry_run"]) == (0, "WOKEN", True)
    assert waits.actions() == []
    code, woken = waits.told("runs", "wake", "w1", "--reason", "file came", "--requested-by", "ann")
    assert (code, woken["outcome"], woken["state"]) == (0, "WOKEN", "WAITING_EVIDENCE")
    assert waits.told("runs", "wake", "w1")[1]["outcome"] == "DUE_ALREADY"
    assert waits.actions()[0] == ("runs_wake", run_id_of("w1"), "ann", "file came", "WOKEN")
    assert waits.rows("SELECT run_id, deadline_us FROM runs") == deadline
    code, refused = waits.told("runs", "wake", "fine")
    assert (code, refused["reason_code"]) == (1, "RUN_NOT_WAITING")
    assert waits.told("runs", "wake", "nothing")[0] == 2
    assert waits.told("runs", "wake")[0] == waits.told("runs", "wake", "w1", "--missing", "x")[0] == 2


def test_runs_are_woken_by_what_they_miss(waits: Scene) -> None:
    missing = waits.world.query("explain", "w1")[1]["missing"][0]
    prefix = missing[:4]
    done = waits.do("runs", "wake", "--missing", prefix, "--json", "--max", "1")
    assert b"more runs wait" in done.stderr
    assert len(done.stdout.splitlines()) == 1
    done = waits.do("runs", "wake", "--missing", prefix, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, sorted(item["outcome"] for item in lines)) == (0, ["DUE_ALREADY", "WOKEN"])
    assert waits.do("runs", "wake", "--missing", "nowhere/").returncode == 0
    assert len(waits.actions()) == 3


def test_a_daemon_that_runs_takes_a_woken_run(waits: Scene) -> None:
    whole = waits.world.make_run("whole", seed=0, **SMALL)
    _, explained = waits.world.query("explain", "w1")
    process = waits.world.start("--log-level", "error")
    try:
        until_awake(waits)
        source, target = whole["engine_run_root"], explained["engine_run_root"]
        shutil.copytree(source, target, dirs_exist_ok=True)
        assert waits.told("runs", "wake", "w1")[0] == 0
        assert waits.do("status", "w1", "--wait", "--timeout", "40").returncode == 0
        assert waits.world.query("status", "w2")[0] == 3
    finally:
        process.terminate()
        process.wait(timeout=60)


def until_awake(scene: Scene) -> None:
    """Until the daemon has driven a run, so that its loops are known to run."""
    scene.ask("probe", seed=9)
    assert scene.do("status", "probe", "--wait", "--timeout", "60").returncode == 0
