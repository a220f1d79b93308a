"""What a run on its way still has to show, computed again from what the operator names: never from the ledger alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.states import Strategy
from scenario_runner.intake.roots import normalise_root
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.rebuild.values import Admitted, NotRestoredError

PlanAgain = Callable[[str, tuple[str, ...], Strategy], PlanInputs]
"""What admission pins under the pack of a digest for requested outputs and a strategy; raises ``RequestRefused``."""


@dataclass(frozen=True)
class Requirements:
    """What may go on.

    Attributes:
        packs: Interface packs that the operator vouches for, by digest: the profile's, and others that were named.
        engine_roots: Absolute allowed engine roots.
        invokers: Who may request runs; None for everybody.
        plan_again: Under the policy that the operator names; None when none was named.
        locate: Where an object is, for a person.
    """

    packs: Mapping[str, InterfacePack]
    engine_roots: Sequence[str]
    invokers: frozenset[str] | None
    plan_again: PlanAgain | None
    locate: Callable[[str], str]

    def __post_init__(self) -> None:
        """Remember gates: the closure costs more than the rest of a check."""
        object.__setattr__(self, "_gates", lru_cache(1000)(self._gates_of))

    def _gates_of(self, digest: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        return required_gates(self.packs[digest], outputs)

    def check(self, admitted: Admitted) -> None:
        """Require that admission would pin the same for a run that goes on.

        Raises:
            NotRestoredError: ``PLAN_NOT_ALLOWED``.
        """
        try:
            problem = self._problem(admitted)
        except RequestRefused as refused:
            problem = refused.detail
        if problem:
            place = self.locate(refs.record_ref(admitted.run_id))
            raise NotRestoredError(LedgerFinding(FindingCode.PLAN_NOT_ALLOWED, admitted.run_id, place, problem))

    def _problem(self, admitted: Admitted) -> str:
        intent, inputs = admitted.intent, admitted.inputs
        if inputs.pack_digest not in self.packs:
            return (
                f"it was pinned to the interface pack {inputs.pack_digest}, which is not one of {', '.join(self.packs)}"
            )
        if self.invokers is not None and admitted.invoker not in self.invokers:
            return "its invoker is not on the profile's auth_allowlist"
        root = inputs.root_of(intent)
        if root and normalise_root(root, self.engine_roots, "/") != root:
            return f"its engine run root {root!r} is not in its normal form"
        gates = self._gates(inputs.pack_digest, inputs.outputs)  # type: ignore[attr-defined]
        checks = {
            "it has no outputs, or others than were requested": inputs.outputs
            and (not intent.output_ids or inputs.outputs == intent.output_ids),
            "its gates are not those that the pack requires": inputs.gates == gates and gates,
            "its traffic is no part of its outputs": set(inputs.traffic) <= set(inputs.outputs),
            "its strategy is not the requested one": inputs.strategy in (intent.strategy, Strategy.FORCE_INVOKE),
        }
        if self.plan_again is not None:
            again = self.plan_again(inputs.pack_digest, intent.output_ids, intent.strategy)
            checks["the policy that was named pins something else"] = replace(inputs, engine_run_root="") == again
        return next((problem for problem, holds in checks.items() if not holds), "")
