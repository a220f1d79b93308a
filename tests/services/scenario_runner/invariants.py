"""An independent checker of a world at rest: invariants I1..I15 of hardening.md section 2.

``check(paths_of(world))`` reads the stream S (spool), the rows D (SQLite file), the objects O (object store) and the
engine roots E, recomputes everything with its own code (hashlib, json, sqlite3, PyYAML), and returns what is wrong.
Where rows, objects or engine roots are behind a network, a world gives ways to fetch them (``rows``, ``refresh``,
``copies`` of :class:`Paths`): what is judged is then a copy of the moment.
From ``scenario_runner`` it takes the closed list of reason codes and nothing else. ``LIVE`` stands for liveness.

What cannot be seen in a final state (epochs that went back, a write-once object that had another version) is seen by a
:class:`Watch` that looks again and again while daemons live and die.
"""

import hashlib
import json
import os
import re
import sqlite3
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from scenario_runner.contracts.reasons import Reason

Json = dict[str, Any]
PREFIX: Final = "fraud-platform/sr"
MIGRATIONS: Final = Path(__file__).resolve().parents[3] / "daemon/scenario_runner/authority/migrations"
PARTITIONS: Final = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
TERMINAL: Final = frozenset({"READY", "FAILED", "QUARANTINED"})
NEXT: Final[Mapping[str, frozenset[str]]] = {
    "OPEN": frozenset({"PLANNED"}),
    "PLANNED": frozenset({"EXECUTING", "VERIFYING"}),
    "EXECUTING": frozenset({"VERIFYING", "FAILED"}),
    "VERIFYING": frozenset({"EXECUTING", "WAITING_EVIDENCE"}) | TERMINAL,
    "WAITING_EVIDENCE": frozenset({"VERIFYING"}),
    "READY": frozenset(),
    "FAILED": frozenset(),
    "QUARANTINED": frozenset(),
}
_CONTRACT_REASONS: Final = (
    "UNKNOWN_OUTPUT_ID UNKNOWN_GATE_ID EVIDENCE_MISSING_DEADLINE EVIDENCE_CONFLICT GATE_FAIL INSTANCE_RECEIPT_DRIFT "
    "EQUIV_KEY_COLLISION ENGINE_ROOT_MISSING ENGINE_COMMAND_MISSING ENGINE_EXIT_NONZERO ENGINE_TIMEOUT "
    "ENGINE_RECEIPT_MISSING ENGINE_RECEIPT_INVALID ENGINE_RECEIPT_MISMATCH ENGINE_INVOCATION_INVALID "
    "ATTEMPT_LIMIT_EXCEEDED LOCATOR_SCHEMA_INVALID RECEIPT_SCHEMA_INVALID AUTH_DENIED REEMIT_READY_ONLY_MISMATCH "
    "REEMIT_TERMINAL_ONLY_MISMATCH REEMIT_RATE_LIMIT FACTS_VIEW_MISSING FACTS_VIEW_DRIFT PLAN_DRIFT"
)
REASONS: Final = frozenset(_CONTRACT_REASONS.split()) | {reason.value for reason in Reason}
INFRASTRUCTURE: Final = frozenset(
    {"UNAVAILABLE", "STORE_UNSAFE", "INTERNAL_ERROR", "CONFIGURATION_INVALID", "USAGE", "RUN_NOT_FOUND"}
)
CONSUMED: Final = frozenset({"ACCEPTED", "DUPLICATE", "IGNORED"})
REFUSED: Final = frozenset({"REJECTED", "CONFLICT"})
CONCAT: Final = "sha256_member_digest_concat"
WRITE_ONCE: Final = (
    "run_plan", "run_facts_view", "ready_signal", "quarantine", "interface_pack", "instance_receipts",
    "engine_invocations", "supersession",
)  # fmt: skip
REEMIT_EVENTS: Final = frozenset({"REEMIT_REQUESTED", "REEMIT_DRY_RUN", "REEMIT_PUBLISHED", "REEMIT_FAILED"})
AFTER_THE_END: Final = REEMIT_EVENTS | {"READY_PUBLISHED", "SUPERSEDES", "SUPERSEDED_BY"}
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_RUN: Final = r"[0-9a-f]{32}"
_KEYS: Final = re.compile(
    rf"{PREFIX}/(?:"
    rf"(?:run_plan|run_status|run_facts_view|ready_signal|quarantine|supersession)/{_RUN}\.json|run_record/{_RUN}\.jsonl"
    r"|interface_pack/[0-9a-f]{64}\.json|engine_invocations/[0-9a-f]{32}\.json"
    r"|instance_receipts/output_id=[A-Za-z0-9_.-]+(?:/manifest_fingerprint=[0-9a-f]{64})?"
    rf"(?:/parameter_hash=[0-9a-f]{{64}})?(?:/seed=[0-9]+)?(?:/scenario_id=[^/]+)?(?:/run_id={_RUN})?"
    r"/(?:instance_receipt|bundle_manifest)\.json"
    rf"|engine_attempt_logs/run_id={_RUN}/attempt_no=[1-9][0-9]*/(?:stdout|stderr)\.log)"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Violation(NamedTuple):
    """One thing that must not be."""

    invariant: str
    sentence: str


@dataclass(frozen=True)
class Paths:
    """Where a world is.

    Attributes:
        logs: Log files to search for secrets.
        rows: Reads every table of another database than the SQLite file.
        refresh: Brings ``store`` and ``engine_roots`` up to date, where they are copies.
        copies: Folder with the copy of an engine root, by its location.
    """

    store: Path
    spool: Path
    database: Path
    engine_roots: tuple[Path, ...]
    catalogue: Path
    gate_map: Path
    topic: str = "fp.bus.control.v1"
    logs: tuple[Path, ...] = ()
    rows: Callable[[], dict[str, list[Json]]] | None = None
    refresh: Callable[[], object] = lambda: None
    copies: Mapping[str, Path] = field(default_factory=dict)

    def tables(self) -> dict[str, list[Json]]:
        """Every row of every table."""
        return self.rows() if self.rows is not None else _rows(self.database)

    def folder_of(self, location: str) -> Path:
        """The folder in which an engine root can be read."""
        for root, copy in self.copies.items():
            if location == root or location.startswith(root + "/"):
                return copy / location.removeprefix(root).lstrip("/")
        return Path(location)


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


# ---------------------------------------------------------------- plain helpers


def sha(data: bytes | str) -> str:
    """Hex sha256."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def canonical(value: object) -> bytes:
    """Sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse(data: bytes) -> Any:
    """JSON whose keys are unique; ValueError otherwise."""

    def unique(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is given twice")
        return found

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def micros(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time with an offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def files_below(folder: Path) -> list[str]:
    """Relative POSIX paths of everything that is not a directory, in byte order."""
    found = []
    for directory, _, names in os.walk(folder):
        base = os.path.relpath(directory, folder)
        found += [os.path.normpath(os.path.join(base, name)) for name in names]
    return sorted(found, key=os.fsencode)


def _regular(path: Path) -> bool:
    return path.exists() and stat.S_ISREG(path.lstat().st_mode)


def _bytes_of(root: Path, rel: str) -> bytes:
    """Bytes of one regular file under a root; ValueError when a link leads there or elsewhere."""
    path = root / rel
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), rel) or not _regular(path):
        raise ValueError(f"{rel} is not a regular file under {root}")
    return path.read_bytes()


# ---------------------------------------------------------------- the interface pack, and the laws, once more


class Pack:
    """The outputs and gates of a pack document, read anew."""

    def __init__(self, document: Json) -> None:
        self.outputs: dict[str, Json] = {item["output_id"]: item for item in document["outputs"]}
        self.gates: dict[str, Json] = {item["gate_id"]: item for item in document["gates"]}

    def required(self, outputs: Iterable[str]) -> set[str]:
        """Gates that these outputs need, closed upstream."""
        wanted = set(outputs)
        todo = {gate for output in wanted for gate in self.outputs[output].get("read_requires_gates") or ()}
        todo |= {gate_id for gate_id, gate in self.gates.items() if wanted & set(gate.get("authorizes_outputs") or ())}
        closed: set[str] = set()
        while todo:
            gate_id = todo.pop()
            closed.add(gate_id)
            todo |= set(self.gates[gate_id].get("upstream_gate_dependencies") or ()) - closed
        return closed

    def scope(self, output: str) -> list[str]:
        """Identity partitions of an output, in the fixed order."""
        named = self.outputs[output].get("partitions") or ()
        return [key for key in PARTITIONS if key in named]

    def instance_scoped(self, output: str) -> bool:
        """True when the output gets a receipt of its own."""
        return bool(set(self.scope(output)) - {"manifest_fingerprint"})


def render(template: str, tokens: Mapping[str, str]) -> str:
    """A template with every token replaced once, white space stripped."""
    return re.sub(r"\{([^{}]*)\}", lambda match: tokens[match[1]], template.strip())


def _flag_digest(data: bytes, digest_field: str) -> str:
    text = data.decode("utf-8").strip()
    if text.startswith("{"):
        claimed = parse(text.encode())[digest_field]
    else:
        name, _, claimed = text.partition("=")
        if name.strip() != digest_field:
            raise ValueError(f"the flag carries {name.strip()!r}")
        claimed = claimed.strip()
    if not _HEX64.fullmatch(claimed):
        raise ValueError("the flag carries no lowercase sha256")
    return str(claimed)


def _entries(data: bytes) -> list[Json]:
    document = parse(data)
    if isinstance(document, dict):
        document = next(document[key] for key in ("items", "members", "entries", "files") if key in document)
    if not document:
        raise ValueError("the index lists nothing")
    return list(document)


def _member_forms(root: Path, rel: str) -> set[str]:
    """Every digest that a member may be listed with."""
    if (root / rel).is_dir():
        inside = files_below(root / rel)
        return {sha(b"".join(_bytes_of(root, f"{rel}/{name}") for name in inside))} if inside else set()
    data = _bytes_of(root, rel)
    forms = {sha(data)}
    with suppress(ValueError):
        forms.add(sha(canonical(parse(data))))
    return forms


def gate_digest(root: Path, gate: Json, tokens: Mapping[str, str]) -> str:
    """The digest of a gate, recomputed from the engine run; ValueError, OSError or KeyError when it is no pass."""
    method, bundle = gate["verification_method"], render(gate["bundle_root_template"], tokens).rstrip("/")
    law, digest_field = method["kind"], method["digest_field"]
    claimed = _flag_digest(_bytes_of(root, render(gate["passed_flag_path_template"], tokens)), digest_field)
    base = "" if method.get("path_base") == "run_root" else bundle + "/"
    index = render(gate.get("index_path_template") or "", tokens)
    entries = _entries(_bytes_of(root, index)) if index and (root / index).exists() else []
    excluded = {f"{bundle}/{name}" for name in method.get("exclude_filenames") or ()}
    kept = [entry for entry in entries if base + entry["path"] not in excluded]
    for entry in kept:
        path, listed = base + entry["path"], {entry[key] for key in (digest_field, "sha256_hex") if key in entry}
        forms = _member_forms(root, path) if law == CONCAT else {sha(_bytes_of(root, path))}
        if listed and not any(listed == {form} for form in forms):
            raise ValueError(f"the index lists another digest for {entry['path']}")
    if law == CONCAT:
        actual = sha("".join(entry[digest_field] for entry in kept))
    else:
        paths = [base + entry["path"] for entry in kept]
        if law == "sha256_bundle_digest":
            paths = [f"{bundle}/{name}" for name in files_below(root / bundle) if f"{bundle}/{name}" not in excluded]
        elif method["ordering"] == "ascii_lex":
            paths.sort(key=os.fsencode)
        if not paths:
            raise ValueError("the bundle is empty")
        actual = sha(b"".join(_bytes_of(root, path) for path in paths))
    if actual != claimed:
        raise ValueError(f"the flag claims {claimed}, the law gives {actual}")
    return actual


def output_files(root: Path, template: str, tokens: Mapping[str, str]) -> list[str]:
    """Files of an output, relative to the run root, in byte order."""
    path = render(template, tokens)
    if path.endswith("/"):
        return [path + name for name in files_below(root / path)] if (root / path).is_dir() else []
    head, _, tail = path.rpartition("/")
    if "*" not in tail:
        return [path] if (root / path).exists() else []
    pattern = re.compile(".*".join(map(re.escape, tail.split("*"))), re.DOTALL)
    names = os.listdir(root / head) if (root / head).is_dir() else []
    return sorted((f"{head}/{name}" for name in names if pattern.fullmatch(name)), key=os.fsencode)


def output_digest(root: Path, template: str, tokens: Mapping[str, str]) -> tuple[str, bytes]:
    """Digest of an output and its bundle manifest (empty for one file); ValueError when it holds no file."""
    files = output_files(root, template, tokens)
    if not files:
        raise ValueError("it holds no regular file")
    path = render(template, tokens)
    if not path.endswith("/") and "*" not in path:
        return sha(_bytes_of(root, path)), b""
    parts = {rel: _bytes_of(root, rel) for rel in files}
    manifest = canonical([{"path": rel, "bytes": len(data), "sha256": sha(data)} for rel, data in parts.items()])
    return sha(manifest), manifest


def fingerprint_of(request: Json) -> str:
    """The intent fingerprint of a raw run request."""
    scenario = request["scenario"]
    scenarios = sorted(set(scenario.get("scenario_set") or ()))
    window = request["window"]
    times = {key: _utc(window[key]) for key in ("window_start_utc", "window_end_utc")}
    return sha(
        canonical(
            {
                "manifest_fingerprint": request["manifest_fingerprint"],
                "parameter_hash": request["parameter_hash"],
                "seed": request["seed"],
                "scenario_id": scenario.get("scenario_id") or "scnset_" + sha(canonical(scenarios))[:16],
                "scenario_set": scenarios,
                "window": times,
                "output_ids": sorted(set(request.get("output_ids") or ())),
                "strategy": request.get("requested_strategy") or "AUTO",
                "engine_run_root": _root(request.get("engine_run_root") or ""),
            }
        )
    )


def _root(text: str) -> str:
    if text.startswith("s3://"):
        return text.rstrip("/")
    return os.path.normpath(text.removeprefix("file://")) if text else ""


def _utc(text: str) -> str:
    return (_EPOCH + timedelta(microseconds=micros(text))).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# ---------------------------------------------------------------- what a world holds


def _rows(database: Path) -> dict[str, list[Json]]:
    connection = sqlite3.connect(database, timeout=15)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = ON")
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in names}
    finally:
        connection.close()


class Facts:
    """Everything of a world, read once."""

    def __init__(self, paths: Paths, now_us: int, secrets: Sequence[bytes], dropped: Sequence[bytes] | None,
                 *, killed: bool) -> None:  # fmt: skip
        self.paths, self.now_us, self.secrets, self.dropped, self.killed = paths, now_us, secrets, dropped, killed
        paths.refresh()
        self.tables = paths.tables()
        self.rows: dict[str, Json] = {row["run_id"]: row for row in self.tables["runs"]}
        self.events: dict[str, list[Json]] = defaultdict(list)
        for row in sorted(self.tables["run_events"], key=lambda row: row["seq"]):
            self.events[row["run_id"]].append(row)
        self.store_files = files_below(paths.store)
        self.objects = {
            key: (paths.store / key).read_bytes()
            for key in self.store_files
            if not key.startswith(f"{PREFIX}/.private/") and _regular(paths.store / key)
        }
        self.unparsed: list[str] = []
        self.documents = {key: self._parsed(key, data) for key, data in self.objects.items() if key.endswith(".json")}
        self.records = {
            Path(key).stem: self._lines(key, data) for key, data in self.objects.items() if "/run_record/" in key
        }
        self.signals = self._signals()
        self.gates_passed: dict[tuple[str, str], str] = {}

    def _parsed(self, key: str, data: bytes) -> Any:
        try:
            value = parse(data)
            if canonical(value) != data:
                raise ValueError("it is not canonical JSON")
        except ValueError as error:
            self.unparsed.append(f"{key}: {error}")
            return {}
        return value

    def _lines(self, key: str, data: bytes) -> list[Json]:
        if data and not data.endswith(b"\n"):
            self.unparsed.append(f"{key}: the last line is torn")
        return [self._parsed(key, line) for line in data.splitlines()]

    def _signals(self) -> dict[str, Json]:
        folder = self.paths.spool / self.paths.topic
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        return {name: self._parsed(f"{self.paths.topic}/{name}", (folder / name).read_bytes()) for name in names}

    def document(self, folder: str, run_id: str) -> Json:
        """A ledger document; KeyError when there is none."""
        key = f"{PREFIX}/{folder}/{run_id}.json"
        if key not in self.documents:
            raise KeyError(f"there is no {key}")
        return dict(self.documents[key])

    def signals_of(self, *kinds: str) -> Iterator[Json]:
        """Envelopes of some kinds."""
        return (item for item in self.signals.values() if item.get("attributes", {}).get("kind") in kinds)

    def ready(self) -> list[str]:
        """Runs that are READY on the stream, in the rows, or by having a ready_signal object."""
        found = {str(item["payload"]["run_id"]) for item in self.signals_of("READY", "READY_REEMIT")}
        found |= {run_id for run_id, row in self.rows.items() if row["state"] == "READY"}
        found |= {Path(key).stem for key in self.objects if key.startswith(f"{PREFIX}/ready_signal/")}
        return sorted(found)

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """Pinned packs by digest."""
        folder = f"{PREFIX}/interface_pack/"
        return {Path(key).stem: Pack(value) for key, value in self.documents.items() if key.startswith(folder)}

    def pack_of(self, run_id: str) -> Pack:
        """The pack that a run is pinned to."""
        return self.packs[parse(self.rows[run_id]["inputs"])["pack_digest"]]

    def intent_of(self, run_id: str) -> Json:
        """The intent in a run's row."""
        return dict(parse(self.rows[run_id]["intent"]))

    def location_of(self, run_id: str) -> str:
        """The engine run root of a run, as its documents name it: of its request, or else the one pinned for it."""
        return str(self.intent_of(run_id)["engine_run_root"] or parse(self.rows[run_id]["inputs"])["engine_run_root"])

    @cached_property
    def attempts(self) -> dict[str, list[Json]]:
        """Rows of the attempts of each run, by number."""
        found: dict[str, list[Json]] = defaultdict(list)
        for row in sorted(self.tables["engine_attempts"], key=lambda row: row["attempt_no"]):
            found[row["run_id"]].append(row)
        return found

    def root_of(self, run_id: str) -> Path:
        """The engine run root of a run, where it can be read."""
        return self.paths.folder_of(self.location_of(run_id))

    def tokens_of(self, run_id: str) -> dict[str, str]:
        """Values of the path tokens."""
        intent = self.intent_of(run_id)
        return {**{key: str(intent[key]) for key in PARTITIONS[:-1]}, "run_id": run_id}

    def gate_of(self, run_id: str, gate_id: str) -> str:
        """Recomputed digest of a gate of a run, remembered per engine root."""
        root, gate = self.root_of(run_id), self.pack_of(run_id).gates[gate_id]
        tokens = self.tokens_of(run_id)
        place = (str(root), render(gate["passed_flag_path_template"], tokens))
        if place not in self.gates_passed:
            self.gates_passed[place] = gate_digest(root, gate, tokens)
        return self.gates_passed[place]


# ---------------------------------------------------------------- I1..I15, each an iterator of sentences


def i1_ready_points_at_its_facts_view(w: Facts) -> Iterator[str]:
    """Every READY has its facts view, by digest and bundle hash."""
    for item in w.signals_of("READY", "READY_REEMIT"):
        payload, run_id = item["payload"], item["payload"]["run_id"]
        ref = payload["facts_view_ref"]
        if ref != f"{PREFIX}/run_facts_view/{run_id}.json" or ref not in w.objects:
            yield f"READY of {run_id} points at {ref}, which is not there"
            continue
        if item["attributes"].get("facts_view_digest") != sha(w.objects[ref]):
            yield f"READY of {run_id} carries another facts_view_digest than its facts view has"
        view = w.documents[ref]
        bundle_hash = sha(
            canonical(
                {
                    "locators": sorted(view["locators"], key=lambda one: one["output_id"]),
                    "receipts": sorted(view["gate_receipts"], key=lambda one: one["gate_id"]),
                    "instance_receipts": sorted(view.get("instance_receipts", []), key=lambda one: one["output_id"]),
                    "policy_rev": view["policy_rev"],
                }
            )
        )
        if not bundle_hash == view["bundle_hash"] == payload["bundle_hash"]:
            yield f"the bundle_hash of {run_id} does not recompute from its facts view"
        if item["message_id"] != sha(f"ready|{run_id}|{bundle_hash}") or item["partition_key"] != run_id:
            yield f"READY of {run_id} has a message id or partition key that does not derive from it"
        if w.rows.get(run_id, {}).get("facts_view_digest") != sha(w.objects[ref]):
            yield f"the row of {run_id} has another facts_view_digest than its facts view"


def i2_every_locator_re_hashes(w: Facts) -> Iterator[str]:
    """Locators name regular files under an allowed root, with the digest that they have."""
    for run_id in w.ready():
        root, view = w.root_of(run_id), w.document("run_facts_view", run_id)
        if not any(_is_under(root, allowed) for allowed in w.paths.engine_roots):
            yield f"the engine root {root} of {run_id} is not under an allowed root"
        for locator in view["locators"]:
            yield from _locator(w, run_id, locator, view["pins"])
    for key, value in w.documents.items():
        if key.endswith("/instance_receipt.json") and "bundle_manifest_ref" in value:
            manifest = w.objects.get(value["bundle_manifest_ref"], b"")
            if value["target_digest"] != {"algo": "sha256", "hex": sha(manifest)}:
                yield f"{key} attests another digest than its bundle manifest has"


def _locator(w: Facts, run_id: str, locator: Json, pins: Json) -> Iterator[str]:
    output, root, tokens = locator["output_id"], w.root_of(run_id), w.tokens_of(run_id)
    template = w.pack_of(run_id).outputs[output]["path_template"]
    if locator["path"] != f"{w.location_of(run_id)}/{render(template, tokens)}":
        yield f"the locator of {output} of {run_id} names {locator['path']}"
    if any(locator[key] != pins[key] for key in PARTITIONS if key in locator):
        yield f"the locator of {output} of {run_id} is not of the run's identity"
    try:
        digest, _ = output_digest(root, template, tokens)
    except (ValueError, OSError) as error:
        yield f"the output {output} of {run_id} cannot be hashed: {error}"
        return
    if locator["content_digest"] != {"algo": "sha256", "hex": digest}:
        yield f"the output {output} of {run_id} re-hashes to {digest}"


def _is_under(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def i3_every_ready_has_all_its_gates(w: Facts) -> Iterator[str]:
    """Gates recomputed from the pinned pack equal the receipts' gates, all PASS; outputs are accounted for."""
    for run_id in w.ready():
        view, pack = w.document("run_facts_view", run_id), w.pack_of(run_id)
        plan = w.document("run_plan", run_id)
        intended = view["intended_outputs"]
        located = [one["output_id"] for one in view["locators"]]
        absent = [note.partition(":")[2] for note in view.get("evidence_notes", []) if "ABSENT" in note]
        if not intended or not located or sorted(located + absent) != sorted(intended):
            yield f"the intended outputs of {run_id} are not its locators and declared-absent outputs"
        asked = w.intent_of(run_id)["output_ids"]
        if sorted(intended) != plan["intended_outputs"] or (asked and sorted(intended) != asked):
            yield f"the intended outputs of {run_id} differ between request, plan and facts view"
        for output in absent:
            if pack.outputs[output].get("availability") != "optional" or _is_there(w, run_id, output):
                yield f"{run_id} declares {output} absent, but it is required or there"
        required, receipts = pack.required(intended), view["gate_receipts"]
        if not required or sorted(one["gate_id"] for one in receipts) != sorted(required):
            yield f"the gates in the receipts of {run_id} are not the ones that the pinned pack requires"
        if plan["required_gates"] != sorted(required):
            yield f"the plan of {run_id} does not require the gates that the pinned pack requires"
        for receipt in receipts:
            yield from _gate_receipt(w, run_id, receipt)
        yield from _instance_receipts(w, run_id, view, pack, set(located))


def _is_there(w: Facts, run_id: str, output: str) -> bool:
    template = w.pack_of(run_id).outputs[output]["path_template"]
    return bool(output_files(w.root_of(run_id), template, w.tokens_of(run_id)))


def _gate_receipt(w: Facts, run_id: str, receipt: Json) -> Iterator[str]:
    gate_id, tokens = receipt["gate_id"], w.tokens_of(run_id)
    try:
        digest = w.gate_of(run_id, gate_id)
    except (ValueError, OSError, KeyError) as error:
        yield f"the gate {gate_id} of {run_id} does not pass for an independent verifier: {error}"
        return
    if receipt["status"] != "PASS" or receipt["digest"] != {"algo": "sha256", "hex": digest}:
        yield f"the receipt of {gate_id} of {run_id} is not a PASS with the digest {digest}"
    flag = f"{w.location_of(run_id)}/{render(w.pack_of(run_id).gates[gate_id]['passed_flag_path_template'], tokens)}"
    if receipt["artifacts"]["passed_flag_path"] != flag:
        yield f"the receipt of {gate_id} of {run_id} names another flag"
    scope = receipt["scope"]
    if "manifest_fingerprint" not in scope or any(str(scope[key]) != tokens[key] for key in scope):
        yield f"the receipt of {gate_id} of {run_id} is of another scope"


def receipt_key(pack: Pack, output: str, tokens: Mapping[str, str]) -> str:
    """Key of an instance receipt."""
    scope = "".join(f"/{key}={tokens[key]}" for key in pack.scope(output))
    return f"{PREFIX}/instance_receipts/output_id={output}{scope}/instance_receipt.json"


def _instance_receipts(w: Facts, run_id: str, view: Json, pack: Pack, located: set[str]) -> Iterator[str]:
    receipts = {one["output_id"]: one for one in view.get("instance_receipts", [])}
    locators = {one["output_id"]: one for one in view["locators"]}
    if set(receipts) != {output for output in located if pack.instance_scoped(output)}:
        yield f"{run_id} does not have one instance receipt for each instance-scoped output"
    for output, receipt in receipts.items():
        key = receipt_key(pack, output, w.tokens_of(run_id))
        stored = w.documents.get(key)
        if stored is None or _pathless(stored) != _pathless(receipt):
            yield f"the instance receipt of {output} in the facts view of {run_id} is not the one at {key}"
            continue
        same_target = receipt["target_ref"] == locators[output]
        if receipt["status"] != "PASS" or not same_target or receipt["artifacts"]["receipt_path"] != key:
            yield f"the instance receipt of {output} of {run_id} is not a PASS of what the locator names"
        if receipt["target_digest"] != locators[output]["content_digest"]:
            yield f"the instance receipt of {output} of {run_id} attests another digest than the locator"
        yield from _bundle_manifest(w, run_id, output, receipt)


def _pathless(receipt: Json) -> Json:
    return {**receipt, "target_ref": {**receipt["target_ref"], "path": ""}}


def _bundle_manifest(w: Facts, run_id: str, output: str, receipt: Json) -> Iterator[str]:
    template = w.pack_of(run_id).outputs[output]["path_template"]
    try:
        _, manifest = output_digest(w.root_of(run_id), template, w.tokens_of(run_id))
    except (ValueError, OSError) as error:
        yield f"the manifest of {output} of {run_id} cannot be recomputed: {error}"
        return
    ref = receipt.get("bundle_manifest_ref")
    if bool(manifest) != bool(ref) or (ref and w.objects.get(ref) != manifest):
        yield f"the bundle manifest of {output} of {run_id} does not recompute from the engine run"


def i4_one_terminal_state(w: Facts) -> Iterator[str]:
    """At most one terminal state per run; READY xor TERMINAL; rows, status and record agree."""
    ready = Counter(item["payload"]["run_id"] for item in w.signals_of("READY"))
    ended = Counter(item["payload"]["run_id"] for item in w.signals_of("TERMINAL"))
    for run_id in sorted(set(ready) | set(ended) | set(w.rows)):
        row = w.rows.get(run_id)
        if row is None:
            yield f"the stream holds a signal of {run_id}, which has no row"
            continue
        wanted = (int(row["state"] == "READY"), int(row["state"] in ("FAILED", "QUARANTINED")))
        if (ready[run_id], ended[run_id]) != wanted:
            yield f"{run_id} is {row['state']}, with {ready[run_id]} READY and {ended[run_id]} TERMINAL on the stream"
        yield from _states_agree(w, run_id, row)
    for item in w.signals_of("TERMINAL"):
        yield from _terminal(w, item)
    for key in w.objects:
        run_id = Path(key).stem
        if re.fullmatch(_RUN, run_id) and run_id not in w.rows and "/engine_invocations/" not in key:
            yield f"{key} is of a run that has no row"


def _states_agree(w: Facts, run_id: str, row: Json) -> Iterator[str]:
    states = [line["details"]["state"] for line in w.records.get(run_id, [])]
    status = w.document("run_status", run_id)
    if not states or not states[-1] == status["state"] == row["state"]:
        yield f"{run_id}: row {row['state']}, status {status['state']}, record {states[-1:]} do not agree"
    ends = [line for line in w.records.get(run_id, []) if line["event_kind"] not in AFTER_THE_END]
    if sum(line["details"]["state"] in TERMINAL for line in ends) > 1:
        yield f"the record of {run_id} holds more than one terminal state"
    if status.get("reason_code", "") != row["reason_code"] or ("facts_view_ref" in status) != (row["state"] == "READY"):
        yield f"the status of {run_id} does not carry the row's reason code, or points at a facts view wrongly"
    if row["state"] in TERMINAL and micros(status["updated_at_utc"]) != row["updated_us"]:
        yield f"the status of {run_id} has another time than its row"
    plan, inputs = w.document("run_plan", run_id), parse(row["inputs"])
    digest = sha(canonical({"intent": parse(row["intent"]), "inputs": inputs, "run_id": run_id}))
    times = (micros(plan["created_at_utc"]), micros(plan["evidence_deadline_utc"]))
    wait_us = inputs["evidence_wait_seconds"] * 1_000_000
    if plan["plan_hash"] != digest or times != (row["admitted_us"], row["admitted_us"] + wait_us):
        yield f"the plan object of {run_id} is not the plan of its row"
    ends = [one["ended_us"] for one in w.attempts[run_id] if one["outcome"] == "SUCCEEDED"]
    if row["deadline_us"] != (ends or [row["admitted_us"]])[-1] + wait_us:
        yield f"the deadline of {run_id} does not follow from its admission, or from the success of its engine"
    pairs = (("required_gates", "gates"), ("intended_outputs", "outputs"), ("policy_rev", "policy_rev"))
    if any(plan[ours] != inputs[theirs] for ours, theirs in pairs):
        yield f"the plan object of {run_id} has other gates, outputs or policy than its row"


def _terminal(w: Facts, item: Json) -> Iterator[str]:
    payload = item["payload"]
    run_id, state = payload["run_id"], payload["status_state"]
    status = w.document("run_status", run_id)
    message_id = sha(f"terminal|{run_id}|{state}|{sha(canonical(status))}")
    if not item["message_id"] == payload["reemit_key"] == message_id or item["partition_key"] != run_id:
        yield f"the message id of TERMINAL of {run_id} does not derive from its status"
    if (state, payload.get("reason_code", "")) != (status["state"], status.get("reason_code", "")):
        yield f"TERMINAL of {run_id} says {state}, its status says {status['state']}"


def i5_one_key_one_run(w: Facts) -> Iterator[str]:
    """Run ids derive from keys, fingerprints from intents; a differing request changed nothing."""
    for run_id, row in w.rows.items():
        if run_id != sha("sr_run|" + row["run_equivalence_key"])[:32]:
            yield f"the run id {run_id} does not derive from its key"
        fingerprint = sha(canonical(parse(row["intent"])))
        said = [line["details"].get("fingerprint") for line in w.records.get(run_id, [])[:1]]
        if fingerprint != row["fingerprint"] or said != [fingerprint]:
            yield f"the fingerprint of {run_id} does not derive from its intent, or its record has another"
    requests = [row for row in w.tables["intake_records"] if row["kind"] == "RUN_REQUEST"]
    accepted = Counter(row["run_id"] for row in requests if row["disposition"] == "ACCEPTED")
    for run_id in sorted(set(accepted) | set(w.rows)):
        if accepted[run_id] != 1 or run_id not in w.rows:
            yield f"the run {run_id} was accepted {accepted[run_id]} times"
    raws = _raws(w)
    for row in requests:
        if row["disposition"] in ("ACCEPTED", "DUPLICATE", "CONFLICT") and row["raw_sha256"] in raws:
            yield from _request_matches(w, row, raws[row["raw_sha256"]])


def _raws(w: Facts) -> dict[str, bytes]:
    found = [path.read_bytes() for path in _spool_files(w, "consumed") if _regular(path)]
    found += [bytes(row["raw"]) for row in w.tables["dead_letters"]]
    return {sha(data): data for data in found}


def _request_matches(w: Facts, row: Json, raw: bytes) -> Iterator[str]:
    document = parse(raw)
    request = document.get("payload", document)
    run_id = sha("sr_run|" + request["run_equivalence_key"])[:32]
    if run_id != row["run_id"] or run_id not in w.rows:
        yield f"the record {row['record_key']} asks for {run_id} and was booked for {row['run_id']}"
        return
    same = fingerprint_of(request) == w.rows[run_id]["fingerprint"]
    if same is not (row["disposition"] != "CONFLICT"):
        yield f"the record {row['record_key']} of {run_id} is {row['disposition']}, which its intent is not"


def i6_ready_exactly_when_owed_and_sent(w: Facts) -> Iterator[str]:
    """One READY outbox row per READY run; sent rows are on the stream; nothing is unsent."""
    owed = Counter(row["run_id"] for row in w.tables["outbox"] if row["kind"] == "READY")
    for run_id in sorted(set(owed) | set(w.rows)):
        if owed[run_id] != int(w.rows.get(run_id, {}).get("state") == "READY"):
            yield f"{run_id} has {owed[run_id]} READY outbox rows"
    for row in w.tables["outbox"]:
        item = w.signals.get(_signal_name(row))
        if row["sent_us"] is None:
            yield f"the outbox still owes {row['kind']} of {row['run_id']}"
        elif item is None:
            yield f"{row['kind']} of {row['run_id']} is marked sent and is not on the stream"
        elif item["attributes"] != {"kind": row["kind"], **parse(row["attributes"])}:
            yield f"{row['kind']} of {row['run_id']} is on the stream with other attributes than it was owed with"
    known = set(map(_signal_name, w.tables["outbox"]))
    for name in w.signals:
        if name not in known:
            yield f"the stream holds {name}, which no outbox row owes"
    yield from _emissions(w)
    yield from _supersessions(w)


def _supersessions(w: Facts) -> Iterator[str]:
    """A correction that is READY is told by one signal, one object and both records; any other run by none."""
    signals = {row["run_id"]: parse(row["payload"]) for row in w.tables["outbox"] if row["kind"] == "RUN_SUPERSEDES"}
    told = {run_id: [_told(line) for line in lines if _told(line)] for run_id, lines in w.records.items()}
    for run_id, row in w.rows.items():
        ready = row["supersedes"] if row["state"] == "READY" else ""
        stored = w.objects.get(f"{PREFIX}/supersession/{run_id}.json")
        payload = signals.get(run_id)
        if not ready:
            if payload or stored or any(item["new_run_id"] == run_id for item in told.get(run_id, [])):
                yield f"{run_id} supersedes a run without being a READY correction"
            continue
        if payload is None or (payload["old_run_id"], payload["new_run_id"]) != (ready, run_id):
            yield f"{run_id} supersedes {ready}, and its RUN_SUPERSEDES says {payload}"
        elif stored is None or parse(stored) != payload:
            yield f"the supersession object of {run_id} is not what its RUN_SUPERSEDES says"
        elif told[run_id].count(payload) != 1 or told.get(ready, []).count(payload) != 1:
            yield f"the records of {run_id} and {ready} do not both say once that one supersedes the other"


def _told(line: Json) -> Json:
    details = line["details"]
    found: Json = details.get("supersedes", {}) if line["event_kind"] == "SUPERSEDES" else {}
    return details.get("superseded_by", {}) if line["event_kind"] == "SUPERSEDED_BY" else found


def _signal_name(row: Json) -> str:
    """The file of an outbox row: one that repeats a message lies beside the first."""
    return f"{row['message_id']}.reemit-{row['emission']}.json" if row["emission"] else f"{row['message_id']}.json"


def _emissions(w: Facts) -> Iterator[str]:
    """Every signal that was published again repeats a first one, for an act on record, and its run's record says so."""
    rows = {(row["message_id"], row["emission"]): row for row in w.tables["outbox"]}
    acts = {row["action_key"]: row for row in w.tables["operator_actions"]}
    for (message_id, emission), row in rows.items():
        first = rows.get((message_id, 0))
        if emission == 0:
            if row["action_key"]:
                yield f"the first publication of {message_id} is owed to an act"
        elif first is None or (message_id, emission - 1) not in rows or row["kind"] != f"{first['kind']}_REEMIT":
            yield f"{row['kind']} {emission} of {row['run_id']} repeats nothing"
        else:
            yield from _emission(w, row, first, acts.get(row["action_key"], {}))
    for key, act in acts.items():
        if act["outcome"] == "PUBLISHED" and key not in {row["action_key"] for row in rows.values()}:
            yield f"the act {key} says that it published something, and no outbox row does"
        if act["outcome"] == "ACCEPTED":
            yield f"the act {key} is still owed"


def _emission(w: Facts, row: Json, first: Json, act: Json) -> Iterator[str]:
    what = f"{row['kind']} {row['emission']} of {row['run_id']}"
    carried = {**parse(first["attributes"]), "run_id": row["run_id"]}
    if parse(row["attributes"]) != carried or row["payload"] != first["payload"]:
        yield f"{what} differs from what it repeats"
    if (act.get("subject"), act.get("outcome")) != (row["run_id"], "PUBLISHED"):
        yield f"{what} was published for no act that says so"
    lines = w.records.get(row["run_id"], [])
    told = [line["event_kind"] for line in lines if line["details"].get("action_key") == row["action_key"]]
    if told != ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]:
        yield f"the record says {told} of {what}"


def i7_one_message_id_one_payload(w: Facts) -> Iterator[str]:
    """Records of one message id have equal payload bytes."""
    payloads: dict[str, set[bytes]] = defaultdict(set)
    for name, item in w.signals.items():
        payloads[item["message_id"]].add(canonical(item["payload"]))
        if not re.fullmatch(re.escape(item["message_id"]) + r"(\.reemit-[1-9][0-9]*)?\.json", name):
            yield f"the signal file {name} holds the message {item['message_id']}"
    for row in w.tables["outbox"]:
        payloads[row["message_id"]].add(bytes(row["payload"]))
        if row["kind"] == "READY":
            payloads[row["message_id"]].add(w.objects.get(f"{PREFIX}/ready_signal/{row['run_id']}.json", b""))
    for message_id, found in payloads.items():
        if len(found) > 1:
            yield f"the message {message_id} exists with {len(found)} payloads (stream, outbox, ready_signal)"


def _spool_files(w: Facts, folder: str) -> list[Path]:
    path = w.paths.spool / folder
    return [path / name for name in sorted(os.listdir(path))] if path.is_dir() else []


def i8_every_record_has_one_disposition(w: Facts) -> Iterator[str]:
    """Every record has exactly one durable disposition, and lies where its disposition says."""
    records = w.tables["intake_records"]
    for key, count in Counter(row["record_key"] for row in records).items():
        if count != 1:
            yield f"the record {key} has {count} dispositions"
    for path in _spool_files(w, "requests"):
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
    files = [path for path in _spool_files(w, folder) if not path.name.endswith(".reason.json")]
    lying = Counter(sha(path.read_bytes()) if _regular(path) else sha(b"") for path in files)
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
    reasons = [parse(path.read_bytes()) for path in _spool_files(w, "rejected") if path.name.endswith(".reason.json")]
    said = {(item["record_key"], item["reason_code"]) for item in reasons}
    came = {key: row for key, row in refused.items() if not key.startswith("redrive/")}
    if said != {(key, row["reason_code"]) for key, row in came.items()} or len(said) != len(reasons):
        yield "the reason files are not those of the refused records"
    answered = {row["message_id"] for row in w.tables["outbox"] if row["kind"] == "REQUEST_REJECTED"}
    if answered != {sha(f"rejected|{key}") for key, row in refused.items() if row["run_id"]}:
        yield "the REQUEST_REJECTED signals are not those of the refused records that name a run"


def i9_leases_are_given_back(w: Facts) -> Iterator[str]:
    """Every look was under a lease; at rest nobody holds one. (That epochs only grow is for a Watch to see.)"""
    for run_id, row in w.rows.items():
        looked = any(event["kind"] == "VERIFICATION_STARTED" for event in w.events[run_id])
        if looked and row["lease_epoch"] < 1:
            yield f"{run_id} was driven without a lease"
        if row["lease_owner"] or row["lease_until_us"]:
            yield f"{run_id} is at rest under a lease of {row['lease_owner']}"


def i10_write_once_objects_parse(w: Facts) -> Iterator[str]:
    """Objects parse and are canonical; nothing temporary is reachable."""
    yield from w.unparsed
    for run_id in w.rows:
        for folder in ("run_plan", "run_status"):
            if f"{PREFIX}/{folder}/{run_id}.json" not in w.objects:
                yield f"{run_id} has no {folder}"
    for key, value in w.documents.items():
        if key.startswith(f"{PREFIX}/interface_pack/") and sha(canonical(value)) != Path(key).stem:
            yield f"the pinned pack {key} does not have its digest"
        of_run = "/engine_invocations/" not in key and re.fullmatch(_RUN, Path(key).stem)
        if "run_id" in value and of_run and value["run_id"] != Path(key).stem:
            yield f"{key} is about {value['run_id']}"
    yield from _deployed_pack(w)
    for folder, private in ((w.paths.store, f"{PREFIX}/.private/"), (w.paths.spool, ".private/")):
        yield from _temporary_files(w, folder, private)


def _deployed_pack(w: Facts) -> Iterator[str]:
    """A pinned pack agrees with the deployed files wherever both speak (unless another pack was deployed since)."""
    sources = _sources(*(path.read_text("utf-8") for path in (w.paths.catalogue, w.paths.gate_map)))
    for digest, pack in w.packs.items():
        pairs = [(pack.outputs, sources.outputs), (pack.gates, sources.gates)]
        if len(w.packs) == 1 and any(not _covers(theirs, ours) for ours, theirs in pairs):
            yield f"the pinned pack {digest} does not say what the deployed interface pack says"


@lru_cache(maxsize=4)
def _sources(catalogue: str, gate_map: str) -> Pack:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    outputs, gates = yaml.load(catalogue, loader)["outputs"], yaml.load(gate_map, loader)["gates"]
    return Pack({"outputs": outputs, "gates": gates})


def _covers(whole: object, part: object) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _covers(whole[key], value) for key, value in part.items())
    return whole == part


def _temporary_files(w: Facts, folder: Path, private: str) -> Iterator[str]:
    for rel in files_below(folder):
        if rel.startswith(private):
            if (
                not re.fullmatch(r"store\.json|[0-9]{2}\.lock|probe-[0-9]{3}", rel.removeprefix(private))
                and not w.killed
            ):
                yield f"{folder / rel} is a temporary file that was left behind"
        elif rel.endswith(".tmp") or any(part.startswith(".") for part in rel.split("/")):
            yield f"{folder / rel} is a temporary file within reach"


def i11_receipts_follow_their_gates(w: Facts) -> Iterator[str]:
    """A PASS instance receipt is preceded, in a record, by the PASS of the gates of its output."""
    attested: dict[str, set[str]] = defaultdict(set)
    for run_id in w.rows:
        passed: set[str] = set()
        for line in w.records.get(run_id, []):
            if line["event_kind"] == "GATES_PASSED":
                passed |= {one["gate_id"] for one in line["details"]["gates"] if one["outcome"] == "PASS"}
            for output, key in line["details"].get("receipts", {}).items():
                if w.pack_of(run_id).required([output]) <= passed:
                    attested[key].add(run_id)
    for key, value in w.documents.items():
        if key.endswith("/instance_receipt.json") and value.get("status") == "PASS" and not attested[key]:
            yield f"{key} is a PASS that no record's gates precede"


def i12_records_have_no_gaps(w: Facts) -> Iterator[str]:
    """Sequences without gaps, legal transitions, unique event ids; rows and record lines are equal."""
    for event_id, count in Counter(line["event_id"] for lines in w.records.values() for line in lines).items():
        if count != 1 or not _HEX64.fullmatch(event_id):
            yield f"the event id {event_id} is used {count} times or is no hex64"
    for run_id, row in w.rows.items():
        lines, events = w.records.get(run_id, []), w.events[run_id]
        if [line["details"]["seq"] for line in lines] != list(range(1, len(lines) + 1)):
            yield f"the record of {run_id} has gaps, repeats or another order"
        if not len(lines) == len(events) == row["event_seq"] == row["projected_seq"]:
            yield f"{run_id}: {len(lines)} lines, {len(events)} events, seq {row['event_seq']}/{row['projected_seq']}"
        for line, event in zip(lines, events, strict=False):
            ours = (line["event_kind"], line["details"], micros(line["ts_utc"]), line["run_id"])
            if ours != (event["kind"], parse(event["details"]), event["ts_us"], run_id):
                yield f"line {event['seq']} of the record of {run_id} is not the row's event"
        yield from _transitions(run_id, lines)
    for run_id in set(w.records) | set(w.events):
        if run_id not in w.rows:
            yield f"there are events of {run_id}, which has no row"


def _transitions(run_id: str, lines: list[Json]) -> Iterator[str]:
    states = [line["details"]["state"] for line in lines]
    if states[:1] != ["OPEN"]:
        yield f"the record of {run_id} starts in {states[:1]}"
    for before, after in pairwise(states):
        if after != before and after not in NEXT.get(before, frozenset()):
            yield f"{run_id} went from {before} to {after}"
    for before, line in pairwise(lines):
        if before["details"]["state"] in TERMINAL and line["event_kind"] not in AFTER_THE_END:
            yield f"the record of {run_id} goes on after {before['details']['state']}"
    for line in lines:
        if line["event_kind"] in AFTER_THE_END and line["details"]["state"] not in TERMINAL:
            yield f"the record of {run_id} tells of {line['event_kind']} before its end"
    times = [micros(line["ts_utc"]) for line in lines]
    if times != sorted(times):
        yield f"the times in the record of {run_id} go back"


def i13_quarantine_and_reasons(w: Facts) -> Iterator[str]:
    """A quarantine object exactly for QUARANTINED; reasons are of the closed list and never infrastructure."""
    objects = {Path(key).stem for key in w.objects if key.startswith(f"{PREFIX}/quarantine/")}
    quarantined = {run_id for run_id, row in w.rows.items() if row["state"] == "QUARANTINED"}
    for run_id in sorted(objects ^ quarantined):
        yield f"{run_id} is QUARANTINED or has a quarantine object, not both"
    for run_id in objects & quarantined:
        if w.document("quarantine", run_id)["reason_code"] != w.rows[run_id]["reason_code"]:
            yield f"the quarantine object of {run_id} has another reason than its row"
    for run_id, row in w.rows.items():
        if (row["state"] in ("FAILED", "QUARANTINED")) != bool(row["reason_code"]):
            yield f"{run_id} is {row['state']} with the reason {row['reason_code']!r}"
        if row["reason_code"] in INFRASTRUCTURE:
            yield f"{run_id} ended with the infrastructure error {row['reason_code']}"
    for place, code in _codes(w):
        if code not in REASONS:
            yield f"{place} carries the reason {code!r}, which is not on the closed list"


def _codes(w: Facts) -> Iterator[tuple[str, str]]:
    for row in w.tables["runs"] + w.tables["intake_records"]:
        if row["reason_code"]:
            yield str(row.get("run_id")), row["reason_code"]
    values = [*w.documents.items(), *w.records.items(), *w.signals.items()]
    for place, value in values:
        yield from ((place, code) for code in _said(value))


def _said(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "reason_code" in value and "new_run_id" not in value:  # a correction carries its sender's own code
            yield str(value["reason_code"])
        for item in value.values():
            yield from _said(item)
    elif isinstance(value, list):
        for item in value:
            yield from _said(item)


def i14_attempts_are_bounded(w: Facts) -> Iterator[str]:
    """Attempts stay within the limit, one at a time, each on record; no engine process outlives its run or lease."""
    for run_id in sorted(set(w.attempts) | set(w.rows)):
        if run_id not in w.rows:
            yield f"there are attempts of {run_id}, which has no row"
            continue
        yield from _attempt_rows(w, run_id, w.attempts[run_id])
        yield from _attempt_events(w, run_id, w.attempts[run_id])
    yield from _attempt_logs(w)
    yield from _invocations(w)
    roots = [os.path.realpath(root) for root in w.paths.engine_roots]
    ours = {row["attempt_id"] for row in w.tables["engine_attempts"]}
    for pid, where, attempt_id in _processes():
        if any(where == root or where.startswith(root + "/") for root in roots):
            yield f"the process {pid} still works in {where}"
        if attempt_id in ours:
            yield f"the process {pid} of the attempt {attempt_id} is alive"


def _attempt_rows(w: Facts, run_id: str, rows: list[Json]) -> Iterator[str]:
    run, limit = w.rows[run_id], w.document("run_plan", run_id)["attempt_limit"]
    numbers = [row["attempt_no"] for row in rows]
    if len(rows) > limit or numbers != list(range(1, run["attempts"] + 1)):
        yield f"{run_id} counts {run['attempts']} attempts, with the rows {numbers}; its plan allows {limit}"
    for row in rows:
        if row["attempt_id"] != sha(f"sr_attempt|{run_id}|{row['attempt_no']}")[:32]:
            yield f"the id of the attempt {row['attempt_no']} of {run_id} does not derive from its run and number"
        if row["ended_us"] is None and (row is not rows[-1] or run["state"] != "EXECUTING"):
            yield f"the attempt {row['attempt_no']} of {run_id} is open, and the run is {run['state']}"
        if row["outcome"] == "SUCCEEDED" and (row is not rows[-1] or row["exit_code"] != 0):
            yield f"the attempt {row['attempt_no']} of {run_id} succeeded, with status {row['exit_code']}, or goes on"
    epochs = [row["epoch"] for row in rows]
    if epochs != sorted(epochs) or any(not 0 < epoch <= run["lease_epoch"] for epoch in epochs):
        yield f"the attempts of {run_id} were launched under the epochs {epochs} of {run['lease_epoch']}"
    for before, after in pairwise(rows):
        if before["ended_us"] is None or after["launched_us"] < before["ended_us"]:
            yield f"the attempt {after['attempt_no']} of {run_id} was launched before the one before it had ended"
    forced = parse(run["inputs"])["strategy"] == "FORCE_INVOKE"
    if forced and run["state"] == "READY" and [row["outcome"] for row in rows][-1:] != ["SUCCEEDED"]:
        yield f"{run_id} is READY, and no engine that it had to invoke has succeeded"


_LAUNCHED: Final = "ENGINE_ATTEMPT_LAUNCH_REQUESTED"
_SUBMITTED: Final = "ENGINE_JOB_SUBMITTED"
_FINISHED: Final = "ENGINE_ATTEMPT_FINISHED"


def _attempt_events(w: Facts, run_id: str, rows: list[Json]) -> Iterator[str]:
    """The record tells of each attempt: requested once, submitted in between, finished once, as its row says."""
    told = [line for line in w.records.get(run_id, []) if line["event_kind"] in (_LAUNCHED, _SUBMITTED, _FINISHED)]
    wanted = [(kind, row["attempt_no"]) for row in rows for kind in (_LAUNCHED, _FINISHED)]
    if rows and rows[-1]["ended_us"] is None:
        wanted.pop()
    said = [(line["event_kind"], line["details"]["attempt_no"]) for line in told if line["event_kind"] != _SUBMITTED]
    if said != wanted:
        yield f"the record of {run_id} tells of the attempts {said}, its rows are {wanted}"
        return
    by_number, open_number = {row["attempt_no"]: row for row in rows}, 0
    for line in told:
        kind, details = line["event_kind"], line["details"]
        row = by_number[details["attempt_no"]]
        if details["attempt_id"] != row["attempt_id"] or details["state"] != "EXECUTING":
            yield f"the {kind} of the attempt {row['attempt_no']} of {run_id} is of another attempt or state"
        if kind == _SUBMITTED and details["attempt_no"] != open_number:
            yield f"the attempt {row['attempt_no']} of {run_id} was submitted while it was not open"
        open_number = 0 if kind == _FINISHED else row["attempt_no"]
        if kind == _FINISHED:
            ours = (row["outcome"], row["reason_code"], row["invoker"], row["duration_ms"], row["ended_us"])
            ended_us = micros(details["ended_at_utc"])
            theirs = (details["outcome"], details.get("reason_code", ""), details["invoker"], details["duration_ms"])
            if ours != (*theirs, ended_us) or micros(details["started_at_utc"]) != row["launched_us"]:
                yield f"the document of the attempt {row['attempt_no']} of {run_id} is not what its row says"


def _invocations(w: Facts) -> Iterator[str]:
    """An invocation object is of an attempt on record, or of the next one, if a daemon was killed before its row."""
    for key, value in w.documents.items():
        if "/engine_invocations/" not in key:
            continue
        run_id, attempt_id = value.get("run_id"), Path(key).stem
        count = w.rows[run_id]["attempts"] + 1 if run_id in w.rows else 0
        known = {sha(f"sr_attempt|{run_id}|{number}")[:32] for number in range(1, count + 1)}
        if value.get("request_id") != attempt_id or attempt_id not in known:
            yield f"{key} is of no attempt"


def _attempt_logs(w: Facts) -> Iterator[str]:
    logs: dict[str, set[int]] = defaultdict(set)
    for key in w.objects:
        match = re.fullmatch(rf"{PREFIX}/engine_attempt_logs/run_id=({_RUN})/attempt_no=([0-9]+)/\w+\.log", key)
        if match:
            logs[match[1]].add(int(match[2]))
    for run_id, numbers in logs.items():
        known = {row["attempt_no"] for row in w.attempts[run_id]}
        if not numbers <= known:
            yield f"there are logs of the attempts {sorted(numbers)} of {run_id}, whose rows are {sorted(known)}"
    for run_id, rows in w.attempts.items():
        for line in w.records.get(run_id, []):
            for key in (line["details"].get("logs_ref") or {}).values():
                if key not in w.objects:
                    yield f"the record of {run_id} names the log {key}, which is not there ({len(rows)} attempts)"


def _processes() -> Iterator[tuple[int, str, str]]:
    """Process id, working directory, and the attempt that a process bears the mark of, of every other process."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                where = os.readlink(f"/proc/{name}/cwd")  # a process that has ended has none
                variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            marks = [one.partition(b"=")[2].decode() for one in variables if one.startswith(b"SR_ATTEMPT_ID=")]
            yield int(name), where, (marks or [""])[0]


def i15_nothing_elsewhere(w: Facts) -> Iterator[str]:
    """Nothing outside root, prefix and known tables; no secret anywhere."""
    for key in w.store_files:
        if not key.startswith(f"{PREFIX}/.private/") and not _KEYS.fullmatch(key):
            yield f"the object store holds {key}"
        elif not _regular(w.paths.store / key):
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
    yield from (folder / rel for folder in folders for rel in files_below(folder) if _regular(folder / rel))
    yield from (path for path in w.paths.database.parent.glob(w.paths.database.name + "*") if _regular(path))
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
