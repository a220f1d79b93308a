"""Which ends of runs are on the control bus, as far as it keeps them: a spool does, a stream does not.

The spool is a witness outside the ledger. It knows of ends that an older copy of the ledger does not know yet, and of
runs that the ledger lost.
"""

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.bus.envelope import signal_file_name
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import parse_rendered
from scenario_runner.contracts.ids import HEX32
from scenario_runner.contracts.states import SignalKind
from scenario_runner.contracts.times import canonical_micros
from scenario_runner.storage.base import ObjectReader, ObjectStore, UnreadableObjectError

A = TypeVar("A")

#: An entry: run id, kind, digest of the message id, when it was published, digest of the file; 65 bytes. Of the message
#: id 8 bytes are enough: of a million runs, two share them once in ten million rebuilds, and one stays out.
_ENTRY: Final = struct.Struct(">16sc8sq32s")
#: A run id is 16 bytes.
_RUN: Final = 16
#: See `_ENTRY`.
_MESSAGE: Final = 8
#: Signals of the end of a run, also when they are repeated, and the byte of each in an entry.
_ENDS: Final[dict[str, bytes]] = {
    SignalKind.READY: b"R", SignalKind.READY_REEMIT: b"R", SignalKind.TERMINAL: b"T", SignalKind.TERMINAL_REEMIT: b"T",
}  # fmt: skip
_NAMES: Final = {b"R": SignalKind.READY, b"T": SignalKind.TERMINAL}
#: Digest of the file in an entry that only says that there is such an end: no file has it.
_NO_FILE: Final = bytes(32)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_MESSAGE]


class End(NamedTuple):
    """An end of a run on the control bus.

    Attributes:
        message: Digest of its message id.
        published_us: When it was published; 0 where the file of another name, or of another form, says it.
        file: sha256 of all bytes of the file that has the name of its message; else of none.
    """

    kind: SignalKind
    message: bytes
    published_us: int
    file: bytes

    def is_of(self, message_id: str) -> bool:
        """Whether it has this message id; none is empty."""
        return bool(message_id) and self.message == _digest(message_id)


class OnBus(NamedTuple):
    """What the control bus says of one run.

    Attributes:
        ends: Its ends; each message may have more than one entry.
        unreadable: Files that are no message, and so may be another end of it, as a text; empty when there are none.
    """

    ends: tuple[End, ...] = ()
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class EndsOnBus:
    """Which runs have READY or TERMINAL on the control bus: 65 bytes for each, so a million take 65 MB.

    Attributes:
        data: Entries in the order of the run ids.
        unreadable: Keys of files that are no envelopes: each may be the damaged end of any run.
    """

    data: bytes = b""
    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[tuple[list[bytes], list[str]]]) -> "EndsOnBus":
        """All that :func:`read_ends` found."""
        found, unreadable = set[bytes](), list[str]()
        for entries, keys in parts:
            found.update(entries)
            unreadable += keys
        return cls(b"".join(sorted(found)), tuple(unreadable))

    @classmethod
    def read(cls, spool: ObjectStore, topic: str, on_read: Callable[[int], None]) -> "EndsOnBus":
        """Read every signal of a spool once, in this thread.

        Args:
            spool: The spool.
            topic: Its folder of signals.
            on_read: Called with the number of files that were read so far.

        Raises:
            Unavailable: the spool does not answer.
        """

        def parts() -> Iterator[tuple[list[bytes], list[str]]]:
            for number, item in enumerate(spool.list_objects(topic), 1):
                yield read_ends(spool, topic, [item.key])
                on_read(number)

        return cls.of(parts())

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self.data) // _ENTRY.size

    def __getitem__(self, index: int) -> bytes:
        """The run of one of them; empty behind the last one."""
        return self.data[index * _ENTRY.size : index * _ENTRY.size + _RUN]

    def of_run(self, run_id: str) -> OnBus:
        """What is said of one run."""
        run = bytes.fromhex(run_id)
        return self._of(run, bisect_left(self, run))[0]

    def _of(self, run: bytes, number: int) -> tuple[OnBus, int]:
        """What is said of a run whose entries begin with this number, and the number behind them."""
        ends: tuple[End, ...] = ()
        while self[number] == run:
            ends = (*ends, self._end(number))
            number += 1
        return OnBus(ends, self._unreadable()), number

    def _end(self, number: int) -> End:
        _, kind, message, published_us, file = _ENTRY.unpack_from(self.data, number * _ENTRY.size)
        return End(_NAMES[kind], message, published_us, file)

    def _unreadable(self) -> str:
        files = self.unreadable
        more = f" and {len(files) - 1} more" if files[1:] else ""
        return f"{files[0]}{more}" if files else ""

    def beside(
        self, items: Iterable[A], run_of: Callable[[A], str], on_other: Callable[[str, SignalKind], None]
    ) -> Iterator[tuple[A, OnBus]]:
        """Items in the order of their run ids, each with what is said of its run; one of no run is passed on.

        Args:
            items: The items.
            run_of: The run of an item; empty when it is of none.
            on_other: Called with every run that has an end, and no item.
        """
        number = 0
        for item in items:
            run_id = run_of(item)
            if not run_id:
                yield item, OnBus()
                continue
            run = bytes.fromhex(run_id)
            number = self._others(number, run, on_other)
            said, number = self._of(run, number)
            yield item, said
        self._others(number, None, on_other)

    def _others(self, number: int, until: bytes | None, on_other: Callable[[str, SignalKind], None]) -> int:
        """Name the runs before one, or all that are left; returns the number of the next entry."""
        while (run := self[number]) and (until is None or run < until):
            end = self._end(number)
            number += 1
            if self[number] != run:  # the last one of its run
                on_other(run.hex(), end.kind)
        return number

    def findings(self, locate: Callable[[str], str]) -> Iterator[LedgerFinding]:
        """A finding for each file that is no envelope.

        Args:
            locate: Where an object of the spool is, for a person.
        """
        for key in self.unreadable:
            yield LedgerFinding(FindingCode.SIGNAL_UNREADABLE, "", locate(key), "it is no message of the control bus")


def without_run(run_id: str, kind: SignalKind, locate: Callable[[str], str]) -> LedgerFinding:
    """The finding of a run that has an end on the control bus, and nothing in the ledger.

    Args:
        run_id: The run.
        kind: Its end.
        locate: Where an object of the ledger is, for a person.
    """
    detail = f"{kind} of this run is on the control bus, and the ledger has no object of it"
    return LedgerFinding(FindingCode.SIGNAL_WITHOUT_RUN, run_id, locate(refs.record_ref(run_id)), detail)


def read_ends(spool: ObjectStore, topic: str, keys: Iterable[str]) -> tuple[list[bytes], list[str]]:
    """What files of the control bus say: entries of :class:`EndsOnBus`, and the files that are no envelopes.

    Args:
        spool: The spool.
        topic: Its folder of signals; files of folders below it are ends too, which no reader of the bus finds.
        keys: The files.

    Raises:
        Unavailable: the spool does not answer.
    """
    found, unreadable, held = list[bytes](), list[str](), spool.held()
    for key in keys:
        entry = _entry(held, topic, key)
        if entry is None:
            unreadable.append(key)
        elif entry:
            found.append(entry)
    return found, unreadable


def _entry(spool: ObjectReader, topic: str, key: str) -> bytes | None:
    """What a file says of the end of a run; empty when it says nothing, None when it is no envelope."""
    try:
        stored = spool.read(key, MAX_RECORD_BYTES)
        if stored is None:
            return b""  # it was listed, and is not there any more
        found = parse_rendered(stored.data)
        kind, run_id, message_id = found["attributes"]["kind"], found["partition_key"], found["message_id"]
        message = _digest(message_id)
        if type(kind) is not str or type(run_id) is not str:
            return None
        if kind not in _ENDS:
            return b""
        if HEX32.fullmatch(run_id) is None:
            return None
        # The file counts where a reader looks for the message, and the time where it can be given back as it is.
        published_us = _micros_of(found) if key == f"{topic}/{signal_file_name(message_id, 0)}" else None
        file = _NO_FILE if published_us is None else hashlib.sha256(stored.data).digest()
        return _ENTRY.pack(bytes.fromhex(run_id), _ENDS[kind], message, published_us or 0, file)
    except (UnreadableObjectError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _micros_of(envelope: dict[str, Any]) -> int | None:
    try:
        return canonical_micros(envelope["published_at_utc"])
    except (ValueError, TypeError, KeyError):
        return None  # it may be an end in another form; whoever needs its content reads the file
