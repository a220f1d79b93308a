"""What SR reads of an interface pack, as values that are well formed if they exist. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.contracts.canonical import Json
from scenario_runner.interface_pack.templates import Template

INSTANCE_SCOPES: Final = frozenset({"seed", "scenario_id", "parameter_hash", "run_id"})


class Law(StrEnum):
    """Hashing laws of gates; the digest is always sha256."""

    BUNDLE = "sha256_bundle_digest"
    INDEX_RAW_BYTES = "sha256_index_json_ascii_lex_raw_bytes"
    MEMBER_DIGESTS = "sha256_member_digest_concat"


class Ordering(StrEnum):
    """In which order members enter a digest."""

    ASCII_LEX = "ascii_lex"
    AS_LISTED = "as_listed"


class PathBase(StrEnum):
    """What the paths of an index document are relative to."""

    BUNDLE_ROOT = "bundle_root"
    RUN_ROOT = "run_root"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of the catalogue.

    Attributes:
        scope: Identity partitions of the output, in the fixed order of contracts.md section 2.
    """

    output_id: str
    template: Template
    scope: tuple[str, ...]
    read_requires_gates: tuple[str, ...]
    optional: bool
    schema_ref: str
    dictionary_ref: str

    @property
    def instance_scoped(self) -> bool:
        """True when the output is of one instance and gets a receipt of SR's own."""
        return not INSTANCE_SCOPES.isdisjoint(self.scope)


@dataclass(frozen=True, slots=True)
class GateSpec:
    """One gate of the gate map."""

    gate_id: str
    scope: tuple[str, ...]
    flag: Template
    bundle_root: Template
    index: Template | None
    law: Law
    digest_field: str
    ordering: Ordering
    path_base: PathBase
    exclude_filenames: frozenset[str]
    authorizes_outputs: tuple[str, ...]
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class InterfacePack:
    """A whole pack.

    Attributes:
        outputs: By output id.
        gates: By gate id, upstream gates before those that depend on them.
        digest: hex64 over what SR reads of the pack; changes when a plan could change.
        document: The pack as plain JSON, from which it can be loaded again.
    """

    outputs: Mapping[str, OutputSpec]
    gates: Mapping[str, GateSpec]
    digest: str
    document: Json
