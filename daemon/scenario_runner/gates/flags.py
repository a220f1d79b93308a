"""Reading a ``_passed.flag``: text ``field = hex`` or JSON ``{field: hex}``. Anything else is refused."""

import re
from typing import Final

from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.errors import EvidenceRefused, EvidenceSaysNo
from scenario_runner.contracts.ids import HEX64

_TEXT: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(\S+)\s*", re.ASCII)
_YES: Final = frozenset({"pass", "passed", "true", "yes", "ok", "success", "succeeded"})
_VERDICT_KEYS: Final = frozenset(
    {"status", "state", "verdict", "outcome", "result", "decision", "passed", "pass", "ok", "success", "valid"}
)
_DIGEST_KEYS: Final = ("sha256_hex", "bundle_digest_sha256")


def _says_no(key: str, value: object) -> bool:
    """True when a key beside the digest is a verdict and does not affirm the pass."""
    if key.strip().lower() not in _VERDICT_KEYS or value is True:
        return False
    return not isinstance(value, str) or value.strip().lower() not in _YES


def _from_json(text: str, field: str, path: str) -> object:
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
    for key in _DIGEST_KEYS:
        if key in value and value[key] != value.get(field, value[key]):
            raise EvidenceRefused(f"the flag {path} carries two different digests", path=path)
    return value.get(field)


def parse_flag(data: bytes, field: str, path: str) -> str:
    """The digest that a flag claims.

    Args:
        data: Bytes of the flag file.
        field: The gate's ``digest_field``.
        path: Where the flag is, for messages.

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
        claimed = _from_json(text, field, path)
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
