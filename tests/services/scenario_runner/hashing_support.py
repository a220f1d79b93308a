"""An engine that seals gates with plain hashlib, for the laws to be tried against."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates import laws
from scenario_runner.gates.laws import CANONICAL, DIRECTORY, RAW, GatePaths, Measurement, Members, verify_digests
from scenario_runner.interface_pack.loader import build_pack
from scenario_runner.interface_pack.model import GateSpec

BUNDLE, INDEX, MEMBERS = (
    "sha256_bundle_digest",
    "sha256_index_json_ascii_lex_raw_bytes",
    "sha256_member_digest_concat",
)
ROOT = "data/v"
IDENTITY = {"manifest_fingerprint": "f" * 64}


def members_of(*given: Any) -> Members:
    """Members of a gate whose scope is the fingerprint; no flag here names it."""
    return laws.members_of(*given, IDENTITY)


PATHS = GatePaths(f"{ROOT}/_passed.flag", ROOT, f"{ROOT}/index.json")
NOTHING = hashlib.sha256(b"").hexdigest()
many = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def gate(
    kind: str,
    ordering: str = "ascii_lex",
    base: str = "bundle_root",
    exclude: tuple[str, ...] = ("_passed.flag",),
    digest_field: str = "sha256_hex",
) -> GateSpec:
    method = {
        "kind": kind,
        "ordering": ordering,
        "path_base": base,
        "exclude_filenames": list(exclude),
        "digest_field": digest_field,
    }
    document = {
        "outputs": [{"output_id": "out", "path_template": "out/x.json", "scope": "scope_global"}],
        "gates": [
            {
                "gate_id": "g",
                "scope": "fingerprint",
                "passed_flag_path_template": PATHS.flag,
                "bundle_root_template": ROOT,
                "index_path_template": PATHS.index,
                "verification_method": method,
                "authorizes_outputs": ["out"],
            }
        ],
    }
    return build_pack(document, document).gates["g"]


@dataclass
class Engine:
    """A run root in memory: path to bytes, and the index as a document."""

    files: dict[str, bytes] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    directories: dict[str, list[str]] = field(default_factory=dict)

    def flag(self, digest: str, field_name: str = "sha256_hex") -> bytes:
        return f"{field_name} = {digest}\n".encode()

    def listing(self) -> list[str]:
        return sorted((path for path in self.files if path.startswith(ROOT + "/")), key=str.encode)

    def index(self) -> bytes:
        return json.dumps({"items": self.entries}).encode()

    def forms(self, path: str) -> tuple[tuple[str, str], ...]:
        if path in self.directories:
            return ((DIRECTORY, sha(*(self.files[name] for name in self.directories[path]))),)
        raw = self.files[path]
        try:
            canonical = json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        except ValueError:
            return ((RAW, sha(raw)),)
        return ((RAW, sha(raw)), (CANONICAL, sha(canonical)))

    def measure(self, members: Members) -> Measurement:
        digest = sha(*(self.files[path] for path in members.ordered)) if members.ordered else ""
        forms = {path: self.forms(path) for path, _ in members.checked}
        return Measurement(digest, forms, len(members.ordered), sum(len(self.files[path]) for path in members.ordered))

    def verify(self, spec: GateSpec, flag: bytes) -> dict[str, str]:
        """Both steps of a law, as the caller takes them."""
        members = members_of(spec, PATHS, flag, self.index() if self.entries else None, self.listing())
        return verify_digests(spec, PATHS, members, self.measure(members))


def conflict(engine: Engine, spec: GateSpec, flag: bytes) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as refused:
        engine.verify(spec, flag)
    assert refused.value.reason is Reason.EVIDENCE_CONFLICT
    assert refused.value.expected != refused.value.actual
    return refused.value


def malformed(engine: Engine, spec: GateSpec, flag: bytes) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as refused:
        engine.verify(spec, flag)
    assert refused.value.reason is Reason.EVIDENCE_MALFORMED
    return refused.value


# Names whose byte order differs from the order of folders, of lower-cased names or of natural numbers.
names = st.lists(
    st.sampled_from(
        ["a", "a.json", "a-b", "B", "10", "9", "é", "~", "_passed.flag", "index.json", "\U0001f600", "\uffee"]
    ),
    min_size=1,
    max_size=3,
).map("/".join)


def without_clashes(paths: list[str]) -> list[str]:
    """Paths that can lie in one folder: none is also a folder of another."""
    return [path for path in paths if not any(other.startswith(path + "/") for other in paths)]


trees = (
    st.lists(names, min_size=1, max_size=8, unique=True)
    .map(without_clashes)
    .flatmap(lambda paths: st.fixed_dictionaries({path: st.binary(max_size=6) for path in paths}))
)


def concatenated(entries: list[dict[str, Any]], field_name: str = "sha256_hex") -> str:
    return sha("".join(entry[field_name] for entry in entries).encode())
