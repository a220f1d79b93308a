"""``authority rebuild`` and ``ledger check``: what the ledger knows comes back, and what it cannot prove does not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from crashing import until
from engine_scene import ended
from invariants import check, paths_of
from support import PACK, ForkedWorld

from scenario_runner.cli.authority_rebuild import RebuildOptions, rebuild_authority
from scenario_runner.gates.receipts import bundle_hash_of
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.rebuild.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 2, "outputs": ["s3_candidate_set_1A"]}
DAMAGES = {"ready": None, "failed": "flag_says_fail", "quarantined": "flag_bit_off", "waiting": "flag_missing"}
#: Columns that the ledger does not know, with what they are after a rebuild.
UNKNOWN = {
    "runs": {"lease_epoch", "due_us", "wakes", "settled"},
    "outbox": {"outbox_id", "attempts", "sent_us"},
}


class Lost:
    """A world with a run of every state, whose database can be lost."""

    def __init__(self, root: Path, **wiring: Any) -> None:
        self.world = ForkedWorld(root, wiring)
        self.runs: dict[str, str] = {}
        self.requests: dict[str, Any] = {}
        for seed, (name, damage) in enumerate(DAMAGES.items()):
            made = self.world.make_run(name, seed=seed, **SMALL, **({"damage": damage} if damage else {}))
            self.runs[name], self.requests[name] = str(made["run_id"]), made["request"]
            self.world.drop(made["request"], f"{name}.json")
        self.serve()

    def serve(self) -> None:
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()

    def lose(self) -> None:
        for path in self.world.root.glob("authority.db*"):
            path.unlink()

    def rebuild(self, *more: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        """Exit code, findings and report."""
        done = self.world.command(
            "authority", "rebuild", "--wiring", str(self.world.wiring), "--reason", "a test", "--json", *more
        )
        if done.returncode not in (0, 1):
            return done.returncode, [], {"error": done.stderr.decode()}
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, lines[:-1], lines[-1]["report"]

    def check(self, *more: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        done = self.world.command("ledger", "check", "--wiring", str(self.world.wiring), "--json", *more)
        if done.returncode not in (0, 1):
            return done.returncode, [], {"error": done.stderr.decode()}
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, lines[:-1], lines[-1]["summary"]

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        with closing(sqlite3.connect(self.world.database)) as connection:
            connection.row_factory = sqlite3.Row
            tables = {"runs": "run_id", "run_events": "run_id, seq", "outbox": "message_id, emission",
                      "engine_attempts": "run_id, attempt_no"}  # fmt: skip
            return {
                table: [
                    {key: row[key] for key in row.keys() if key not in UNKNOWN.get(table, set())}  # noqa: SIM118
                    for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
                ]
                for table, order in tables.items()
            }

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.world.database)) as connection, connection:
            return connection.execute(statement).fetchall()

    def document(self, folder: str, run: str = "ready") -> Path:
        ending = "jsonl" if folder == "run_record" else "json"
        return self.world.ledger / folder / f"{self.runs[run]}.{ending}"

    def files(self) -> dict[str, bytes]:
        roots = (self.world.ledger, self.world.signals_folder)
        found = [path for root in roots for path in root.rglob("*") if path.is_file() and ".private" not in path.parts]
        return {str(path): path.read_bytes() for path in found}

    def states(self) -> dict[str, str]:
        found = dict(self.sql("SELECT run_id, state FROM runs"))
        return {name: found[run_id] for name, run_id in self.runs.items() if run_id in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that is made once and copied; its paths stay those of the place where it was made."""
    root = tmp_path_factory.mktemp("rebuild") / "w"
    lost = Lost(root)
    (root.parent / "runs.json").write_text(json.dumps([lost.runs, lost.requests]))
    shutil.copytree(root, root.parent / "kept")
    return root


@pytest.fixture
def lost(made: Path) -> Lost:
    """The same world, as it was made, with its database."""
    shutil.rmtree(made)
    shutil.copytree(made.parent / "kept", made)
    found = object.__new__(Lost)
    found.world = ForkedWorld(made)
    found.runs, found.requests = json.loads((made.parent / "runs.json").read_text())
    return found


# --- what comes back


def test_every_row_that_the_ledger_knows_comes_back_and_everything_goes_on(lost: Lost) -> None:
    before, files = lost.rows(), lost.files()
    lost.lose()
    code, findings, report = lost.rebuild("--policy", str(lost.world.policy))
    assert (code, findings, report["outcome"], report["restored"]) == (0, [], "REBUILT", 4)
    assert report["by_state"] == {"FAILED": 1, "QUARANTINED": 1, "READY": 1, "WAITING_EVIDENCE": 1}
    assert report["cannot_know"]
    assert lost.rows() == before
    lost.serve()
    assert lost.files() == files, "nothing is published or written by a rebuild, nor by the daemon after it"
    assert lost.world.query("verify", lost.runs["ready"])[0] == 0
    assert lost.check()[:2] == (0, [])
    ((actor, via, subject, reason, outcome),) = lost.sql(
        "SELECT actor, via, subject, reason, outcome FROM operator_actions"
    )
    assert (via, subject, reason, outcome) == ("cli", str(lost.world.store), "a test", "REBUILT")
    assert actor


def test_the_same_requests_are_duplicates_and_a_signal_is_repeated_on_demand(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild()[0] == 0
    for name, request in lost.requests.items():
        lost.world.drop(request, f"{name}-again.json")
    lost.serve()
    assert [row[0] for row in lost.sql("SELECT disposition FROM intake_records")] == ["DUPLICATE"] * 4
    for run in ("ready", "failed", "quarantined"):
        done = lost.world.command(
            "reemit", lost.runs[run], "--wiring", str(lost.world.wiring), "--reason", "x", "--json"
        )
        answer = json.loads(done.stdout)
        first = json.loads((lost.world.signals_folder / f"{answer['message_id']}.json").read_bytes())
        again = json.loads((lost.world.signals_folder / f"{answer['message_id']}.reemit-1.json").read_bytes())
        assert (answer["outcome"], again["payload"]) == ("PUBLISHED", first["payload"])
    found = [item.sentence for item in check(paths_of(lost.world)) if item.invariant != "I8"]
    assert [text for text in found if not text.endswith("was accepted 0 times")] == []


def test_a_waiting_run_goes_on_to_ready(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild()[0] == 0
    root = lost.world.runs
    whole = lost.requests["ready"]["engine_run_root"]
    for flag in (p for p in type(root)(whole).rglob("_passed.flag")):
        target = type(root)(lost.requests["waiting"]["engine_run_root"]) / flag.relative_to(whole)
        if not target.exists():
            shutil.copyfile(flag, target)
    lost.sql("UPDATE runs SET due_us = 0 WHERE due_us IS NOT NULL")
    lost.serve()
    state = lost.states()["waiting"]
    assert state in ("READY", "QUARANTINED")
    record = lost.world.document("run_record", lost.runs["waiting"], "jsonl")
    assert [line["details"]["seq"] for line in record] == list(range(1, len(record) + 1))


def test_repeated_signals_and_their_acts_come_back(lost: Lost) -> None:
    reemit = ("reemit", lost.runs["ready"], "--wiring", str(lost.world.wiring), "--reason", "x", "--json")
    lost.world.command(*reemit)
    acts = "SELECT action_key, at, actor, via, action, subject, reason, outcome FROM operator_actions ORDER BY at"
    before = lost.sql(acts)
    lost.lose()
    assert lost.rebuild()[:2] == (0, [])
    assert lost.sql(acts)[:1] == before
    assert json.loads(lost.world.command(*reemit).stdout)["emission"] == 2
    assert lost.check()[:2] == (0, [])


def test_a_dry_run_writes_nothing_and_says_the_same(lost: Lost) -> None:
    lost.lose()
    code, findings, report = lost.rebuild("--dry-run")
    assert (code, findings, report["outcome"], report["restored"], report["action_key"]) == (0, [], "DRY_RUN", 4, None)
    assert not lost.world.database.exists()


def test_evidence_can_be_the_witness(lost: Lost) -> None:
    lost.lose()
    shutil.rmtree(lost.world.signals_folder)
    code, findings, _ = lost.rebuild("--dry-run")
    assert (code, sorted(item["code"] for item in findings)) == (
        1, ["READY_NOT_WITNESSED", "TERMINAL_NOT_WITNESSED", "TERMINAL_NOT_WITNESSED"],
    )  # fmt: skip
    assert lost.rebuild("--witness", "evidence", "--dry-run")[:2] == (0, [])
    next((lost.world.runs).glob(f"*/{lost.runs['ready']}/data/layer1/1A/s3*/*/*/part-*")).write_bytes(b"other")
    code, findings, _ = lost.rebuild("--witness", "evidence")
    assert (code, [item["code"] for item in findings]) == (1, ["READY_CONTRADICTED"])
    assert "ready" not in lost.states()


# --- what is refused


def test_a_database_with_rows_is_refused(lost: Lost) -> None:
    before = lost.rows()
    for more in ((), ("--dry-run",)):
        code, _, report = lost.rebuild(*more)
        assert code == 2
        assert "AUTHORITY_NOT_EMPTY" in report["error"]
    assert lost.rows() == before


def test_a_rebuild_does_not_begin_while_daemons_work_on_the_database(lost: Lost) -> None:
    lost.lose()
    lost.serve()  # on the new database; it was stopped in order, so it left no row
    row = f"'host-a/12/34', 'runner', '1', 'host-a', 1, {time.time_ns() // 1000}"
    lost.sql(f"INSERT INTO daemons (owner, role, version, host, started_us, seen_us) VALUES ({row})")
    code, _, report = lost.rebuild()
    assert code == 2
    assert "DAEMONS_RUN: " in report["error"]
    assert "host-a/12/34 on host-a (runner); stop them" in report["error"]
    assert lost.rebuild("--dry-run")[0] == 0, "a dry run disturbs nobody"
    lost.sql("UPDATE daemons SET seen_us = seen_us - 60000000")
    assert lost.rebuild()[:2] == (0, [])


def test_a_daemon_that_began_before_a_rebuild_waits_until_it_has_ended(lost: Lost) -> None:
    made = lost.world.make_run("late", seed=9, **SMALL)
    count = "SELECT count(*) FROM runs"
    with ended(daemon := lost.world.start()):
        until(lambda: lost.sql("SELECT count(*) FROM daemons") == [(1,)], "the daemon works", 60)
        lost.sql("INSERT INTO unfinished_rebuild VALUES (1, 1, 1, 'somebody', 'terms')")
        path = lost.world.drop(made["request"], "late.json")
        until(lambda: not path.exists(), "the intake has taken the request", 60)
        time.sleep(1.0)  # it tries to admit it all the time
        assert lost.sql(count) == [(4,)]
        lost.sql("DELETE FROM unfinished_rebuild")
        until(lambda: lost.sql(count) == [(5,)], "the request is admitted", 60)
        daemon.terminate()
        _, log = daemon.communicate(timeout=60)
    assert b"the authority is being rebuilt, by somebody since 1970" in log
    assert b"Traceback" not in log


def test_an_unfinished_rebuild_stops_every_daemon_until_it_is_begun_again(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild()[0] == 0
    ((detail,),) = lost.sql("SELECT detail FROM operator_actions WHERE action = 'authority.rebuild'")
    terms = detail.partition("; ")[2]
    assert "witness bus" in terms
    lost.sql(f"INSERT INTO unfinished_rebuild VALUES (1, 1, 1, 'somebody', '{terms}')")
    for table in ("run_events", "outbox", "runs"):
        lost.sql(f"DELETE FROM {table} WHERE run_id = '{lost.runs['failed']}'")
    served = lost.world.serve()
    assert served.returncode == 2
    assert b"REBUILD_UNFINISHED" in served.stderr
    assert b"Traceback" not in served.stderr
    code, _, refused = lost.rebuild("--witness", "ledger")  # what it restored stays, so it goes on by the same witness
    assert (code, "REBUILD_UNFINISHED" in refused["error"]) == (2, True)
    code, findings, report = lost.rebuild()
    assert (code, findings, report["restored"]) == (0, [], 4)
    lost.serve()


def test_an_interrupted_rebuild_goes_on_by_the_rules_of_its_profile_only(lost: Lost) -> None:
    wiring = yaml.safe_load(lost.world.wiring.read_text())
    lost.lose()
    assert lost.rebuild()[0] == 0
    ((detail,),) = lost.sql("SELECT detail FROM operator_actions WHERE action = 'authority.rebuild'")
    lost.sql(f"INSERT INTO unfinished_rebuild VALUES (1, 1, 1, 'somebody', '{detail.partition('; ')[2]}')")
    shutil.copytree(lost.world.signals_folder.parent, lost.world.root / "other-spool")
    later_pack(lost)
    others: list[dict[str, Any]] = [
        {"engine_catalogue_path": str(lost.world.root / "later.yaml")},
        {"control_bus_root": str(lost.world.root / "other-spool")},
        {"auth_mode": "allowlist", "auth_allowlist": ["somebody"]},
        {"engine_roots": [*wiring["engine_roots"], str(lost.world.root)]},
        {"control_bus_topic": "another.topic"},
    ]
    for other in others:
        lost.world.wiring.write_text(yaml.safe_dump(wiring | other))
        code, _, refused = lost.rebuild()
        assert (code, "REBUILD_UNFINISHED" in refused["error"]) == (2, True), (other, refused)
    lost.world.wiring.write_text(yaml.safe_dump(wiring))
    assert lost.rebuild()[:2] == (0, [])


def test_the_control_bus_is_read_when_no_daemon_can_publish_any_more(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost.lose()
    read, marks = Reading.ends, list[Any]()

    def marked(*arguments: Any) -> Any:
        marks.extend(lost.sql("SELECT actor FROM unfinished_rebuild"))
        return read(*arguments)

    monkeypatch.setattr(Reading, "ends", marked)
    monkeypatch.setattr("scenario_runner.cli.authority_rebuild.collect_rarely", lambda: None)
    monkeypatch.setattr("os.umask", lambda _: 0)
    options = RebuildOptions("a test", "", "", "ops", dry_run=False)
    report = rebuild_authority(load_wiring(str(lost.world.wiring)), options, as_json=True)
    assert (marks, report["restored"]) == ([("ops",)], 4)
    assert lost.sql("SELECT actor FROM unfinished_rebuild") == []


def test_a_store_without_an_identity_is_a_missing_mount(lost: Lost) -> None:
    lost.lose()
    shutil.rmtree(lost.world.store)
    lost.world.store.mkdir()
    code, _, report = lost.rebuild()
    assert code == 5
    assert "has no identity" in report["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--reason", " "),
        ("--witness", "nobody"),
        ("--policy", "no-such-file"),
        ("--catalogue", "c"),
        ("--catalogue", "c", "--gate-map", "g"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(lost: Lost, arguments: tuple[str, ...]) -> None:
    lost.lose()
    assert lost.rebuild(*arguments)[0] == 2
    assert not lost.world.database.exists()


def test_a_name_that_is_no_unicode_is_on_record_as_it_can_be_written(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild("--requested-by", "ops\udcff")[:2] == (0, [])
    assert lost.sql("SELECT actor FROM operator_actions") == [("ops\\udcff",)]


# --- hostile ledgers


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def drop_line(number: int) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(line for at, line in enumerate(data.splitlines(keepends=True), 1) if at != number)


def planted_ready(lost: Lost) -> None:
    """The waiting run is made READY in the ledger: every document is forged, and all of them agree."""
    run, real = lost.runs["waiting"], lost.runs["ready"]
    record = [json.loads(line) for line in lost.document("run_record", "waiting").read_bytes().splitlines()][:4]
    view = json.loads(lost.document("run_facts_view").read_bytes().replace(real.encode(), run.encode()))
    view["pins"] |= {"seed": 3}
    parts = (view["locators"], view["gate_receipts"], view["instance_receipts"], view["policy_rev"])
    view["bundle_hash"] = bundle_hash_of(*parts)
    data = canonical(view)
    lost.document("run_facts_view", "waiting").write_bytes(data)
    ready = {"run_id": run, "facts_view_ref": view["record_ref"].replace("run_record", "run_facts_view")
             .replace(".jsonl", ".json"), "bundle_hash": view["bundle_hash"]}  # fmt: skip
    lost.document("ready_signal", "waiting").write_bytes(canonical(ready))
    real_record = [json.loads(line) for line in lost.document("run_record").read_bytes().splitlines()]
    digest = hashlib.sha256(data).hexdigest()
    for line in real_record[4:]:
        line["run_id"], line["policy_rev"] = run, record[0]["policy_rev"]
        line["event_id"] = hashlib.sha256(f"event|{run}|{line['details']['seq']}".encode()).hexdigest()
        if "digest" in line["details"]:
            line["details"]["digest"] = digest
        if "bundle_hash" in line["details"]:
            line["details"]["bundle_hash"] = view["bundle_hash"]
        if "reemit_key" in line["details"]:
            line["details"]["reemit_key"] = hashlib.sha256(f"ready|{run}|{view['bundle_hash']}".encode()).hexdigest()
        if "ready" in line["details"]:
            line["details"]["ready"] = ready
            message = hashlib.sha256(f"ready|{run}|{view['bundle_hash']}".encode()).hexdigest()
            line["details"]["message_id"] = message
        line["ts_utc"] = (
            line["ts_utc"].replace("2026", "2999") if line["ts_utc"] < record[-1]["ts_utc"] else line["ts_utc"]
        )
        record.append(line)
    lost.document("run_record", "waiting").write_bytes(b"".join(canonical(line) + b"\n" for line in record))
    status = {
        "run_id": run, "state": "READY", "updated_at_utc": record[-1]["ts_utc"],
        "record_ref": f"fraud-platform/sr/run_record/{run}.jsonl",
        "facts_view_ref": f"fraud-platform/sr/run_facts_view/{run}.json",
    }  # fmt: skip
    lost.document("run_status", "waiting").write_bytes(canonical(status))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def of_another_run(lost: Lost) -> None:
    data = lost.document("run_facts_view").read_bytes()
    lost.document("run_facts_view").write_bytes(data.replace(b'"seed":0', b'"seed":1'))


def before_ready(lost: Lost) -> None:
    """Record and status are those of a moment before READY, as in an older copy; whatever READY wrote is there."""
    lines = lost.document("run_record").read_bytes().splitlines(keepends=True)[:5]
    last = json.loads(lines[-1])
    assert last["event_kind"] == "VERIFICATION_STARTED"
    lost.document("run_record").write_bytes(b"".join(lines))
    run = lost.runs["ready"]
    status = {
        "run_id": run, "state": "VERIFYING", "updated_at_utc": last["ts_utc"],
        "record_ref": f"fraud-platform/sr/run_record/{run}.jsonl",
    }  # fmt: skip
    lost.document("run_status").write_bytes(canonical(status))


def planted_id(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()


def signal_of(lost: Lost, run: str) -> Path:
    """The file of the only signal of a run that is not planted."""
    files = [path for path in lost.world.signals_folder.glob("*.json") if path.stem != planted_id(run)]
    (found,) = (path for path in files if lost.runs[run].encode() in path.read_bytes())
    return found


def published_for(lost: Lost, run: str, as_of: str) -> None:
    """The end of another run is on the bus for this one as well, under a message id of its own."""
    signal = signal_of(lost, as_of).read_bytes().replace(lost.runs[as_of].encode(), lost.runs[run].encode())
    envelope = json.loads(signal) | {"message_id": planted_id(run)}
    (lost.world.signals_folder / f"{planted_id(run)}.json").write_bytes(canonical(envelope))


def before_ready_without_signal(lost: Lost) -> None:
    """An older copy of the ledger, from before READY: only the bus knows better."""
    before_ready(lost)
    for folder in ("ready_signal", "run_facts_view"):
        lost.document(folder).unlink()


def repeated_only(lost: Lost) -> None:
    """READY was repeated, and the file of the first one is gone."""
    lost.world.command("reemit", lost.runs["ready"], "--wiring", str(lost.world.wiring), "--reason", "x")
    before_ready_without_signal(lost)
    (first,) = (p for p in lost.world.signals_folder.glob("*.json") if b'"kind":"READY"' in p.read_bytes())
    first.unlink()


def quarantine_for(lost: Lost, run: str) -> None:
    shutil.copyfile(lost.document("quarantine", "quarantined"), lost.document("quarantine", run))


def act_on(lost: Lost, key: str) -> None:
    """READY was repeated, and the record names the act of another kind."""
    lost.world.command("reemit", lost.runs["ready"], "--wiring", str(lost.world.wiring), "--reason", "x")
    edit(lost.document("run_record"), lambda data: re.sub(rb'"cli/[0-9a-f]{32}"', canonical(key), data))


def in_a_folder_below(lost: Lost, *, contradicted: bool = False) -> None:
    """READY's file lies where no reader of the bus looks; in its own place may lie one that says something else."""
    signal = signal_of(lost, "ready")
    data = signal.read_bytes()
    (signal.parent / "archive").mkdir()
    signal.rename(signal.parent / "archive" / signal.name)
    if contradicted:
        envelope = json.loads(data)
        envelope["payload"]["bundle_hash"] = "0" * 64
        signal.write_bytes(canonical(envelope))


HOSTILE: dict[str, tuple[Callable[[Lost], object], str, str]] = {
    "READY below the folder of signals": (in_a_folder_below, "ready", "READY_NOT_WITNESSED"),
    "READY below the folder, and another in its place": (
        lambda lost: in_a_folder_below(lost, contradicted=True), "ready", "READY_CONTRADICTED",
    ),
    "a planted READY": (planted_ready, "waiting", "READY_NOT_WITNESSED"),
    "another run's facts view": (of_another_run, "ready", "FACTS_VIEW_DRIFT"),
    "no facts view": (lambda lost: lost.document("run_facts_view").unlink(), "ready", "FACTS_VIEW_MISSING"),
    "a record that is cut off": (
        lambda lost: edit(lost.document("run_record"), lambda data: data[:-9]), "ready", "RECORD_DAMAGED",
    ),
    "a record without its last event": (
        lambda lost: edit(lost.document("run_record"), drop_line(11)), "ready", "STATUS_DRIFT",
    ),
    "a record with a gap": (
        lambda lost: edit(lost.document("run_record"), drop_line(4)), "ready", "RECORD_DAMAGED",
    ),
    "an empty record": (lambda lost: lost.document("run_record").write_bytes(b""), "ready", "RECORD_DAMAGED"),
    "no record": (lambda lost: lost.document("run_record").unlink(), "ready", "RECORD_MISSING"),
    "another run's record": (
        lambda lost: shutil.copyfile(lost.document("run_record", "failed"), lost.document("run_record")), "ready",
        "RECORD_DAMAGED",
    ),
    "a record of another intent": (
        lambda lost: edit(lost.document("run_record"), lambda data: data.replace(b'"seed":0', b'"seed":9')), "ready",
        "ADMISSION_DRIFT",
    ),
    "a record of an older release": (
        lambda lost: edit(
            lost.document("run_record"),
            lambda data: canonical(
                (first := json.loads(data.splitlines()[0]))
                | {"details": {key: first["details"][key] for key in ("fingerprint", "seq", "state")}}
            ) + b"\n" + data.split(b"\n", 1)[1],
        ),
        "ready", "ADMISSION_UNKNOWN",
    ),
    "a plan with fewer gates": (
        lambda lost: edit(lost.document("run_plan", "waiting"), lambda data: data.replace(b"1A", b"2A")), "waiting",
        "PLAN_DRIFT",
    ),
    "no plan": (lambda lost: lost.document("run_plan").unlink(), "ready", "PLAN_MISSING"),
    "a status that says READY": (
        lambda lost: edit(
            lost.document("run_status", "waiting"), lambda data: data.replace(b"WAITING_EVIDENCE", b"READY")
        ),
        "waiting", "STATUS_DRIFT",
    ),
    "a status that does not": (
        lambda lost: edit(lost.document("run_status"), lambda data: data.replace(b'"READY"', b'"VERIFYING"')), "ready",
        "STATUS_DRIFT",
    ),
    "a record and a status from before READY": (before_ready, "ready", "READY_SIGNAL_DRIFT"),
    "a run that waits and no event says for what": (
        lambda lost: edit(
            lost.document("run_record", "waiting"),
            lambda data: data.replace(b'"event_kind":"EVIDENCE_MISSING"', b'"event_kind":"VERIFICATION_STARTED"'),
        ),
        "waiting", "RECORD_DAMAGED",
    ),
    "an act with the key of an acknowledgement": (
        lambda lost: act_on(lost, f"quarantine_ack/{lost.runs['waiting']}"), "ready", "RECORD_DAMAGED",
    ),
    "no ready signal": (lambda lost: lost.document("ready_signal").unlink(), "ready", "READY_SIGNAL_MISSING"),
    "no receipt": (
        lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).unlink(), "ready", "RECEIPT_MISSING",
    ),
    "another receipt": (
        lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).write_bytes(b"{}"), "ready",
        "INSTANCE_RECEIPT_DRIFT",
    ),
    "no bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).unlink(), "ready", "MANIFEST_MISSING",
    ),
    "another bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).write_bytes(b"[]"), "ready",
        "MANIFEST_DRIFT",
    ),
    "a folder in the place of a bundle manifest": (
        lambda lost: (
            (path := next(lost.world.ledger.rglob("bundle_manifest.json"))).unlink(), path.mkdir()
        ), "ready", "MANIFEST_DRIFT",
    ),
    "a READY on the bus with another digest": (
        lambda lost: [
            edit(path, lambda data: data.replace(b'"facts_view_digest":"', b'"facts_view_digest":"0'))
            for path in lost.world.signals_folder.glob("*.json")
        ],
        "ready", "READY_CONTRADICTED",
    ),
    "a ledger from before READY": (before_ready_without_signal, "ready", "STATE_CONTRADICTED"),
    "a ledger from before READY, which was repeated": (repeated_only, "ready", "STATE_CONTRADICTED"),
    "a run that failed and is READY on the bus": (
        lambda lost: published_for(lost, "failed", "ready"), "failed", "STATE_CONTRADICTED",
    ),
    "a run that waits and has failed on the bus": (
        lambda lost: published_for(lost, "waiting", "failed"), "waiting", "STATE_CONTRADICTED",
    ),
    "a READY run that has failed on the bus": (
        lambda lost: published_for(lost, "ready", "failed"), "ready", "STATE_CONTRADICTED",
    ),
    "a run that failed and is quarantined on the bus": (
        lambda lost: (path := signal_of(lost, "failed"), published_for(lost, "failed", "quarantined"), path.unlink()),
        "failed", "STATE_CONTRADICTED",
    ),
    "a run that failed, and the bus does not say so": (
        lambda lost: signal_of(lost, "failed").unlink(), "failed", "TERMINAL_NOT_WITNESSED",
    ),
    "a TERMINAL with another reason": (
        lambda lost: edit(signal_of(lost, "failed"), lambda data: data.replace(b"GATE_FAIL", b"EVIDENCE_CONFLICT")),
        "failed", "STATE_CONTRADICTED",
    ),
    "a quarantine object of a run that waits": (
        lambda lost: quarantine_for(lost, "waiting"), "waiting", "QUARANTINE_DRIFT",
    ),
    "a quarantine object of a READY run": (lambda lost: quarantine_for(lost, "ready"), "ready", "QUARANTINE_DRIFT"),
    "a quarantine object of a run that failed": (
        lambda lost: quarantine_for(lost, "failed"), "failed", "QUARANTINE_DRIFT",
    ),
    "a folder in the place of a status": (
        lambda lost: (lost.document("run_status").unlink(), lost.document("run_status").mkdir()), "ready",
        "STATUS_DRIFT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_hold_together_is_a_finding_and_never_ready(lost: Lost, name: str) -> None:
    damage, run, code = HOSTILE[name]
    damage(lost)
    lost.lose()
    found_code, findings, report = lost.rebuild()
    assert found_code == 1, report
    assert [(item["run_id"], item["code"]) for item in findings] == [(lost.runs[run], code)], findings
    for item in findings:
        assert item["object"].startswith(str(lost.world.root))
        assert item["remedy"]
    assert run not in lost.states()
    assert len(lost.states()) == 3


@pytest.mark.parametrize("witness", ["bus", "evidence", "ledger"])
def test_an_end_on_the_bus_of_a_run_that_the_ledger_lost_is_a_finding(lost: Lost, witness: str) -> None:
    for run in ("ready", "failed"):
        for path in lost.world.ledger.glob(f"*/{lost.runs[run]}.json*"):
            path.unlink()
    wanted = {(lost.runs["ready"], "READY"), (lost.runs["failed"], "TERMINAL")}
    _, findings, _ = lost.check()
    assert "SIGNAL_WITHOUT_RUN" not in {item["code"] for item in findings}, "the authority knows the runs"
    lost.lose()
    code, findings, report = lost.rebuild("--witness", witness)
    assert (code, report["findings_by_code"]) == (1, {"SIGNAL_WITHOUT_RUN": 2})
    assert {(item["run_id"], item["detail"].split()[0]) for item in findings} == wanted
    assert all(item["object"] == str(lost.document("run_record", run)) for item, run in zip(
        sorted(findings, key=lambda item: str(item["detail"])), ("ready", "failed"), strict=True))  # fmt: skip
    assert all("in the spool" in item["remedy"] for item in findings)
    assert set(lost.states()) == {"quarantined", "waiting"}
    code, findings, report = lost.check()
    assert (code, report["findings_by_code"]) == (1, {"SIGNAL_WITHOUT_RUN": 2})
    assert {(item["run_id"], item["detail"].split()[0]) for item in findings} == wanted


@pytest.mark.parametrize("witness", ["bus", "evidence", "ledger"])
def test_no_run_goes_on_while_a_damaged_file_of_the_bus_may_be_its_end(lost: Lost, witness: str) -> None:
    before_ready_without_signal(lost)
    damaged = signal_of(lost, "ready")
    edit(damaged, lambda data: data[:-9])
    lost.lose()
    code, findings, _ = lost.rebuild("--witness", witness)
    found = {(item["run_id"], item["code"]) for item in findings}
    runs = [None, lost.runs["ready"], lost.runs["waiting"]]
    assert (code, len(findings), found) == (1, 3, {(run, "SIGNAL_UNREADABLE") for run in runs})
    assert findings[0]["object"] == str(damaged)
    assert all(damaged.name in item["detail"] for item in findings[1:])
    assert lost.states() == {"failed": "FAILED", "quarantined": "QUARANTINED"}


@pytest.mark.parametrize("witness", ["evidence", "ledger"])
def test_the_bus_contradicts_whoever_must_agree(lost: Lost, witness: str) -> None:
    published_for(lost, "failed", "ready")
    published_for(lost, "ready", "failed")
    signal_of(lost, "quarantined").unlink()  # nobody says anything else of it
    lost.lose()
    _, findings, _ = lost.rebuild("--witness", witness)
    assert sorted((item["run_id"], item["code"]) for item in findings) == sorted(
        (lost.runs[run], "STATE_CONTRADICTED") for run in ("failed", "ready")
    )
    assert lost.states() == {"quarantined": "QUARANTINED", "waiting": "WAITING_EVIDENCE"}


def test_a_quarantine_object_that_was_not_written_yet_is_written_by_the_daemon(lost: Lost) -> None:
    path = lost.document("quarantine", "quarantined")
    data = path.read_bytes()
    path.unlink()
    lost.lose()
    assert lost.rebuild()[:2] == (0, [])
    lost.serve()
    assert path.read_bytes() == data
    assert lost.check()[:2] == (0, [])


def test_the_request_of_a_run_that_stayed_out_publishes_nothing(lost: Lost) -> None:
    lost.document("ready_signal").unlink()
    lost.lose()
    assert lost.rebuild()[0] == 1
    assert [item["code"] for item in lost.check()[1]] == ["RUN_UNKNOWN"]
    signals = sorted(lost.world.signals_folder.iterdir())
    lost.world.drop(lost.requests["ready"], "again.json")
    lost.world.serve()
    assert lost.states()["ready"] == "QUARANTINED"
    assert sorted(lost.world.signals_folder.iterdir()) == signals


def test_the_pack_and_the_policy_are_the_operators_and_not_the_ledgers(lost: Lost) -> None:
    lost.lose()
    lost.world.policy_changes = {"evidence_wait_seconds": 7}
    lost.world.write_profiles()
    code, findings, _ = lost.rebuild("--policy", str(lost.world.policy), "--dry-run")
    assert (code, [(item["run_id"], item["code"]) for item in findings]) == (
        1, [(lost.runs["waiting"], "PLAN_NOT_ALLOWED")],
    )  # fmt: skip
    lost.world.write_profiles(engine_roots=[str(lost.world.root / "elsewhere")])
    code, findings, _ = lost.rebuild("--dry-run")
    assert [item["code"] for item in findings] == ["PLAN_NOT_ALLOWED"]


def later_pack(lost: Lost) -> tuple[str, ...]:
    """The profile names another pack from now on; returns the options that name the one of the runs."""
    earlier = (PACK / "engine_outputs.catalogue.yaml", PACK / "engine_gates.map.yaml")
    document = yaml.safe_load(earlier[0].read_text("utf-8"))
    later = lost.world.root / "later.yaml"
    document["outputs"].append({**document["outputs"][-1], "output_id": "a_later_output"})
    later.write_text(yaml.safe_dump(document), "utf-8")
    lost.world.write_profiles(engine_catalogue_path=str(later))
    return ("--catalogue", str(earlier[0]), "--gate-map", str(earlier[1]))


def test_runs_under_an_earlier_pack_need_it_to_be_named(lost: Lost) -> None:
    lost.lose()
    named = later_pack(lost)
    code, findings, report = lost.rebuild("--witness", "evidence", "--dry-run")
    assert (code, sorted((item["run_id"], item["code"]) for item in findings)) == (1, sorted([
        (lost.runs["ready"], "PACK_NOT_VOUCHED"), (lost.runs["waiting"], "PLAN_NOT_ALLOWED"),
    ]))  # fmt: skip
    assert all("--catalogue and --gate-map" in item["remedy"] for item in findings)
    assert report["next"] == [
        "Put right what the findings say; their runs would stay out. Then rebuild: the same command without --dry-run."
    ]
    assert [item["code"] for item in lost.rebuild("--dry-run")[1]] == ["PLAN_NOT_ALLOWED"], "the bus has its READY"
    code, findings, report = lost.rebuild("--witness", "evidence", *named, "--policy", str(lost.world.policy))
    assert (code, findings, report["restored"]) == (0, [], 4)
    ((detail,),) = lost.sql("SELECT detail FROM operator_actions WHERE action = 'authority.rebuild'")
    assert f", pack {load_pack(named[1], named[3]).digest}" in detail
    assert lost.check()[:2] == (0, [])
    lost.serve()


def test_evidence_is_not_believed_under_a_pack_that_only_the_ledger_has(lost: Lost) -> None:
    """Another pack than the one of the run is named, and the run's lies in the ledger."""
    lost.lose()
    later_pack(lost)
    other = ("--catalogue", str(lost.world.root / "later.yaml"), "--gate-map", str(PACK / "engine_gates.map.yaml"))
    assert "PACK_NOT_VOUCHED" in [item["code"] for item in lost.rebuild("--witness", "evidence", *other)[1]]
    assert "ready" not in lost.states()


def test_the_report_says_what_to_do_next(lost: Lost) -> None:
    lost.document("ready_signal").unlink()
    lost.lose()
    report = lost.rebuild()[2]
    assert "rebuild into another empty database" in report["next"][0]
    assert "ledger check" in report["next"][1]
    lost.lose()
    done = lost.world.command("authority", "rebuild", "--wiring", str(lost.world.wiring), "--reason", "a test")
    assert done.stdout.decode().splitlines()[-4:-2] == ["What to do next:", f"  - {report['next'][0]}"]


def test_foreign_objects_are_findings_and_nothing_else_suffers(lost: Lost) -> None:
    (lost.world.ledger / "run_record" / "notes.txt").write_text("x")
    (lost.world.ledger / "run_status" / f"{'0' * 32}.json").write_text("{}")
    lost.lose()
    code, findings, report = lost.rebuild()
    assert (code, sorted(item["code"] for item in findings)) == (1, ["FOREIGN_OBJECT", "RECORD_MISSING"])
    assert report["restored"] == 4


# --- ledger check


def test_a_sound_ledger_is_clean(lost: Lost) -> None:
    code, findings, summary = lost.check()
    assert (code, findings, summary["outcome"], summary["runs"]) == (0, [], "CLEAN", 4)
    assert summary["objects"]["run_record"] == 4
    assert lost.check("--since", "1h")[2]["runs"] == 4
    assert lost.check("--run", "ready")[2]["by_state"] == {"READY": 1}


CHECKED: dict[str, tuple[Callable[[Lost], object], str]] = {
    "no record": (lambda lost: lost.document("run_record", "failed").unlink(), "RECORD_MISSING"),
    "a record with another line": (
        lambda lost: edit(lost.document("run_record"), lambda data: data + b"{}\n"), "RECORD_DRIFT",
    ),
    "no plan": (lambda lost: lost.document("run_plan", "failed").unlink(), "PLAN_MISSING"),
    "another plan": (lambda lost: edit(lost.document("run_plan"), lambda data: data + b" "), "PLAN_DRIFT"),
    "no status": (lambda lost: lost.document("run_status", "failed").unlink(), "STATUS_MISSING"),
    "another status": (lambda lost: edit(lost.document("run_status"), lambda data: data + b" "), "STATUS_DRIFT"),
    "no facts view": (lambda lost: lost.document("run_facts_view").unlink(), "FACTS_VIEW_MISSING"),
    "another facts view": (
        lambda lost: edit(lost.document("run_facts_view"), lambda data: data + b" "), "FACTS_VIEW_DRIFT",
    ),
    "no ready signal": (lambda lost: lost.document("ready_signal").unlink(), "READY_SIGNAL_MISSING"),
    "a ready signal of a run that failed": (
        lambda lost: shutil.copyfile(lost.document("ready_signal"), lost.document("ready_signal", "failed")),
        "READY_SIGNAL_DRIFT",
    ),
    "no quarantine object": (lambda lost: lost.document("quarantine", "quarantined").unlink(), "QUARANTINE_MISSING"),
    "another quarantine object": (
        lambda lost: edit(lost.document("quarantine", "quarantined"), lambda data: data + b" "), "QUARANTINE_DRIFT",
    ),
    "no receipt": (lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).unlink(), "RECEIPT_MISSING"),
    "another receipt": (
        lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).write_bytes(b"{}"),
        "INSTANCE_RECEIPT_DRIFT",
    ),
    "no bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).unlink(), "MANIFEST_MISSING",
    ),
    "another bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).write_bytes(b"[]"), "MANIFEST_DRIFT",
    ),
    "no pack": (lambda lost: next(lost.world.ledger.glob("interface_pack/*")).unlink(), "PACK_MISSING"),
    "another pack": (lambda lost: next(lost.world.ledger.glob("interface_pack/*")).write_bytes(b"{}"), "PACK_DRIFT"),
    "an event that is lost": (
        lambda lost: lost.sql(f"DELETE FROM run_events WHERE run_id = '{lost.runs['ready']}' AND seq = 3"), "EVENT_GAP",
    ),
    "documents that are owed for long": (
        lambda lost: lost.sql(
            "UPDATE runs SET projected_seq = 3 WHERE state = 'FAILED'; "
        ) or lost.sql("UPDATE run_events SET ts_us = ts_us - 3600000000 WHERE run_id = "
                      f"'{lost.runs['failed']}'"),
        "DOCUMENTS_OWED",
    ),
    "a run that nobody knows": (
        lambda lost: shutil.copyfile(lost.document("run_plan"), lost.world.ledger / "run_plan" / f"{'f' * 32}.json"),
        "RUN_UNKNOWN",
    ),
    "a foreign folder": (
        lambda lost: ((lost.world.ledger / "mine").mkdir(), (lost.world.ledger / "mine/x").write_text("x")),
        "FOREIGN_OBJECT",
    ),
    "a name in another form": (
        lambda lost: (lost.world.ledger / "run_plan" / "README").write_text("x"), "FOREIGN_OBJECT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_every_difference_is_a_finding_with_its_remedy(lost: Lost, name: str) -> None:
    damage, code = CHECKED[name]
    damage(lost)
    before = lost.files()
    found_code, findings, summary = lost.check()
    assert found_code == 1, summary
    assert code in {item["code"] for item in findings}, findings
    assert set(findings[0]) == {"code", "run_id", "object", "expected", "actual", "detail", "remedy", "schema_version"}
    assert summary["findings"] == len(findings)
    assert lost.files() == before


def test_an_old_temporary_file_is_a_finding_and_a_new_one_is_not(lost: Lost) -> None:
    import os

    path = lost.world.ledger / ".private" / "abc.tmp"
    path.write_text("x")
    assert lost.check()[0] == 0
    os.utime(path, (1, 1))
    assert [item["code"] for item in lost.check()[1]] == ["TEMPORARY_LEFT"]


def test_another_store_or_no_authority_is_exit_5(lost: Lost) -> None:
    (lost.world.ledger / ".private/store.json").write_text(json.dumps({"store_id": "0" * 32}))
    assert lost.check()[0] == 5
    lost.lose()
    assert lost.check()[0] == 5
    assert not lost.world.database.exists()


def test_a_run_that_nobody_knows_is_a_usage_error(lost: Lost) -> None:
    assert lost.check("--run", "0" * 32)[0] == 2
