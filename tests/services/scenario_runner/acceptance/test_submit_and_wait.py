"""submit and status with the installed command: requests of flags, many at once, and waiting for the verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from support import COMMAND, SMALL, ForkedWorld, World

from scenario_runner.contracts.ids import run_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.integration

FLAGS = ("--run-equivalence-key", "--manifest-fingerprint", "--parameter-hash", "--seed", "--scenario-id",
         "--window-start", "--window-end", "--window-tz", "--engine-run-root", "--strategy", "--invoker", "--notes",
         "--request-id")  # fmt: skip


def flags_of(request: dict[str, Any]) -> list[str]:
    """A request document as flags."""
    scenario, window = request["scenario"], request["window"]
    values = (
        request["run_equivalence_key"], request["manifest_fingerprint"], request["parameter_hash"], request["seed"],
        scenario["scenario_id"], window["window_start_utc"], window["window_end_utc"], window["window_tz"],
        request.get("engine_run_root"), request.get("requested_strategy"), request.get("invoker"),
        request.get("notes"), request.get("request_id"),
    )  # fmt: skip
    pairs = [(flag, str(value)) for flag, value in zip(FLAGS, values, strict=True) if value is not None]
    outputs = [("--output-id", output) for output in request.get("output_ids", [])]
    return [text for pair in (*pairs, *outputs) for text in pair]


def submit(world: World, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return world.command("submit", "--wiring", str(world.wiring), *arguments, stdin=stdin)


def as_lines(items: Sequence[Any]) -> bytes:
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)


def results(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def waiting(world: World) -> list[Path]:
    return sorted((world.bus / "requests").glob("*.json"))


@pytest.fixture
def forked(tmp_path: Path) -> ForkedWorld:
    return ForkedWorld(tmp_path / "forked")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with a daemon in it."""
    world = World(tmp_path_factory.mktemp("served") / "world")
    daemon = world.start()
    yield world
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0


# --- one request from flags


def test_a_request_of_flags_is_the_document_that_a_file_would_hold(forked: ForkedWorld) -> None:
    request = forked.make_run(**SMALL)["request"] | {
        "requested_strategy": "FORCE_REUSE", "invoker": "ci", "notes": "n", "request_id": "r-1",
    }  # fmt: skip
    shown = submit(forked, *flags_of(request), "--print")
    assert (shown.returncode, json.loads(shown.stdout)) == (0, request)
    assert not forked.bus.exists()
    sent = submit(forked, *flags_of(request), "--json")
    assert sent.returncode == 0, sent.stderr
    (dropped,) = waiting(forked)
    assert json.loads(dropped.read_bytes())["payload"] == request
    assert json.loads(sent.stdout)["message_id"] == dropped.stem
    assert json.loads(submit(forked, "-", "--json", stdin=json.dumps(request).encode()).stdout)["message_id"] == (
        dropped.stem
    ), "the same request has the same message id"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("FILE", "--jsonl", "flags")),
        (("request.json", "--seed", "7"), ("request.json", "--seed", "one")),
        (("request.json", "--jsonl", "many"), ("request.json", "--jsonl many")),
        (("--jsonl", "many", "--notes", "n"), ("--jsonl many", "--notes")),
        (("--jsonl", "many", "--wait"), ("--wait", "--jsonl")),
        (("--jsonl", "many", "--print"), ("--print", "--jsonl")),
        (("request.json", "--print", "--wait"), ("--print", "--wait")),
        (("request.json", "--timeout", "3"), ("--timeout needs --wait",)),
        (("request.json", "--wait", "--timeout", "-1"), ("--timeout",)),
        (("--run-equivalence-key", "k"), ("--manifest-fingerprint", "--seed", "--window-start")),
        (("--jsonl", "nowhere"), ("cannot read nowhere",)),
        (("--no-such-flag",), ("--no-such-flag",)),
    ],
)
def test_what_contradicts_itself_is_a_usage_error_and_sends_nothing(
    forked: ForkedWorld, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = submit(forked, *arguments)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr.decode()
    assert done.stdout == b""
    assert not waiting(forked)


def test_an_error_of_a_flag_names_the_flag(forked: ForkedWorld) -> None:
    request = forked.make_run(**SMALL)["request"]
    done = submit(forked, *flags_of(request | {"seed": "seven"}), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["detail"].startswith("--seed: ")
    assert not waiting(forked)


# --- many requests


def test_each_line_has_one_result_in_order_and_a_bad_line_stops_no_other(forked: ForkedWorld) -> None:
    request = forked.make_run(**SMALL)["request"]
    envelope = {"topic": "fp.bus.control.v1", "message_id": "m", "published_at_utc": "2026-01-01T00:00:00Z",
                "attributes": {"kind": "RUN_REQUEST"}, "partition_key": "p"}  # fmt: skip
    lines: list[Any] = [
        request | {"run_equivalence_key": "first"},
        b"{",
        b"",
        request | {"seed": "7", "run_equivalence_key": "bad seed"},
        envelope | {"payload": request | {"run_equivalence_key": "in an envelope"}},
        envelope | {"topic": "another.topic", "payload": {}},
        b"[" * 100_000,
        b" " * (2 << 20) + b"{}",
        b"  \r",
        request | {"run_equivalence_key": "last"},
    ]
    done = submit(forked, "--jsonl", "-", stdin=as_lines(lines).removesuffix(b"\n"))
    assert done.returncode == 1
    found = results(done)
    assert [(item["line"], item["outcome"]) for item in found] == [
        (1, "SUBMITTED"), (2, "REFUSED"), (4, "REFUSED"), (5, "SUBMITTED"), (6, "REFUSED"), (7, "REFUSED"),
        (8, "REFUSED"), (10, "SUBMITTED"),
    ]  # fmt: skip
    assert [item["error"]["reason_code"] for item in found if item["error"]] == [
        "RECORD_NOT_JSON", "REQUEST_SCHEMA_INVALID", "KIND_UNKNOWN", "RECORD_NOT_JSON", "RECORD_TOO_LARGE",
    ]  # fmt: skip
    assert found[2]["run_id"] == run_id_of("bad seed")
    sent = [item for item in found if item["outcome"] == "SUBMITTED"]
    assert [item["run_id"] for item in sent] == [run_id_of(key) for key in ("first", "in an envelope", "last")]
    assert sorted(item["record"] for item in sent) == [str(path) for path in waiting(forked)]
    assert done.stderr.decode().splitlines()[-1] == "3 requests submitted, 5 not"
    assert forked.serve().returncode == 0
    assert len(forked.signals("READY")) == 3


@pytest.mark.parametrize("drained", [False, True])
def test_a_file_that_is_submitted_again_gives_duplicates(forked: ForkedWorld, drained: bool) -> None:
    request = forked.make_run(**SMALL)["request"]
    file = forked.root / "requests.jsonl"
    file.write_bytes(as_lines([request | {"run_equivalence_key": f"k{number}"} for number in range(5)]))
    first = submit(forked, "--jsonl", str(file))
    if drained:
        assert forked.serve().returncode == 0
    again = submit(forked, "--jsonl", str(file))
    assert (first.returncode, again.returncode) == (0, 0)
    for key in ("line", "run_id", "message_id"):
        assert [item[key] for item in results(first)] == [item[key] for item in results(again)]
    assert len({item["message_id"] for item in results(first)}) == 5
    assert forked.serve().returncode == 0
    for number in range(5):
        records = forked.query("explain", run_id_of(f"k{number}"))[1]["records"]
        assert [item["disposition"] for item in records] == ["ACCEPTED", "DUPLICATE"]
        assert len({item["message_id"] for item in records}) == 1
    assert len(forked.signals("READY")) == 5


def test_an_empty_file_is_submitted_at_once(forked: ForkedWorld) -> None:
    done = submit(forked, "--jsonl", "-", stdin=b"\n\n")
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_spool_that_takes_nothing_ends_the_command_and_every_line_so_far_has_its_result(
    forked: ForkedWorld,
) -> None:
    request = forked.make_run(**SMALL)["request"]
    forked.bus.write_text("a file in the way", "utf-8")
    lines = [request | {"run_equivalence_key": f"k{number}"} for number in range(1200)]
    done = submit(forked, "--jsonl", "-", stdin=as_lines([b"{", *lines]))
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    if done.stdout:  # nothing at all when the spool cannot even be opened
        assert [item["line"] for item in results(done)] == list(range(1, 501))


def test_results_come_as_soon_as_no_more_input_has_come(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    request = world.make_run(**SMALL)["request"]
    command = [COMMAND, "submit", "--wiring", str(world.wiring), "--jsonl", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(as_lines([request | {"run_equivalence_key": f"k{number}"}]))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == number + 1
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"interrupted after line 3" in errors
    assert len(waiting(world)) == 3


def test_a_reader_that_goes_away_ends_the_command_without_success(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    request = world.make_run(**SMALL)["request"]
    file = world.root / "requests.jsonl"
    file.write_bytes(as_lines([request | {"run_equivalence_key": f"k{number}"} for number in range(2000)]))
    command = f"{COMMAND} submit --wiring {world.wiring} --jsonl {file} | head -n 1 >/dev/null"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"nobody reads" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_folder_is_synced_once_for_a_batch(forked: ForkedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are taken in the forked command itself and written by it to a file."""
    request = forked.make_run(**SMALL)["request"]
    log, real = forked.root / "synced", os.fsync
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(fd: int) -> None:
        os.write(descriptor, os.readlink(f"/proc/self/fd/{fd}").encode() + b"\n")
        real(fd)

    monkeypatch.setattr(os, "fsync", noted)
    lines = [request | {"run_equivalence_key": f"k{number}"} for number in range(700)]
    assert submit(forked, "--jsonl", "-", stdin=as_lines(lines)).returncode == 0
    os.close(descriptor)
    synced = log.read_text().splitlines()
    assert synced.count(str(forked.bus / "requests")) <= 4, "at most once a batch, and batches of pipes may be smaller"
    assert len(synced) >= 700, "every file is durable"


# --- waiting for the verdict


@pytest.mark.parametrize(
    ("damage", "state", "code"),
    [(None, "READY", 0), ("flag_says_fail", "FAILED", 1), ("flag_bit_off", "QUARANTINED", 4)],
)
def test_the_verdict_is_the_exit_code(served: World, damage: str | None, state: str, code: int) -> None:
    request = served.make_run(f"wait-{state}", damage=damage, data_seed=code + 1, **SMALL)["request"]
    done = submit(served, "-", "--wait", "--timeout", "60", "--json", stdin=json.dumps(request).encode())
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"]) == (code, state), done.stderr
    assert document["message_id"]
    again = served.command("status", document["run_id"], "--wiring", str(served.wiring), "--wait", "--json")
    assert (again.returncode, json.loads(again.stdout)["state"]) == (code, state)


def test_a_wait_of_a_request_of_flags_shows_ids_first_and_the_status_at_the_end(served: World) -> None:
    request = served.make_run("flags", data_seed=9, **SMALL)["request"]
    done = submit(served, *flags_of(request), "--wait", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert text.index("message_id:") < text.index("state:")
    assert "READY" in text


def test_a_refusal_ends_the_wait_though_it_leaves_no_run(tmp_path: Path) -> None:
    world = World(tmp_path / "world", {"auth_mode": "allowlist", "auth_allowlist": ["ci"]})
    request = world.make_run(**SMALL)["request"]
    daemon = world.start()
    try:
        stranger = submit(world, "-", "--wait", "--json", stdin=json.dumps(request | {"invoker": "me"}).encode())
        document = json.loads(stranger.stdout)
        assert (stranger.returncode, document["state"], document["reason_code"]) == (1, "REJECTED", "AUTH_DENIED")
        waited = world.command("status", document["run_id"], "--wiring", str(world.wiring), "--wait", "--json")
        assert (waited.returncode, json.loads(waited.stdout)["reason_code"]) == (1, "AUTH_DENIED")
        # the refusal that lies there is not taken for that of the next request of the run
        allowed = submit(world, "-", "--wait", "--json", stdin=json.dumps(request | {"invoker": "ci"}).encode())
        assert (allowed.returncode, json.loads(allowed.stdout)["state"]) == (0, "READY")
        other = request | {"invoker": "ci", "notes": "another intent", "output_ids": ["site_locations"]}
        conflict = submit(world, "-", "--wait", "--json", stdin=json.dumps(other).encode())
        document = json.loads(conflict.stdout)
        assert (conflict.returncode, document["reason_code"]) == (1, "EQUIV_KEY_COLLISION")
        assert [item["disposition"] for item in document["records"]] == ["CONFLICT"]
        assert world.query("status", document["run_id"])[1]["state"] == "READY"
        duplicate = submit(world, "-", "--wait", "--json", stdin=json.dumps(request | {"invoker": "ci"}).encode())
        assert (duplicate.returncode, json.loads(duplicate.stdout)["state"]) == (0, "READY")
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)


def test_without_a_verdict_the_exit_code_is_that_of_waiting(forked: ForkedWorld) -> None:
    run = forked.make_run(damage="flag_missing", **SMALL)
    request = json.dumps(run["request"]).encode()
    sent = submit(forked, "-", "--wait", "--timeout", "0.2", "--json", stdin=request)
    assert (sent.returncode, json.loads(sent.stdout)["state"]) == (3, "SUBMITTED")
    status = ["status", run["run_id"], "--wiring", str(forked.wiring), "--wait", "--timeout", "0.2", "--json"]
    assert json.loads(forked.command(*status).stdout)["state"] == "SUBMITTED"
    assert forked.serve().returncode == 0
    waited = forked.command(*status)
    assert (waited.returncode, json.loads(waited.stdout)["state"]) == (3, "WAITING_EVIDENCE")
    assert not list(forked.bus.glob("requests/*.json"))


def test_a_run_that_nobody_asked_for_is_not_waited_for(forked: ForkedWorld) -> None:
    done = forked.command("status", "0" * 32, "--wiring", str(forked.wiring), "--wait")
    assert done.returncode == 2
    assert b"RUN_NOT_FOUND" in done.stderr
    assert forked.command("status", "0" * 32, "--wiring", str(forked.wiring), "--timeout", "1").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["submit", "status"])
def test_a_signal_ends_the_wait_with_the_newest_status(tmp_path: Path, command: str, number: signal.Signals) -> None:
    world = World(tmp_path / "world")
    run = world.make_run(**SMALL)
    file = world.root / "request.json"
    file.write_text(json.dumps(run["request"]), "utf-8")
    if command == "status":
        world.drop(run["request"])
    arguments = [str(file)] if command == "submit" else [run["run_id"]]
    process = subprocess.Popen(
        [COMMAND, command, *arguments, "--wiring", str(world.wiring), "--wait", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    # The command waits once its handler of SIGTERM is there, which /proc shows.
    deadline = time.monotonic() + 30
    while not _catches(process.pid, signal.SIGTERM):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert json.loads(out)["state"] == "SUBMITTED"
    assert errors.decode().splitlines() == ["interrupted: there is no verdict yet"]


def _catches(pid: int, number: signal.Signals) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        mask = next(line.split()[1] for line in file if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_an_authority_that_is_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    run = world.make_run(**SMALL)
    world.drop(run["request"])
    assert world.serve().returncode == 0
    database = world.database.read_bytes()
    world.database.write_bytes(b"no database at all" * 1000)
    process = subprocess.Popen(
        [COMMAND, "status", run["run_id"], "--wiring", str(world.wiring), "--wait", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"waiting for the authority: ")
    world.database.write_bytes(database)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["state"], errors) == (0, "READY", b"")
    world.database.write_bytes(b"no database at all" * 1000)
    late = world.command("status", run["run_id"], "--wiring", str(world.wiring), "--wait", "--timeout", "0.3", "--json")
    assert (late.returncode, json.loads(late.stdout)["error"]["reason_code"]) == (5, "UNAVAILABLE")
