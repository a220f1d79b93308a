#!/usr/bin/env python3
"""Write a sealed engine run to verify against, for any interface pack.

A sealed run is what the data engine leaves behind: for every gate that the chosen
outputs need, a validation bundle (members, index document, and last of all the
passed flag), then the outputs, then ``run_receipt.json``. With ``damage`` exactly
one thing in it is wrong.

This file is the independent second implementation of the hashing laws, so it
imports nothing from ``scenario_runner``. All bytes follow from ``data_seed`` and
the identity: the same call writes the same run. Use it as a command, or load the
file with importlib and call :func:`make_run`.

Units: every size is in bytes; digests are lowercase hex sha256; a "rel" path is a
POSIX path relative to the engine run root.
"""

import argparse
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

BUNDLE_LAW: Final = "sha256_bundle_digest"
INDEX_LAW: Final = "sha256_index_json_ascii_lex_raw_bytes"
CONCAT_LAW: Final = "sha256_member_digest_concat"
LAWS: Final = (BUNDLE_LAW, INDEX_LAW, CONCAT_LAW)

DEFAULT_PACK: Final = Path(__file__).resolve().parent.parent / "config" / "engine" / "interface_pack"
DEFAULT_OUTPUTS: Final = ("arrival_events_5B", "s2_flow_anchor_baseline_6B", "s3_flow_anchor_with_fraud_6B")
CATALOGUE_NAME: Final = "engine_outputs.catalogue.yaml"
GATE_MAP_NAME: Final = "engine_gates.map.yaml"
TOKENS: Final = frozenset({"manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id"})
WINDOW: Final = {
    "window_start_utc": "2026-01-01T00:00:00Z",
    "window_end_utc": "2026-01-02T00:00:00Z",
    "window_tz": "UTC",
}

DERIVED: Final = "derived"
CHUNK: Final = 1 << 20  # bytes written or hashed at a time
SHIFTS: Final = 1 << 16  # how far a chunk may start within the base block, bytes
SHAPES: Final = ("items", "entries", "list", "files", "members")  # of index documents, by gate position
MEMBER_NAMES: Final = (  # the byte order of these differs from an order by path component
    "checks/summary.bin",
    "checks-overview.bin",
    "Zeta_report.bin",
    "metrics.bin",
    "checks/deep/rng_accounting.bin",
    "s0_gate_receipt.bin",
)


class MakeRunError(ValueError):
    """The call cannot be done as asked; the message says what to change."""


# ---------------------------------------------------------------- the interface pack


@dataclass(frozen=True)
class Output:
    """One catalogue entry; ``template`` is stripped, ``gates`` are its read_requires_gates."""

    output_id: str
    template: str
    optional: bool
    gates: tuple[str, ...]

    @property
    def form(self) -> str:
        """``directory``, ``glob`` or ``file``."""
        if self.template.endswith("/"):
            return "directory"
        return "glob" if "*" in self.template else "file"

    @property
    def addressable(self) -> bool:
        """Whether a run request has a value for every token of the template."""
        return set(re.findall(r"\{([^{}]*)\}", self.template)) <= TOKENS


@dataclass(frozen=True)
class Gate:
    """One gate; its paths are templates as loaded, and rel paths once resolved.

    ``bundle`` ends in ``/``. ``position`` is the place in the gate map, from 0.
    """

    gate_id: str
    position: int
    law: str
    digest_field: str
    by_path: bool
    run_root: bool
    excludes: frozenset[str]
    flag: str
    index: str | None
    bundle: str
    authorizes: frozenset[str]
    upstream: tuple[str, ...]

    @property
    def member_base(self) -> str:
        """The rel path that listed member paths start from ("" = the run root)."""
        return "" if self.run_root else self.bundle

    def is_excluded(self, rel: str) -> bool:
        """Whether a file at the top of the bundle is left out of the digest."""
        return rel.startswith(self.bundle) and rel[len(self.bundle) :] in self.excludes


@dataclass(frozen=True)
class Pack:
    """The outputs and gates of an interface pack, by id, in file order."""

    outputs: Mapping[str, Output]
    gates: Mapping[str, Gate]


def load_pack(directory: str | Path, catalogue: str | Path | None, gate_map: str | Path | None) -> Pack:
    """Read the two files of a pack; a file given by itself wins over the directory's.

    Raises:
        MakeRunError: a file is missing, is not YAML, or lacks a field that is needed here.
    """
    paths = (
        Path(catalogue or Path(directory) / CATALOGUE_NAME),
        Path(gate_map or Path(directory) / GATE_MAP_NAME),
    )
    try:
        return parse_pack(*(path.read_text(encoding="utf-8") for path in paths))
    except OSError as error:
        raise MakeRunError(f"cannot read the interface pack: {error}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise MakeRunError(f"the pack {paths[0]} / {paths[1]} is malformed: {error!r}") from error


@lru_cache(maxsize=4)
def parse_pack(catalogue_text: str, gate_map_text: str) -> Pack:
    """The pack that the text of its two YAML documents describes."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue = yaml.load(catalogue_text, Loader=loader)
    gate_map = yaml.load(gate_map_text, Loader=loader)
    outputs = [parse_output(entry) for entry in catalogue["outputs"]]
    gates = [parse_gate(position, entry) for position, entry in enumerate(gate_map["gates"])]
    return Pack({o.output_id: o for o in outputs}, {g.gate_id: g for g in gates})


def parse_output(entry: Mapping[str, Any]) -> Output:
    """One entry of ``outputs``; keys not read here are ignored."""
    return Output(
        output_id=entry["output_id"],
        template=entry["path_template"].strip(),
        optional=entry.get("availability") == "optional",
        gates=tuple(entry.get("read_requires_gates") or ()),
    )


def parse_gate(position: int, entry: Mapping[str, Any]) -> Gate:
    """One entry of ``gates``; a law, ordering or path base that is not known is refused."""
    method = entry["verification_method"]
    law, ordering, base = method["kind"], method.get("ordering"), method.get("path_base")
    index = (entry.get("index_path_template") or "").strip() or None
    if law not in LAWS or base not in {None, "bundle_root", "run_root"}:
        raise MakeRunError(f"{entry['gate_id']}: law {law!r} with path_base {base!r} is not known")
    if law == INDEX_LAW and ordering not in {"ascii_lex", "index_order"}:
        raise MakeRunError(f"{entry['gate_id']}: ordering {ordering!r} is not known")
    if law != BUNDLE_LAW and index is None:
        raise MakeRunError(f"{entry['gate_id']}: law {law} needs an index_path_template")
    return Gate(
        gate_id=entry["gate_id"],
        position=position,
        law=law,
        digest_field=method["digest_field"],
        by_path=ordering == "ascii_lex",
        run_root=base == "run_root",
        excludes=frozenset(method.get("exclude_filenames") or ()),
        flag=entry["passed_flag_path_template"].strip(),
        index=index,
        bundle=entry["bundle_root_template"].strip().rstrip("/") + "/",
        authorizes=frozenset(entry.get("authorizes_outputs") or ()),
        upstream=tuple(entry.get("upstream_gate_dependencies") or ()),
    )


# ---------------------------------------------------------------- what the run holds


@dataclass(frozen=True)
class Identity:
    """The values that a run's path templates are filled with.

    ``engine_run_id`` is the engine's own id of the run; empty when it is the one that a request gives.
    """

    run_key: str
    seed: int
    manifest_fingerprint: str
    parameter_hash: str
    scenario_id: str
    engine_run_id: str = ""

    @property
    def run_id(self) -> str:
        """First 32 hex of sha256 over ``sr_run|`` and the run equivalence key."""
        return sha256_hex(f"sr_run|{self.run_key}".encode())[:32]

    def document(self) -> dict[str, object]:
        """The identity as the engine knows it, as the fields of a document."""
        return {
            "run_id": self.engine_run_id or self.run_id,
            "run_equivalence_key": self.run_key,
            "manifest_fingerprint": self.manifest_fingerprint,
            "parameter_hash": self.parameter_hash,
            "seed": self.seed,
            "scenario_id": self.scenario_id,
        }

    def fill(self, template: str) -> str:
        """The rel path that a template names, each token replaced once.

        Raises:
            MakeRunError: a token has no value, or the path would leave the run root.
        """
        values = {name: str(value) for name, value in self.document().items() if name in TOKENS}
        try:
            path = re.sub(r"\{([^{}]*)\}", lambda match: values[match[1]], template)
        except KeyError as error:
            raise MakeRunError(f"{template}: a run request has no value for {{{error.args[0]}}}") from error
        if path.startswith("/") or ".." in path.split("/") or "://" in path:
            raise MakeRunError(f"{template}: not a path below the engine run root")
        return path


@dataclass(frozen=True)
class Plan:
    """Chosen outputs with their rel paths, and the closure of their gates, resolved, in map order."""

    outputs: tuple[Output, ...]
    paths: Mapping[str, str]
    gates: tuple[Gate, ...]

    def bundle_of(self, output: Output) -> Gate | None:
        """The gate whose bundle holds this output, if one does."""
        path = self.paths[output.output_id]
        return next((gate for gate in self.gates if path.startswith(gate.bundle)), None)


def make_plan(pack: Pack, chosen: Sequence[Output], identity: Identity) -> Plan:
    """Resolve the outputs and every gate that they need."""
    wanted = {output.output_id for output in chosen}
    todo = {gate_id for output in chosen for gate_id in output.gates}
    todo |= {gate.gate_id for gate in pack.gates.values() if gate.authorizes & wanted}
    closed: set[str] = set()
    while todo:
        gate_id = todo.pop()
        if gate_id not in pack.gates:
            raise MakeRunError(f"the gate map has no gate {gate_id}")
        closed.add(gate_id)
        todo |= set(pack.gates[gate_id].upstream) - closed
    gates = tuple(resolve_gate(gate, identity) for gate in pack.gates.values() if gate.gate_id in closed)
    return Plan(tuple(chosen), {o.output_id: identity.fill(o.template) for o in chosen}, gates)


def resolve_gate(gate: Gate, identity: Identity) -> Gate:
    """The gate with its path templates filled in."""
    index = identity.fill(gate.index) if gate.index else None
    return replace(gate, flag=identity.fill(gate.flag), bundle=identity.fill(gate.bundle), index=index)


def choose_outputs(pack: Pack, outputs: Sequence[str] | None, *, all_outputs: bool) -> list[Output]:
    """The outputs asked for, without repeats, in the order given.

    With ``all_outputs``: every addressable one that is not inside a gate's bundle.
    """
    if all_outputs:
        bundles = tuple(gate.bundle for gate in pack.gates.values())
        return [o for o in pack.outputs.values() if o.addressable and not o.template.startswith(bundles)]
    unknown = [name for name in outputs or DEFAULT_OUTPUTS if name not in pack.outputs]
    if unknown:
        raise MakeRunError(f"the catalogue has no output {', '.join(unknown)}; name others with --outputs")
    return [pack.outputs[name] for name in dict.fromkeys(outputs or DEFAULT_OUTPUTS)]


# ---------------------------------------------------------------- writing bytes


def sha256_hex(data: bytes) -> str:
    """Lowercase hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=2)
def base_block(data_seed: int) -> bytes:
    """The random block that all payload is cut from, made once per data seed."""
    return random.Random(data_seed).randbytes(CHUNK + SHIFTS)


def payload(data_seed: int, label: str, size: int) -> Iterator[bytes | memoryview]:
    """``size`` bytes that follow from the seed and the label, in chunks of at most 1 MiB.

    Each chunk is a 64-byte header of its own and a cut of the base block.
    """
    block = memoryview(base_block(data_seed))
    for start in range(0, size, CHUNK):
        header = sha256_hex(f"{data_seed}|{label}|{start}".encode()).encode()
        take, shift = min(CHUNK, size - start), int(header[:4], 16)
        yield header[:take]
        yield block[shift + 64 : shift + max(take, 64)]


@dataclass
class World:
    """A run directory under construction: where it is, how much goes in, what is there."""

    root: Path
    data_seed: int
    members: int
    member_bytes: int
    parts: int
    part_bytes: int
    sizes: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a count or size below 1."""
        for name in ("members", "member_bytes", "parts", "part_bytes"):
            if getattr(self, name) < 1:
                raise MakeRunError(f"--{name.replace('_', '-')} must be at least 1")

    def write(self, rel: str, chunks: Iterable[bytes | memoryview]) -> Path:
        """Write one file and note its size."""
        path = self.root / rel
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            self.sizes[rel] = sum(map(file.write, chunks))
        return path

    def write_payload(self, rel: str, size: int) -> Path:
        """Write one file of generated bytes."""
        return self.write(rel, payload(self.data_seed, rel, size))

    def write_json(self, rel: str, document: object) -> Path:
        """Write one pretty-printed JSON document."""
        return self.write(rel, [json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"])


def output_files(rel: str, parts: int) -> list[str]:
    """The rel paths of the files that an output consists of."""
    if rel.endswith("/"):
        return [f"{rel}part-{number:05d}.bin" for number in range(parts)]
    if "*" not in rel:
        return [rel]
    return [rel.replace("*", f"{number:05d}", 1).replace("*", "0") for number in range(parts)]


# ---------------------------------------------------------------- the hashing laws


def file_chunks(paths: Iterable[Path]) -> Iterator[bytes]:
    """The bytes of files one after the other, at most 1 MiB at a time."""
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def digest_of(paths: Iterable[Path]) -> str:
    """Hex sha256 over the raw bytes of files, one after the other."""
    state = hashlib.sha256()
    for chunk in file_chunks(paths):
        state.update(chunk)
    return state.hexdigest()


def files_below(directory: Path) -> list[Path]:
    """Every regular file under a directory, in byte order of its relative POSIX path."""
    found = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(directory).as_posix()))


def index_entries(document: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (any JSON document)
    """The list of entries within an index document of any shape; changing it changes the document."""
    if isinstance(document, dict):
        document = next(document[shape] for shape in SHAPES if shape in document)
    entries: list[dict[str, Any]] = document
    return entries


def law_digest(root: Path, gate: Gate) -> str:
    """The digest that the gate's law gives over the bundle as it lies under ``root``.

    It believes the index: no listed digest is checked, entries without a path or
    digest are skipped. Damaged bundles are sealed again with it, so that only a
    reader who checks more than the flag will notice.

    Raises:
        OSError: a listed member cannot be read.
    """
    if gate.law == BUNDLE_LAW:
        files = files_below(root / gate.bundle)
        return digest_of(p for p in files if not gate.is_excluded(p.relative_to(root).as_posix()))
    entries = index_entries(json.loads((root / str(gate.index)).read_bytes()))
    if gate.law == CONCAT_LAW:
        return sha256_hex("".join(e[gate.digest_field] for e in entries if gate.digest_field in e).encode())
    paths = [entry["path"] for entry in entries if "path" in entry]
    if gate.by_path:
        paths.sort(key=os.fsencode)
    kept = (path for path in paths if not gate.is_excluded(gate.member_base + path))
    return digest_of(root / gate.member_base / path for path in kept)


# ---------------------------------------------------------------- gate bundles


def seal_gate(world: World, gate: Gate, extras: Sequence[str]) -> None:
    """Write one gate's bundle: members, index document, and the passed flag last.

    Args:
        world: where to write.
        gate: a resolved gate.
        extras: rel paths of output files that lie in the bundle; they become members.
    """
    rows = write_members(world, gate, extras)
    if gate.index is not None:
        world.write_json(gate.index, index_document(gate, rows))
    world.write(gate.flag, [flag_bytes(gate, {gate.digest_field: law_digest(world.root, gate)})])


def member_directory(gate: Gate) -> str:
    """Where members are put: the bundle, or beside it when paths start from the run root."""
    if not gate.run_root:
        return gate.bundle
    beside = gate.bundle.replace("/validation/", "/evidence/", 1)
    return beside if beside != gate.bundle else f"evidence/{gate.gate_id}/"


def write_members(world: World, gate: Gate, extras: Sequence[str]) -> list[dict[str, object]]:
    """Write the members of a bundle; returns their index rows, not in order of path."""
    count = max(world.members, 3) if gate.law == CONCAT_LAW else world.members
    name = gate.digest_field if gate.law == CONCAT_LAW or not gate.position % 3 else "sha256_hex"
    name = "sha256_hex" if gate.law == BUNDLE_LAW else name
    rows: list[dict[str, object]] = []
    for number in range(count):
        write = write_formed_member if gate.law == CONCAT_LAW else write_raw_member
        rel, digest = write(world, member_directory(gate), number)
        rows.append({"path": rel[len(gate.member_base) :], name: digest})
    for rel in extras:
        digest = digest_of([world.write_payload(rel, world.part_bytes)])
        rows.append({"path": rel[len(gate.member_base) :], name: digest})
    return rows


def write_raw_member(world: World, directory: str, number: int) -> tuple[str, str]:
    """Write one plain file; returns its rel path and digest."""
    known = number < len(MEMBER_NAMES)
    rel = directory + (MEMBER_NAMES[number] if known else f"extra/member_{number:05d}.bin")
    return rel, digest_of([world.write_payload(rel, world.member_bytes)])


def write_formed_member(world: World, directory: str, number: int) -> tuple[str, str]:
    """Write one member whose digest is over raw bytes, canonical JSON or a directory, in turn."""
    if number % 3 == 0:
        rel = f"{directory}raw/member_{number:05d}.bin"
        return rel, digest_of([world.write_payload(rel, world.member_bytes)])
    if number % 3 == 1:
        rel = f"{directory}reports/member_{number:05d}.json"
        filler = b"".join(payload(world.data_seed, rel, (world.member_bytes + 1) // 2)).hex()
        report = {"status": "PASS", "number": number, "max": 2**64 - 1, "note": "gr\u00fcn", "filler": filler}
        world.write_json(rel, report)
        canonical = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return rel, sha256_hex(canonical.encode())
    rel = f"{directory}tables/member_{number:05d}"
    for name in ("b.bin", "a/z.bin", "a-1.bin"):
        world.write_payload(f"{rel}/{name}", max(1, world.member_bytes // 3))
    return rel, digest_of(files_below(world.root / rel))


def index_document(gate: Gate, rows: list[dict[str, object]]) -> object:
    """The index document, in the shape that goes with the gate's position.

    Where the index law leaves out the index file itself, the index lists itself
    too (it cannot know its own digest), as real bundles do.
    """
    if gate.law == INDEX_LAW and gate.is_excluded(str(gate.index)):
        rows = [*rows, {"path": str(gate.index)[len(gate.member_base) :]}]
    shape = SHAPES[gate.position % len(SHAPES)]
    return rows if shape == "list" else {"gate_id": gate.gate_id, shape: rows}


def flag_bytes(gate: Gate, fields: Mapping[str, str]) -> bytes:
    """The text of a passed flag: ``field = hex`` lines at even positions, JSON at odd ones."""
    if gate.position % 2:
        return json.dumps(dict(fields)).encode() + b"\n"
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()


# ---------------------------------------------------------------- the whole run


def seal_run(world: World, plan: Plan, identity: Identity, *, skip_optional: bool) -> dict[str, list[str]]:
    """Write bundles, outputs and the receipt; returns the rel files of each output written.

    Outputs inside a bundle are members of it and are not in the result.
    """
    kept = [output for output in plan.outputs if not (skip_optional and output.optional)]
    files = {o.output_id: output_files(plan.paths[o.output_id], world.parts) for o in kept}
    for gate in plan.gates:
        own = {gate.bundle, gate.flag, gate.index}
        inside = [o for o in kept if plan.bundle_of(o) is gate and plan.paths[o.output_id] not in own]
        seal_gate(world, gate, [rel for output in inside for rel in files[output.output_id]])
    written = {o.output_id: files[o.output_id] for o in kept if plan.bundle_of(o) is None}
    for rel in (rel for rels in written.values() for rel in rels):
        world.write_payload(rel, world.part_bytes)
    receipt = identity.document() | {
        "written_by": "make_engine_run",
        "data_seed": world.data_seed,
        "gates": [gate.gate_id for gate in plan.gates],
        "outputs": sorted(files),
    }
    world.write_json("run_receipt.json", receipt)
    return written


def run_request(identity: Identity, plan: Plan, root: Path) -> dict[str, object]:
    """A run request that asks for this run's outputs and never invokes an engine."""
    return {
        "run_equivalence_key": identity.run_key,
        "manifest_fingerprint": identity.manifest_fingerprint,
        "parameter_hash": identity.parameter_hash,
        "seed": identity.seed,
        "scenario": {"scenario_id": identity.scenario_id},
        "window": WINDOW,
        "requested_strategy": "FORCE_REUSE",
        "output_ids": [output.output_id for output in plan.outputs],
        "engine_run_root": str(root),
        "invoker": "make_engine_run",
    }


# ---------------------------------------------------------------- damage


@dataclass(frozen=True)
class GateScene:
    """One sealed gate on which a damage works; ``digest`` is what its flag says."""

    root: Path
    gate: Gate
    digest: str

    @property
    def flag(self) -> Path:
        """The passed flag."""
        return self.root / self.gate.flag

    @property
    def bundle(self) -> Path:
        """The bundle directory."""
        return self.root / self.gate.bundle

    @property
    def index(self) -> Path:
        """The index document."""
        if self.gate.index is None:
            raise MakeRunError(f"{self.gate.gate_id} has no index; name another gate with --damage-target")
        return self.root / self.gate.index

    @property
    def base(self) -> Path:
        """The directory that listed paths start from."""
        return self.root / self.gate.member_base

    @property
    def member(self) -> Path:
        """The first member: the first that the index lists, else the first of the bundle."""
        if self.gate.index is None:
            return next(path for path in files_below(self.bundle) if path != self.flag)
        return self.base / str(index_entries(json.loads(self.index.read_bytes()))[0]["path"])

    def set_flag(self, digest: str, name: str | None = None) -> None:
        """Write the flag again, in its own form."""
        self.flag.write_bytes(flag_bytes(self.gate, {name or self.gate.digest_field: digest}))

    def reseal(self) -> None:
        """Make the flag what a trusting reader now computes; if none can, it stays as sealed."""
        with suppress(FileNotFoundError):
            self.set_flag(law_digest(self.root, self.gate))

    def edit_text(self, change: Callable[[str], str]) -> None:
        """Change the text of the index; only a flag that is over the index itself follows."""
        self.index.write_text(change(self.index.read_text(encoding="utf-8")), encoding="utf-8")
        if self.gate.law == BUNDLE_LAW:
            self.reseal()

    def edit(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        """Change the entries of the index, and let the flag follow."""
        document = json.loads(self.index.read_bytes())
        change(index_entries(document))
        self.index.write_text(json.dumps(document, indent=2), encoding="utf-8")
        self.reseal()

    def edit_first(self, insert: str) -> None:
        """Insert text before the first path of the index."""
        self.edit_text(lambda text: text.replace('"path":', f'{insert}"path":', 1))

    def prefix_path(self, prefix: str) -> None:
        """Put a prefix before the first listed path, and let the flag follow."""
        self.edit(lambda entries: entries[0].update(path=prefix + entries[0]["path"]))


@dataclass(frozen=True)
class OutputScene:
    """One written output on which a damage works; ``outside`` is a directory beside the run root."""

    root: Path
    files: list[Path]
    outside: Path


def instead(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in place of a file."""
    path.unlink()
    make(path)


def park(root: Path, path: Path) -> None:
    """Move a file elsewhere under the run root and leave a relative symlink to it."""
    parked = root / "parked" / path.name
    parked.parent.mkdir()
    path.rename(parked)
    path.symlink_to(os.path.relpath(parked, path.parent))


def flip_first_byte(path: Path) -> None:
    """Change one byte, keep the size."""
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]))


def one_bit_off(digest: str) -> str:
    """The digest with one bit changed."""
    return digest[:-1] + format(int(digest[-1], 16) ^ 1, "x")


def spoil_listed_digest(entries: list[dict[str, Any]]) -> None:
    """Make the digest of the first entry wrong."""
    name = next(name for name in entries[0] if name != "path")
    entries[0][name] = one_bit_off(entries[0][name])


def list_a_million(scene: GateScene) -> None:
    """List a million absent members after the right ones."""
    document = json.loads(scene.index.read_bytes())
    tail = "]" if isinstance(document, list) else "]}"
    with scene.index.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document).removesuffix(tail))
        file.writelines(f',{{"path":"many/{number:07d}.bin"}}\n' for number in range(1_000_000))
        file.write(tail)
    scene.edit_text(lambda text: text)


def tamper_and_reseal(scene: GateScene) -> None:
    """Change a member and let the flag follow."""
    flip_first_byte(scene.member)
    scene.reseal()


def remove_index(scene: GateScene) -> None:
    """Remove the index and let a flag that is over the bundle follow."""
    scene.index.unlink()
    scene.reseal()


def hold_in_directory(member: Path) -> None:
    """Put a directory of the same name around a file."""
    held = member.with_name(member.name + ".held")
    member.rename(held)
    member.mkdir()
    held.rename(member / member.name)


def add_nested_flag(scene: GateScene) -> None:
    """Add a payload with the flag's name in a subdirectory."""
    nested = scene.bundle / "sub" / scene.flag.name
    nested.parent.mkdir(exist_ok=True)
    nested.write_bytes(b"payload that no law may skip\n")


def empty_bundle(scene: GateScene) -> None:
    """Leave nothing of the bundle but a flag over nothing."""
    shutil.rmtree(scene.bundle)
    scene.bundle.mkdir()
    scene.reseal()


def shift_bytes(scene: GateScene) -> None:
    """Move bytes from the start of one member to the end of the one before it."""
    spared = {scene.flag, scene.root / (scene.gate.index or scene.gate.flag)}
    pairs = pairwise(files_below(scene.bundle))
    pair = next((pair for pair in pairs if spared.isdisjoint(pair)), None)
    if pair is None:
        raise MakeRunError("concat_shift needs two members side by side; ask for --members 2 or more")
    before, after = (path.read_bytes() for path in pair)
    cut = max(1, min(8, len(after) // 2))
    pair[0].write_bytes(before + after[:cut])
    pair[1].write_bytes(after[cut:])


def remove_output(scene: OutputScene, *, directories: bool) -> None:
    """Remove the files of an output, and with them the directories that this leaves empty."""
    for path in scene.files:
        path.unlink()
    empty = scene.files[0].parent
    while directories and empty != scene.root and not any(empty.iterdir()):
        empty.rmdir()
        empty = empty.parent


def move_outside(scene: OutputScene) -> None:
    """Move the directory of the files out of the run root and leave a relative symlink to it."""
    parent = scene.files[0].parent
    if parent == scene.root:
        raise MakeRunError("this output lies at the run root itself; name another with --damage-target")
    scene.outside.mkdir()
    target = parent.rename(scene.outside / parent.name)
    parent.symlink_to(os.path.relpath(target, parent.parent))


DAMAGE_TABLE: Final = """\
flag_missing                  The passed flag is absent.
flag_empty                    The passed flag has no bytes.
flag_binary                   The passed flag is 256 bytes that are not text.
flag_huge                     The right passed flag, followed by blanks up to 8 MiB.
flag_wrong_field              The right digest stands under another field name.
flag_upper_case               The right digest is written in upper case.
flag_bit_off                  The digest in the flag is one bit off.
flag_symlink                  The flag is a symlink to the right flag, elsewhere under the run root.
flag_directory                A directory stands in place of the passed flag.
flag_fifo                     A FIFO without a writer stands in place of the passed flag.
flag_says_fail                A JSON flag with the right digest also carries "status": "FAIL".
index_missing                 The index document is absent.
index_empty_items             The index lists nothing; the flag agrees: the digest of nothing.
index_not_json                The index is cut off in the middle of its JSON.
index_duplicate_key           An entry has the key path twice; the last one is right.
index_item_without_path       One more entry has a digest but no path.
index_absolute_path           A member is listed by its absolute path; the flag agrees.
index_parent_path             A member is listed by a path with `..` to the right file; the flag agrees.
index_dot_path                A member is listed by a path that starts with `./`; the flag agrees.
index_duplicate_path          A member is listed twice; the flag is over both mentions.
index_missing_member          The index lists one more member, which is absent.
index_huge                    The index is a sparse file of 50 GB that starts as the right one.
index_million_entries         The index lists a million members more, which are absent.
index_deep_nesting            An entry holds arrays nested 100,000 deep.
index_wrong_listed_digest     One digest that the index lists is wrong; the flag agrees.
member_tampered               A member's bytes changed, its size did not; nothing else follows.
member_tampered_flag_follows  A member's bytes changed, the flag follows, the listed digest is stale.
member_missing                A member is absent.
member_symlink                A member is a symlink to the right bytes, elsewhere under the run root.
member_is_directory           A directory holding the right file stands in place of a member (index law).
member_extra_nested_flag      A payload named like the flag was added in a subdirectory (bundle law).
bundle_empty                  Only the flag is left, and it is the digest of nothing (bundle law).
concat_shift                  Bytes moved from the start of a member to the end of the one before it:
                              the flag agrees, two listed digests do not (bundle law).
output_missing                The output is absent, with the directories that it alone was in.
output_empty_directory        The output's directory is there, with nothing of the output in it.
output_part_is_directory      One part is an empty directory with the name of a part file.
output_part_symlink           One part is a symlink to the right bytes, elsewhere under the run root.
output_part_fifo              One part is a FIFO without a writer.
output_root_symlink           The directory of the output's files is a symlink out of the run root.
root_missing                  The whole run directory is absent.
"""
DAMAGE_KINDS: Final = tuple(re.findall(r"^[a-z_]+", DAMAGE_TABLE, re.MULTILINE))

GATE_DAMAGES: Final[Mapping[str, Callable[[GateScene], object]]] = {
    "flag_missing": lambda s: s.flag.unlink(),
    "flag_empty": lambda s: s.flag.write_bytes(b""),
    "flag_binary": lambda s: s.flag.write_bytes(bytes(range(255, -1, -1))),
    "flag_huge": lambda s: s.flag.write_bytes(s.flag.read_bytes().ljust(8 << 20)),
    "flag_wrong_field": lambda s: s.set_flag(s.digest, "digest_of_something_else"),
    "flag_upper_case": lambda s: s.set_flag(s.digest.upper()),
    "flag_bit_off": lambda s: s.set_flag(one_bit_off(s.digest)),
    "flag_symlink": lambda s: park(s.root, s.flag),
    "flag_directory": lambda s: instead(s.flag, os.mkdir),
    "flag_fifo": lambda s: instead(s.flag, os.mkfifo),
    "flag_says_fail": lambda s: s.flag.write_text(json.dumps({s.gate.digest_field: s.digest, "status": "FAIL"})),
    "index_missing": remove_index,
    "index_empty_items": lambda s: s.edit(lambda entries: entries.clear()),
    "index_not_json": lambda s: s.edit_text(lambda text: text[: len(text) // 2]),
    "index_duplicate_key": lambda s: s.edit_first('"path": "nowhere.bin", '),
    "index_item_without_path": lambda s: s.edit(
        lambda entries: entries.append({key: entries[0][key] for key in entries[0] if key != "path"})
    ),
    "index_absolute_path": lambda s: s.prefix_path(f"{s.base}/"),
    "index_parent_path": lambda s: s.prefix_path(f"../{s.base.name}/"),
    "index_dot_path": lambda s: s.prefix_path("./"),
    "index_duplicate_path": lambda s: s.edit(lambda entries: entries.insert(1, dict(entries[0]))),
    "index_missing_member": lambda s: s.edit(lambda entries: entries.append({**entries[0], "path": "absent.bin"})),
    "index_huge": lambda s: os.truncate(s.index, 50 * 10**9),
    "index_million_entries": list_a_million,
    "index_deep_nesting": lambda s: s.edit_first(f'"note": {"[" * 100_000}{"]" * 100_000}, '),
    "index_wrong_listed_digest": lambda s: s.edit(spoil_listed_digest),
    "member_tampered": lambda s: flip_first_byte(s.member),
    "member_tampered_flag_follows": tamper_and_reseal,
    "member_missing": lambda s: s.member.unlink(),
    "member_symlink": lambda s: park(s.root, s.member),
    "member_is_directory": lambda s: hold_in_directory(s.member),
    "member_extra_nested_flag": add_nested_flag,
    "bundle_empty": empty_bundle,
    "concat_shift": shift_bytes,
}
OUTPUT_DAMAGES: Final[Mapping[str, Callable[[OutputScene], object]]] = {
    "output_missing": lambda s: remove_output(s, directories=True),
    "output_empty_directory": lambda s: remove_output(s, directories=False),
    "output_part_is_directory": lambda s: instead(s.files[-1], os.mkdir),
    "output_part_symlink": lambda s: park(s.root, s.files[-1]),
    "output_part_fifo": lambda s: instead(s.files[-1], os.mkfifo),
    "output_root_symlink": move_outside,
}
TARGET_LAWS: Final[Mapping[str, tuple[str, ...]]] = {  # where a kind applies, best first; others: any gate
    **dict.fromkeys((kind for kind in GATE_DAMAGES if kind.startswith("index_")), (INDEX_LAW, CONCAT_LAW, BUNDLE_LAW)),
    "member_tampered_flag_follows": (BUNDLE_LAW, INDEX_LAW),
    "member_is_directory": (INDEX_LAW,),
    **dict.fromkeys(("member_extra_nested_flag", "bundle_empty", "concat_shift"), (BUNDLE_LAW,)),
}
TARGET_FORMS: Final[Mapping[str, tuple[str, ...]]] = {  # the same for outputs; others: any output
    **dict.fromkeys(("output_empty_directory", "output_part_is_directory"), ("glob", "directory")),
}


def choose_target(kind: str | None, target: str | None, plan: Plan, *, skip_optional: bool) -> str | None:
    """The id of the gate or output that a damage goes to; None when it needs none.

    Raises:
        MakeRunError: the kind is unknown, or the target is not one that it applies to.
    """
    if kind is None or kind == "root_missing":
        if target is not None:
            raise MakeRunError("--damage-target goes with a --damage that has a target")
        return None
    if kind not in DAMAGE_KINDS:
        raise MakeRunError(f"no damage {kind!r}; the kinds are {' '.join(DAMAGE_KINDS)}")
    able = target_gates(kind, plan) if kind in GATE_DAMAGES else target_outputs(kind, plan)
    if skip_optional:
        able = [name for name in able if name not in {o.output_id for o in plan.outputs if o.optional}]
    if target not in able and (target or not able):
        raise MakeRunError(f"{kind} cannot go to {target or 'this run'}, only to: {' '.join(able) or 'none'}")
    return target or able[0]


def target_gates(kind: str, plan: Plan) -> list[str]:
    """The gates that a damage applies to, the default first (best law, then map order)."""
    laws = TARGET_LAWS.get(kind)
    able = [gate for gate in plan.gates if not laws or gate.law in laws]
    return [gate.gate_id for gate in sorted(able, key=lambda gate: laws.index(gate.law) if laws else 0)]


def target_outputs(kind: str, plan: Plan) -> list[str]:
    """The outputs that a damage applies to, the default first (required ones, then by form)."""
    forms = TARGET_FORMS.get(kind, ("glob", "directory", "file"))
    able = [output for output in plan.outputs if output.form in forms and plan.bundle_of(output) is None]
    return [o.output_id for o in sorted(able, key=lambda o: (o.optional, forms.index(o.form)))]


def do_damage(kind: str, plan: Plan, target: str, scene: OutputScene) -> None:
    """Make one thing wrong in a sealed run: in the output of the scene, or in the gate ``target``."""
    if kind in OUTPUT_DAMAGES:
        OUTPUT_DAMAGES[kind](scene)
        return
    gate = next(gate for gate in plan.gates if gate.gate_id == target)
    GATE_DAMAGES[kind](GateScene(scene.root, gate, law_digest(scene.root, gate)))


# ---------------------------------------------------------------- the function API


def make_run(
    *,
    pack: str | Path = DEFAULT_PACK,
    catalogue: str | Path | None = None,
    gate_map: str | Path | None = None,
    runs: str | Path = "runs",
    number: int = 1,
    run_key: str = "local-demo-1",
    seed: int = 7,
    manifest_fingerprint: str | None = None,
    parameter_hash: str | None = None,
    scenario_id: str = "baseline_v1",
    engine_run_id: str | None = None,
    outputs: Sequence[str] | None = None,
    all_outputs: bool = False,
    skip_optional: bool = False,
    members: int = 6,
    member_bytes: int = 512,
    parts: int = 3,
    part_bytes: int = 4096,
    data_seed: int = 1,
    damage: str | None = None,
    damage_target: str | None = None,
    request: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write one sealed engine run, whole or not at all, and say what it is.

    The arguments are the options of the command, under the same names: see ``OPTIONS``
    and ``SWITCHES``. ``outputs`` is a sequence of ids.

    Returns:
        ``{run_id, engine_run_id, run_equivalence_key, engine_run_root (absolute), manifest_fingerprint,
        parameter_hash, seed, scenario_id, output_ids, gate_ids, damage, damage_target,
        bytes, files, request}``; bytes and files count the run as sealed.

    Raises:
        MakeRunError: a value, an id or a damage does not fit, or the run is there already.
    """
    identity = Identity(
        run_key=run_key,
        seed=seed,
        manifest_fingerprint=manifest_fingerprint or sha256_hex(f"manifest_fingerprint|{data_seed}".encode()),
        parameter_hash=parameter_hash or sha256_hex(f"parameter_hash|{data_seed}".encode()),
        scenario_id=scenario_id,
        engine_run_id=engine_run_id or "",
    )
    if engine_run_id == DERIVED:
        identity = replace(identity, engine_run_id=sha256_hex(f"engine_run|{data_seed}|{run_key}".encode())[:32])
    check_identity(identity)
    world = World(Path(), data_seed, members, member_bytes, parts, part_bytes)
    world.check()
    loaded = load_pack(pack, catalogue, gate_map)
    plan = make_plan(loaded, choose_outputs(loaded, outputs, all_outputs=all_outputs), identity)
    target = choose_target(damage, damage_target, plan, skip_optional=skip_optional)

    root = Path(runs).resolve() / f"local_full_run-{number}" / (identity.engine_run_id or identity.run_id)
    outside, world.root = root.with_name(f"{root.name}.outside"), root.with_name(f".{root.name}.making")
    clear_place(root, outside, world.root, force=force)
    written = seal_run(world, plan, identity, skip_optional=skip_optional)
    if damage == "root_missing":
        shutil.rmtree(world.root)
    else:
        world.root.rename(root)
    if damage is not None and target is not None:
        do_damage(damage, plan, target, OutputScene(root, [root / rel for rel in written.get(target, [])], outside))
    if request is not None:
        write_request(Path(request), run_request(identity, plan, root))
    return identity.document() | {
        "run_id": identity.run_id,
        "engine_run_id": identity.engine_run_id or identity.run_id,
        "engine_run_root": str(root),
        "output_ids": [output.output_id for output in plan.outputs],
        "gate_ids": [gate.gate_id for gate in plan.gates],
        "damage": damage,
        "damage_target": target,
        "bytes": sum(world.sizes.values()),
        "files": len(world.sizes),
        "request": None if request is None else str(request),
    }


def check_identity(identity: Identity) -> None:
    """Refuse an identity that no run request could carry."""
    for name in ("manifest_fingerprint", "parameter_hash"):
        if not re.fullmatch("[0-9a-f]{64}", getattr(identity, name)):
            raise MakeRunError(f"{name} must be exactly 64 lowercase hex characters")
    if not re.fullmatch("[0-9a-f]{32}|", identity.engine_run_id):
        raise MakeRunError(f"engine_run_id must be exactly 32 lowercase hex characters, or {DERIVED!r}")
    if not 0 <= identity.seed < 2**64:
        raise MakeRunError("seed must be an integer from 0 to 2^64-1")
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.:-]*", identity.scenario_id):
        raise MakeRunError("scenario_id must be letters, digits, `_`, `-`, `.` and `:`")
    if not identity.run_key:
        raise MakeRunError("the run key must not be empty")


def clear_place(root: Path, outside: Path, making: Path, *, force: bool) -> None:
    """Make room for a run; one that is there already goes only by force."""
    if not force and (root.exists() or root.is_symlink()):
        raise MakeRunError(f"{root} exists; give --force to replace it, or another --number or --run-key")
    for path in (root, outside, making):
        if path.is_symlink() or path.exists():
            shutil.rmtree(path)
    making.mkdir(parents=True)


def write_request(path: Path, document: Mapping[str, object]) -> None:
    """Write the run request as one JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- the command

DESCRIPTION: Final = """\
Write a sealed engine run: for every gate that the chosen outputs need, a validation
bundle with its index and passed flag, then the outputs, then run_receipt.json. It
goes to RUNS/local_full_run-N/RUN_ID/, where RUN_ID is the first 32 hex of
sha256("sr_run|" + run key), or the engine's own id: --engine-run-id. The same
options write the same bytes.

  make_engine_run.py --request request.json           a good run, and a request for it
  make_engine_run.py --part-bytes 230M --members 20   about 2 GB of outputs
  make_engine_run.py --damage flag_bit_off --damage-target gate.layer1.3A.validation
"""


EPILOG: Final = f"""\
Damage kinds. One thing is wrong in an otherwise sealed run. Where a reader who trusts a
changed index can still compute a digest, the flag agrees with it: only a closer look
helps. Without --damage-target the damage goes to the first gate, or required output,
that it applies to; index damage prefers a gate whose law reads the index.

{DAMAGE_TABLE}"""


def parse_size(text: str) -> int:
    """A size in bytes from text such as ``4096``, ``64K``, ``230M`` or ``2G`` (powers of 1024)."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 64K, 230M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def split_ids(text: str) -> list[str]:
    """Ids separated by commas."""
    return [name for name in text.split(",") if name]


Option = tuple[str, Callable[[str], object], str]  # metavar, type, help

OPTIONS: Final[Mapping[str, Option]] = {
    "pack": ("DIR", str, "interface pack (default: config/engine/interface_pack of this checkout)"),
    "catalogue": ("FILE", str, f"instead of {CATALOGUE_NAME} of the pack"),
    "gate_map": ("FILE", str, f"instead of {GATE_MAP_NAME} of the pack"),
    "runs": ("DIR", str, "where runs are kept (default %(default)s)"),
    "number": ("N", int, "the N of local_full_run-N (default %(default)s)"),
    "run_key": ("KEY", str, "run equivalence key (default %(default)s)"),
    "seed": ("UINT64", int, "seed of the run (default %(default)s)"),
    "manifest_fingerprint": ("HEX64", str, "default: derived from --data-seed"),
    "parameter_hash": ("HEX64", str, "default: derived from --data-seed"),
    "scenario_id": ("ID", str, "scenario (default %(default)s)"),
    "engine_run_id": (
        "HEX32",
        str,
        f"the engine's own id, in its receipt and paths; {DERIVED}: one of its own (default: the run's id)",
    ),
    "outputs": ("ID[,ID...]", split_ids, f"outputs to write (default {','.join(DEFAULT_OUTPUTS)})"),
    "members": ("N", int, "members per bundle, at least 3 where they differ in form (default %(default)s)"),
    "member_bytes": (
        "SIZE",
        parse_size,
        "bytes per member (default %(default)s); K, M, G are powers of 1024",
    ),
    "parts": ("N", int, "files per directory or glob output (default %(default)s)"),
    "part_bytes": ("SIZE", parse_size, "bytes per output file (default %(default)s)"),
    "data_seed": ("N", int, "what all bytes follow from (default %(default)s)"),
    "damage": ("KIND", str, "make one thing wrong: one of the kinds below"),
    "damage_target": ("ID", str, "gate or output that the damage goes to"),
    "request": ("FILE", str, "also write a run request for these outputs, ready to submit"),
}
SWITCHES: Final[Mapping[str, str]] = {
    "all_outputs": "all outputs that a request can address and that are not inside a gate's bundle",
    "skip_optional": "leave optional outputs unwritten (a request still asks for them)",
    "force": "replace a run that is already there",
    "json": "print one JSON object instead of lines",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line; the defaults are those of :func:`make_run`."""
    parser = argparse.ArgumentParser(
        prog="make_engine_run.py",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = inspect.signature(make_run).parameters
    for name, (metavar, kind, text) in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, metavar=metavar, type=kind, default=defaults[name].default, help=text)
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    return parser


def print_result(result: Mapping[str, Any]) -> None:
    """The result as lines for people; lists become counts with their ids."""
    for name, value in result.items():
        if isinstance(value, list):
            print(f"{name}: {len(value)}", *(f"  {item}" for item in value), sep="\n")
        elif value is not None:
            print(f"{name}: {value:,}" if name in {"bytes", "files"} else f"{name}: {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 when the run is written, 2 for a usage error, 5 when the disk says no."""
    options = vars(build_parser().parse_args(argv))
    as_json = options.pop("json")
    try:
        result = make_run(**options)
    except (MakeRunError, OSError) as error:
        print(f"make_engine_run.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, MakeRunError) else 5
    if as_json:
        print(json.dumps(result))
    else:
        print_result(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
