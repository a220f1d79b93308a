"""Reading what the hashing laws ask for: the files of each gate, in as few passes as possible."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from scenario_runner.artifacts.base import (
    MAX_DOCUMENT_BYTES,
    MAX_FLAG_BYTES,
    FileDigest,
    Kind,
    RunRoot,
    SequenceDigest,
)
from scenario_runner.contracts.canonical import parse_json, sha256_hex
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    Refusal,
)
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.run_receipt import RUN_RECEIPT
from scenario_runner.evidence.bounds import check_extent
from scenario_runner.evidence.parse_turns import drop_frames, parse_in_turn
from scenario_runner.gates.laws import (
    CANONICAL,
    DIRECTORY,
    RAW,
    GatePaths,
    Measurement,
    Members,
    gate_paths,
    members_of,
)
from scenario_runner.interface_pack.model import GateSpec, Law

#: Members that are fetched ahead of being parsed: together at most 16 MiB in memory.
_FORMS_AT_ONCE: Final = 256
#: Larger members are fetched when they are parsed.
_FORM_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class GateReading:
    """A gate whose flag and index were read, and the sequences of files still to digest.

    Attributes:
        alone: Members that are digested on their own: path to the files that make them.
        refusal: Why the gate cannot be judged, once that is known.
    """

    gate: GateSpec
    paths: GatePaths
    members: Members | None = None
    alone: dict[str, tuple[str, ...]] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    measured: Measurement | None = None
    refusal: Refusal | None = None


def prefetch(root: RunRoot, gates: Sequence[GateSpec], tokens: Mapping[str, str]) -> None:
    """Fetch the run receipt and the flags and indexes of all gates at the same time, where that saves waiting."""
    wanted = [RUN_RECEIPT]
    for gate in gates:
        with suppress(Refusal):  # reading the gate says so
            paths = gate_paths(gate, tokens)
            wanted.extend(filter(None, (paths.flag, paths.index)))
    root.prefetch(wanted, MAX_DOCUMENT_BYTES)


def read_gate(root: RunRoot, gate: GateSpec, tokens: Mapping[str, str]) -> GateReading:
    """Read a gate's flag, index and listing; refusals are kept in the reading, changes are raised."""
    reading = GateReading(gate, GatePaths("", "", ""))
    try:
        reading.paths = gate_paths(gate, tokens)
        reading.members = _members(root, reading, tokens)
        _find_lone_members(root, reading, reading.members)
    except Refusal as refusal:
        drop_frames(refusal)  # it is kept, and the parsed document must not be
        reading.refusal = refusal
    return reading


def _members(root: RunRoot, reading: GateReading, tokens: Mapping[str, str]) -> Members:
    gate, paths = reading.gate, reading.paths
    flag = root.read(paths.flag, MAX_FLAG_BYTES)
    listing = root.files_under(paths.bundle_root) if gate.law is Law.BUNDLE else None
    if listing is not None and paths.index and root.kind(paths.index) is Kind.ABSENT:
        reading.paths = paths = GatePaths(paths.flag, paths.bundle_root, "")  # this law is complete without one
    index = root.read(paths.index, MAX_DOCUMENT_BYTES) if paths.index else None
    parse = partial(members_of, gate, paths, flag, index, listing, tokens)
    return parse_in_turn(root.budget, len(index or b""), parse)


def _find_lone_members(root: RunRoot, reading: GateReading, members: Members) -> None:
    """Members that are not part of the ordered sequence: they must exist, and may be directories (one law)."""
    checked = {path for path, _ in members.checked}
    for path in sorted(members.named.difference(members.ordered)):
        kind = root.kind(path)
        if kind is Kind.ABSENT:
            raise _named_but_absent(reading.paths, path)
        files: tuple[str, ...] = (path,)
        if kind is Kind.DIRECTORY:
            if reading.gate.law is not Law.MEMBER_DIGESTS:
                raise EvidenceRefused(f"{path} is a directory; a regular file is needed", path=path)
            files = tuple(root.files_under(path))
            reading.directories.add(path)
            if not files:
                raise EvidenceRefused(f"the member {path} is an empty directory", path=path)
        if path in checked:
            reading.alone[path] = files


def _named_but_absent(paths: GatePaths, path: str) -> EvidenceRefused:
    return EvidenceRefused(
        f"the index {paths.index} names {path}, which is not there",
        Reason.EVIDENCE_CONFLICT, path=path, expected="present", actual="absent",
    )  # fmt: skip


def measure(root: RunRoot, readings: Sequence[GateReading]) -> None:
    """Digest the files of all readings in one call; fills in ``measured`` or ``refusal``.

    Raises:
        EvidenceChanged: something changed meanwhile.
    """
    todo = [reading for reading in readings if reading.members is not None and reading.refusal is None]
    for reading in todo:
        try:
            check_extent(root, reading.paths.bundle_root, _files_of(reading))
        except EvidenceRefused as refusal:
            reading.refusal = refusal
    todo = [reading for reading in todo if reading.refusal is None]
    sequences: list[Sequence[str]] = []
    for reading in todo:
        assert reading.members is not None
        if reading.members.ordered:
            sequences.append(reading.members.ordered)
        sequences.extend(reading.alone.values())
    root.prefetch(_read_in_two_forms(todo), _FORM_BYTES)
    results = iter(root.digest(sequences))
    for reading in todo:
        assert reading.members is not None
        whole = next(results) if reading.members.ordered else None
        lone = {path: next(results) for path in reading.alone}
        try:
            reading.measured = _measurement(root, reading, reading.members, whole, lone)
        except Refusal as refusal:
            reading.refusal = refusal


def _files_of(reading: GateReading) -> list[str]:
    """Every file that is to be digested for a gate."""
    assert reading.members is not None
    return [*reading.members.ordered, *(path for files in reading.alone.values() for path in files)]


def _read_in_two_forms(readings: Sequence[GateReading]) -> list[str]:
    """Members that may be listed by their canonical form, and then are digested and parsed: a bounded number."""
    alone = [
        path
        for reading in readings
        if reading.gate.law is Law.MEMBER_DIGESTS
        for path in reading.alone
        if path not in reading.directories
    ]
    return alone[:_FORMS_AT_ONCE]


def _measurement(
    root: RunRoot,
    reading: GateReading,
    members: Members,
    whole: SequenceDigest | Refusal | None,
    lone: Mapping[str, SequenceDigest | Refusal],
) -> Measurement:
    files: dict[str, FileDigest] = {}
    digest = ""
    if whole is not None:
        sequence = _digested(reading, members, whole)
        files, digest = {file.path: file for file in sequence.files}, sequence.sha256
    forms: dict[str, tuple[tuple[str, str], ...]] = {}
    count, size = len(files), sum(file.bytes for file in files.values())
    for path, listed in members.checked:
        if path in files:
            forms[path] = ((RAW, files[path].sha256),)
            continue
        member = _digested(reading, members, lone[path])
        count, size = count + len(member.files), size + member.bytes
        if path in reading.directories:
            forms[path] = ((DIRECTORY, member.sha256),)
        else:
            forms[path] = _file_forms(root, reading.gate, path, member.sha256, listed)
    return Measurement(digest, forms, count, size)


def _digested(reading: GateReading, members: Members, result: SequenceDigest | Refusal) -> SequenceDigest:
    if isinstance(result, SequenceDigest):
        return result
    if isinstance(result, EvidenceMissing) and not isinstance(result, EvidenceArchived):
        named = sorted(path for path in members.named if f"{path}/".startswith(f"{result.path}/"))
        if named:
            raise _named_but_absent(reading.paths, named[0])
        raise EvidenceChanged(f"{result.path} disappeared while the gate was being read", path=result.path)
    raise result


def _file_forms(
    root: RunRoot, gate: GateSpec, path: str, raw: str, listed: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    if gate.law is not Law.MEMBER_DIGESTS or all(raw == digest for digest in listed):
        return ((RAW, raw),)
    size = root.size([path])
    if size > MAX_DOCUMENT_BYTES:
        raise EvidenceRefused(
            f"{path} has the raw digest {raw} where its index lists {listed[0]}, and its canonical JSON form cannot be "
            f"tried: it holds {size} bytes, members are parsed up to {MAX_DOCUMENT_BYTES}",
            Reason.EVIDENCE_TOO_LARGE,
            path=path,
            expected=listed[0],
            actual=raw,
        )

    def canonical_sha256(data: bytes) -> str:
        return parse_in_turn(root.budget, size, partial(_canonical_sha256, data))

    canonical = root.derive(path, MAX_DOCUMENT_BYTES, CANONICAL, canonical_sha256)
    return ((RAW, raw), (CANONICAL, canonical)) if canonical else ((RAW, raw),)


def _canonical_sha256(data: bytes) -> str:
    """sha256 of a JSON text's canonical form (floats as they round-trip), or empty when it is not JSON."""
    try:
        value = parse_json(data)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return sha256_hex(text.encode("utf-8"))
    except (ValueError, RecursionError):
        return ""
