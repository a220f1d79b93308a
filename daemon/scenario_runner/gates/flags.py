"""Reading a ``_passed.flag``: text ``field = hex`` or JSON ``{field: hex}``. Anything else is refused."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.errors import EvidenceRefused, EvidenceSaysNo
from scenario_runner.contracts.ids import HEX64
from scenario_runner.contracts.reasons import Reason

_TEXT: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(\S+)\s*", re.ASCII)
_YES: Final = frozenset({"pass", "passed", "true", "yes", "ok", "success", "succeeded"})
_VERDICT_KEYS: Final = frozenset(
    {"status", "state", "verdict", "outcome", "result", "decision", "passed", "pass", "ok", "success", "valid"}
)
_VERDICT_ENDINGS: Final = ("_status", "_state", "_verdict", "_outcome", "_result", "_passed", "_pass", "_valid")
_FAULT_KEYS: Final = frozenset({"failed", "fail", "failure", "failures", "error", "errors", "violations", "rejected"})
_NO_FAULT: Final[tuple[object, ...]] = (None, False, 0, "", [], {}, "none", "false")
_NOBODY: Final[Mapping[str, str]] = MappingProxyType({})
_DIGEST_KEYS: Final = ("sha256_hex", "bundle_digest_sha256")


def _says_no(key: str, value: object) -> bool:
    """True when a key beside the digest is a verdict that does not affirm the pass, or names faults."""
    name = key.strip().lower()
    if name in _FAULT_KEYS:
        return value not in _NO_FAULT
    if value is True or not (name in _VERDICT_KEYS or name.endswith(_VERDICT_ENDINGS)):
        return False
    return not isinstance(value, str) or value.strip().lower() not in _YES


def _from_json(text: str, field: str, path: str, identity: Mapping[str, str]) -> object:
    try:
        value = parse_json(text.encode("utf-8"))
    except ValueError as error:
        raise EvidenceRefused(f"the flag {path} is not well-formed JSON: {error}", path=path) from error
    if not isinstance(value, dict):
        raise EvidenceRefused(f"the flag {path} is JSON but not an object", path=path)
    for key, said in value.items():
        if key != field and _says_no(key, said):
            shown = str(said)[:40]
            raise EvidenceSaysNo(f"the flag {path} says {key[:40]} = {shown}", path=path, expected="PASS", actual=shown)
    for key, ours in identity.items():
        if key in value and str(value[key]) != ours:
            raise EvidenceRefused(
                f"the flag {path} is about another {key}",
                Reason.EVIDENCE_CONFLICT,
                path=path,
                expected=ours,
                actual=str(value[key])[:128],
            )
    for key in _DIGEST_KEYS:
        if key in value and value[key] != value.get(field, value[key]):
            raise EvidenceRefused(f"the flag {path} carries two different digests", path=path)
    return value.get(field)


def parse_flag(data: bytes, field: str, path: str, identity: Mapping[str, str] = _NOBODY) -> str:
    """The digest that a flag claims.

    Args:
        data: Bytes of the flag file.
        field: The gate's ``digest_field``.
        path: Where the flag is, for messages.
        identity: Gate id and identity of the run: a JSON flag that names others is about something else.

    Returns:
        hex64.

    Raises:
        EvidenceRefused: empty, binary, another field, or not a lowercase sha256.
        EvidenceSaysNo: a JSON flag that declares anything but a pass.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvidenceRefused(f"the flag {path} is not text", path=path) from error
    if text.lstrip().startswith("{"):
        claimed = _from_json(text, field, path, identity)
    else:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise EvidenceRefused(f"the flag {path} is neither 'field = hex' nor a JSON object", path=path)
        claimed = match.group(2) if match.group(1) == field else None
    if claimed is None:
        raise EvidenceRefused(f"the flag {path} does not carry the field {field!r}", path=path)
    if not isinstance(claimed, str) or HEX64.fullmatch(claimed) is None:
        raise EvidenceRefused(f"the flag {path} carries a {field!r} that is not a lowercase sha256", path=path)
    return claimed
