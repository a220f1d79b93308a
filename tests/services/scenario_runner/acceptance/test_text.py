"""Text for people, with the installed command: an answer that fits a screen, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from support import COMMAND, ForkedWorld, World

from scenario_runner.contracts.ids import run_id_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

KEYS = {"ready": None, "failed": "flag_says_fail", "quarantined": "flag_bit_off", "waiting": "flag_missing"}
LAYERS: dict[str, Any] = {"members": 2, "member_bytes": 64, "parts": 2, "part_bytes": 64}
HOSTILE = "a\x1b]0;x\x07b\x7f\x9b2J\x85\u202e\u2066\u200e\u061c\u200b\ufeff\u2028\u2029\r\nz"


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Runs of ten gates in each resting state, one that nobody has driven yet, and a refused and a waiting request."""
    world = World(tmp_path_factory.mktemp("text") / "world")
    for number, (key, damage) in enumerate(KEYS.items(), 1):
        made = world.make_run(key, data_seed=number, damage=damage, **LAYERS)
        world.drop(made["request"] | {"run_equivalence_key": f"nightly/{key}"}, f"{key}.json")
    world.drop({"run_equivalence_key": "nightly/refused"}, "refused.json")
    assert world.serve().returncode == 0
    world.drop(made["request"] | {"run_equivalence_key": "nightly/planned"}, "planned.json")
    assert world.serve("--role", "intake").returncode == 0
    world.drop(made["request"] | {"run_equivalence_key": "nightly/submitted"}, "submitted.json")
    return world


def look(world: World, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return ForkedWorld(world.root).command(*arguments, "--wiring", str(world.wiring))


def change(world: World, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(world.database)) as database, database:
        database.execute(statement, values)


def unprintable(output: bytes) -> list[str]:
    return [char for char in output.decode() if not char.isprintable() and char != "\n"]


# --- explain answers first


@pytest.mark.parametrize(
    ("key", "state", "code", "parts"),
    [
        ("ready", "READY", 0, ("10 PASS", "3 PASS", "READY sent", "not invoked (FORCE_REUSE)")),
        ("failed", "FAILED  GATE_FAIL", 1, ("FAIL gate gate.layer1.1A.validation", "1 FAIL, 9 BLOCKED", "TERMINAL")),
        ("quarantined", "QUARANTINED  EVIDENCE_CONFLICT", 4, ("CONFLICT gate gate.layer1.1A", "expected: ", "found: ")),
        ("waiting", "WAITING_EVIDENCE", 3, ("missing: ", "/_passed.flag", "deadline in ", "1 MISSING, 9 BLOCKED")),
        ("planned", "PLANNED", 3, ("10 required, none examined yet", "3 intended, none examined yet")),
        ("executing", "EXECUTING", 3, ("10 required", "the data\\x1b[2J store")),
        ("verifying", "VERIFYING", 3, ("10 required",)),
        ("refused", "REJECTED  REQUEST_SCHEMA_INVALID", 1, ("seed: is", "1 REJECTED", "cause:")),
        ("submitted", "SUBMITTED", 3, ("next:",)),
    ],
)
def test_an_explanation_answers_in_a_screen_whatever_the_state(
    looked_at: World, key: str, state: str, code: int, parts: tuple[str, ...]
) -> None:
    name = "planned" if key in ("executing", "verifying") else key
    if name != key:
        change(looked_at, "UPDATE runs SET state = ?, retries = 3, last_error = ? WHERE run_equivalence_key = ?",
               state, "the data\x1b[2J store does not answer " * 30, "nightly/planned")  # fmt: skip
    try:
        shown = look(looked_at, "explain", f"nightly/{name}")
    finally:
        if name != key:
            change(looked_at, "UPDATE runs SET state = 'PLANNED', retries = 0, last_error = '' "
                              "WHERE run_equivalence_key = 'nightly/planned'")  # fmt: skip
    text = shown.stdout.decode()
    lines = text.splitlines()
    assert shown.returncode == code, shown.stderr
    assert lines[0] == f"state:    {state}"
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert all(part in text for part in parts), text


def test_an_explanation_gives_all_of_it_where_that_is_asked_for(looked_at: World) -> None:
    whole = look(looked_at, "explain", "nightly/waiting", "--all").stdout.decode()
    document = json.loads(look(looked_at, "explain", "nightly/waiting", "--json").stdout)
    (path,) = document["missing"]
    assert path in whole
    assert path not in look(looked_at, "explain", "nightly/waiting").stdout.decode()
    assert all(f"gate   {gate}: " in whole for gate in document["required_gates"])


# --- times


def test_times_are_for_people_in_text_and_as_they_are_stored_in_json(
    looked_at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = str(json.loads(look(looked_at, "dead-letter", "list", "--json").stdout)["dead_letters"][0]["number"])
    moment = r"([0-9-]{10} )?[0-9:]{8} %s \([0-9]+ (s|min|h) ago\)"
    for arguments in (["status", "nightly/waiting"], ["runs", "list"], ["dead-letter", "list"],
                      ["quarantine", "show", "nightly/quarantined"], ["dead-letter", "show", number]):  # fmt: skip
        assert re.search(moment % "UTC", look(looked_at, *arguments).stdout.decode()), arguments
    text = look(looked_at, "status", "nightly/waiting").stdout.decode()
    assert re.search(r"^deadline: +in [0-9]+ min \(", text, flags=re.MULTILINE)
    assert "deadline" not in look(looked_at, "status", "nightly/ready").stdout.decode()
    stored = json.loads(look(looked_at, "status", "nightly/waiting", "--json").stdout)["updated_at_utc"]
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{6}Z", stored)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    for command in (["status", "nightly/ready"], ["explain", "nightly/ready"], ["runs", "list"]):
        found = looked_at.command(*command, "--local", "--wiring", str(looked_at.wiring))  # a fork keeps its zone
        assert b" JST (" in found.stdout


# --- colours


def on_terminal(world: World, *arguments: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    import pty

    own, other = pty.openpty()
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [COMMAND, *arguments, "--wiring", str(world.wiring)], stdout=other, stderr=other, stdin=subprocess.DEVNULL,
        env=base | {"TERM": "xterm", "PYTHONUTF8": "1"} | environment,
    )  # fmt: skip
    os.close(other)
    found = b""
    try:
        while chunk := os.read(own, 65536):
            found += chunk
    except OSError:
        pass  # the other end is closed
    os.close(own)
    process.wait(60)
    return found.decode()


def test_a_terminal_gets_colour_and_a_glyph_beside_the_word(looked_at: World) -> None:
    assert "\x1b[32m✔ READY\x1b[0m" in on_terminal(looked_at, "status", "nightly/ready")
    assert "\x1b[31m✘ FAILED\x1b[0m" in on_terminal(looked_at, "explain", "nightly/failed")
    assert "\x1b[35m▲ QUARANTINED\x1b[0m" in on_terminal(looked_at, "runs", "list")
    assert "\x1b[32m✔ PASS\x1b[0m" in on_terminal(looked_at, "verify", "nightly/ready")


def test_colour_can_be_forbidden_and_forced(looked_at: World) -> None:
    assert "\x1b" not in on_terminal(looked_at, "status", "nightly/ready", NO_COLOR="1", FORCE_COLOR="1")
    dumb = on_terminal(looked_at, "status", "nightly/ready", TERM="dumb")
    assert "\x1b" not in dumb
    assert "✔" not in dumb
    assert b"\x1b" not in look(looked_at, "status", "nightly/ready").stdout
    forced = subprocess.run(
        [COMMAND, "status", "nightly/ready", "--wiring", str(looked_at.wiring)], capture_output=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"FORCE_COLOR": "1"},
    )  # fmt: skip
    assert b"\x1b[32mREADY\x1b[0m" in forced.stdout


# --- verify


def test_verify_says_the_verdict_and_what_failed_and_every_check_when_asked(looked_at: World, tmp_path: Path) -> None:
    quiet = look(looked_at, "verify", "nightly/ready").stdout.decode().splitlines()
    assert len(quiet) <= 5
    assert re.fullmatch(r"PASS: [0-9]+ checks, 0 failed", quiet[-1])
    every = look(looked_at, "verify", "nightly/ready", "-v").stdout.decode().splitlines()
    checks = json.loads(look(looked_at, "verify", "nightly/ready", "--json").stdout)["checks"]
    assert [line[6:] for line in every if line.startswith("ok ")] == [item["check"] for item in checks]
    view = looked_at.ledger / f"run_facts_view/{run_id_of('nightly/ready')}.json"
    changed = tmp_path / "view.json"
    changed.write_bytes(view.read_bytes().replace(b'"PASS"', b'"FAIL"', 1))
    failed = look(looked_at, "verify", str(changed))
    assert failed.returncode == 1
    text = failed.stdout.decode()
    assert "FAIL  " in text
    assert "ok    " not in text
    assert text.splitlines()[-1].startswith("FAIL: ")


# --- nothing that a terminal would obey


@pytest.fixture
def hostile(tmp_path: Path) -> World:
    """Everything that text shows of a waiting and of a quarantined run holds control characters."""
    world = World(tmp_path / "world")
    for number, (key, damage) in enumerate({"waiting": "flag_missing", "quarantined": "flag_bit_off"}.items(), 1):
        made = world.make_run(key, data_seed=number, damage=damage, outputs=["outlet_catalogue"], **LAYERS)
        world.drop(made["request"] | {"run_equivalence_key": key}, f"{key}.json")
    world.drop({"run_equivalence_key": "refused"}, "refused.json")
    assert world.serve().returncode == 0
    change(world, "UPDATE runs SET run_equivalence_key = run_equivalence_key || ?, reason_code = ?, last_error = ?, "
                  "relay_error = ?, relay_retries = 1, projected_seq = 0, lease_owner = ?", *[HOSTILE] * 5)  # fmt: skip
    change(world, "UPDATE intake_records SET detail = ?, record_key = record_key || ?, reason_code = reason_code",
           HOSTILE, HOSTILE)  # fmt: skip
    with closing(sqlite3.connect(world.database)) as database, database:
        rows = database.execute("SELECT run_id, seq, details FROM run_events").fetchall()
        for run_id, seq, details in rows:
            found = json.loads(details)
            spoilt = json.dumps(_spoilt(found)).encode()
            database.execute("UPDATE run_events SET details = ? WHERE run_id = ? AND seq = ?", (spoilt, run_id, seq))
    return world


def _spoilt(value: Any, key: str = "") -> Any:
    """A document whose texts hold control characters; codes and outcomes stay what they are."""
    if isinstance(value, dict):
        return {key: _spoilt(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_spoilt(item) for item in value]
    return value + HOSTILE if isinstance(value, str) and key not in ("outcome", "reason_code") else value


def test_nothing_that_came_from_outside_reaches_a_terminal_unescaped(hostile: World, tmp_path: Path) -> None:
    waiting, quarantined = run_id_of("waiting"), run_id_of("quarantined")
    view = tmp_path / "hostile.json"
    view.write_text(json.dumps({"run_id": HOSTILE, HOSTILE: HOSTILE}))
    number = str(json.loads(look(hostile, "dead-letter", "list", "--json").stdout)["dead_letters"][0]["number"])
    commands = [
        ["status", waiting], ["explain", waiting], ["explain", waiting, "--all"], ["explain", quarantined],
        ["explain", quarantined, "--all"], ["runs", "list"], ["quarantine", "list"],
        ["quarantine", "show", quarantined],
        ["dead-letter", "list"], ["dead-letter", "show", number], ["verify", str(view)], ["verify", str(view), "-v"],
        ["verify", quarantined], ["status", HOSTILE], ["explain", HOSTILE], ["verify", HOSTILE],
        ["dead-letter", "show", HOSTILE], ["runs", "list", "--reason", HOSTILE], ["runs", "list", f"--{HOSTILE}"],
        ["watch", waiting, "--timeout", "0"], ["watch", "--timeout", "0"], [HOSTILE],
    ]  # fmt: skip
    for arguments in commands:
        found = look(hostile, *arguments)
        assert found.returncode in (0, 1, 2, 3, 4), (arguments, found.stderr)
        assert found.stdout + found.stderr, arguments
        assert unprintable(found.stdout + found.stderr) == [], arguments
        assert b"Traceback" not in found.stderr, (arguments, found.stderr)
    shown = look(hostile, "explain", waiting, "--all").stdout
    assert b"\\x1b]0;x\\x07b\\x7f\\x9b2J\\x85\\u202e\\u2066\\u200e\\u061c\\u200b\\ufeff\\u2028\\u2029\\r\\nz" in shown


# --- watch


def test_watch_prints_a_line_for_each_change_in_a_pipe_and_ends_with_the_run(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run(outputs=["outlet_catalogue"], damage="flag_missing", **LAYERS)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    arguments = [COMMAND, "watch", made["run_id"], "--wiring", str(world.wiring), "--interval", "0.1"]
    watching = [subprocess.Popen([*arguments, *more], stdout=subprocess.PIPE) for more in ([], ["--json"])]
    first = [process.stdout.readline() for process in watching if process.stdout]
    change(world, "UPDATE runs SET due_us = NULL, state = 'FAILED', reason_code = 'GATE_FAIL'")
    text, lines = [process.communicate(timeout=30)[0] for process in watching]
    assert [process.returncode for process in watching] == [1, 1]
    assert b"WAITING_EVIDENCE" in first[0]
    assert [b"FAILED" in line and b"GATE_FAIL" in line for line in text.splitlines()] == [True]
    states = [json.loads(line)["state"] for line in (first[1] + lines).splitlines()]
    assert states == ["WAITING_EVIDENCE", "FAILED"]


def test_watch_shows_the_runs_on_their_way_and_what_became_of_them(looked_at: World) -> None:
    arguments = [COMMAND, "watch", "--wiring", str(looked_at.wiring), "--interval", "0.1", "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    found = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [item["state"] for item in found] == ["PLANNED", "WAITING_EVIDENCE"], "runs that have ended are not shown"
    row = "WHERE run_equivalence_key = 'nightly/planned'"
    change(looked_at, f"UPDATE runs SET state = 'FAILED', reason_code = 'GATE_FAIL', due_us = NULL {row}")
    try:
        assert json.loads(process.stdout.readline())["state"] == "FAILED"
    finally:
        change(looked_at, f"UPDATE runs SET state = 'PLANNED', reason_code = '', due_us = admitted_us {row}")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", None)
    assert process.returncode == 0


def test_watch_writes_over_its_table_on_a_terminal(looked_at: World) -> None:
    shown = on_terminal(looked_at, "watch", "--interval", "0.1", "--timeout", "0.25")
    first, *more = shown.split("\x1b[3F")
    assert more, "the table of three lines was written over"
    assert all(part in first for part in ("PLANNED 1", "WAITING_EVIDENCE 1", "nightly/waiting", "in 5", "\x1b[K"))
    one = on_terminal(looked_at, "watch", "nightly/failed")
    assert "\x1b[31m✘ FAILED\x1b[0m" in one
    assert "cause:" in one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_watch_with_the_code_of_the_state(looked_at: World, number: int) -> None:
    arguments = [COMMAND, "watch", "nightly/waiting", "--wiring", str(looked_at.wiring), "--interval", "0.1"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 3
