"""``submit`` and ``plan``: working with a run request that a person holds in a file."""

import posixpath
import secrets
import sys
import time
from typing import Any

from scenario_runner.bus.envelope import request_envelope
from scenario_runner.bus.kinesis import put_request
from scenario_runner.bus.spool import MAX_RECORD_BYTES, drop_request
from scenario_runner.cli.status import require_marked
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.documents import RunRequest, parse_run_request
from scenario_runner.contracts.errors import RequestRefused, UsageError
from scenario_runner.contracts.ids import run_id_of, submission_message_id
from scenario_runner.contracts.plan import plan_hash
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import SignalKind, Strategy
from scenario_runner.gates.laws import gate_paths
from scenario_runner.gates.verified_set import display_path
from scenario_runner.intake.admission_policy import plan_request, refuse_without_engine
from scenario_runner.intake.decode import Message, decode
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.compose import make_rules, open_pack
from scenario_runner.service.control_bus import open_stream, spool_root, state_modes
from scenario_runner.service.identity import named_spool
from scenario_runner.storage.anchored import AnchoredRoot


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read(MAX_RECORD_BYTES + 1)
    try:
        with open(file, "rb") as stream:
            return stream.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error


def _request(file: str, wiring: Wiring) -> tuple[RunRequest, Json]:
    """The request in a file, bare or in an envelope, checked."""
    raw = _read(file)
    decoded = decode(Message(file, raw, len(raw)), wiring.control_bus_topic, MAX_RECORD_BYTES)
    if decoded.foreign:
        raise RequestRefused(
            f"the envelope's topic is {decoded.foreign!r}; this profile serves {wiring.control_bus_topic!r}",
            Reason.KIND_UNKNOWN,
        )
    if decoded.kind != SignalKind.RUN_REQUEST:
        raise RequestRefused(f"the document is a {decoded.kind}, a run request is needed", Reason.KIND_NOT_SERVED)
    return parse_run_request(decoded.document), decoded.document


def submit_request(wiring_path: str, file: str) -> Json:
    """Drop a request on the control bus.

    Returns:
        ``{run_id, message_id, record}``.

    Raises:
        RequestRefused: the document is not a valid run request, or needs an engine; nothing was sent.
    """
    wiring = load_wiring(wiring_path)
    request, document = _request(file, wiring)
    refuse_without_engine(Strategy(request.requested_strategy or Strategy.AUTO), request.engine_run_root)
    run_id = run_id_of(request.run_equivalence_key)
    message_id = submission_message_id(run_id, secrets.token_hex(16))
    data = request_envelope(wiring.control_bus_topic, message_id, time.time_ns() // 1000, run_id, document)
    if len(data) + len(run_id) > MAX_RECORD_BYTES:  # a stream counts the partition key
        raise RequestRefused(
            f"in its envelope the request holds {len(data)} bytes, the bus takes at most {MAX_RECORD_BYTES}",
            Reason.RECORD_TOO_LARGE,
        )
    return {"run_id": run_id, "message_id": message_id, "record": _send(wiring, run_id, message_id, data)}


def _send(wiring: Wiring, run_id: str, message_id: str, data: bytes) -> str:
    """Put an envelope on the control bus; returns where it lies."""
    stream = open_stream(wiring)
    if stream is not None:
        return put_request(stream, run_id, data)
    spool = AnchoredRoot(spool_root(wiring), state_modes(wiring))
    require_marked(wiring, named_spool(spool))
    return drop_request(spool, message_id, data)


def plan_file(wiring_path: str, policy_path: str, file: str) -> dict[str, Any]:
    """The plan that a request would get.

    Raises:
        RequestRefused: it would be refused.
    """
    wiring, policy = load_wiring(wiring_path), load_policy(policy_path)
    pack = open_pack(wiring)
    request, _ = _request(file, wiring)
    intent, inputs = plan_request(request, make_rules(wiring, policy, pack))
    tokens = intent.tokens()
    outputs = []
    for output_id in inputs.outputs:
        spec = pack.outputs[output_id]
        outputs.append(
            {
                "output_id": output_id,
                "path": posixpath.join(intent.engine_run_root, display_path(spec, spec.template.render(tokens))),
                "optional": spec.optional,
                "role": "business_traffic" if output_id in inputs.traffic else "non_traffic",
            }
        )
    gates = [
        {
            "gate_id": gate.gate_id,
            "law": gate.law.value,
            "flag": posixpath.join(intent.engine_run_root, gate_paths(gate, tokens).flag),
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
        "engine_run_root": intent.engine_run_root,
        "intended_outputs": list(inputs.outputs),
        "required_gates": list(inputs.gates),
        "outputs": outputs,
        "gates": gates,
    }
