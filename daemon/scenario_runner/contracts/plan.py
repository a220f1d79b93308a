"""The plan: a pure function of intent, pinned interface pack, policy and the moment of admission.

Nothing in it reads a clock, so a retry, another worker or another year gives the same bytes.
"""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Final

import orjson

from scenario_runner.contracts.canonical import Json, canonical_part, canonical_sha256
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.states import Strategy
from scenario_runner.contracts.times import MICROS, format_micros


@dataclass(frozen=True, slots=True)
class EvidenceBounds:
    """How large a run's evidence may be, and how long one examination of it may take; keys of the policy.

    Attributes:
        max_output_bytes: Of all files of one output, and of all members of one gate.
        max_output_files: Likewise, their number.
        max_look_seconds: From the beginning of an examination to its end.
    """

    max_output_bytes: int = 1 << 40
    max_output_files: int = 200_000
    max_look_seconds: int = 3600


#: Of policies that name none of the bounds.
DEFAULT_BOUNDS: Final = EvidenceBounds()


@dataclass(frozen=True)
class PlanInputs:
    """What admission pins for a run; runs that ask for the same may share one.

    Attributes:
        pack_digest: Interface pack that the run is verified under, whatever is deployed later.
        policy_rev: ``{policy_id, revision, content_digest}``.
        strategy: After policy.
        outputs: Intended outputs, sorted.
        gates: Required gates, sorted.
        traffic: Intended outputs that the policy calls business traffic, sorted.
        evidence_wait_seconds: From admission to the evidence deadline.
        bounds: Bounds of the evidence; part of the document only when the policy names one of them, so that the plan
            hashes of older policies stay what they are. The next three are likewise only there when they are set.
        auto_invoke: When the engine is invoked for a run of strategy AUTO whose evidence is missing: ``at_deadline``
            or ``at_once``; empty for never, as where no engine was configured at admission.
        engine_run_root: Where the evidence of a request lies, or will, that names no root; empty when it names one.
        output_digest_source: Where the digests of output files may come from.
    """

    pack_digest: str
    policy_rev: Json
    strategy: Strategy
    outputs: tuple[str, ...]
    gates: tuple[str, ...]
    traffic: tuple[str, ...]
    evidence_wait_seconds: int
    attempt_limit: int
    bounds: EvidenceBounds = DEFAULT_BOUNDS
    auto_invoke: str = ""
    engine_run_root: str = ""
    output_digest_source: DigestSource = DigestSource.READ

    def document(self) -> Json:
        """Plain JSON, for the row."""
        document: Json = {
            "pack_digest": self.pack_digest,
            "policy_rev": self.policy_rev,
            "strategy": self.strategy.value,
            "outputs": list(self.outputs),
            "gates": list(self.gates),
            "traffic": list(self.traffic),
            "evidence_wait_seconds": self.evidence_wait_seconds,
            "attempt_limit": self.attempt_limit,
        }
        if self.bounds != DEFAULT_BOUNDS:
            document["bounds"] = asdict(self.bounds)
        if self.output_digest_source is not DigestSource.READ:
            document["output_digest_source"] = self.output_digest_source.value
        optional = {"auto_invoke": self.auto_invoke, "engine_run_root": self.engine_run_root}
        return document | {name: value for name, value in optional.items() if value}

    def root_of(self, intent: Intent) -> str:
        """The engine run root of a run: the one that its request names, or else the one that was pinned for it."""
        return intent.engine_run_root or self.engine_run_root

    @cached_property
    def rendered(self) -> orjson.Fragment:
        """Canonical JSON of :meth:`document`."""
        return canonical_part(self.document())


#: Every release so far wrote these keys or some of them, and no other.
_KEYS: Final = frozenset(field.name for field in fields(PlanInputs))
_BOUNDS: Final = frozenset(field.name for field in fields(EvidenceBounds))
_SOURCES: Final = frozenset(DigestSource)


def plan_inputs_from_document(document: Json) -> PlanInputs:
    """The inverse of :meth:`PlanInputs.document`.

    Raises:
        Unavailable: it holds what this release does not know. A newer release pinned it; without it the plan and its
            hash would be others than those on record, so nothing may be decided here.
    """
    bounds: Json = document.get("bounds", {})
    unknown = sorted((document.keys() - _KEYS) | {f"bounds.{key}" for key in bounds.keys() - _BOUNDS})
    source = document.get("output_digest_source", DigestSource.READ)
    if source not in _SOURCES:
        unknown.append(f"output_digest_source {source}")
    if unknown:
        raise Unavailable(
            f"the run was admitted by a newer release; this one does not know {', '.join(unknown)} of its plan"
        )
    return PlanInputs(
        pack_digest=document["pack_digest"],
        policy_rev=document["policy_rev"],
        strategy=Strategy(document["strategy"]),
        outputs=tuple(document["outputs"]),
        gates=tuple(document["gates"]),
        traffic=tuple(document["traffic"]),
        evidence_wait_seconds=document["evidence_wait_seconds"],
        attempt_limit=document["attempt_limit"],
        bounds=EvidenceBounds(**bounds),
        auto_invoke=document.get("auto_invoke", ""),
        engine_run_root=document.get("engine_run_root", ""),
        output_digest_source=DigestSource(source),
    )


def plan_hash(intent: Intent, inputs: PlanInputs) -> str:
    """hex64 over what shapes the run; no times, so re-planning gives the same hash."""
    parts = {"intent": orjson.Fragment(intent.rendered), "inputs": inputs.rendered, "run_id": intent.run_id}
    return canonical_sha256(parts)


def plan_document(intent: Intent, inputs: PlanInputs, admitted_us: int) -> Json:
    """The run_plan document of a run admitted at ``admitted_us`` (microseconds since the epoch)."""
    return {
        "run_id": intent.run_id,
        "plan_hash": plan_hash(intent, inputs),
        "policy_rev": inputs.policy_rev,
        "strategy": inputs.strategy.value,
        "intended_outputs": list(inputs.outputs),
        "required_gates": list(inputs.gates),
        "evidence_deadline_utc": format_micros(admitted_us + inputs.evidence_wait_seconds * MICROS),
        "attempt_limit": inputs.attempt_limit,
        "created_at_utc": format_micros(admitted_us),
    }
