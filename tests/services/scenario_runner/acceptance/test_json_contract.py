"""Every command with ``--json``, in several states: what it prints is what its exported schema promises.

``World.command`` validates every answer, here and in all other tests; these tests see to it that no command is left
out. Each is here the installed command once, from its start; in most other tests it is forked (``fork_server``).
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from json_contract import DOCUMENTS, LINES, LISTS, check_output, command_of, prints_lines
from support import SMALL, World

from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.service.owner import make_owner

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

DAMAGES = {"ready": None, "failed": "flag_says_fail", "quarantined": "flag_bit_off", "waiting": "flag_missing"}
STATES = (*DAMAGES, "refused", "submitted")
ON_A_STREAM_ONLY = "stream adopt"
ON_AN_EMPTY_AUTHORITY = "authority rebuild"
"""Its report is validated in the tests of rebuilds."""


class Asked:
    """A world with a run in each resting state, and what its commands answered."""

    def __init__(self, root: Path) -> None:
        self.world = World(root, installed=True)
        self.answers: dict[tuple[str, bool], list[Any]] = {}
        for number, (key, damage) in enumerate(DAMAGES.items(), 1):
            made = self.world.make_run(key, data_seed=number, damage=damage, **SMALL)
            self.request = made["request"] | {"run_equivalence_key": key}
            self.world.drop(self.request, f"{key}.json")
        self.world.drop({"run_equivalence_key": "refused"}, "refused.json")
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()
        (self.world.root / "new.json").write_text(json.dumps(self.request | {"run_equivalence_key": "submitted"}))
        (self.world.root / "again.json").write_text(json.dumps(self.request | {"run_equivalence_key": "again"}))

    def ask(self, *arguments: str, stdin: bytes | None = None, policy: bool = False) -> list[Any]:
        """Run a command and keep its answers; they were validated."""
        profiles = ("--wiring", str(self.world.wiring), *(("--policy", str(self.world.policy)) if policy else ()))
        command, lines = command_of(arguments), prints_lines(command_of(arguments), arguments)
        self.world.installed = command not in {asked for asked, _ in self.answers}
        done = self.world.command(*arguments, *profiles, stdin=stdin)
        assert done.stdout, (arguments, done.stderr)
        found = [json.loads(line) for line in done.stdout.splitlines()] if lines else [json.loads(done.stdout)]
        self.answers.setdefault((command, lines), []).extend(found)
        return found

    def ask_without_profiles(self, *arguments: str) -> None:
        """Run a command that needs none."""
        self.world.installed = True
        self.answers[command_of(arguments), False] = [json.loads(self.world.command(*arguments, "--json").stdout)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(tmp_path_factory.mktemp("asked") / "world")


def test_every_document_of_every_command_and_state_is_what_its_schema_promises(asked: Asked) -> None:
    world = asked.world
    new, lines = str(world.root / "new.json"), json.dumps(asked.request).encode() + b"\nnot json\n"
    asked.ask("submit", new, "--json")
    asked.ask("submit", new, "--json", "--wait", "--timeout", "0")
    asked.ask("submit", "--jsonl", "-", stdin=lines)
    asked.ask("plan", new, "--json", policy=True)
    asked.ask("run", str(world.root / "again.json"), "--timeout", "0", "--json", policy=True)
    for key in STATES:
        run_id = run_id_of(key)
        for command in ("status", "explain", "verify"):
            asked.ask(command, run_id, "--json")
        asked.ask("reemit", run_id, "--reason", "a test", "--dry-run", "--json")
    asked.ask("reemit", "ready", "--reason", "a test", "--json")
    asked.ask("status", "ready", "--json")
    asked.ask("explain", "ready", "--json")
    asked.ask("reemit", "--state", "READY", "--since", "2020-01-01T00:00:00Z", "--reason", "a test", "--json")
    for group in ("runs", "dead-letter", "quarantine"):
        for limit in ("1", "100"):
            asked.ask(group, "list", "--limit", limit, "--json")
            asked.ask(group, "list", "--limit", limit, "--jsonl")
    (listed,) = asked.ask("dead-letter", "list", "--json")
    asked.ask("dead-letter", "show", str(listed["dead_letters"][0]["number"]), "--json")
    asked.ask("dead-letter", "show", "999", "--json")
    asked.ask("quarantine", "show", "quarantined", "--json")
    asked.ask("quarantine", "show", "ready", "--json")
    number = str(listed["dead_letters"][0]["number"])
    asked.ask("dead-letter", "redrive", number, "--dry-run", "--json", policy=True)
    asked.ask("dead-letter", "redrive", "--since", "1d", "--json", policy=True)
    asked.ask("dead-letter", "redrive", number, "--why", "a test", "--json", policy=True)
    asked.ask("dead-letter", "show", number, "--json")
    asked.ask("quarantine", "ack", "quarantined", "--reason", "a test", "--json")
    asked.ask("runs", "wake", "ready", "--json")
    asked.ask("runs", "wake", "--missing", "data/", "--dry-run", "--json")
    asked.ask("watch", "waiting", "--timeout", "0", "--json")
    asked.ask("watch", "--timeout", "0", "--json")
    asked.ask("retention", "plan", "--json", policy=True)
    asked.ask("retention", "run", "--json", policy=True)
    asked.ask("scrub", "--rate", "0", "--json")
    asked.ask("ledger", "check", "--json")
    asked.ask("authority", "rebuild", "--reason", "a test", "--json", policy=True)
    asked.ask("doctor", "--json", policy=True)
    with closing(SqliteAuthority(str(world.database))) as authority:  # one that runs, as it reports itself
        authority.report_daemon(DaemonRow(make_owner(), "all", "1.2.3", "host"), 86_400_000_000)
    asked.ask("daemons", "--json")
    asked.ask("daemons", "--jsonl")
    asked.ask("healthcheck", "--url", "http://127.0.0.1:1", "--json")
    root = (asked.request["engine_run_root"], "--run", run_id_of("waiting"))
    for question in (("stores", "adopt"), ("stream", "adopt"), ("evidence", "arrived", *root)):
        asked.ask(*question, "--json")
    asked.ask_without_profiles("policy", "digest", str(world.policy))
    asked.ask_without_profiles("contracts", "export", str(world.root / "schemas"))
    assert {command for command, lines in asked.answers if not lines} == {*DOCUMENTS, *LISTS}
    assert {command for command, lines in asked.answers if lines} == {*LINES, *LISTS}
    without = {
        command
        for (command, _), documents in asked.answers.items()
        if all("error" in document and "line" not in document for document in documents)
    }
    assert without <= {ON_A_STREAM_ONLY, ON_AN_EMPTY_AUTHORITY}, "commands that only answered with errors"


def test_an_adopted_stream_is_told_as_its_schema_promises() -> None:
    document = {
        "schema_version": 1, "stream": "s", "former_stream": "", "lease_table": "a", "leases_forgotten": 0,
        "begins_at": "", "outcome": "nothing to do",
    }  # fmt: skip
    check_output(("stream", "adopt", "--json"), json.dumps(document).encode())


@pytest.mark.parametrize("arguments", [("status", "nobody"), ("runs", "list", "--state", "NONE"), ("plan", "/nowhere")])
def test_an_error_is_one_line_of_json_on_stdout_and_a_sentence_on_stderr(
    asked: Asked, arguments: tuple[str, ...]
) -> None:
    profiles = ["--wiring", str(asked.world.wiring)]
    more = ["--policy", str(asked.world.policy)] if arguments[0] == "plan" else []
    done = asked.world.command(*arguments, *profiles, *more, "--json")
    (line,) = done.stdout.splitlines()
    error = json.loads(line)["error"]
    assert sorted(error) == ["candidates", "detail", "reason_code", "sentence"]
    assert done.stderr.decode().startswith(f"error: {error['reason_code']}: ")
