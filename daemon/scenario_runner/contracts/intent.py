"""The intent: everything in a run request that shapes the plan or the evidence, normalised, and its fingerprint.

Request id, invoker and notes are not part of it; the same instant written in another offset, or the same outputs
in another order, are the same intent.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scenario_runner.contracts.canonical import Json, canonical_bytes, sha256_hex
from scenario_runner.contracts.documents import RunRequest
from scenario_runner.contracts.ids import run_id_of, scenario_set_id
from scenario_runner.contracts.states import Strategy
from scenario_runner.contracts.times import format_instant


@dataclass(frozen=True)
class Intent:
    """What is wanted, normalised.

    Attributes:
        scenario_id: The scenario id, or the derived id of the set.
        scenario_set: Sorted and without repetition; empty when one scenario id was given.
        output_ids: Sorted and without repetition; empty means the policy's default outputs.
        engine_run_root: Normalised by intake; empty when the request names none.
    """

    run_id: str
    run_equivalence_key: str
    manifest_fingerprint: str
    parameter_hash: str
    seed: int
    scenario_id: str
    scenario_set: tuple[str, ...]
    window_start_utc: str
    window_end_utc: str
    output_ids: tuple[str, ...]
    strategy: Strategy
    engine_run_root: str

    def document(self) -> Json:
        """Plain JSON of the intent, run id and key left out: what the fingerprint is taken over."""
        return {
            "manifest_fingerprint": self.manifest_fingerprint,
            "parameter_hash": self.parameter_hash,
            "seed": self.seed,
            "scenario_id": self.scenario_id,
            "scenario_set": list(self.scenario_set),
            "window": {"window_start_utc": self.window_start_utc, "window_end_utc": self.window_end_utc},
            "output_ids": list(self.output_ids),
            "strategy": self.strategy.value,
            "engine_run_root": self.engine_run_root,
        }

    @cached_property
    def rendered(self) -> bytes:
        """Canonical JSON of :meth:`document`."""
        return canonical_bytes(self.document())

    def fingerprint(self) -> str:
        """hex64 over the canonical JSON of :meth:`document`."""
        return sha256_hex(self.rendered)

    def tokens(self) -> dict[str, str]:
        """Values for the tokens of the interface pack's path templates."""
        return {
            "manifest_fingerprint": self.manifest_fingerprint,
            "parameter_hash": self.parameter_hash,
            "seed": str(self.seed),
            "scenario_id": self.scenario_id,
            "run_id": self.run_id,
        }

    def identity(self) -> dict[str, Any]:
        """Values of the identity partitions as the documents carry them."""
        return {**self.tokens(), "seed": self.seed}


def intent_of(request: RunRequest, engine_run_root: str) -> Intent:
    """The intent of a validated request; ``engine_run_root`` is the normalised form of the request's."""
    scenarios = tuple(sorted(set(request.scenario.scenario_set or ())))
    return Intent(
        run_id=run_id_of(request.run_equivalence_key),
        run_equivalence_key=request.run_equivalence_key,
        manifest_fingerprint=request.manifest_fingerprint,
        parameter_hash=request.parameter_hash,
        seed=request.seed,
        scenario_id=request.scenario.scenario_id or scenario_set_id(list(scenarios)),
        scenario_set=scenarios,
        window_start_utc=format_instant(request.window.window_start_utc),
        window_end_utc=format_instant(request.window.window_end_utc),
        output_ids=tuple(sorted(set(request.output_ids or ()))),
        strategy=Strategy(request.requested_strategy or Strategy.AUTO),
        engine_run_root=engine_run_root,
    )


def intent_from_document(run_id: str, run_equivalence_key: str, document: Json) -> Intent:
    """Rebuild an intent from a row: the inverse of :meth:`Intent.document`."""
    return Intent(
        run_id=run_id,
        run_equivalence_key=run_equivalence_key,
        manifest_fingerprint=document["manifest_fingerprint"],
        parameter_hash=document["parameter_hash"],
        seed=document["seed"],
        scenario_id=document["scenario_id"],
        scenario_set=tuple(document["scenario_set"]),
        window_start_utc=document["window"]["window_start_utc"],
        window_end_utc=document["window"]["window_end_utc"],
        output_ids=tuple(document["output_ids"]),
        strategy=Strategy(document["strategy"]),
        engine_run_root=document["engine_run_root"],
    )
