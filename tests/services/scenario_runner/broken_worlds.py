"""A world at rest, and one way to break each invariant of it, and more."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invariants import check, paths_of, photograph
from invariants_world import canonical, files_below, sha
from support import World

OUTPUTS = ("arrival_events_5B", "s3_candidate_set_1A", "s0_sealed_inputs_1A", "iso_country_reference")
OPTIONAL = "scenario_overrides_5A"


@dataclass
class Scene:
    """A good final state, ready to be broken. ``ready`` has every kind of output, ``other`` the default ones."""

    world: World
    ready: dict[str, Any]
    other: dict[str, Any]
    failed: dict[str, Any]
    quarantined: dict[str, Any]
    waiting: dict[str, Any]
    dropped: list[bytes]
    photo: dict[str, tuple[int, int]]

    def found(self, **options: Any) -> list[Any]:
        return check(paths_of(self.world), dropped=self.dropped, before=self.photo, **options)

    def path(self, folder: str, run: dict[str, Any], suffix: str = "json") -> Path:
        return self.world.ledger / folder / f"{run['run_id']}.{suffix}"

    def sql(self, statement: str, *parameters: Any) -> int:
        connection = sqlite3.connect(self.world.database)
        with connection:
            count = connection.execute(statement, parameters).rowcount
        connection.close()
        assert count > 0, f"{statement} changed nothing"
        return count

    def edit(self, path: Path, change: Callable[[Any], object]) -> None:
        document = json.loads(path.read_bytes())
        change(document)
        path.write_bytes(canonical(document))

    def edit_lines(self, run: dict[str, Any], change: Callable[[list[Any]], object]) -> None:
        path = self.path("run_record", run, "jsonl")
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        change(lines)
        path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))

    def signal(self, kind: str, run: dict[str, Any]) -> Path:
        found = [item for item in self.world.signals(kind) if item["payload"]["run_id"] == run["run_id"]]
        return self.world.signals_folder / f"{found[0]['message_id']}.json"

    def output_file(self, output: str, run: dict[str, Any]) -> Path:
        view = json.loads(self.path("run_facts_view", run).read_bytes())
        path = next(one["path"] for one in view["locators"] if one["output_id"] == output)
        parent, _, name = path.rpartition("/")
        return sorted(Path(parent).iterdir())[0] if not name or "*" in name else Path(path)

    def bundle_file(self, gate_id: str, run: dict[str, Any]) -> Path:
        view = json.loads(self.path("run_facts_view", run).read_bytes())
        root = next(one for one in view["gate_receipts"] if one["gate_id"] == gate_id)["artifacts"]
        return next(path for path in sorted(Path(root["validation_bundle_root"]).rglob("*.bin")))

    def receipt(self, output: str) -> Path:
        return next((self.world.ledger / f"instance_receipts/output_id={output}").rglob("instance_receipt.json"))


def build(root: Path) -> Scene:
    world = World(root, policy_changes={"evidence_wait_seconds": 0})
    small: dict[str, Any] = {"members": 3, "parts": 2}
    tiny: dict[str, Any] = {**small, "outputs": ["s3_candidate_set_1A"]}
    ready = world.make_run("ready", outputs=[*OUTPUTS, OPTIONAL], skip_optional=True, seed=11, **small)
    other = world.make_run("other", seed=12, **small)
    failed = world.make_run("failed", seed=13, damage="flag_missing", **tiny)
    quarantined = world.make_run("quarantined", seed=14, damage="flag_bit_off", **tiny)
    waiting = world.make_run("waiting", seed=15, damage="output_missing", **tiny)
    envelope = {
        "topic": "fp.bus.control.v1",
        "message_id": "m-1",
        "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "RUN_REQUEST"},
        "partition_key": other["run_id"],
        "payload": other["request"],
    }
    records = {
        "a-ready.json": ready["request"],
        "b-other.json": envelope,
        "c-failed.json": failed["request"],
        "d-quarantined.json": quarantined["request"],
        "e-torn.json": b'{"run_equivalence_key": ',
        "f-duplicate.json": {**ready["request"], "request_id": "again", "notes": "not part of the intent"},
        "g-conflict.json": {**ready["request"], "seed": 99},
        "h-invalid.json": {**other["request"], "output_ids": []},
        "i-own-signal.json": {**envelope, "attributes": {"kind": "READY"}},
    }
    dropped = [data if isinstance(data, bytes) else json.dumps(data).encode() for data in records.values()]
    for name, data in zip(records, dropped, strict=True):
        world.drop(data, name)
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()
    world.policy_changes["evidence_wait_seconds"] = 3600
    world.write_profiles()
    world.drop(waiting["request"], "j-waiting.json")
    dropped.append(json.dumps(waiting["request"]).encode())
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()
    add_reemits(world, dropped, other, failed, quarantined)
    photo = photograph([world.runs])
    return Scene(world, ready, other, failed, quarantined, waiting, dropped, photo)


def add_reemits(world: World, dropped: list[bytes], *runs: dict[str, Any]) -> None:
    """One run's signal is published again twice, one's once, one's as a record asks for it; some acts are refused."""
    other, failed, quarantined = (run["run_id"] for run in runs)
    for run_id, kind, code in (
        (other, "BOTH", 0), (other, "READY_ONLY", 0), (other, "TERMINAL_ONLY", 1), (failed, "TERMINAL_ONLY", 0),
        ("0" * 32, "BOTH", 2),
    ):  # fmt: skip
        done = world.command("reemit", run_id, "--wiring", str(world.wiring), "--kind", kind, "--reason", "a test")
        assert done.returncode == code, done.stderr.decode()
    for name, kind in (("k-reemit.json", "BOTH"), ("l-refused.json", "READY_ONLY")):
        payload = {"run_id": quarantined, "reemit_kind": kind, "requested_by": "ops", "reason": "a test"}
        envelope = {
            "topic": "fp.bus.control.v1", "message_id": name, "published_at_utc": "2026-01-01T00:00:00Z",
            "attributes": {"kind": "REEMIT_REQUEST"}, "partition_key": quarantined, "payload": payload,
        }  # fmt: skip
        dropped.append(json.dumps(envelope).encode())
        world.drop(dropped[-1], name)
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()


def restore(copy: Path, root: Path) -> None:
    """Make a folder what its copy is, file by file: most of them did not change."""
    wanted, present = set(files_below(copy)), set(files_below(root))
    for rel in present - wanted:
        (root / rel).unlink()
    for rel in sorted(wanted):
        as_it_was, as_it_is = (copy / rel).lstat(), (root / rel).lstat() if rel in present else None
        if as_it_is is None or any(
            getattr(as_it_is, name) != getattr(as_it_was, name) for name in ("st_mode", "st_size", "st_mtime_ns")
        ):
            (root / rel).unlink(missing_ok=True)
            (root / rel).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(copy / rel, root / rel, follow_symlinks=False)
    for folder, _, _ in os.walk(root, topdown=False):
        if not (copy / os.path.relpath(folder, root)).exists():
            Path(folder).rmdir()


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 0xFF]) + data[1:])


def link_away(path: Path) -> None:
    away = path.parent.parent / ("parked-" + path.name)
    path.rename(away)
    path.symlink_to(away)


def spoil_flag(s: Scene) -> None:
    flag = next(path for path in sorted(Path(s.ready["engine_run_root"]).rglob("_passed.flag")) if "/1B/" in str(path))
    text = flag.read_text()
    digest = "".join(char for char in text.split("=")[-1].split(":")[-1] if char in "0123456789abcdef")
    flag.write_text(text.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))


def forget_engine_root(s: Scene) -> None:
    (s.world.root / "elsewhere").mkdir()
    s.world.write_profiles(engine_roots=[str(s.world.root / "elsewhere")])


def write_optional_output(s: Scene) -> None:
    fingerprint, scenario = s.ready["manifest_fingerprint"], s.ready["scenario_id"]
    folder = f"data/layer2/5A/{OPTIONAL}/manifest_fingerprint={fingerprint}/scenario_id={scenario}"
    put(Path(s.ready["engine_run_root"]) / folder / "part-0.parquet")


def copy_signal(s: Scene, change: Callable[[dict[str, Any]], object], name: str | None = None) -> None:
    item = json.loads(s.signal("READY", s.ready).read_bytes())
    change(item)
    (s.world.signals_folder / f"{name or item['message_id']}.json").write_bytes(canonical(item))


def add_terminal(s: Scene) -> None:
    item = json.loads(s.signal("TERMINAL", s.failed).read_bytes())
    item["payload"]["run_id"] = s.ready["run_id"]
    (s.world.signals_folder / f"{'0' * 64}.json").write_bytes(canonical({**item, "message_id": "0" * 64}))


def repeat_the_end(lines: list[Any]) -> None:
    again = json.loads(json.dumps(lines[-1]))
    again["details"]["seq"] += 1
    again["event_id"] = sha("another")
    lines.append(again)


def jump(s: Scene) -> None:
    """An illegal transition that rows and record agree on: PLANNED straight to READY."""
    lines = [json.loads(line) for line in s.path("run_record", s.ready, "jsonl").read_bytes().splitlines()]
    details = {**lines[2]["details"], "state": "WAITING_EVIDENCE"}
    s.sql("UPDATE run_events SET details = ? WHERE run_id = ? AND seq = 3", canonical(details), s.ready["run_id"])
    s.edit_lines(s.ready, lambda lines: lines[2].update(details=details))


def orphan_receipt(s: Scene) -> None:
    document = json.loads(s.receipt("s3_candidate_set_1A").read_bytes())
    document["scope"]["seed"] = 99
    folder = s.receipt("s3_candidate_set_1A").parent.with_name("seed=99")
    folder.mkdir()
    (folder / "instance_receipt.json").write_bytes(canonical(document))


def unpass(lines: list[Any]) -> None:
    passed = next(line for line in lines if line["event_kind"] == "GATES_PASSED")
    next(one for one in passed["details"]["gates"] if "1A" in one["gate_id"])["outcome"] = "BLOCKED"


def attempts(s: Scene, *numbers: int) -> None:
    for number in numbers:
        folder = s.world.ledger / f"engine_attempt_logs/run_id={s.ready['run_id']}/attempt_no={number}"
        folder.mkdir(parents=True)
        (folder / "stdout.log").write_bytes(b"")


def put(path: Path, data: bytes = b"{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def first_of(folder: Path) -> Path:
    return sorted(folder.iterdir())[0]


RUN = "WHERE run_id = ?"
BREAKS: dict[str, tuple[str, Callable[[Scene], object]]] = {
    # I1
    "a facts view is gone": ("I1", lambda s: s.path("run_facts_view", s.ready).unlink()),
    "a facts view has other bytes": (
        "I1",
        lambda s: s.edit(s.path("run_facts_view", s.ready), lambda view: view.update(evidence_notes=["x"])),
    ),
    "the bundle hash is of something else": (
        "I1",
        lambda s: s.edit(s.path("run_facts_view", s.ready), lambda view: view.update(bundle_hash="0" * 64)),
    ),
    "READY carries another facts view digest": (
        "I1",
        lambda s: copy_signal(s, lambda item: item["attributes"].update(facts_view_digest="0" * 64)),
    ),
    # I2
    "a byte of a glob output changed": ("I2", lambda s: flip(s.output_file("arrival_events_5B", s.ready))),
    "a byte of a directory output changed": ("I2", lambda s: flip(s.output_file("s3_candidate_set_1A", s.ready))),
    "a byte of a one-file output changed": ("I2", lambda s: flip(s.output_file("s0_sealed_inputs_1A", s.ready))),
    "a part became a link to the same bytes": (
        "I2",
        lambda s: link_away(s.output_file("arrival_events_5B", s.ready)),
    ),
    "an output is gone": ("I2", lambda s: shutil.rmtree(s.output_file("s3_candidate_set_1A", s.ready).parent)),
    "the engine root is not allowed": ("I2", forget_engine_root),
    "a receipt attests another digest than its manifest": (
        "I2",
        lambda s: s.edit(s.receipt("arrival_events_5B"), lambda receipt: receipt["target_digest"].update(hex="0" * 64)),
    ),
    # I3
    "a member under the bundle law changed": (
        "I3",
        lambda s: flip(s.bundle_file("gate.layer1.1A.validation", s.ready)),
    ),
    "a member under the index law changed": (
        "I3",
        lambda s: flip(s.bundle_file("gate.layer1.2A.validation", s.other)),
    ),
    "a member under the member-digest law changed": (
        "I3",
        lambda s: flip(s.bundle_file("gate.layer1.3A.validation", s.other)),
    ),
    "a passed flag has another digest": ("I3", spoil_flag),
    "a gate receipt is missing": (
        "I3",
        lambda s: s.edit(s.path("run_facts_view", s.ready), lambda view: view["gate_receipts"].pop()),
    ),
    "a gate receipt says FAIL": (
        "I3",
        lambda s: s.edit(
            s.path("run_facts_view", s.ready), lambda view: view["gate_receipts"][0].update(status="FAIL")
        ),
    ),
    "an intended output is not accounted for": (
        "I3",
        lambda s: s.edit(s.path("run_facts_view", s.ready), lambda view: view.pop("evidence_notes")),
    ),
    "an output that was declared absent is there": ("I3", write_optional_output),
    "an instance receipt is gone": ("I3", lambda s: s.receipt("arrival_events_5B").unlink()),
    "a bundle manifest has other bytes": (
        "I3",
        lambda s: put(s.receipt("arrival_events_5B").with_name("bundle_manifest.json"), b"[]"),
    ),
    # I4
    "READY and TERMINAL of one run are on the stream": ("I4", add_terminal),
    "READY of a READY run is not on the stream": ("I4", lambda s: s.signal("READY", s.ready).unlink()),
    "a row went from READY to FAILED": (
        "I4",
        lambda s: s.sql(f"UPDATE runs SET state = 'FAILED', reason_code = 'GATE_FAIL' {RUN}", s.ready["run_id"]),
    ),
    "a status says another state": (
        "I4",
        lambda s: s.edit(s.path("run_status", s.ready), lambda status: status.update(state="FAILED")),
    ),
    "a record ends twice": ("I4", lambda s: s.edit_lines(s.ready, repeat_the_end)),
    "a plan object has another deadline": (
        "I4",
        lambda s: s.edit(
            s.path("run_plan", s.ready), lambda plan: plan.update(evidence_deadline_utc="2030-01-01T00:00:00.000000Z")
        ),
    ),
    # I5
    "a run has another key": (
        "I5",
        lambda s: s.sql(f"UPDATE runs SET run_equivalence_key = 'x' {RUN}", s.ready["run_id"]),
    ),
    "a differing request changed the intent": (
        "I5",
        lambda s: s.sql(
            f"""UPDATE runs SET intent = CAST(replace(CAST(intent AS TEXT), '"seed":11', '"seed":99') AS BLOB) {RUN}""",
            s.ready["run_id"],
        ),
    ),
    "a duplicate was accepted once more": (
        "I5",
        lambda s: s.sql("UPDATE intake_records SET disposition = 'ACCEPTED' WHERE disposition = 'DUPLICATE'"),
    ),
    "a conflict was taken for a duplicate": (
        "I5",
        lambda s: s.sql("UPDATE intake_records SET disposition = 'DUPLICATE' WHERE disposition = 'CONFLICT'"),
    ),
    # I6
    "a READY run has no outbox row": (
        "I6",
        lambda s: s.sql(f"DELETE FROM outbox {RUN} AND kind = 'READY'", s.ready["run_id"]),
    ),
    "a signal is unsent": ("I6", lambda s: s.sql(f"UPDATE outbox SET sent_us = NULL {RUN}", s.failed["run_id"])),
    "a signal is marked sent and is nowhere": ("I6", lambda s: s.signal("TERMINAL", s.failed).unlink()),
    "the stream holds a signal that nobody owes": ("I6", lambda s: copy_signal(s, lambda _: None, "f" * 64)),
    # I7
    "a signal was published with other bytes": (
        "I7",
        lambda s: copy_signal(s, lambda item: item["payload"].update(emitted_at_utc="2026-01-01T00:00:00Z")),
    ),
    "a ready_signal object has other bytes": (
        "I7",
        lambda s: s.edit(s.path("ready_signal", s.ready), lambda item: item.update(bundle_hash="0" * 64)),
    ),
    # I8
    "a record has no disposition": (
        "I8",
        lambda s: s.sql("DELETE FROM intake_records WHERE disposition = 'DUPLICATE'"),
    ),
    "a record has two dispositions": (
        "I8",
        lambda s: s.sql(
            "INSERT INTO intake_records SELECT record_id + 1000, record_key || 'x', message_id, kind, run_id,"
            " disposition, reason_code, detail, received_us, raw_sha256, raw_size, raw_removed_us FROM intake_records"
            " WHERE disposition = 'DUPLICATE'"
        ),
    ),
    "a consumed record is gone": ("I8", lambda s: first_of(s.world.bus / "consumed").unlink()),
    "a record still waits": ("I8", lambda s: s.world.drop(s.failed["request"], "again.json")),
    "a dead letter has other bytes": ("I8", lambda s: s.sql("UPDATE dead_letters SET raw = x'00'")),
    "a reason file is gone": ("I8", lambda s: next((s.world.bus / "rejected").glob("*.reason.json")).unlink()),
    "a refusal was not answered": ("I8", lambda s: s.sql("DELETE FROM outbox WHERE kind = 'REQUEST_REJECTED'")),
    # I9
    "a run was driven without a lease": (
        "I9",
        lambda s: s.sql(f"UPDATE runs SET lease_epoch = 0 {RUN}", s.ready["run_id"]),
    ),
    "a lease was not given back": (
        "I9",
        lambda s: s.sql(f"UPDATE runs SET lease_owner = 'x', lease_until_us = 1 {RUN}", s.waiting["run_id"]),
    ),
    # I10
    "a plan is torn": ("I10", lambda s: os.truncate(s.path("run_plan", s.ready), 40)),
    "a plan is gone": ("I10", lambda s: s.path("run_plan", s.failed).unlink()),
    "a quarantine object is not canonical": (
        "I10",
        lambda s: put(s.path("quarantine", s.quarantined), b'{"run_id": "x"}'),
    ),
    "a pinned pack has other bytes": (
        "I10",
        lambda s: s.edit(first_of(s.world.ledger / "interface_pack"), lambda pack: pack["outputs"].pop()),
    ),
    "a temporary file is within reach": ("I10", lambda s: put(s.world.ledger / "run_plan/abc.tmp")),
    "a temporary file was left in private": ("I10", lambda s: put(s.world.ledger / ".private/abc.tmp")),
    "a temporary file was left in the spool": ("I10", lambda s: put(s.world.bus / ".private/abc.tmp")),
    # I11
    "a receipt is preceded by no gates": ("I11", orphan_receipt),
    "a gate of a receipt did not pass": ("I11", lambda s: s.edit_lines(s.ready, unpass)),
    # I12
    "a record line is gone": ("I12", lambda s: s.edit_lines(s.ready, lambda lines: lines.pop(2))),
    "a record line is there twice": ("I12", lambda s: s.edit_lines(s.ready, lambda lines: lines.insert(2, lines[2]))),
    "an event row is gone": ("I12", lambda s: s.sql(f"DELETE FROM run_events {RUN} AND seq = 3", s.ready["run_id"])),
    "rows and record tell the same illegal transition": ("I12", jump),
    "two events have one id": (
        "I12",
        lambda s: s.edit_lines(s.ready, lambda lines: lines[1].update(event_id=lines[0]["event_id"])),
    ),
    "a line has another time than its row": (
        "I12",
        lambda s: s.edit_lines(s.ready, lambda lines: lines[1].update(ts_utc="2020-01-01T00:00:00.000000Z")),
    ),
    "a projection is behind": (
        "I12",
        lambda s: s.sql(f"UPDATE runs SET projected_seq = 2 {RUN}", s.ready["run_id"]),
    ),
    # I13
    "a quarantine object is gone": ("I13", lambda s: s.path("quarantine", s.quarantined).unlink()),
    "a FAILED run has a quarantine object": (
        "I13",
        lambda s: shutil.copy(s.path("quarantine", s.quarantined), s.path("quarantine", s.failed)),
    ),
    "a reason is not on the closed list": (
        "I13",
        lambda s: s.edit(s.path("run_status", s.failed), lambda status: status.update(reason_code="BAD_LUCK")),
    ),
    "a run ended with an infrastructure error": (
        "I13",
        lambda s: s.sql(f"UPDATE runs SET reason_code = 'UNAVAILABLE' {RUN}", s.failed["run_id"]),
    ),
    "a FAILED run has no reason": (
        "I13",
        lambda s: s.sql(f"UPDATE runs SET reason_code = '' {RUN}", s.failed["run_id"]),
    ),
    # I14
    "there are logs of an attempt that never was": ("I14", lambda s: attempts(s, 1)),
    # I15
    "an object lies outside the prefix": ("I15", lambda s: put(s.world.store / "run_plan/x.json")),
    "an object of no kind lies under the prefix": ("I15", lambda s: put(s.world.ledger / "notes/x.json")),
    "a receipt lies under another scope": (
        "I15",
        lambda s: put(s.receipt("arrival_events_5B").parent / "seed=1/x/instance_receipt.json"),
    ),
    "an object is a link": ("I15", lambda s: link_away(s.path("ready_signal", s.ready))),
    "the spool holds another folder": ("I15", lambda s: put(s.world.bus / "other/x")),
    "the database holds another table": (
        "I15",
        lambda s: sqlite3.connect(s.world.database).execute("CREATE TABLE notes (x)"),
    ),
    "something was written under an engine root": ("I15", lambda s: put(Path(s.ready["engine_run_root"]) / "x")),
    # liveness
    "a run is stuck in verification": (
        "LIVE",
        lambda s: s.sql(f"UPDATE runs SET state = 'VERIFYING' {RUN}", s.waiting["run_id"]),
    ),
    "a run waits without looking again": (
        "LIVE",
        lambda s: s.sql(f"UPDATE runs SET due_us = deadline_us + 1 {RUN}", s.waiting["run_id"]),
    ),
}
