"""Reading an index document: which files a gate's bundle has, and what it says their digests are."""

from dataclasses import dataclass
from typing import Any, Final

from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.ids import HEX64
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.contracts.reasons import Reason

#: As many as the files of an output that the default policy allows.
MAX_ENTRIES: Final = 200_000
#: Characters: S3 keys have 1,024 bytes, and POSIX paths 4,096 with the root before them.
_MAX_PATH: Final = 2048
_DIGEST_KEYS: Final = ("sha256_hex", "sha256")
_LIST_KEYS: Final = ("items", "members", "entries", "files")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One listed file.

    Attributes:
        path: As the index writes it.
        digest: Its own digest under the gate's ``digest_field``, or empty.
        digests: Every digest that the index gives for it.
    """

    path: str
    digest: str
    digests: tuple[str, ...]


def _items(value: object, path: str) -> list[Any]:
    if isinstance(value, dict):
        present = [key for key in _LIST_KEYS if isinstance(value.get(key), list)]
        if len(present) != 1:
            raise EvidenceRefused(
                f"the index {path} must hold exactly one list under {', '.join(_LIST_KEYS)}; it holds {len(present)}",
                path=path,
            )
        value = value[present[0]]
    if not isinstance(value, list):
        raise EvidenceRefused(f"the index {path} holds no list of files", path=path)
    if not value:
        raise EvidenceRefused(f"the index {path} lists nothing; an empty bundle is no pass", path=path)
    if len(value) > MAX_ENTRIES:
        raise EvidenceRefused(
            f"the index {path} lists {len(value)} files, at most {MAX_ENTRIES} are read",
            Reason.EVIDENCE_TOO_LARGE,
            path=path,
        )
    return value


def _entry(raw: object, number: int, digest_field: str, path: str) -> IndexEntry:
    if not isinstance(raw, dict) or not isinstance(raw.get("path"), str):
        raise EvidenceRefused(f"entry {number} of the index {path} has no path", path=path)
    listed = raw["path"]
    if len(listed) > _MAX_PATH:
        raise EvidenceRefused(f"entry {number} of the index {path} has a path of {len(listed)} characters", path=path)
    try:
        listed.encode("utf-8")
        check_relative_posix(listed)
    except ValueError as error:
        raise EvidenceRefused(f"entry {number} of the index {path}: {error}", path=path) from error
    found: dict[str, str] = {}
    for key in dict.fromkeys((digest_field, *_DIGEST_KEYS)):
        if key not in raw:
            continue
        value = raw[key]
        if not isinstance(value, str) or HEX64.fullmatch(value) is None:
            raise EvidenceRefused(f"entry {number} of the index {path}: {key} is not a lowercase sha256", path=path)
        found[key] = value
    return IndexEntry(listed, found.get(digest_field, ""), tuple(dict.fromkeys(found.values())))


def parse_index(data: bytes, digest_field: str, path: str) -> tuple[IndexEntry, ...]:
    """The entries of an index document, as listed.

    Raises:
        EvidenceRefused: not JSON, of another shape, empty, too long, a path that is missing, absolute, climbs out or
            is listed twice, or a digest that is none.
    """
    try:
        value = parse_json(data)
    except ValueError as error:
        raise EvidenceRefused(f"the index {path} is not well-formed JSON: {error}", path=path) from error
    entries = tuple([_entry(raw, number, digest_field, path) for number, raw in enumerate(_items(value, path), 1)])
    if len({entry.path for entry in entries}) != len(entries):
        raise EvidenceRefused(f"the index {path} lists a file twice", path=path)
    return entries
