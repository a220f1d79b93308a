"""The control bus as a witness: what was published of a run does not say anything else than the ledger.

The spool keeps what was published, so it knows of ends that an older copy of the ledger does not know yet.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import orjson

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.authority.values import SignalDraft
from scenario_runner.bus.envelope import envelope
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import sha256_hex
from scenario_runner.contracts.states import REPEATED_BY, RunState, SignalKind
from scenario_runner.contracts.times import parse_instant, to_micros
from scenario_runner.rebuild.course import emissions_published
from scenario_runner.rebuild.values import Admitted, NotRestoredError, Published
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

#: Bytes of a digest that are kept: of a million runs, two share it once in ten million rebuilds, and one stays out.
_DIGEST: Final = 8
_ENTRY: Final = 2 * _DIGEST + 1
#: Signals of the end of a run, also when they are repeated, and the byte of each in an entry.
_ENDS: Final[dict[str, bytes]] = {
    SignalKind.READY: b"R", SignalKind.READY_REEMIT: b"R", SignalKind.TERMINAL: b"T", SignalKind.TERMINAL_REEMIT: b"T",
}  # fmt: skip
_NAMES: Final = {b"R": SignalKind.READY, b"T": SignalKind.TERMINAL}

ReadFirst = Callable[[str, tuple[int, ...]], tuple[bytes, int] | None]
"""Bytes of the envelope of a message id on the control bus, in the first of some emissions that is there, with the
emission; None when it is in none of them."""


class Witness(StrEnum):
    """Who must agree with the ledger that a run is READY."""

    BUS = "bus"
    EVIDENCE = "evidence"
    LEDGER = "ledger"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST]


@dataclass(frozen=True, slots=True)
class EndsOnBus:
    """Which runs have READY or TERMINAL on the control bus: 17 bytes for each, so a million take 17 MB.

    Attributes:
        data: Sorted entries: digest of the run, kind, digest of the message id.
        unreadable: Keys of files that are no envelopes: each may be the damaged end of any run.
    """

    data: bytes = b""
    unreadable: tuple[str, ...] = ()

    @classmethod
    def read(cls, spool: ObjectStore, topic: str, on_read: Callable[[int], None]) -> "EndsOnBus":
        """Read every signal of a spool once.

        Args:
            spool: The spool.
            topic: Its folder of signals.
            on_read: Called with the number of files that were read so far.

        Raises:
            Unavailable: the spool does not answer.
        """
        found, unreadable = set[bytes](), list[str]()
        for number, item in enumerate(spool.list_objects(topic), 1):
            entry = _entry(spool, item.key)
            if entry is None:
                unreadable.append(item.key)
            elif entry:
                found.add(entry)
            on_read(number)
        return cls(b"".join(sorted(found)), tuple(unreadable))

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self.data) // _ENTRY

    def __getitem__(self, index: int) -> bytes:
        """One of them; empty behind the last one."""
        return self.data[index * _ENTRY : (index + 1) * _ENTRY]

    def other_than(self, run_id: str, message_id: str) -> SignalKind | None:
        """Which end of a run was published under another message id than this one.

        Args:
            run_id: The run.
            message_id: Of the end that the run has, as far as the ledger knows; empty when it has none.
        """
        run, own = _digest(run_id), _digest(message_id) if message_id else b""
        number = bisect_left(self, run)
        while (entry := self[number])[:_DIGEST] == run:
            if entry[_DIGEST + 1 :] != own:
                return _NAMES[entry[_DIGEST : _DIGEST + 1]]
            number += 1
        return None

    def findings(self, locate: Callable[[str], str]) -> Iterator[LedgerFinding]:
        """A finding for each file that is no envelope.

        Args:
            locate: Where an object of the spool is, for a person.
        """
        for key in self.unreadable:
            yield LedgerFinding(FindingCode.SIGNAL_UNREADABLE, "", locate(key), "it is no message of the control bus")


def _entry(spool: ObjectStore, key: str) -> bytes | None:
    """What a file says of the end of a run; empty when it says nothing, None when it is no envelope."""
    try:
        stored = spool.read(key, MAX_RECORD_BYTES)
        if stored is None:
            return b""  # it was listed, and is not there any more
        found = orjson.loads(stored.data)
        kind, run, message = found["attributes"]["kind"], _digest(found["partition_key"]), _digest(found["message_id"])
        if type(kind) is not str:
            return None
        return run + _ENDS[kind] + message if kind in _ENDS else b""
    except (UnreadableObjectError, ValueError, TypeError, KeyError, AttributeError):
        return None


class BusWitness:
    """Compares runs with what was published of them. Safe for several threads.

    Args:
        locate: Where an object is, for a person.
        topic: The control topic.
        witness: Who must agree with the ledger.
        read_first: Reads the control bus; None where it cannot be asked.
        ends: What was published of all runs; nothing where the control bus cannot be asked.
    """

    def __init__(
        self, locate: Callable[[str], str], topic: str, witness: Witness, read_first: ReadFirst | None, ends: EndsOnBus
    ) -> None:
        self.witness = witness
        self._locate, self._topic, self._read_first, self._ends = locate, topic, read_first, ends

    def require_no_other_end(self, run_id: str, state: RunState, message_id: str = "") -> None:
        """Require that no end of a run was published but the one that its record knows.

        Args:
            run_id: The run.
            state: Its state, as the record has it.
            message_id: Of the signal of its end; empty while it is on its way.

        Raises:
            NotRestoredError: ``STATE_CONTRADICTED``.
        """
        other = self._ends.other_than(run_id, message_id)
        if other is not None:
            detail = (
                f"{other} of another end of it is on the control bus, and the record says {state}: it is older, or was "
                "changed"
            )
            raise self._not(FindingCode.STATE_CONTRADICTED, run_id, detail)

    def require_on_its_way(self, run_id: str, state: RunState) -> None:
        """Require that no end of a run was published, as far as the control bus can be read.

        Raises:
            NotRestoredError: ``STATE_CONTRADICTED``, or ``SIGNAL_UNREADABLE``: a file there may be its end.
        """
        self.require_no_other_end(run_id, state)
        files = self._ends.unreadable
        if files:
            more = f" and {len(files) - 1} more" if files[1:] else ""
            detail = f"{files[0]}{more} of the control bus is no message, and may be its end; the record says {state}"
            raise self._not(FindingCode.SIGNAL_UNREADABLE, run_id, detail)

    def end(self, admitted: Admitted, draft: SignalDraft) -> Published:
        """The signal of the end of a run as it was published; one that was repeated has several files.

        Raises:
            NotRestoredError: see :meth:`published`, and ``STATE_CONTRADICTED``.
        """
        state = RunState(admitted.end.details["state"])
        self.require_no_other_end(admitted.run_id, state, draft.message_id)
        return self.published(draft, admitted.end.ts_us, (0, *emissions_published(admitted.events)))

    def published(self, draft: SignalDraft, at_us: int, emissions: tuple[int, ...] = (0,)) -> Published:
        """A signal as it was published; as it must have been at ``at_us`` where the control bus does not say.

        Raises:
            NotRestoredError: it says something else, or nothing where it must.
            Unavailable: the control bus does not answer.
        """
        seen = None if self._read_first is None else self._read_first(draft.message_id, emissions)
        if seen is not None:  # whoever must agree: what is on the bus must not say anything else
            return self._on_the_bus(Published(draft, at_us), *seen)
        if self.witness is Witness.BUS:
            ready = draft.kind is not SignalKind.TERMINAL
            code = FindingCode.READY_NOT_WITNESSED if ready else FindingCode.TERMINAL_NOT_WITNESSED
            detail = f"{draft.kind}, message {draft.message_id}, is not on the control bus"
            raise self._not(code, draft.partition_key, detail)
        return Published(draft, at_us)

    def _on_the_bus(self, expected: Published, data: bytes, emission: int) -> Published:
        """The signal as it was published; nothing but its time and more attributes may differ from what is expected."""
        draft, run_id = expected.draft, expected.draft.partition_key
        ready = draft.kind is not SignalKind.TERMINAL
        code = FindingCode.READY_CONTRADICTED if ready else FindingCode.STATE_CONTRADICTED
        kind = REPEATED_BY[draft.kind] if emission else draft.kind
        try:
            found = orjson.loads(data)
            published_us = to_micros(parse_instant(found["published_at_utc"]))
            attributes = {str(name): str(value) for name, value in found["attributes"].items() if name != "kind"}
            # READY of an older release has no attribute run_id; it is required to be the run's where it is.
            required = {n: v for n, v in draft.attributes.items() if n in attributes or n != "run_id"}
            wanted = envelope(
                self._topic, draft.message_id, published_us, {**attributes, **required, "kind": kind.value}, run_id,
                orjson.loads(draft.payload),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            detail = f"what is published as message {draft.message_id} is no envelope: {error}"
            raise self._not(code, run_id, detail) from error
        if data != wanted:
            detail = f"message {draft.message_id} was published with another content"
            raise self._not(code, run_id, detail, sha256_hex(wanted), sha256_hex(data))
        if emission:
            return expected  # its attributes are those of the repetition
        published = SignalDraft(draft.message_id, draft.kind, draft.partition_key, attributes, draft.payload)
        return Published(published, published_us)

    def _not(
        self, code: FindingCode, run_id: str, detail: str, expected: str = "", actual: str = ""
    ) -> NotRestoredError:
        place = self._locate(refs.record_ref(run_id))
        return NotRestoredError(LedgerFinding(code, run_id, place, detail, expected, actual))
