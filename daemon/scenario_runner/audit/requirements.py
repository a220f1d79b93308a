"""What a run was required to show, and who says so: the operator, the authority, or the ledger alone."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from scenario_runner.authority.base import RunRow
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import PlanInputs, plan_bytes, plan_inputs_from_document


class Origin(StrEnum):
    """Who vouches for the pack or policy that a run is verified under; whoever can write the ledger is no witness."""

    OPERATOR = "named by the operator"
    AUTHORITY = "pinned by the authority"
    LEDGER = "vouched for by the ledger only"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The authority says nothing of a run; ``why`` says it."""

    why: str


Known = Callable[[str], RunRow | Unknown]
"""What the authority knows of a run id."""


@dataclass(frozen=True, slots=True)
class Named:
    """What the operator names for a verification, beside the profile.

    Attributes:
        pack: True when the pack at hand was named for it: it counts whatever a run was pinned to.
        policy_rev: ``{policy_id, revision, content_digest}``; None when no policy was named.
    """

    pack: bool = False
    policy_rev: Json | None = None


def pinned_inputs(row: RunRow) -> PlanInputs:
    """What admission pinned for a run."""
    return plan_inputs_from_document(row.inputs)


def pinned_plan(row: RunRow) -> bytes:
    """The bytes of the one run_plan that a run can have."""
    intent = intent_from_document(row.run_id, row.run_equivalence_key, row.intent)
    return plan_bytes(intent, pinned_inputs(row), row.admitted_us)
