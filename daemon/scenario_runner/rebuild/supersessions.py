"""Supersessions of a ledger: a correction and the run that it supersedes come back together, or neither does. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scenario_runner.authority.rebuilds import RestoredEvent, RestoredRun
from scenario_runner.contracts.canonical import Json, rendered_again
from scenario_runner.contracts.ids import supersedes_message_id
from scenario_runner.contracts.states import FINAL_STATES, EventKind, RunState
from scenario_runner.contracts.supersession import Supersession


@dataclass(frozen=True, slots=True)
class Link:
    """What the record of a run says of supersessions.

    Attributes:
        supersession: What the run was admitted to correct.
        supersedes: Details of its SUPERSEDES, as they were recorded.
        superseded_by: The same of each SUPERSEDED_BY.
        updated_us: When the run changed last.
    """

    run_id: str
    state: RunState
    supersession: Supersession | None
    supersedes: Json | None
    superseded_by: tuple[Json, ...]
    updated_us: int


def link_of(run: RestoredRun, supersedes: Json | None = None, superseded_by: tuple[Json, ...] = ()) -> Link:
    """What a run says of supersessions, with the details of its events of these kinds."""
    return Link(run.run_id, run.state, run.supersession, supersedes, superseded_by, run.updated_us)


def details_of(name: str, supersession: Supersession, new_run_id: str, old_state: RunState) -> Json:
    """Details of SUPERSEDES (``supersedes``) or SUPERSEDED_BY (``superseded_by``), as READY commits them."""
    message_id = supersedes_message_id(supersession.old_run_id, new_run_id, supersession.purpose)
    return {name: supersession.payload(new_run_id, old_state), "message_id": message_id}


class Both:
    """Finds the ends that have no other end.

    Args:
        links: Runs that are at an end of a supersession, or may be.
        state_of: State of any other run, if it is restored.
    """

    def __init__(self, links: Mapping[str, Link], state_of: Callable[[str], RunState | None]) -> None:
        self.kept, self._state_of = dict(links), state_of
        self._corrections: dict[str, list[str]] = defaultdict(list)
        for link in links.values():
            if link.supersession is not None:
                self._corrections[link.supersession.old_run_id].append(link.run_id)
        self._known = frozenset(links)

    def one_sided(self) -> dict[str, str]:
        """Runs that must stay out, with what is wrong; ``kept`` holds the others afterwards.

        A run that stays out may be the other end of one that was looked at before, so that one is looked at again.
        """
        problems: dict[str, str] = {}
        pending = list(self.kept)
        while pending:
            link = self.kept.get(pending.pop())
            problem = self._problem(link) if link is not None else ""
            if link is not None and problem:
                problems[link.run_id] = problem
                del self.kept[link.run_id]
                pending += self._neighbours(link)
        return problems

    def corrections_of(self, run_id: str) -> list[Link]:
        """Runs that were admitted to correct a run, and are kept."""
        return [self.kept[new] for new in self._corrections.get(run_id, []) if new in self.kept]

    def _neighbours(self, link: Link) -> list[str]:
        old = [link.supersession.old_run_id] if link.supersession is not None else []
        return [*self._corrections.get(link.run_id, []), *old]

    def _problem(self, link: Link) -> str:
        """What is wrong with the ends of a run; empty when nothing is."""
        supersession = link.supersession
        if supersession is not None:
            old_state = self._state(supersession.old_run_id)
            if old_state not in FINAL_STATES:
                return f"the run {supersession.old_run_id} that it supersedes is not restored, or has not ended"
            wanted = details_of("supersedes", supersession, link.run_id, old_state)
            if link.state is RunState.READY and link.supersedes != wanted:
                return f"its SUPERSEDES is not what supersedes a run that is {old_state}"
        return next((problem for item in link.superseded_by if (problem := self._wrong_correction(link, item))), "")

    def _wrong_correction(self, link: Link, details: Json) -> str:
        payload: Any = details.get("superseded_by")
        new_run_id = str(payload.get("new_run_id")) if isinstance(payload, dict) else ""
        new = self.kept.get(new_run_id)
        if new is None or new.supersession is None or new.supersession.old_run_id != link.run_id:
            return f"its SUPERSEDED_BY names the run {new_run_id}, which is not restored, or supersedes another run"
        # A correction whose own record is older than its READY goes on, and becomes READY once more.
        if new.state in FINAL_STATES - {RunState.READY}:
            return f"its SUPERSEDED_BY names the run {new_run_id}, which is {new.state}"
        if details != details_of("superseded_by", new.supersession, new_run_id, link.state):
            return f"its SUPERSEDED_BY is not what the correction {new_run_id} was admitted with"
        return ""

    def _state(self, run_id: str) -> RunState | None:
        if run_id in self._known:
            return self.kept[run_id].state if run_id in self.kept else None
        return self._state_of(run_id)


def completed(run: RestoredRun, link: Link, corrections: Iterable[Link]) -> RestoredRun:
    """A run with a SUPERSEDED_BY for each READY correction: its own record may be older than the correction's."""
    recorded = {str(item["superseded_by"]["new_run_id"]) for item in link.superseded_by}
    for new in corrections:
        if new.run_id not in recorded and new.state is RunState.READY and new.supersession is not None:
            details = details_of("superseded_by", new.supersession, new.run_id, run.state)
            run = _grown(run, details, max(run.events[-1].ts_us, new.updated_us))
    return run


def _grown(run: RestoredRun, details: Json, at_us: int) -> RestoredRun:
    seq = len(run.events) + 1
    data = rendered_again({**details, "seq": seq, "state": run.state.value})
    return replace(run, events=(*run.events, RestoredEvent(seq, EventKind.SUPERSEDED_BY.value, at_us, data)))
