"""What an operator looks up, with the installed command: runs by name, pages of runs, dead letters, quarantine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support import COMMAND, SMALL, ForkedWorld, World

from scenario_runner.contracts.ids import run_id_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

KEYS = {"ready": None, "failed": "flag_says_fail", "quarantined": "flag_bit_off", "waiting": "flag_missing"}
HOSTILE = b'{"run_equivalence_key": "\xe2\x80\xae\xc2\x9b2J evil", "notes": "\\u001b]0;x\\u0007"}'
NOT_TEXT = b"\x00\xff\x1b[2J\x9b not text"
DOUBLED = b'{"run_equivalence_key": "shown", "run_equivalence_key": "hidden"}'


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Runs in each resting state, and three records that were refused."""
    world = World(tmp_path_factory.mktemp("looked-at") / "world")
    for number, (key, damage) in enumerate(KEYS.items(), 1):
        made = world.make_run(key, data_seed=number, damage=damage, **SMALL)
        world.drop(made["request"] | {"run_equivalence_key": f"nightly/{key}"}, f"{key}.json")
    for name, raw in (("hostile", HOSTILE), ("binary", NOT_TEXT), ("doubled", DOUBLED)):
        world.drop(raw, f"{name}.json")
    assert world.serve().returncode == 0
    return world


def look(world: World, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return ForkedWorld(world.root).command(*arguments, "--wiring", str(world.wiring), stdin=stdin)


def document(world: World, *arguments: str) -> Any:
    return json.loads(look(world, *arguments, "--json").stdout)


def ids(world: World, *arguments: str) -> list[str]:
    return [
        item["run_equivalence_key"].removeprefix("nightly/")
        for item in document(world, "runs", "list", *arguments)["runs"]
    ]


def unprintable(output: bytes) -> list[str]:
    return [char for char in output.decode() if not char.isprintable() and char != "\n"]


# --- which run is meant


@pytest.mark.parametrize(("command", "code"), [("status", 0), ("explain", 0), ("verify", 0)])
def test_a_run_is_found_by_its_id_the_beginning_of_it_its_key_and_its_messages(
    looked_at: World, command: str, code: int
) -> None:
    run_id = run_id_of("nightly/ready")
    (signal,) = [item for item in looked_at.signals("READY") if item["payload"]["run_id"] == run_id]
    for name in (run_id, run_id[:9], "nightly/ready", signal["message_id"]):
        found = look(looked_at, command, name, "--json")
        assert (found.returncode, json.loads(found.stdout)["run_id"]) == (code, run_id), name


def test_a_message_that_submit_printed_names_its_run(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run(**SMALL)
    request = world.root / "request.json"
    request.write_text(json.dumps(made["request"]))
    printed = json.loads(world.command("submit", "--wiring", str(world.wiring), str(request), "--json").stdout)
    assert look(world, "status", made["request"]["run_equivalence_key"]).returncode == 3, "it lies on the control bus"
    assert world.serve().returncode == 0
    assert document(world, "status", printed["message_id"])["run_id"] == printed["run_id"]


def test_the_beginning_of_more_than_one_id_is_refused_with_the_candidates(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    keys = [f"key-{number}" for number in range(400) if run_id_of(f"key-{number}").startswith("0")]
    for key in keys:
        world.drop({"run_equivalence_key": key}, f"{key}.json")
    assert world.serve().returncode == 0
    refused = look(world, "status", "0", "--json")
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["reason_code"]) == (2, "RUN_AMBIGUOUS")
    assert len(error["candidates"]) == 10 < len(keys)
    assert {item["run_id"] for item in error["candidates"]} < {run_id_of(key) for key in keys}
    for item in error["candidates"]:
        assert item["run_id"].encode() in refused.stderr
    assert look(world, "status", run_id_of(keys[0])[:10]).returncode == 1, "one of the refused"


def test_a_key_is_never_taken_by_its_beginning_but_named_when_it_is_not_there(looked_at: World) -> None:
    refused = look(looked_at, "status", "nightly/read", "--json")
    assert refused.returncode == 2
    error = json.loads(refused.stdout)["error"]
    assert error["reason_code"] == "RUN_NOT_FOUND"
    assert "nightly/ready" in error["detail"]


def test_waiting_for_a_short_key_of_hex_characters_does_not_find_another_run(looked_at: World) -> None:
    beginning = run_id_of("nightly/ready")[:4]
    assert look(looked_at, "status", beginning).returncode == 0
    assert look(looked_at, "status", beginning, "--wait", "--timeout", "0").returncode == 2


# --- lists


def test_filters_of_runs_list(looked_at: World) -> None:
    assert ids(looked_at, "--state", "FAILED") == ids(looked_at, "--reason", "GATE_FAIL") == ["failed"]
    assert ids(looked_at, "--key", "nightly/") == ["waiting", "ready", "quarantined", "failed"]
    assert ids(looked_at, "--key", "nightly/r") == ["ready"]
    assert ids(looked_at, "--sort", "deadline") == ["waiting"]
    missing = document(looked_at, "explain", "nightly/waiting")["missing"][0]
    assert ids(looked_at, "--missing", missing) == ids(looked_at, "--missing", missing[:10]) == ["waiting"]
    assert ids(looked_at, "--missing", "nowhere/") == []
    assert len(ids(looked_at, "--since", "1h")) == len(ids(looked_at, "--since", "2020-01-01")) == 4
    assert ids(looked_at, "--since", "2999-01-01T00:00:00Z") == ids(looked_at, "--until", "1h") == []


def test_a_list_that_ends_early_says_where_to_go_on_in_every_form(looked_at: World) -> None:
    whole, found, after = ids(looked_at), [], []
    while True:
        page = document(looked_at, "runs", "list", "--limit", "3", *after)
        found += [item["run_equivalence_key"].removeprefix("nightly/") for item in page["runs"]]
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert found == whole
    assert len(found) == 4
    lines = look(looked_at, "runs", "list", "--limit", "3", "--jsonl")
    items = [json.loads(line) for line in lines.stdout.splitlines()]
    assert ["next" in item for item in items] == [False, False, False, True]
    text = look(looked_at, "runs", "list", "--limit", "3")
    assert len(text.stdout.splitlines()) == 3
    assert f"--after {items[-1]['next']}".encode() in text.stderr
    assert look(looked_at, "runs", "list", "--limit", "4").stderr == b""


@pytest.mark.parametrize(
    "options",
    [
        ["--after", "x"],
        ["--after", "key-0-" + "0" * 32],
        ["--sort", "size"],
        ["--since", "yesterday"],
        ["--since", "2026-01-02", "--until", "2026-01-01"],
        ["--state", "FAILED", "--sort", "deadline"],
        ["--key", "\x1b"],
        ["--batch", "50"],
        ["--batch", "-", "--key", "x"],
    ],
)
def test_options_that_cannot_be_used_are_usage_errors(looked_at: World, options: list[str]) -> None:
    refused = look(looked_at, "runs", "list", *options, "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"]["reason_code"] == "USAGE"


def test_the_runs_of_a_file_are_listed_in_its_order_also_those_that_are_none(looked_at: World, tmp_path: Path) -> None:
    refused = run_id_of(json.loads(DOUBLED)["run_equivalence_key"])
    lines = [
        json.dumps({"run_equivalence_key": "nightly/failed", "seed": 7}),
        json.dumps({"run_id": run_id_of("nightly/ready"), "state": "SUBMITTED"}),
        json.dumps({"attributes": {}, "payload": {"run_equivalence_key": "nightly/waiting"}}),
        "",
        "nobody knows this",
        run_id_of("nightly/quarantined"),
    ]
    del refused
    given = "\n".join(lines).encode()
    states = [
        item["state"]
        for item in json.loads(look(looked_at, "runs", "list", "--batch", "-", "--json", stdin=given).stdout)["runs"]
    ]
    assert states == ["FAILED", "READY", "WAITING_EVIDENCE", "NOT_SEEN", "QUARANTINED"]
    (tmp_path / "batch.jsonl").write_bytes(given)
    only = look(looked_at, "runs", "list", "--batch", str(tmp_path / "batch.jsonl"), "--state", "READY")
    assert [line.split()[1] for line in only.stdout.decode().splitlines()] == ["READY"]
    assert look(looked_at, "runs", "list", "--batch", "-", stdin=b"{}\n").returncode == 2


# --- dead letters


def number_of(world: World, raw: bytes) -> str:
    for item in document(world, "dead-letter", "list")["dead_letters"]:
        shown = document(world, "dead-letter", "show", str(item["number"]))
        if base64.b64decode(shown["raw_base64"]) == raw:
            return str(item["number"])
    raise AssertionError("not listed")


def test_dead_letters_are_listed_and_filtered(looked_at: World) -> None:
    letters = document(looked_at, "dead-letter", "list")["dead_letters"]
    assert len(letters) == 3
    assert [item["number"] for item in letters] == sorted((item["number"] for item in letters), reverse=True)
    reason = letters[0]["reason_code"]
    of_reason = document(looked_at, "dead-letter", "list", "--reason", reason)["dead_letters"]
    assert of_reason == [item for item in letters if item["reason_code"] == reason]
    assert len(document(looked_at, "dead-letter", "list", "--key", "spool/hostile")["dead_letters"]) == 1
    assert document(looked_at, "dead-letter", "list", "--key", "kinesis/")["dead_letters"] == []
    assert document(looked_at, "dead-letter", "list", "--until", "1h")["dead_letters"] == []
    page = document(looked_at, "dead-letter", "list", "--limit", "2")
    rest = document(looked_at, "dead-letter", "list", "--after", page["next"])
    assert page["dead_letters"] + rest["dead_letters"] == letters
    assert look(looked_at, "dead-letter", "list", "--shard", "shardId-0").returncode == 2
    assert look(looked_at, "dead-letter", "list", "--after", "0").returncode == 2


@pytest.mark.parametrize("raw", [HOSTILE, NOT_TEXT, DOUBLED])
@pytest.mark.parametrize("form", ["auto", "json", "text", "hex"])
def test_whatever_bytes_a_letter_holds_a_terminal_gets_printable_characters(
    looked_at: World, raw: bytes, form: str
) -> None:
    shown = look(looked_at, "dead-letter", "show", number_of(looked_at, raw), "--as", form)
    assert shown.returncode == (2 if form == "json" and raw != HOSTILE else 0)
    assert unprintable(shown.stdout + shown.stderr) == []
    listed = look(looked_at, "dead-letter", "list")
    assert unprintable(listed.stdout) == []


def test_bytes_are_shown_whole_in_the_form_that_hides_nothing(looked_at: World) -> None:
    def shown(raw: bytes, form: str = "auto") -> str:
        return look(looked_at, "dead-letter", "show", number_of(looked_at, raw), "--as", form).stdout.decode()

    assert '"notes": "\\u001b]0;x\\u0007"' in shown(HOSTILE)
    assert shown(DOUBLED).count("run_equivalence_key") >= 2, "a key that stands twice is shown twice"
    assert "00000000  00 ff 1b 5b 32 4a 9b 20 6e 6f 74 20 74 65 78 74  ...[2J. not text" in shown(NOT_TEXT)
    assert "\\x00\\xff\\x1b[2J\\x9b not text" in shown(NOT_TEXT, "text")
    raw = look(looked_at, "dead-letter", "show", number_of(looked_at, NOT_TEXT), "--as", "raw")
    assert raw.stdout == NOT_TEXT
    found = document(looked_at, "dead-letter", "show", number_of(looked_at, NOT_TEXT))
    assert (found["raw_text"], found["kept"], found["raw_size"]) == (None, "all", len(NOT_TEXT))
    assert document(looked_at, "dead-letter", "show", found["record_key"]) == found
    assert found["next_action"]
    for wrong in (["no-such"], ["0"], [found["record_key"], "--as", "pdf"]):
        assert look(looked_at, "dead-letter", "show", *wrong, "--json").returncode == 2


# --- quarantine


def test_quarantine_shows_what_contradicts_what_and_what_to_do(looked_at: World) -> None:
    (item,) = document(looked_at, "quarantine", "list")["runs"]
    assert item["run_id"] == run_id_of("nightly/quarantined")
    found = look(looked_at, "quarantine", "show", item["run_id"][:8], "--json")
    shown = json.loads(found.stdout)
    assert found.returncode == 4
    (finding,) = shown["findings"]
    assert finding["kind"] == "gate"
    assert finding["expected"] != finding["actual"]
    assert shown["next_action"]
    text = look(looked_at, "quarantine", "show", "nightly/quarantined").stdout.decode()
    for part in (finding["gate_id"], finding["expected"], finding["actual"], shown["next_action"]):
        assert part in text
    for wrong in ("nightly/ready", "0" * 32):
        assert look(looked_at, "quarantine", "show", wrong).returncode == 2


def test_the_run_that_holds_a_receipt_that_drifts_is_named(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    first = world.make_run("one", data_seed=1, **SMALL)
    second = world.make_run("two", data_seed=1, **{**SMALL, "part_bytes": 65})
    for key, made in (("holds", first), ("drifts", second)):
        world.drop(made["request"] | {"run_equivalence_key": key}, f"{key}.json")
        assert world.serve().returncode == 0
    shown = document(world, "quarantine", "show", "drifts")
    assert shown["reason_code"] == "INSTANCE_RECEIPT_DRIFT"
    assert [item["run_equivalence_key"] for item in shown["held_by"]] == ["holds"]
    (drift,) = [item for item in shown["findings"] if item["kind"] == "object"]
    assert drift["expected"] != drift["actual"]
    assert run_id_of("holds").encode() in look(world, "quarantine", "show", "drifts").stdout


# --- the command line


def test_profiles_come_from_the_environment_and_an_option_wins(looked_at: World, tmp_path: Path) -> None:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([COMMAND, *arguments], capture_output=True, env={**os.environ, **env}, check=False)

    profiles = {"SR_WIRING": str(looked_at.wiring), "SR_POLICY": str(looked_at.policy)}
    assert run("status", "nightly/ready", **profiles).returncode == 0
    assert run("doctor", **profiles).returncode == 0
    assert run("status", "nightly/ready", "--wiring", str(tmp_path / "none.yaml"), **profiles).returncode == 2
    assert run("status", "nightly/ready", SR_WIRING="").returncode == 2
    assert b"SR_WIRING" in run("status", "--help").stdout


@pytest.mark.parametrize(
    "command", [[], ["status"], ["runs"], ["runs", "list"], ["dead-letter", "show"], ["quarantine"]]
)
def test_h_is_help_everywhere_and_no_short_help_is_cut(looked_at: World, command: list[str]) -> None:
    short, long = (ForkedWorld(looked_at.root).command(*command, flag) for flag in ("-h", "--help"))
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout
    assert b"..." not in short.stdout.replace(b"[ARGS]...", b"")


def test_shells_can_complete_commands(looked_at: World) -> None:
    env = {
        **os.environ,
        "_SCENARIO_RUNNER_COMPLETE": "complete_bash",
        "COMP_WORDS": "scenario-runner dead-l",
        "COMP_CWORD": "1",
    }
    found = subprocess.run([COMMAND], capture_output=True, env=env, check=False)
    assert found.stdout.split() == [b"dead-letter"]


@pytest.mark.parametrize(
    "command", [["runs", "list"], ["dead-letter", "list"], ["dead-letter", "show", "1"], ["quarantine", "list"],
                ["quarantine", "show", "0" * 32]],
)  # fmt: skip
def test_looking_where_no_daemon_ever_started_makes_nothing(world: World, command: list[str]) -> None:
    before = sorted(world.root.rglob("*"))
    found = look(world, *command, "--json")
    assert found.returncode == (2 if command[1] == "show" else 0)
    assert sorted(world.root.rglob("*")) == before


def test_a_look_while_a_daemon_holds_the_write_lock_does_not_wait(looked_at: World) -> None:
    import sqlite3

    with sqlite3.connect(looked_at.database, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert look(looked_at, "runs", "list").returncode == 0
        writer.execute("ROLLBACK")
