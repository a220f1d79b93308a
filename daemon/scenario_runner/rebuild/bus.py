"""The control bus as a witness: what was published of a run does not say anything else than the ledger.

The spool keeps what was published, so it knows of ends that an older copy of the ledger does not know yet.
"""

import hashlib
from collections.abc import Callable
from enum import StrEnum

from orjson import Fragment

from scenario_runner.audit.ends_on_bus import OnBus
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.authority.values import SignalDraft
from scenario_runner.bus.envelope import envelope_document
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, parse_rendered, rendered_again, sha256_hex
from scenario_runner.contracts.states import REPEATED_BY, RunState, SignalKind
from scenario_runner.contracts.times import parse_instant, to_micros
from scenario_runner.rebuild.course import emissions_published
from scenario_runner.rebuild.values import Admitted, NotRestoredError, Published

ReadFirst = Callable[[str, tuple[int, ...]], tuple[bytes, int] | None]
"""Bytes of the envelope of a message id on the control bus, in the first of some emissions that is there, with the
emission; None when it is in none of them."""


class Witness(StrEnum):
    """Who must agree with the ledger that a run is READY."""

    BUS = "bus"
    EVIDENCE = "evidence"
    LEDGER = "ledger"


class BusWitness:
    """Compares runs with what was published of them. Safe for several threads.

    Args:
        locate: Where an object is, for a person.
        topic: The control topic.
        witness: Who must agree with the ledger.
        read_first: Reads the control bus; None where it cannot be asked.
    """

    def __init__(
        self, locate: Callable[[str], str], topic: str, witness: Witness, read_first: ReadFirst | None
    ) -> None:
        self.witness = witness
        self._locate, self._topic, self._read_first = locate, topic, read_first

    def require_no_other_end(self, run_id: str, state: RunState, said: OnBus, message_id: str = "") -> None:
        """Require that no end of a run was published but the one that its record knows.

        Args:
            run_id: The run.
            state: Its state, as the record has it.
            said: What the control bus says of the run.
            message_id: Of the signal of its end; empty while it is on its way.

        Raises:
            NotRestoredError: ``STATE_CONTRADICTED``.
        """
        other = next((end.kind for end in said.ends if not end.is_of(message_id)), None)
        if other is not None:
            detail = (
                f"{other} of another end of it is on the control bus, and the record says {state}: it is older, or was "
                "changed"
            )
            raise self._not(FindingCode.STATE_CONTRADICTED, run_id, detail)

    def require_on_its_way(self, run_id: str, state: RunState, said: OnBus) -> None:
        """Require that no end of a run was published, as far as the control bus can be read.

        Raises:
            NotRestoredError: ``STATE_CONTRADICTED``, or ``SIGNAL_UNREADABLE``: a file there may be its end.
        """
        self.require_no_other_end(run_id, state, said)
        if said.unreadable:
            detail = f"{said.unreadable} of the control bus is no message, and may be its end; the record says {state}"
            raise self._not(FindingCode.SIGNAL_UNREADABLE, run_id, detail)

    def end(self, admitted: Admitted, draft: SignalDraft, said: OnBus) -> Published:
        """The signal of the end of a run as it was published; one that was repeated has several files.

        Raises:
            NotRestoredError: see :meth:`published`, and ``STATE_CONTRADICTED``.
        """
        state = RunState(admitted.end.details["state"])
        self.require_no_other_end(admitted.run_id, state, said, draft.message_id)
        return self._first_file(draft, said) or self.published(
            draft, admitted.end.ts_us, (0, *emissions_published(admitted.events))
        )

    def _first_file(self, draft: SignalDraft, said: OnBus) -> Published | None:
        """The signal of an end whose file holds what is expected, and nothing more; None where the file must be read.

        The file was read before, with all others of the control bus; that its bytes are those that are expected now is
        known from its digest. This saves one of seven files of a run that are read, 20 us.
        """
        for end in said.ends:
            expected = self._rendered(draft, draft.kind, draft.attributes, end.published_us)
            if hashlib.sha256(expected).digest() == end.file:
                return Published(draft, end.published_us)
        return None

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
            found = parse_rendered(data)
            published_us = to_micros(parse_instant(found["published_at_utc"]))
            attributes = {str(name): str(value) for name, value in found["attributes"].items() if name != "kind"}
            # READY of an older release has no attribute run_id; it is required to be the run's where it is.
            required = {n: v for n, v in draft.attributes.items() if n in attributes or n != "run_id"}
            wanted = self._rendered(draft, kind, {**attributes, **required}, published_us)
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

    def _rendered(self, draft: SignalDraft, kind: SignalKind, attributes: Json, published_us: int) -> bytes:
        """The envelope of a signal; the draft's payload is canonical JSON already."""
        return rendered_again(
            envelope_document(
                self._topic, draft.message_id, published_us, {**attributes, "kind": kind.value}, draft.partition_key,
                Fragment(draft.payload),
            )
        )  # fmt: skip

    def _not(
        self, code: FindingCode, run_id: str, detail: str, expected: str = "", actual: str = ""
    ) -> NotRestoredError:
        place = self._locate(refs.record_ref(run_id))
        return NotRestoredError(LedgerFinding(code, run_id, place, detail, expected, actual))
