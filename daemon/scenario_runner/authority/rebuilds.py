"""What a rebuild puts into an empty authority: runs with all their rows, as the ledger knows them."""

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, NamedTuple

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.values import AttemptRow, SignalDraft
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import FINAL_STATES, RunState
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.contracts.times import MICROS, format_micros

#: A daemon reports itself four times in this time, so one that was not seen for so long was killed, or stands still.
SEEN_US: Final = 60 * MICROS


class NotStorableError(Exception):
    """A batch of runs that the database cannot hold: nothing of it is there, and that lies in one of its values."""


@dataclass(frozen=True, slots=True)
class RestoredSignal:
    """A signal that counts as published.

    Attributes:
        sent_us: When it was published, as far as that is known.
        receipt: What the control bus answered, as JSON; empty where it is not known.
        removed_emission: Of the first emission: the highest number that the message ever had, which is not used again.
    """

    draft: SignalDraft
    created_us: int
    needs_seq: int
    sent_us: int
    emission: int = 0
    receipt: str = ""
    action_key: str = ""
    removed_emission: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """See :meth:`RestoredRun.__reduce__`."""
        return _signal_from, (_DRAFT(self.draft), *_SIGNAL(self))


_DRAFT: Final = attrgetter("message_id", "kind", "partition_key", "attributes", "payload")
_SIGNAL: Final = attrgetter(*(field.name for field in fields(RestoredSignal) if field.name != "draft"))


def _signal_from(draft: tuple[Any, ...], *values: Any) -> RestoredSignal:  # noqa: ANN401 - of every field
    return RestoredSignal(SignalDraft(*draft), *values)


class RestoredEvent(NamedTuple):
    """An event; its details are canonical JSON with its number and its state, as a record has them."""

    seq: int
    kind: str
    ts_us: int
    details: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredRun:
    """A run with its rows. It has no lease; one that has not ended is due at once.

    Documents are canonical JSON: one process reads them, and another one puts them into rows.

    Attributes:
        strategy: Of its plan.
        projected_seq: Up to which event its documents are in the ledger; 0 where one is older than the record.
        missing: Paths that it waits for.
        supersession: The run that it corrects.
    """

    run_id: str
    run_equivalence_key: str
    fingerprint: str
    intent: bytes
    inputs: bytes
    strategy: str
    invoker: str
    state: RunState
    reason_code: str
    admitted_us: int
    deadline_us: int
    updated_us: int
    report_digest: str
    facts_view_digest: str
    projected_seq: int
    missing: tuple[str, ...]
    events: tuple[RestoredEvent, ...]
    attempts: tuple[AttemptRow, ...]
    signals: tuple[RestoredSignal, ...]
    actions: tuple[ActionRow, ...]
    supersession: Supersession | None = None

    @property
    def supersedes(self) -> str:
        """Id of the run that it corrects; empty when it corrects none."""
        return self.supersession.old_run_id if self.supersession is not None else ""

    @property
    def supersession_text(self) -> str:
        """The supersession as a row holds it."""
        return self.supersession.text() if self.supersession is not None else ""

    def __reduce__(self) -> tuple[Any, ...]:
        """What is sent to the process that writes: plain tuples, which take a third of the time of frozen classes."""
        return _run_from, (_RUN(self), tuple(map(tuple, self.events)))

    def size(self) -> int:
        """Bytes of its documents, which are all but some hundred bytes of each of its rows."""
        events = sum(len(event.details) for event in self.events)
        return len(self.intent) + len(self.inputs) + events + sum(len(signal.draft.payload) for signal in self.signals)

    @property
    def due_us(self) -> int | None:
        """When it is due: since its last change, or never."""
        return None if self.state in FINAL_STATES else self.updated_us


_NAMES: Final = tuple(field.name for field in fields(RestoredRun) if field.name != "events")
_RUN: Final = attrgetter(*_NAMES)


def _run_from(values: tuple[Any, ...], events: tuple[tuple[Any, ...], ...]) -> RestoredRun:
    return RestoredRun(events=tuple(map(RestoredEvent._make, events)), **dict(zip(_NAMES, values, strict=True)))


@dataclass(frozen=True, slots=True)
class UnfinishedRebuild:
    """A rebuild that has begun and not ended: no daemon may work on this authority.

    Attributes:
        terms: By what runs are restored, such as the witness of READY. Whoever goes on restores by the same.
        epoch: Fencing epoch of every run that it restores. It is the time of its beginning in microseconds, and no run
            is claimed a million times a second: no lease of the database before, or of an earlier rebuild, exceeds it.
    """

    began_us: int
    epoch: int
    actor: str
    terms: str

    def refusal(self) -> Unavailable:
        """What a daemon that began before the rebuild meets: it waits, and nothing is lost."""
        return Unavailable(
            f"the authority is being rebuilt, by {self.actor} since {format_micros(self.began_us)}: nobody admits or "
            "drives runs until scenario-runner authority rebuild has ended"
        )


@dataclass(frozen=True, slots=True)
class RebuildEnd:
    """What is written with the last batch: who did it, and the stores that the authority knows from now on.

    Attributes:
        identities: (name, identity) of each store.
    """

    action: ActionRow
    identities: tuple[tuple[str, str], ...]
