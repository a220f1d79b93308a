"""Which gates must have passed before these outputs may be read. Pure."""

from collections.abc import Iterable

from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.interface_pack.templates import TOKENS


def required_gates(pack: InterfacePack, output_ids: Iterable[str]) -> tuple[str, ...]:
    """Gates that authorise any of the outputs, plus those their reading requires, closed upstream; sorted.

    Raises:
        RequestRefused: unknown output, an output whose path needs a value that no request carries, a gate that
            the pack does not define, or no gate at all.
    """
    wanted = set(output_ids)
    if not wanted:
        raise RequestRefused("there are no outputs to verify", Reason.NO_OUTPUTS)
    pending: set[str] = set()
    for output_id in sorted(wanted):
        spec = pack.outputs.get(output_id)
        if spec is None:
            raise RequestRefused(f"the output {output_id!r} is not in the catalogue", Reason.UNKNOWN_OUTPUT_ID)
        unknown = spec.template.tokens - set(TOKENS)
        if unknown:
            raise RequestRefused(
                f"the path of {output_id!r} needs {{{min(unknown)}}}, which a run request does not carry",
                Reason.OUTPUT_NOT_ADDRESSABLE,
            )
        pending.update(spec.read_requires_gates)
    pending.update(gate.gate_id for gate in pack.gates.values() if not wanted.isdisjoint(gate.authorizes_outputs))
    closed: set[str] = set()
    while pending:
        gate_id = pending.pop()
        if gate_id not in pack.gates:
            raise RequestRefused(f"the gate {gate_id!r} is not in the gate map", Reason.UNKNOWN_GATE_ID)
        closed.add(gate_id)
        pending.update(set(pack.gates[gate_id].upstream) - closed)
    if not closed:
        raise RequestRefused(
            f"no gate authorises {', '.join(sorted(wanted))}, so nothing could be verified",
            Reason.NO_REQUIRED_GATES,
        )
    return tuple(sorted(closed))
