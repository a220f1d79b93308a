"""Why a rebuild does not begin."""

from collections.abc import Sequence
from typing import Final

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.rebuilds import UnfinishedRebuild
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.reasons import Reason

#: Daemons that are named; there may be a hundred.
_NAMED: Final = 5


def not_empty(subject: str) -> UsageError:
    """The refusal of an authority that has rows."""
    return UsageError(
        f"the authority already knows of runs, records or signals; a rebuild from {subject} needs an empty database: "
        "name a new one in authority_store_dsn, or move the file of this one away",
        Reason.AUTHORITY_NOT_EMPTY,
    )


def other_terms(unfinished: UnfinishedRebuild, terms: str) -> UsageError:
    """The refusal of a rebuild that was begun on other terms."""
    return UsageError(
        f"a rebuild that {unfinished.actor} began on the terms ({unfinished.terms}) has not ended, and these are "
        f"({terms}); runs that it restored stay: go on on its terms, or begin anew with an empty database",
        Reason.REBUILD_UNFINISHED,
    )


def ended_by_another(act: ActionRow | None) -> UsageError:
    """The answer to a rebuild that another process has ended: what it printed is on no record."""
    known = f"as act {act.action_key} of {act.actor}, {act.outcome}" if act is not None else "and its act is not there"
    return UsageError(
        f"another process has ended this rebuild, {known}; this one is on no record: see the findings of the other one",
        Reason.AUTHORITY_NOT_EMPTY,
    )


def daemons_run(daemons: Sequence[DaemonRow]) -> UsageError:
    """The refusal of an authority that daemons work on."""
    named = ", ".join(f"{item.owner} on {item.host} ({item.role})" for item in daemons[:_NAMED])
    more = f" and {len(daemons) - _NAMED} more" if len(daemons) > _NAMED else ""
    return UsageError(
        f"daemons work on the authority: {named}{more}; stop them and begin again; the row of a killed one counts "
        "for a minute, and scenario-runner daemons lists them",
        Reason.DAEMONS_RUN,
    )
