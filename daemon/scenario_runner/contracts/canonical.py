"""Canonical JSON (sorted keys, no white space, UTF-8, exact integers, no floats) and strict parsing.

Canonical bytes are what digests are taken over, so the writer refuses what it cannot write one way only; the
reader refuses what different parsers read differently (duplicate keys, NaN, bad UTF-8).
"""

import hashlib
import json
import math
from typing import Any, NoReturn

import orjson

from scenario_runner.contracts.errors import RequestRefused, SequenceError
from scenario_runner.contracts.reasons import Reason

Json = dict[str, Any]
#: The largest integer of canonical JSON: what orjson writes, and every reader of 64 bits reads.
UINT64_MAX = 2**64 - 1
#: The least one: orjson writes no negative integer below those of 64 bits with a sign.
_INT64_MIN = -(2**63)

#: How the message begins of the error that orjson raises where memory is short.
_NO_MEMORY = "Not enough memory"


def _check(value: object) -> None:
    """Refuse what has no canonical form; a flat loop, since every document passes here."""
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is str or kind is bool or item is None or kind is orjson.Fragment:
            continue
        if kind is dict:
            for key in item:
                if type(key) is not str:
                    raise SequenceError(f"object key {key!r} is not a plain string")
            pending.extend(item.values())
        elif kind is list or kind is tuple:
            pending.extend(item)
        elif kind is int:
            if not _INT64_MIN <= item <= UINT64_MAX:
                raise SequenceError("an integer outside -2^63..2^64-1 has no canonical form")
        else:
            raise SequenceError(f"{kind.__name__} has no canonical JSON form")


def canonical_bytes(value: object) -> bytes:
    """Canonical JSON of a value made of dict, list, tuple, str, int, bool, None and :func:`canonical_part`.

    Raises:
        SequenceError: the value holds a float, an integer out of range, or a foreign type.
    """
    _check(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # a lone surrogate in a string
        raise SequenceError(f"value has no canonical JSON form: {error}") from error


def rendered_again(value: object) -> bytes:
    """Canonical JSON of a value whose parts came from canonical JSON or are plain strings: not checked again."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def canonical_part(value: object) -> orjson.Fragment:
    """Canonical JSON of a value that many documents hold, written once; :func:`canonical_bytes` takes it as it is.

    Raises:
        SequenceError: as :func:`canonical_bytes`.
    """
    return orjson.Fragment(canonical_bytes(value))


def sha256_hex(data: bytes) -> str:
    """Lowercase hex of the sha256 of ``data`` (64 characters)."""
    return hashlib.sha256(data).hexdigest()


def canonical_sha256(value: object) -> str:
    """sha256 (hex64) of the canonical JSON of ``value``."""
    return sha256_hex(canonical_bytes(value))


def parse_rendered(data: bytes) -> Any:  # noqa: ANN401 - JSON is any
    """Parse bytes that should be canonical JSON of ours, faster than :func:`parse_json` and with fewer checks.

    Whoever relies on more than being JSON renders the value again and compares the bytes.

    Raises:
        ValueError: they are no JSON.
        MemoryError: memory is short, which says nothing about the bytes; the library has one error for both.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith(_NO_MEMORY):
            raise MemoryError(f"no memory to read {len(data)} bytes of JSON") from error
        raise


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} is given twice")
            seen.add(key)
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - JSON is any
    """Parse one JSON text strictly: UTF-8, no duplicate keys, no NaN or Infinity, bounded depth.

    Raises:
        ValueError: says what is wrong; the text is never echoed whole.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_object(data: bytes) -> Json:
    """Parse one JSON object strictly.

    Raises:
        RequestRefused: ``RECORD_NOT_JSON``, saying why.
    """
    try:
        value = parse_json(data)
    except ValueError as error:
        raise RequestRefused(f"not well-formed JSON: {error}", Reason.RECORD_NOT_JSON) from error
    if not isinstance(value, dict):
        raise RequestRefused(f"the top level is {type(value).__name__}, an object is needed", Reason.RECORD_NOT_JSON)
    return value
