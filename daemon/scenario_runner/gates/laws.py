"""The hashing laws. A law says which files make a gate's digest, in which order, and what must agree.

Two steps, both pure: :func:`members_of` turns flag, index and listing into the files to read; :func:`verify_digests`
compares what was read with what was claimed. The caller reads the files in between.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from scenario_runner.contracts.errors import EvidenceRefused, SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates.flags import parse_flag
from scenario_runner.gates.index import IndexEntry, parse_index
from scenario_runner.interface_pack.model import GateSpec, Law, Ordering, PathBase

RAW: Final = "raw_bytes"
CANONICAL: Final = "canonical_json"
DIRECTORY: Final = "directory_bytes"


@dataclass(frozen=True, slots=True)
class GatePaths:
    """A gate's paths for one run, relative to the run root; ``index`` is empty when the gate has none."""

    flag: str
    bundle_root: str
    index: str


@dataclass(frozen=True, slots=True)
class Members:
    """What has to be read for a gate.

    Attributes:
        claimed: The digest that the flag claims.
        ordered: Files whose raw bytes make the digest, in order (empty for the member-digest law).
        checked: Path and listed digests of every member that the index gives a digest for.
        concatenated: Digest strings whose concatenation makes the digest (member-digest law only).
        named: Paths that the index names: one that is absent is a contradiction, not something to wait for.
    """

    claimed: str
    ordered: tuple[str, ...]
    checked: tuple[tuple[str, tuple[str, ...]], ...]
    concatenated: tuple[str, ...]
    named: frozenset[str]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was read.

    Attributes:
        digest: sha256 over the concatenated bytes of ``Members.ordered`` (empty for the member-digest law).
        forms: For every checked path, the form and digest of each way it was digested.
        files: How many files were read.
        bytes: How many bytes they hold.
    """

    digest: str
    forms: Mapping[str, tuple[tuple[str, str], ...]]
    files: int
    bytes: int


def gate_paths(gate: GateSpec, tokens: Mapping[str, str]) -> GatePaths:
    """Render a gate's templates.

    Raises:
        EvidenceRefused: a token value would leave the run root.
    """
    try:
        return GatePaths(
            gate.flag.render(tokens),
            gate.bundle_root.render(tokens),
            gate.index.render(tokens) if gate.index else "",
        )
    except ValueError as error:
        raise EvidenceRefused(f"a path of the gate {gate.gate_id} cannot be rendered: {error}") from error


def members_of(
    gate: GateSpec,
    paths: GatePaths,
    flag: bytes,
    index: bytes | None,
    listing: list[str] | None,
    tokens: Mapping[str, str],
) -> Members:
    """Which files make the gate's digest.

    Args:
        gate: The gate.
        paths: Its rendered paths.
        flag: Bytes of the flag.
        index: Bytes of the index document, None when there is none.
        listing: Every file under the bundle root, in byte order (bundle law only).
        tokens: Identity of the run, which a flag may name too.

    Raises:
        EvidenceRefused: flag or index is malformed, or nothing would be hashed.
        SequenceError: the law reads an index and was given none.
    """
    claimed = parse_flag(flag, gate.digest_field, paths.flag, {"gate_id": gate.gate_id, **_identity(gate, tokens)})
    if index is None and gate.law is not Law.BUNDLE:
        raise SequenceError(f"the law {gate.law} reads an index and was given none")
    entries = parse_index(index, gate.digest_field, paths.index) if index is not None else ()
    based = [(_based(gate, paths, entry.path), entry) for entry in entries]
    if gate.law is Law.MEMBER_DIGESTS:
        return _member_digests(paths, claimed, based)
    excluded = {f"{paths.bundle_root}/{name}" for name in gate.exclude_filenames}
    kept = [(path, entry) for path, entry in based if path not in excluded]
    if gate.law is Law.BUNDLE:
        ordered = [path for path in listing or () if path not in excluded]
    elif gate.law is Law.INDEX_RAW_BYTES:
        ordered = [path for path, _ in kept]
        if gate.ordering is Ordering.ASCII_LEX:
            ordered.sort()
    else:
        assert_never(gate.law)  # a new law must say what it hashes: it must not fall into another one's branch
    if not ordered:
        raise EvidenceRefused(
            f"the bundle {paths.bundle_root} has no files to hash; an empty bundle is no pass",
            path=paths.bundle_root,
        )
    checked = tuple([(path, entry.digests) for path, entry in kept if entry.digests])
    return Members(claimed, tuple(ordered), checked, (), frozenset(path for path, _ in kept))


def _identity(gate: GateSpec, tokens: Mapping[str, str]) -> dict[str, str]:
    """The part of a run's identity that a gate's evidence is about; a value that is not given is a KeyError."""
    return {key: tokens[key] for key in gate.scope}


def _based(gate: GateSpec, paths: GatePaths, path: str) -> str:
    return path if gate.path_base is PathBase.RUN_ROOT else f"{paths.bundle_root}/{path}"


def _member_digests(paths: GatePaths, claimed: str, based: list[tuple[str, IndexEntry]]) -> Members:
    for number, (path, entry) in enumerate(based, 1):
        if not entry.digest:
            raise EvidenceRefused(f"entry {number} of the index {paths.index} has no digest of its own", path=path)
    return Members(
        claimed,
        (),
        tuple([(path, entry.digests) for path, entry in based]),
        tuple([entry.digest for _, entry in based]),
        frozenset(path for path, _ in based),
    )


def verify_digests(gate: GateSpec, paths: GatePaths, members: Members, measured: Measurement) -> dict[str, str]:
    """Compare what was read with what was claimed.

    Returns:
        For every checked member, the form in which its digest matched.

    Raises:
        EvidenceRefused: ``EVIDENCE_CONFLICT`` with the expected and the actual digest.
        SequenceError: a member was not measured.
    """
    matched: dict[str, str] = {}
    for path, listed in members.checked:
        matched[path] = _matching_form(paths, path, listed, measured)
    actual = _digest_by_law(gate.law, members, measured)
    if actual != members.claimed:
        raise EvidenceRefused(
            f"the flag {paths.flag} claims {members.claimed} but {gate.law} over the bundle gives {actual}",
            Reason.EVIDENCE_CONFLICT, path=paths.flag, expected=members.claimed, actual=actual,
        )  # fmt: skip
    return matched


def _digest_by_law(law: Law, members: Members, measured: Measurement) -> str:
    match law:
        case Law.BUNDLE | Law.INDEX_RAW_BYTES:
            return measured.digest
        case Law.MEMBER_DIGESTS:
            return hashlib.sha256("".join(members.concatenated).encode("ascii")).hexdigest()
    assert_never(law)


def _matching_form(paths: GatePaths, path: str, listed: tuple[str, ...], measured: Measurement) -> str:
    forms = measured.forms.get(path)
    if not forms:
        raise SequenceError(f"{path} was to be verified before it was read")
    for form, digest in forms:
        if all(digest == wanted for wanted in listed):
            return form
    raw = forms[0][1]
    stale = next((digest for digest in listed if digest != raw), listed[0])
    raise EvidenceRefused(
        f"the index {paths.index} lists {stale} for {path} but its bytes give {raw}",
        Reason.EVIDENCE_CONFLICT, path=path, expected=stale, actual=raw,
    )  # fmt: skip
