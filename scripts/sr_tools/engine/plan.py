"""What a run holds: the chosen outputs, and every gate that they need, with paths filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.identity import Identity
from sr_tools.engine.pack import Gate, Output, Pack

DEFAULT_OUTPUTS: Final = ("arrival_events_5B", "s2_flow_anchor_baseline_6B", "s3_flow_anchor_with_fraud_6B")


@dataclass(frozen=True)
class Plan:
    """Chosen outputs with their relative paths by id, and the closure of their gates, resolved, in map order."""

    outputs: tuple[Output, ...]
    paths: Mapping[str, str]
    gates: tuple[Gate, ...]

    def bundle_of(self, output: Output) -> Gate | None:
        """The gate whose bundle holds this output, if one does."""
        path = self.paths[output.output_id]
        return next((gate for gate in self.gates if path.startswith(gate.bundle)), None)


def make_plan(pack: Pack, chosen: Sequence[Output], identity: Identity) -> Plan:
    """Resolve the outputs and every gate that they need.

    Raises:
        MakeRunError: The gate map lacks a gate, or a template cannot be filled.
    """
    needed = _closure(pack, chosen)
    gates = tuple(_resolve(gate, identity) for gate in pack.gates.values() if gate.gate_id in needed)
    return Plan(tuple(chosen), {o.output_id: identity.fill(o.template) for o in chosen}, gates)


def _closure(pack: Pack, chosen: Sequence[Output]) -> set[str]:
    wanted = {output.output_id for output in chosen}
    todo = {gate_id for output in chosen for gate_id in output.gates}
    todo |= {gate.gate_id for gate in pack.gates.values() if gate.authorizes & wanted}
    closed: set[str] = set()
    while todo:
        gate_id = todo.pop()
        if gate_id not in pack.gates:
            raise MakeRunError(f"the gate map has no gate {gate_id}")
        closed.add(gate_id)
        todo |= set(pack.gates[gate_id].upstream) - closed
    return closed


def _resolve(gate: Gate, identity: Identity) -> Gate:
    index = identity.fill(gate.index) if gate.index else None
    return replace(gate, flag=identity.fill(gate.flag), bundle=identity.fill(gate.bundle), index=index)


def choose_outputs(pack: Pack, outputs: Sequence[str] | None, *, all_outputs: bool) -> list[Output]:
    """The outputs asked for, without repeats, in the order given.

    Args:
        pack: The pack.
        outputs: Their ids; None for :data:`DEFAULT_OUTPUTS`.
        all_outputs: Every addressable output that is not inside a gate's bundle instead.

    Raises:
        MakeRunError: The catalogue lacks one.
    """
    if all_outputs:
        bundles = tuple(gate.bundle for gate in pack.gates.values())
        return [o for o in pack.outputs.values() if o.addressable and not o.template.startswith(bundles)]
    names = outputs or DEFAULT_OUTPUTS
    unknown = [name for name in names if name not in pack.outputs]
    if unknown:
        raise MakeRunError(f"the catalogue has no output {', '.join(unknown)}; name others with --outputs")
    return [pack.outputs[name] for name in dict.fromkeys(names)]
