"""The interface pack as the engine reads it: outputs of the catalogue, gates of the gate map.

Keys that the simulator does not need are ignored. A hashing law, ordering or path base that it does not know is
refused, because a run sealed by guesswork would be worth nothing as a second opinion.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from sr_tools.engine.errors import MakeRunError

BUNDLE_LAW: Final = "sha256_bundle_digest"
INDEX_LAW: Final = "sha256_index_json_ascii_lex_raw_bytes"
CONCAT_LAW: Final = "sha256_member_digest_concat"
LAWS: Final = (BUNDLE_LAW, INDEX_LAW, CONCAT_LAW)

DEFAULT_PACK: Final = Path(__file__).resolve().parents[3] / "config" / "engine" / "interface_pack"
CATALOGUE_NAME: Final = "engine_outputs.catalogue.yaml"
GATE_MAP_NAME: Final = "engine_gates.map.yaml"
TOKENS: Final = frozenset({"manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id"})
TOKEN: Final = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Output:
    """One catalogue entry.

    Attributes:
        output_id: Its id.
        template: Path template below the run root, stripped.
        optional: Whether a run may leave it out.
        gates: Ids of the gates that a reader needs (``read_requires_gates``).
    """

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
        return set(TOKEN.findall(self.template)) <= TOKENS


@dataclass(frozen=True)
class Gate:
    """One gate; its paths are templates as loaded, and relative paths once resolved.

    Attributes:
        gate_id: Its id.
        position: Place in the gate map, from 0; index and flag take their form from it.
        law: One of :data:`LAWS`.
        digest_field: Name under which the passed flag holds the digest.
        by_path: Whether members are hashed in byte order of their paths; else in the order of the index.
        run_root: Whether listed paths start at the run root; else at the bundle.
        excludes: File names at the top of the bundle that the digest leaves out.
        flag: The passed flag.
        index: The index document; None where the law needs none.
        bundle: The bundle folder; ends in ``/``.
        authorizes: Ids of the outputs that the gate stands for.
        upstream: Ids of the gates that this one needs.
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
        """The relative path that listed member paths start from; empty for the run root."""
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
    """Read the two files of a pack.

    Args:
        directory: Folder of the pack.
        catalogue: The catalogue, where it is not the folder's.
        gate_map: The gate map, where it is not the folder's.

    Raises:
        MakeRunError: A file is missing, is not YAML, or lacks a field that is needed here.
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


# Parsing takes most of the time of a small run, and tests make hundreds of runs with one or two packs.
@lru_cache(maxsize=4)
def parse_pack(catalogue_text: str, gate_map_text: str) -> Pack:
    """The pack that the text of its two YAML documents describes."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue = yaml.load(catalogue_text, Loader=loader)
    gate_map = yaml.load(gate_map_text, Loader=loader)
    outputs = [_output(entry) for entry in catalogue["outputs"]]
    gates = [_gate(position, entry) for position, entry in enumerate(gate_map["gates"])]
    return Pack({o.output_id: o for o in outputs}, {g.gate_id: g for g in gates})


def _output(entry: Mapping[str, Any]) -> Output:
    return Output(
        output_id=entry["output_id"],
        template=entry["path_template"].strip(),
        optional=entry.get("availability") == "optional",
        gates=tuple(entry.get("read_requires_gates") or ()),
    )


def _gate(position: int, entry: Mapping[str, Any]) -> Gate:
    method = entry["verification_method"]
    index = (entry.get("index_path_template") or "").strip() or None
    _refuse_unknown(entry["gate_id"], method, index)
    return Gate(
        gate_id=entry["gate_id"],
        position=position,
        law=method["kind"],
        digest_field=method["digest_field"],
        by_path=method.get("ordering") == "ascii_lex",
        run_root=method.get("path_base") == "run_root",
        excludes=frozenset(method.get("exclude_filenames") or ()),
        flag=entry["passed_flag_path_template"].strip(),
        index=index,
        bundle=entry["bundle_root_template"].strip().rstrip("/") + "/",
        authorizes=frozenset(entry.get("authorizes_outputs") or ()),
        upstream=tuple(entry.get("upstream_gate_dependencies") or ()),
    )


def _refuse_unknown(gate_id: str, method: Mapping[str, Any], index: str | None) -> None:
    law, ordering, base = method["kind"], method.get("ordering"), method.get("path_base")
    if law not in LAWS or base not in {None, "bundle_root", "run_root"}:
        raise MakeRunError(f"{gate_id}: law {law!r} with path_base {base!r} is not known")
    if law == INDEX_LAW and ordering not in {"ascii_lex", "index_order"}:
        raise MakeRunError(f"{gate_id}: ordering {ordering!r} is not known")
    if law != BUNDLE_LAW and index is None:
        raise MakeRunError(f"{gate_id}: law {law} needs an index_path_template")
