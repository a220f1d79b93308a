"""The evidence key: everything of a run that the finding on its evidence depends on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.engine.run_receipt import RECEIPT_IDENTITY
from scenario_runner.interface_pack.model import InterfacePack


@dataclass(frozen=True, slots=True)
class EvidenceKey:
    """What is to be examined. Runs with equal keys share one finding; the cache keeps findings under it.

    An examination gets this key, the interface pack of the digest in it, and nothing else of a run. So a finding
    cannot depend on something that the key lacks: a field that is left out here cannot be read there.

    Attributes:
        root: The engine run root, normalised at admission.
        pack_digest: sha256 of the interface pack.
        tokens: Name and value of each path token that the paths, flags or the engine's run receipt may name, sorted.
        gates: Required gates, sorted.
        outputs: Intended outputs, sorted.
        bounds: How large the evidence may be and how long one examination may take.
        source: Where the digests of output files may come from. A finding of one source is never used for another:
            one that was taken with less depth would stand for evidence that was read.
    """

    root: str
    pack_digest: str
    tokens: tuple[tuple[str, str], ...]
    gates: tuple[str, ...]
    outputs: tuple[str, ...]
    bounds: EvidenceBounds
    source: DigestSource = DigestSource.READ

    def values(self) -> dict[str, str]:
        """The path tokens by name."""
        return dict(self.tokens)


def evidence_key(
    root: str,
    pack: InterfacePack,
    tokens: Mapping[str, str],
    gates: Iterable[str],
    outputs: Iterable[str],
    bounds: EvidenceBounds,
    source: DigestSource = DigestSource.READ,
) -> EvidenceKey:
    """The only way to make a key.

    Args:
        root: The engine run root, normalised at admission.
        pack: The pinned interface pack.
        tokens: Values of all path tokens of the run. The key keeps those that an examination may use, so that runs
            that differ in the others share a finding.
        gates: Required gates.
        outputs: Intended outputs.
        bounds: Bounds of the run's policy.
        source: Where its policy lets the digests of output files come from.
    """
    gates, outputs = tuple(gates), tuple(outputs)
    names = set(RECEIPT_IDENTITY)
    for gate_id in gates:
        gate = pack.gates[gate_id]
        names |= set(gate.scope)  # a flag may name the identity that its gate is about
        names |= gate.flag.tokens | gate.bundle_root.tokens | (gate.index.tokens if gate.index else frozenset())
    for output_id in outputs:
        names |= pack.outputs[output_id].template.tokens
    values = tuple((name, tokens[name]) for name in sorted(names))
    return EvidenceKey(root, pack.digest, values, gates, outputs, bounds, source)
