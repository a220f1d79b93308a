"""What an independent checker reads of a world, and the laws of the interface pack once more."""

import hashlib
import json
import os
import re
import sqlite3
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]
PREFIX: Final = "fraud-platform/sr"
PARTITIONS: Final = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
TERMINAL: Final = frozenset({"READY", "FAILED", "QUARANTINED"})
CONCAT: Final = "sha256_member_digest_concat"
HEX64: Final = re.compile(r"[0-9a-f]{64}")
RUN: Final = r"[0-9a-f]{32}"


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


def files_below(folder: Path) -> list[str]:
    """Relative POSIX paths of everything that is not a directory, in byte order."""
    found = []
    for directory, _, names in os.walk(folder):
        base = os.path.relpath(directory, folder)
        found += [os.path.normpath(os.path.join(base, name)) for name in names]
    return sorted(found, key=os.fsencode)


def is_regular(path: Path) -> bool:
    return path.exists() and stat.S_ISREG(path.lstat().st_mode)


def bytes_of(root: Path, rel: str) -> bytes:
    """Bytes of one regular file under a root; ValueError when a link leads there or elsewhere."""
    path = root / rel
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), rel) or not is_regular(path):
        raise ValueError(f"{rel} is not a regular file under {root}")
    return path.read_bytes()


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
    if not HEX64.fullmatch(claimed):
        raise ValueError("the flag carries no lowercase sha256")
    return str(claimed)


def entries_of(data: bytes) -> list[Json]:
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
        return {sha(b"".join(bytes_of(root, f"{rel}/{name}") for name in inside))} if inside else set()
    data = bytes_of(root, rel)
    forms = {sha(data)}
    with suppress(ValueError):
        forms.add(sha(canonical(parse(data))))
    return forms


def gate_digest(root: Path, gate: Json, tokens: Mapping[str, str]) -> str:
    """The digest of a gate, recomputed from the engine run; ValueError, OSError or KeyError when it is no pass."""
    method, bundle = gate["verification_method"], render(gate["bundle_root_template"], tokens).rstrip("/")
    law, digest_field = method["kind"], method["digest_field"]
    claimed = _flag_digest(bytes_of(root, render(gate["passed_flag_path_template"], tokens)), digest_field)
    base = "" if method.get("path_base") == "run_root" else bundle + "/"
    index = render(gate.get("index_path_template") or "", tokens)
    entries = entries_of(bytes_of(root, index)) if index and (root / index).exists() else []
    excluded = {f"{bundle}/{name}" for name in method.get("exclude_filenames") or ()}
    kept = [entry for entry in entries if base + entry["path"] not in excluded]
    for entry in kept:
        path, listed = base + entry["path"], {entry[key] for key in (digest_field, "sha256_hex") if key in entry}
        forms = _member_forms(root, path) if law == CONCAT else {sha(bytes_of(root, path))}
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
        actual = sha(b"".join(bytes_of(root, path) for path in paths))
    if actual != claimed:
        raise ValueError(f"the flag claims {claimed}, the law gives {actual}")
    return actual


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
            if not key.startswith(f"{PREFIX}/.private/") and is_regular(paths.store / key)
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


def spool_files(w: Facts, folder: str) -> list[Path]:
    path = w.paths.spool / folder
    return [path / name for name in sorted(os.listdir(path))] if path.is_dir() else []
