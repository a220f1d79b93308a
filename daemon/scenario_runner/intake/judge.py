"""Judging a record: a pure function of its bytes, the profile, the policy and the interface pack."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from scenario_runner.authority.base import Admission, NewRun, SignalDraft
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.documents import RunRequest, parse_run_request
from scenario_runner.contracts.errors import RequestRefused, one_line
from scenario_runner.contracts.ids import rejected_message_id
from scenario_runner.contracts.intent import Intent, intent_of
from scenario_runner.contracts.plan import PlanInputs, plan_hash
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import OWN_SIGNALS, Disposition, SignalKind, Strategy
from scenario_runner.contracts.times import MICROS
from scenario_runner.intake.decode import Decoded, Record, decode, run_id_hint
from scenario_runner.intake.roots import normalise_root
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.profiles.policy import Policy

_PLANNED_KEPT: Final = 1000
_ASKED: Final = "requested_strategy is"


@dataclass(frozen=True)
class Rules:
    """What records are judged by.

    Attributes:
        topic: The control topic.
        record_limit: Largest record in bytes.
        allowlist: Invokers that may ask for runs; None when authorisation is disabled.
        engine_roots: Absolute allowed roots.
        cwd: The working directory, for relative engine run roots.
    """

    topic: str
    record_limit: int
    allowlist: frozenset[str] | None
    engine_roots: Sequence[str]
    cwd: str
    policy: Policy
    pack: InterfacePack
    _planned: dict[tuple[tuple[str, ...], Strategy], PlanInputs] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def plan_inputs(self, output_ids: tuple[str, ...], asked: Strategy) -> PlanInputs:
        """What is pinned for a request; the same for all that ask for the same.

        Args:
            output_ids: As asked for, sorted; empty for the policy's default.
            asked: The strategy that was asked for.

        Raises:
            RequestRefused: outputs that cannot be planned, or a strategy that the policy does not allow.
        """
        key = (output_ids, asked)
        found = self._planned.get(key)
        if found is None:
            found = self._plan_inputs(output_ids, asked)
            if len(self._planned) >= _PLANNED_KEPT:
                self._planned.clear()
            self._planned[key] = found
        return found

    def _plan_inputs(self, output_ids: tuple[str, ...], asked: Strategy) -> PlanInputs:
        traffic = frozenset(self.policy.traffic_output_ids)
        outputs = output_ids or tuple(sorted(traffic))
        return PlanInputs(
            pack_digest=self.pack.digest,
            policy_rev=self.policy.rev().wire(),
            gates=required_gates(self.pack, outputs),
            strategy=_strategy(asked, self.policy),
            outputs=outputs,
            traffic=tuple(output for output in outputs if output in traffic),
            evidence_wait_seconds=self.policy.evidence_wait_seconds,
            attempt_limit=self.policy.attempt_limit,
            bounds=self.policy.bounds(),
        )


def plan_request(request: RunRequest, rules: Rules) -> tuple[Intent, PlanInputs]:
    """Intent and plan inputs of a validated request, without side effects.

    Raises:
        RequestRefused: not authorised, a root that is not allowed, outputs that cannot be planned, or an engine would
            be needed.
    """
    if rules.allowlist is not None and (request.invoker is None or request.invoker not in rules.allowlist):
        raise RequestRefused(
            "the invoker is not on the profile's auth_allowlist" if request.invoker else "the request names no invoker",
            Reason.AUTH_DENIED,
        )
    root = normalise_root(request.engine_run_root, rules.engine_roots, rules.cwd) if request.engine_run_root else ""
    intent = intent_of(request, root)
    inputs = rules.plan_inputs(intent.output_ids, intent.strategy)
    forced = inputs.strategy is not intent.strategy
    because = f"policy {rules.policy.policy_id} has reuse_policy DENY, so the strategy is" if forced else _ASKED
    refuse_without_engine(inputs.strategy, root, because)
    return intent, inputs


def refuse_without_engine(strategy: Strategy, engine_run_root: str | None, because: str = _ASKED) -> None:
    """Refuse what no engine is there for: this release invokes none. No run is made of it, so its key stays free.

    Args:
        strategy: What the run would be driven by.
        engine_run_root: Where its evidence lies, in any form; empty or None when the request names no root.
        because: Who wants the strategy: the begin of the message.

    Raises:
        RequestRefused: ``ENGINE_COMMAND_MISSING``: the engine must be invoked; ``ENGINE_ROOT_MISSING``: there is
            nothing to verify unless it is.
    """
    if strategy is Strategy.FORCE_INVOKE:
        raise RequestRefused(
            f"{because} FORCE_INVOKE and no engine is configured; run the engine, then ask for AUTO or FORCE_REUSE of "
            "its engine_run_root",
            Reason.ENGINE_COMMAND_MISSING,
        )
    if not engine_run_root:
        raise RequestRefused(
            "the request names no engine_run_root and no engine is configured; name the root of a finished engine run",
            Reason.ENGINE_ROOT_MISSING,
        )


def _strategy(asked: Strategy, policy: Policy) -> Strategy:
    if policy.reuse_policy == "ALLOW":
        return asked
    if asked is Strategy.FORCE_REUSE:
        raise RequestRefused(
            f"requested_strategy is FORCE_REUSE and the policy {policy.policy_id} does not allow reuse",
            Reason.REUSE_NOT_ALLOWED,
        )
    return Strategy.FORCE_INVOKE


def judge(record: Record, rules: Rules) -> Admission:
    """Everything about a record that can be known without the authority."""
    decoded = Decoded("", "", {})
    try:
        decoded = decode(record, rules.topic, rules.record_limit)
        if decoded.foreign:
            return _settled(record, decoded, "", Disposition.IGNORED, "", f"of the topic {decoded.foreign}, not ours")
        if decoded.kind in OWN_SIGNALS:
            return _settled(record, decoded, "", Disposition.IGNORED, "", "one of our own signals")
        if decoded.kind != SignalKind.RUN_REQUEST:
            raise RequestRefused(f"{decoded.kind} is not served by this release", Reason.KIND_NOT_SERVED)
        request = parse_run_request(decoded.document)
        intent, inputs = plan_request(request, rules)
    except RequestRefused as refused:
        run_id = run_id_hint(record) if record.size <= rules.record_limit else ""
        return _settled(record, decoded, run_id, Disposition.REJECTED, refused.reason.value, refused.detail)
    run = NewRun(
        run_id=intent.run_id,
        run_equivalence_key=intent.run_equivalence_key,
        fingerprint=intent.fingerprint(),
        intent=intent.document(),
        inputs=inputs.document(),
        plan_hash=plan_hash(intent, inputs),
        plan_ref=refs.plan_ref(intent.run_id),
        evidence_wait_us=inputs.evidence_wait_seconds * MICROS,
        invoker=request.invoker or "",
    )
    collision = "the run equivalence key is bound to another intent; use a new key for a different request"
    return Admission(
        record.key, decoded.kind, decoded.message_id, intent.run_id, run, None, "", "", record.raw, record.size,
        _refusal(record, decoded, intent.run_id, Disposition.CONFLICT, Reason.EQUIV_KEY_COLLISION.value, collision),
    )  # fmt: skip


def dead_letter(key: str, raw: bytes, size: int, error: Exception) -> Admission:
    """A record that broke us, of which nothing is believed but its bytes: it must not block those after it."""
    detail = one_line(f"this record broke Scenario Runner: {type(error).__name__}: {error}")
    return Admission(key, "", "", "", None, Disposition.REJECTED, Reason.INTERNAL_ERROR.value, detail, raw, size)


def _settled(
    record: Record, decoded: Decoded, run_id: str, disposition: Disposition, reason_code: str, detail: str
) -> Admission:
    detail = detail[:2000]
    refusal = None
    if disposition is Disposition.REJECTED and run_id:
        refusal = _refusal(record, decoded, run_id, disposition, reason_code, detail)
    return Admission(
        record.key, decoded.kind, decoded.message_id, run_id, None, disposition, reason_code, detail, record.raw,
        record.size, refusal,
    )  # fmt: skip


def _refusal(
    record: Record, decoded: Decoded, run_id: str, disposition: Disposition, reason_code: str, detail: str
) -> SignalDraft:
    payload = {
        "run_id": run_id,
        "disposition": disposition.value,
        "reason_code": reason_code,
        "detail": detail,
        "record_key": record.key,
    }
    if decoded.message_id:
        payload["request_message_id"] = decoded.message_id
    return SignalDraft(
        rejected_message_id(record.key), SignalKind.REQUEST_REJECTED, run_id, {}, canonical_bytes(payload)
    )
