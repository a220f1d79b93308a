"""An independent checker of a world at rest: invariants I1..I15 of hardening.md section 2.

``check(paths_of(world))`` reads the stream S (spool), the rows D (SQLite file), the objects O (object store) and the
engine roots E, recomputes everything with its own code (hashlib, json, sqlite3, PyYAML), and returns what is wrong.
Where rows, objects or engine roots are behind a network, a world gives ways to fetch them (``rows``, ``refresh``,
``copies`` of :class:`Paths`): what is judged is then a copy of the moment.
From ``scenario_runner`` it takes the closed list of reason codes and nothing else. ``LIVE`` stands for liveness.

What cannot be seen in a final state (epochs that went back, a write-once object that had another version) is seen by a
:class:`Watch` that looks again and again while daemons live and die.
"""

import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from invariants_ready import (
    i1_ready_points_at_its_facts_view,
    i2_every_locator_re_hashes,
    i3_every_ready_has_all_its_gates,
    i10_write_once_objects_parse,
    i11_receipts_follow_their_gates,
)
from invariants_runs import (
    i4_one_terminal_state,
    i5_one_key_one_run,
    i6_ready_exactly_when_owed_and_sent,
    i7_one_message_id_one_payload,
    i9_leases_are_given_back,
    i12_records_have_no_gaps,
    i13_quarantine_and_reasons,
    i14_attempts_are_bounded,
)
from invariants_world import (
    PREFIX,
    RUN,
    TERMINAL,
    Facts,
    Json,
    Paths,
    files_below,
    is_regular,
    parse,
    sha,
    spool_files,
)

MIGRATIONS: Final = Path(__file__).resolve().parents[3] / "daemon/scenario_runner/authority/migrations"
CONSUMED: Final = frozenset({"ACCEPTED", "DUPLICATE", "IGNORED"})
REFUSED: Final = frozenset({"REJECTED", "CONFLICT"})
WRITE_ONCE: Final = (
    "run_plan", "run_facts_view", "ready_signal", "quarantine", "interface_pack", "instance_receipts",
    "engine_invocations", "supersession",
)  # fmt: skip
_KEYS: Final = re.compile(
    rf"{PREFIX}/(?:"
    rf"(?:run_plan|run_status|run_facts_view|ready_signal|quarantine|supersession)/{RUN}\.json|run_record/{RUN}\.jsonl"
    r"|interface_pack/[0-9a-f]{64}\.json|engine_invocations/[0-9a-f]{32}\.json"
    r"|instance_receipts/output_id=[A-Za-z0-9_.-]+(?:/manifest_fingerprint=[0-9a-f]{64})?"
    rf"(?:/parameter_hash=[0-9a-f]{{64}})?(?:/seed=[0-9]+)?(?:/scenario_id=[^/]+)?(?:/run_id={RUN})?"
    r"/(?:instance_receipt|bundle_manifest)\.json"
    rf"|engine_attempt_logs/run_id={RUN}/attempt_no=[1-9][0-9]*/(?:stdout|stderr)\.log)"
)


class Violation(NamedTuple):
    """One thing that must not be."""

    invariant: str
    sentence: str


def paths_of(world: Any) -> Paths:
    """The paths that a world's wiring profile names; a world that is not on this machine says itself."""
    if hasattr(world, "paths"):
        found: Paths = world.paths()
        return found
    wiring = yaml.safe_load(world.wiring.read_text("utf-8"))
    return Paths(
        store=Path(wiring["object_store_root"]),
        spool=Path(wiring["control_bus_root"]),
        database=Path(wiring["authority_store_dsn"].removeprefix("sqlite:///")),
        engine_roots=tuple(Path(root) for root in wiring["engine_roots"]),
        catalogue=Path(wiring["engine_catalogue_path"]),
        gate_map=Path(wiring["gate_map_path"]),
    )


def i8_every_record_has_one_disposition(w: Facts) -> Iterator[str]:
    """Every record has exactly one durable disposition, and lies where its disposition says."""
    records = w.tables["intake_records"]
    for key, count in Counter(row["record_key"] for row in records).items():
        if count != 1:
            yield f"the record {key} has {count} dispositions"
    for path in spool_files(w, "requests"):
        if path.name.endswith(".json") and not path.name.startswith("."):
            yield f"the record {path.name} still waits in the spool"
    came = [row for row in records if not row["record_key"].startswith("redrive/")]
    yield from _redrives(w, [row for row in records if row not in came])
    for folder, dispositions in (("consumed", CONSUMED), ("rejected", REFUSED)):
        yield from _put_away(w, folder, [row for row in came if row["disposition"] in dispositions])
    if w.dropped is not None:
        lost = Counter(map(sha, w.dropped)) - Counter(row["raw_sha256"] for row in came)
        extra = Counter(row["raw_sha256"] for row in came) - Counter(map(sha, w.dropped))
        yield from (f"a dropped record ({digest}) has no disposition" for digest in lost.elements())
        yield from (f"a record ({digest}) has more dispositions than drops" for digest in extra.elements())
    yield from _dead_letters(w, {row["record_key"]: row for row in records if row["disposition"] in REFUSED})


def _redrives(w: Facts, records: list[Json]) -> Iterator[str]:
    """Every redrive is a record of the same bytes, numbered without gaps, and an act."""
    acts = Counter(row["subject"] for row in w.tables["operator_actions"] if row["action"] == "redrive")
    made = Counter(row["record_key"].split("/", 2)[2] for row in records)
    if acts != made:
        yield f"redrives and their acts differ: {sorted((acts - made) + (made - acts))}"
    if {row["record_key"] for row in records} != {
        f"redrive/{n}/{key}" for key in made for n in range(1, made[key] + 1)
    }:
        yield "the redrives of a letter are not numbered without gaps"
    letters = {row["record_key"]: row["raw_sha256"] for row in w.tables["intake_records"]}
    for row in records:
        if letters.get(row["record_key"].split("/", 2)[2]) != row["raw_sha256"]:
            yield f"the record {row['record_key']} has other bytes than its letter"


def _put_away(w: Facts, folder: str, rows: list[Json]) -> Iterator[str]:
    files = [path for path in spool_files(w, folder) if not path.name.endswith(".reason.json")]
    lying = Counter(sha(path.read_bytes()) if is_regular(path) else sha(b"") for path in files)
    booked = Counter(row["raw_sha256"] for row in rows)
    for digest in (lying - booked).elements():
        yield f"{folder} holds a record ({digest}) that no disposition is for"
    for digest in (booked - lying).elements():
        yield f"a record ({digest}) was disposed of and is not in {folder}"


def _dead_letters(w: Facts, refused: dict[str, Json]) -> Iterator[str]:
    letters = {row["record_key"]: bytes(row["raw"]) for row in w.tables["dead_letters"]}
    if set(letters) != set(refused):
        yield f"the dead letters are not the refused records: {sorted(set(letters) ^ set(refused))}"
    for key in set(letters) & set(refused):
        if sha(letters[key]) != refused[key]["raw_sha256"]:
            yield f"the dead letter of {key} does not hold the record's bytes"
    reasons = [parse(path.read_bytes()) for path in spool_files(w, "rejected") if path.name.endswith(".reason.json")]
    said = {(item["record_key"], item["reason_code"]) for item in reasons}
    came = {key: row for key, row in refused.items() if not key.startswith("redrive/")}
    if said != {(key, row["reason_code"]) for key, row in came.items()} or len(said) != len(reasons):
        yield "the reason files are not those of the refused records"
    answered = {row["message_id"] for row in w.tables["outbox"] if row["kind"] == "REQUEST_REJECTED"}
    if answered != {sha(f"rejected|{key}") for key, row in refused.items() if row["run_id"]}:
        yield "the REQUEST_REJECTED signals are not those of the refused records that name a run"


def i15_nothing_elsewhere(w: Facts) -> Iterator[str]:
    """Nothing outside root, prefix and known tables; no secret anywhere."""
    for key in w.store_files:
        if not key.startswith(f"{PREFIX}/.private/") and not _KEYS.fullmatch(key):
            yield f"the object store holds {key}"
        elif not is_regular(w.paths.store / key):
            yield f"the object {key} is not a regular file"
    for name in sorted(os.listdir(w.paths.spool)):
        if name not in ("requests", "consumed", "rejected", ".private", w.paths.topic):
            yield f"the spool holds {name}"
    migrations = "".join(path.read_text("utf-8") for path in MIGRATIONS.glob("*/*.sql"))
    for name in set(w.tables) - set(re.findall(r"CREATE TABLE (\w+)", migrations)):
        if not name.startswith("sqlite_"):
            yield f"the database holds the table {name}"
    told = repr(w.tables).encode()
    yield from (f"the rows hold the secret number {n}" for n, secret in enumerate(w.secrets) if secret in told)
    if w.secrets:
        yield from (f"{path} holds a secret" for path in _searched(w) if _holds_any(path, w.secrets))


def _holds_any(path: Path, secrets: Sequence[bytes]) -> bool:
    data = path.read_bytes()
    return any(secret in data for secret in secrets)


def _searched(w: Facts) -> Iterator[Path]:
    folders = (w.paths.store, w.paths.spool)
    yield from (folder / rel for folder in folders for rel in files_below(folder) if is_regular(folder / rel))
    yield from (path for path in w.paths.database.parent.glob(w.paths.database.name + "*") if is_regular(path))
    yield from w.paths.logs


def live_every_run_moves(w: Facts) -> Iterator[str]:
    """Every run is terminal, or waits with a deadline ahead."""
    for run_id, row in w.rows.items():
        if row["state"] in TERMINAL:
            if row["due_us"] is not None:
                yield f"{run_id} is {row['state']} and still due"
        elif row["state"] != "WAITING_EVIDENCE":
            yield f"{run_id} is stuck in {row['state']}"
        elif row["deadline_us"] <= w.now_us or row["due_us"] is None or row["due_us"] > row["deadline_us"]:
            yield f"{run_id} waits without a deadline ahead"


CHECKS: Final[Mapping[str, Callable[[Facts], Iterator[str]]]] = {
    "I1": i1_ready_points_at_its_facts_view,
    "I2": i2_every_locator_re_hashes,
    "I3": i3_every_ready_has_all_its_gates,
    "I4": i4_one_terminal_state,
    "I5": i5_one_key_one_run,
    "I6": i6_ready_exactly_when_owed_and_sent,
    "I7": i7_one_message_id_one_payload,
    "I8": i8_every_record_has_one_disposition,
    "I9": i9_leases_are_given_back,
    "I10": i10_write_once_objects_parse,
    "I11": i11_receipts_follow_their_gates,
    "I12": i12_records_have_no_gaps,
    "I13": i13_quarantine_and_reasons,
    "I14": i14_attempts_are_bounded,
    "I15": i15_nothing_elsewhere,
    "LIVE": live_every_run_moves,
}


def _sentences(name: str, judge: Callable[[Facts], Iterator[str]], facts: Facts) -> Iterator[Violation]:
    """What one check finds; material that it cannot even read is a violation too."""
    try:
        for sentence in judge(facts):
            yield Violation(name, sentence)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, StopIteration) as error:
        yield Violation(name, f"cannot be judged: {type(error).__name__}: {error}")


# ---------------------------------------------------------------- what only shows over time


def photograph(folders: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file in some folders; engine runs must come out as they went in."""
    return {
        str(folder / rel): ((folder / rel).lstat().st_size, (folder / rel).lstat().st_mtime_ns)
        for folder in folders
        for rel in files_below(folder)
    }


@dataclass
class Watch:
    """Looks at a living world again and again, and notes what went back or changed."""

    paths: Paths
    found: list[Violation] = field(default_factory=list)
    looks: int = 0
    _rows: dict[str, Json] = field(default_factory=dict)
    _files: dict[str, bytes] = field(default_factory=dict)

    def look(self) -> None:
        """Look once; a world that is not there yet is fine."""
        self.paths.refresh()
        try:
            there = self.paths.rows is not None or self.paths.database.exists()
            tables = self.paths.tables() if there else {}
        except (sqlite3.OperationalError, ConnectionError):
            tables = {}
        if "outbox" in tables:
            self.looks += 1
            self._compare_rows({row["run_id"]: row for row in tables["runs"]})
            self._compare_sent(tables["outbox"])
        self._compare_files()

    def _note(self, invariant: str, sentence: str) -> None:
        self.found.append(Violation(invariant, sentence))

    def _compare_rows(self, rows: dict[str, Json]) -> None:
        for run_id, before in self._rows.items():
            if run_id.startswith("outbox|"):
                continue
            after = rows.get(run_id)
            if after is None:
                self._note("I4", f"the row of {run_id} disappeared")
                continue
            if after["lease_epoch"] < before["lease_epoch"]:
                self._note("I9", f"the lease epoch of {run_id} went back")
            if before["state"] in TERMINAL and after["state"] != before["state"]:
                self._note("I4", f"{run_id} went from {before['state']} to {after['state']}")
            if any(after[key] < before[key] for key in ("event_seq", "projected_seq")):
                self._note("I12", f"a sequence of {run_id} went back")
        self._rows.update(rows)

    def _compare_sent(self, rows: list[Json]) -> None:
        for row in rows:
            name = f"outbox|{row['message_id']}|{row['emission']}"
            before = self._rows.get(name)
            if before and (before["payload"] != row["payload"] or (before["sent_us"] and not row["sent_us"])):
                self._note("I6", f"the outbox row {row['message_id']} changed after it was owed or sent")
            self._rows[name] = row

    def _compare_files(self) -> None:
        folders = [self.paths.store / PREFIX / name for name in (*WRITE_ONCE, "run_record")]
        for folder in (*folders, self.paths.spool / self.paths.topic):
            for rel in files_below(folder):
                self._compare_file(folder / rel)
        for path in self._files:
            if not os.path.exists(path):
                self._note("I10", f"{path} disappeared")

    def _compare_file(self, path: Path) -> None:
        data, before = path.read_bytes(), self._files.get(str(path))
        if before is not None and not (data.startswith(before) if path.suffix == ".jsonl" else data == before):
            name = {"run_record": "I12", self.paths.topic: "I7"}.get(path.parent.name, "I10")
            self._note(name, f"{path} was written again with other bytes")
        self._files[str(path)] = data


def check(
    paths: Paths,
    *,
    secrets: Sequence[bytes] = (),
    dropped: Sequence[bytes] | None = None,
    watch: Watch | None = None,
    before: Mapping[str, tuple[int, int]] | None = None,
    killed: bool = False,
    now: float | None = None,
) -> list[Violation]:
    """Everything that is wrong with a world at rest.

    Args:
        paths: Where it is.
        secrets: Byte strings that must be found nowhere.
        dropped: Every record that was dropped, with repetition; each must have exactly one disposition.
        watch: What was seen while it lived.
        before: A photograph of the engine roots from before the daemons ran.
        killed: Daemons were killed, so private temporary files may have been left (a later sweep removes them).
        now: Seconds since the epoch; the clock by default.
    """
    now_us = int((time.time() if now is None else now) * 1_000_000)
    facts = Facts(paths, now_us, secrets, dropped, killed=killed)
    found = [one for name, judge in CHECKS.items() for one in _sentences(name, judge, facts)]
    if watch is not None:
        watch.look()
        found += watch.found
    if before is not None and photograph(paths.engine_roots) != dict(before):
        found.append(Violation("I15", "something was written under the engine roots"))
    return found
