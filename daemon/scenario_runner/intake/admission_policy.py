"""Which requests are admitted, and what is pinned with them: pure functions of request, profile and pack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from scenario_runner.contracts.documents import RunRequest
from scenario_runner.contracts.errors import EngineRefusal, RequestRefused
from scenario_runner.contracts.intent import Intent, intent_of
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Strategy
from scenario_runner.engine.attempt import Attempt, launch_of
from scenario_runner.engine.invoker import Launch
from scenario_runner.engine.root_template import RootTemplate
from scenario_runner.intake.reemit import ReemitPolicy
from scenario_runner.intake.roots import normalise_root
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.profiles.policy import Policy

#: Sets of outputs that are asked for again and again are few; a producer that varies them must not fill the memory.
_MOST_CACHED_INPUTS: Final = 1000
_REQUESTED: Final = "requested_strategy is"


@dataclass(frozen=True)
class EngineTerms:
    """What admission knows of the engine that is configured.

    Attributes:
        root_template: Where the engine writes the run of a request that names no root; None when it must name one.
        check: Raises ``EngineRefusal`` for a launch that can never be made.
        invocation_path: A place that is as long as those of invocation documents are.
        timeout_seconds: How long the engine may run.
    """

    root_template: RootTemplate | None
    check: Callable[[Launch], object]
    invocation_path: str
    timeout_seconds: float


@dataclass(frozen=True)
class AdmissionPolicy:
    """What messages are validated against.

    Attributes:
        topic: The control topic.
        record_limit: Size of the largest message in bytes.
        allowlist: Invokers that may request runs; None when authorisation is disabled.
        engine_roots: Absolute allowed roots.
        cwd: The working directory, for relative engine run roots.
        policy: The policy profile.
        pack: The interface pack.
        engine: The engine; None when none is configured.
        reemit: Who may have signals published again, and how often.
    """

    topic: str
    record_limit: int
    allowlist: frozenset[str] | None
    engine_roots: Sequence[str]
    cwd: str
    policy: Policy
    pack: InterfacePack
    reemit: ReemitPolicy
    engine: EngineTerms | None = None
    _inputs: dict[tuple[tuple[str, ...], Strategy], PlanInputs] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """A cache: the closure over the gates of a pack costs more than the rest of an admission."""

    def plan_inputs(self, output_ids: tuple[str, ...], requested: Strategy) -> PlanInputs:
        """What is pinned for a request and is equal for all requests with the same outputs and strategy.

        Args:
            output_ids: The requested outputs, sorted; empty for the policy's default.
            requested: The requested strategy.

        Raises:
            RequestRefused: The outputs cannot be planned, or the policy does not allow the strategy.
        """
        key = (output_ids, requested)
        found = self._inputs.get(key)
        if found is None:
            found = self._plan_inputs(output_ids, requested)
            if len(self._inputs) >= _MOST_CACHED_INPUTS:
                self._inputs.clear()
            self._inputs[key] = found
        return found

    def _plan_inputs(self, output_ids: tuple[str, ...], requested: Strategy) -> PlanInputs:
        traffic = frozenset(self.policy.traffic_output_ids)
        outputs = output_ids or tuple(sorted(traffic))
        strategy = _strategy(requested, self.policy)
        return PlanInputs(
            pack_digest=self.pack.digest,
            policy_rev=self.policy.rev().wire(),
            gates=required_gates(self.pack, outputs),
            strategy=strategy,
            outputs=outputs,
            traffic=tuple(output for output in outputs if output in traffic),
            evidence_wait_seconds=self.policy.evidence_wait_seconds,
            attempt_limit=self.policy.attempt_limit,
            bounds=self.policy.bounds(),
            auto_invoke=self.policy.auto_invoke if self.engine is not None and strategy is Strategy.AUTO else "",
            output_digest_source=self.policy.output_digest_source,
        )


def plan_request(request: RunRequest, admission: AdmissionPolicy) -> tuple[Intent, PlanInputs]:
    """Intent and plan inputs of a well-formed request, without side effects.

    Raises:
        RequestRefused: The invoker is not authorised, the root is not allowed, the outputs cannot be planned, or an
            engine would be needed.
    """
    if admission.allowlist is not None and request.invoker not in admission.allowlist:
        raise RequestRefused(
            "the invoker is not on the profile's auth_allowlist" if request.invoker else "the request names no invoker",
            Reason.AUTH_DENIED,
        )
    named = request.engine_run_root
    root = normalise_root(named, admission.engine_roots, admission.cwd) if named else ""
    intent = intent_of(request, root)
    inputs = admission.plan_inputs(intent.output_ids, intent.strategy)
    forced = inputs.strategy is not intent.strategy
    because = f"policy {admission.policy.policy_id} has reuse_policy DENY, so the strategy is" if forced else _REQUESTED
    engine = admission.engine
    template = None if engine is None else engine.root_template
    refuse_without_engine(
        inputs.strategy, root, engine=engine is not None, template=template is not None, because=because
    )
    if engine is not None and inputs.strategy is not Strategy.FORCE_REUSE:
        inputs = _with_root(intent, inputs, admission, template)
        _require_launchable(request, intent, inputs, engine)
    return intent, inputs


def _with_root(
    intent: Intent, inputs: PlanInputs, admission: AdmissionPolicy, template: RootTemplate | None
) -> PlanInputs:
    """The inputs with the root that is pinned for a request that names none."""
    if intent.engine_run_root or template is None:
        return inputs
    root = normalise_root(template.render(intent.tokens()), admission.engine_roots, admission.cwd)
    return replace(inputs, engine_run_root=root)


def _require_launchable(request: RunRequest, intent: Intent, inputs: PlanInputs, engine: EngineTerms) -> None:
    """Refuse a request for which the engine could never be launched: its key stays free.

    Raises:
        RequestRefused: ``ENGINE_INVOCATION_INVALID``.
    """
    try:
        attempt = Attempt(intent, 1, inputs.root_of(intent), request.invoker or "")
        engine.check(launch_of(attempt, engine.invocation_path, engine.timeout_seconds))
    except EngineRefusal as refusal:
        raise RequestRefused(
            f"the engine can never be launched for this request: {refusal.detail}; correct it, or ask for FORCE_REUSE "
            "of a finished engine run",
            refusal.reason,
        ) from refusal


def refuse_without_engine(
    strategy: Strategy, engine_run_root: str | None, *, engine: bool, template: bool, because: str = _REQUESTED
) -> None:
    """Refuse a request that needs an engine where none is configured, and one that leaves it open where its run lies.

    It is refused at intake, so no run is made and its key stays free for a request that can be served.

    Args:
        strategy: The strategy that the run would have.
        engine_run_root: Where its evidence lies, in any form; empty or None when the request names no root.
        engine: Whether an engine is configured.
        template: Whether the profile says where the runs of requests lie that name no root.
        because: Where the strategy comes from: the begin of the message.

    Raises:
        RequestRefused: ``ENGINE_COMMAND_MISSING``: the strategy invokes the engine, and there is none;
            ``ENGINE_ROOT_MISSING``: nothing says where the engine run lies.
    """
    if strategy is Strategy.FORCE_INVOKE and not engine:
        raise RequestRefused(
            f"{because} FORCE_INVOKE and no engine is configured; run the engine, then ask for AUTO or FORCE_REUSE of "
            "its engine_run_root",
            Reason.ENGINE_COMMAND_MISSING,
        )
    if engine_run_root:
        return
    if not engine:
        problem = "no engine is configured; name the root of a finished engine run"
    elif strategy is Strategy.FORCE_REUSE:
        problem = "FORCE_REUSE never invokes the engine; name the root of a finished engine run"
    elif not template:
        problem = "the wiring profile has no engine_run_root_template; name engine_run_root, or set that key"
    else:
        return
    raise RequestRefused(f"the request names no engine_run_root and {problem}", Reason.ENGINE_ROOT_MISSING)


def _strategy(requested: Strategy, policy: Policy) -> Strategy:
    """The strategy of a run: a policy that denies reuse leaves only the engine."""
    if policy.reuse_policy == "ALLOW":
        return requested
    if requested is Strategy.FORCE_REUSE:
        raise RequestRefused(
            f"requested_strategy is FORCE_REUSE and the policy {policy.policy_id} does not allow reuse",
            Reason.REUSE_NOT_ALLOWED,
        )
    return Strategy.FORCE_INVOKE
