"""``plan``: the plan that a request would get, computed without side effects."""

import posixpath
from typing import Final

from scenario_runner.cli.console import exit_on_error, print_fields, print_json, print_line
from scenario_runner.cli.outputs.acting import PLAN
from scenario_runner.cli.request_file import read_request
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.plan import plan_hash
from scenario_runner.contracts.states import Strategy
from scenario_runner.gates.laws import gate_paths
from scenario_runner.gates.verified_set import display_path
from scenario_runner.intake.admission_policy import plan_request
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack

_SENTENCES: Final = {
    "never": "never invoked",
    "first": "invoked first",
    "at_deadline": "invoked when evidence is missing at the deadline",
    "at_once": "invoked as soon as evidence is missing",
}
"""When the engine is invoked, for a person."""


def run(wiring_path: str, policy_path: str, file: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        result = plan_file(wiring_path, policy_path, file)
    if as_json:
        print_json(result, PLAN)
        return
    shown = {**result, "engine": _SENTENCES[result["engine_invoked"]]}
    print_fields(shown, ("run_id", "strategy", "evidence_wait_seconds", "engine_run_root", "engine", "plan_hash"))
    for item in result["outputs"]:
        print_line(f"  output {item['output_id']}  ({item['role']}{', optional' if item['optional'] else ''})")
        print_line(f"         {item['path']}")
    for item in result["gates"]:
        print_line(f"  gate   {item['gate_id']}  ({item['law']})")
        print_line(f"         {item['flag']}")


def plan_file(wiring_path: str, policy_path: str, file: str) -> Json:
    """The plan that the request in a file would get.

    Raises:
        RequestRefused: the request would be refused.
    """
    wiring, policy = load_wiring(wiring_path), load_policy(policy_path)
    pack = open_pack(wiring)
    request = read_request(file, wiring.control_bus_topic).request
    intent, inputs = plan_request(request, make_admission_policy(wiring, policy, pack))
    tokens, root = intent.tokens(), inputs.root_of(intent)
    specs = [pack.outputs[output_id] for output_id in inputs.outputs]
    outputs = [
        {
            "output_id": spec.output_id,
            "path": posixpath.join(root, display_path(spec, spec.template.render(tokens))),
            "optional": spec.optional,
            "role": "business_traffic" if spec.output_id in inputs.traffic else "non_traffic",
        }
        for spec in specs
    ]
    gates = [
        {
            "gate_id": gate.gate_id,
            "law": gate.law.value,
            "flag": posixpath.join(root, gate_paths(gate, tokens).flag),
            "upstream": list(gate.upstream),
        }
        for gate in pack.gates.values()
        if gate.gate_id in inputs.gates
    ]
    return {
        "run_id": intent.run_id,
        "intent_fingerprint": intent.fingerprint(),
        "plan_hash": plan_hash(intent, inputs),
        "strategy": inputs.strategy.value,
        "policy_rev": inputs.policy_rev,
        "interface_pack_digest": inputs.pack_digest,
        "evidence_wait_seconds": inputs.evidence_wait_seconds,
        "attempt_limit": inputs.attempt_limit,
        "engine_run_root": root,
        "engine_invoked": "first" if inputs.strategy is Strategy.FORCE_INVOKE else inputs.auto_invoke or "never",
        "intended_outputs": list(inputs.outputs),
        "required_gates": list(inputs.gates),
        "outputs": outputs,
        "gates": gates,
    }
