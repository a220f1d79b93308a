"""What is known of a run while it is restored, and why one is not."""

from dataclasses import dataclass
from typing import NamedTuple

from scenario_runner.audit.ledger_findings import LedgerFinding
from scenario_runner.authority.rebuilds import RestoredRun
from scenario_runner.authority.values import SignalDraft, StoredEvent
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.states import EventKind
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.rebuild.course import own_details
from scenario_runner.rebuild.supersessions import Link


class NotRestoredError(Exception):
    """A run is not restored."""

    def __init__(self, finding: LedgerFinding) -> None:
        self.finding = finding
        super().__init__(finding.detail)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was admitted, from the record: proven to hang together, by nothing but itself.

    Attributes:
        events: The whole record.
        details: Details of each event, as the record has them.
        end: The event that changed the run last.
        supersession: The run that it corrects.
    """

    intent: Intent
    inputs: PlanInputs
    invoker: str
    events: tuple[StoredEvent, ...]
    details: tuple[bytes, ...]
    end: StoredEvent
    supersession: Supersession | None = None

    @property
    def run_id(self) -> str:
        """The run."""
        return self.intent.run_id

    @property
    def admitted_us(self) -> int:
        """When."""
        return self.events[0].ts_us

    @property
    def supersedes(self) -> Json | None:
        """What was recorded with the READY of a correction: the payload of RUN_SUPERSEDES and its message id."""
        found = next((event for event in self.events if event.kind == EventKind.SUPERSEDES), None)
        return None if found is None else own_details(found)


@dataclass(frozen=True, slots=True)
class Published:
    """A signal as it was published, and when."""

    draft: SignalDraft
    at_us: int


@dataclass(frozen=True, slots=True)
class ReadyProof:
    """What was found of a READY run: its signal, and RUN_SUPERSEDES of a correction."""

    facts_view_digest: str
    ready: Published
    supersedes: Published | None


class Restored(NamedTuple):
    """A run that holds together by itself, and what its record says of supersessions; None where it says nothing."""

    run: RestoredRun
    link: Link | None
