"""``submit``: put a run request on the control bus."""

import secrets
import time

from scenario_runner.bus.envelope import request_envelope
from scenario_runner.bus.kinesis import put_request
from scenario_runner.bus.spool import MAX_RECORD_BYTES, drop_request
from scenario_runner.cli.console import exit_on_error, print_fields, print_json
from scenario_runner.cli.read_only import require_marked
from scenario_runner.cli.request_file import read_request
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.ids import run_id_of, submission_message_id
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Strategy
from scenario_runner.intake.admission_policy import refuse_without_engine
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.control_bus import open_stream, spool_root, state_modes
from scenario_runner.service.identity import named_spool
from scenario_runner.storage.anchored import AnchoredRoot


def run(wiring_path: str, file: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        result = submit_request(wiring_path, file)
    if as_json:
        print_json(result)
    else:
        print_fields(result, ("run_id", "message_id", "record"))


def submit_request(wiring_path: str, file: str) -> Json:
    """Put the request in a file on the control bus of a profile.

    Returns:
        ``{run_id, message_id, record}``.

    Raises:
        RequestRefused: the document is not a valid run request, or needs an engine that the
            profile does not have; nothing was sent.
    """
    wiring = load_wiring(wiring_path)
    request, document = read_request(file, wiring.control_bus_topic)
    refuse_without_engine(
        Strategy(request.requested_strategy or Strategy.AUTO), request.engine_run_root,
        engine=bool(wiring.engine_backend), template=wiring.engine_run_root_template is not None,
    )  # fmt: skip
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
