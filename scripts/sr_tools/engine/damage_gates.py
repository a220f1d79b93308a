"""Damage to one sealed gate: its flag, its index or its members.

Where a reader who trusts a changed index can still compute a digest, the flag is sealed again over it. Then the gate is
wrong in exactly one way, and a reader who compares nothing but the flag accepts it.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from sr_tools.engine.damage_files import (
    flip_first_byte,
    hold_in_directory,
    one_bit_off,
    replace_by,
    replace_by_symlink,
)
from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.laws import files_below, index_entries, law_digest
from sr_tools.engine.pack import BUNDLE_LAW, Gate
from sr_tools.engine.seal import flag_bytes

Entries = list[dict[str, Any]]

#: Bytes of the sparse index: more than any reader may take in, and nothing on the disk.
HUGE_INDEX_BYTES: Final = 50 * 10**9
#: Bytes of the padded flag: far above what a flag needs, far below what would hurt the machine that runs the tests.
HUGE_FLAG_BYTES: Final = 8 << 20
#: Absent members that a long index lists: a reader must stop at a bound of its own.
MANY_ENTRIES: Final = 1_000_000
#: Depth of nested arrays: beyond the recursion limit of every usual JSON parser.
DEEP: Final = 100_000
#: Most bytes that move from one member to the one before it.
SHIFTED_BYTES: Final = 8


@dataclass(frozen=True)
class SealedGate:
    """The gate that a damage goes to; ``digest`` is what its flag says."""

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
        """The first member that the index lists; without an index, the first of the bundle."""
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
        """Change the text of the index; the flag follows only where it is over the index itself."""
        self.index.write_text(change(self.index.read_text(encoding="utf-8")), encoding="utf-8")
        if self.gate.law == BUNDLE_LAW:
            self.reseal()

    def edit(self, change: Callable[[Entries], object]) -> None:
        """Change the entries of the index; the flag follows."""
        document = json.loads(self.index.read_bytes())
        change(index_entries(document))
        self.index.write_text(json.dumps(document, indent=2), encoding="utf-8")
        self.reseal()

    def edit_first(self, insert: str) -> None:
        """Insert text before the first path of the index."""
        self.edit_text(lambda text: text.replace('"path":', f'{insert}"path":', 1))

    def prefix_path(self, prefix: str) -> None:
        """Put a prefix before the first listed path; the flag follows."""
        self.edit(lambda entries: entries[0].update(path=prefix + entries[0]["path"]))


def _without_path(entries: Entries) -> None:
    entries.append({key: entries[0][key] for key in entries[0] if key != "path"})


def _wrong_digest(entries: Entries) -> None:
    name = next(name for name in entries[0] if name != "path")
    entries[0][name] = one_bit_off(entries[0][name])


def _list_many(gate: SealedGate) -> None:
    """Written line by line: the document as one value would take a gigabyte."""
    document = json.loads(gate.index.read_bytes())
    tail = "]" if isinstance(document, list) else "]}"
    with gate.index.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document).removesuffix(tail))
        file.writelines(f',{{"path":"many/{number:07d}.bin"}}\n' for number in range(MANY_ENTRIES))
        file.write(tail)
    gate.edit_text(lambda text: text)


def _remove_index(gate: SealedGate) -> None:
    gate.index.unlink()
    gate.reseal()


def _tamper_and_reseal(gate: SealedGate) -> None:
    flip_first_byte(gate.member)
    gate.reseal()


def _add_nested_flag(gate: SealedGate) -> None:
    nested = gate.bundle / "sub" / gate.flag.name
    nested.parent.mkdir(exist_ok=True)
    nested.write_bytes(b"payload that no law may skip\n")


def _empty_bundle(gate: SealedGate) -> None:
    shutil.rmtree(gate.bundle)
    gate.bundle.mkdir()
    gate.reseal()


def _shift_bytes(gate: SealedGate) -> None:
    """Move bytes from the start of one member to the end of the one before it: the concatenation stays as it was."""
    spared = {gate.flag, gate.root / (gate.gate.index or gate.gate.flag)}
    pairs = pairwise(files_below(gate.bundle))
    pair = next((pair for pair in pairs if spared.isdisjoint(pair)), None)
    if pair is None:
        raise MakeRunError("concat_shift needs two members side by side; ask for --members 2 or more")
    before, after = (path.read_bytes() for path in pair)
    cut = max(1, min(SHIFTED_BYTES, len(after) // 2))
    pair[0].write_bytes(before + after[:cut])
    pair[1].write_bytes(after[cut:])


GATE_DAMAGES: Final[Mapping[str, Callable[[SealedGate], object]]] = {
    "flag_missing": lambda g: g.flag.unlink(),
    "flag_empty": lambda g: g.flag.write_bytes(b""),
    "flag_binary": lambda g: g.flag.write_bytes(bytes(range(255, -1, -1))),
    "flag_huge": lambda g: g.flag.write_bytes(g.flag.read_bytes().ljust(HUGE_FLAG_BYTES)),
    "flag_wrong_field": lambda g: g.set_flag(g.digest, "digest_of_something_else"),
    "flag_upper_case": lambda g: g.set_flag(g.digest.upper()),
    "flag_bit_off": lambda g: g.set_flag(one_bit_off(g.digest)),
    "flag_symlink": lambda g: replace_by_symlink(g.root, g.flag),
    "flag_directory": lambda g: replace_by(g.flag, os.mkdir),
    "flag_fifo": lambda g: replace_by(g.flag, os.mkfifo),
    "flag_says_fail": lambda g: g.flag.write_text(json.dumps({g.gate.digest_field: g.digest, "status": "FAIL"})),
    "index_missing": _remove_index,
    "index_empty_items": lambda g: g.edit(lambda entries: entries.clear()),
    "index_not_json": lambda g: g.edit_text(lambda text: text[: len(text) // 2]),
    "index_duplicate_key": lambda g: g.edit_first('"path": "nowhere.bin", '),
    "index_item_without_path": lambda g: g.edit(_without_path),
    "index_absolute_path": lambda g: g.prefix_path(f"{g.base}/"),
    "index_parent_path": lambda g: g.prefix_path(f"../{g.base.name}/"),
    "index_dot_path": lambda g: g.prefix_path("./"),
    "index_duplicate_path": lambda g: g.edit(lambda entries: entries.insert(1, dict(entries[0]))),
    "index_missing_member": lambda g: g.edit(lambda entries: entries.append({**entries[0], "path": "absent.bin"})),
    "index_huge": lambda g: os.truncate(g.index, HUGE_INDEX_BYTES),
    "index_million_entries": _list_many,
    "index_deep_nesting": lambda g: g.edit_first(f'"note": {"[" * DEEP}{"]" * DEEP}, '),
    "index_wrong_listed_digest": lambda g: g.edit(_wrong_digest),
    "member_tampered": lambda g: flip_first_byte(g.member),
    "member_tampered_flag_follows": _tamper_and_reseal,
    "member_missing": lambda g: g.member.unlink(),
    "member_symlink": lambda g: replace_by_symlink(g.root, g.member),
    "member_is_directory": lambda g: hold_in_directory(g.member),
    "member_extra_nested_flag": _add_nested_flag,
    "bundle_empty": _empty_bundle,
    "concat_shift": _shift_bytes,
}
