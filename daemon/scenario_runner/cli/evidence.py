"""``evidence arrived``: tell the daemons, over the control bus, that evidence has come."""

import os
import time
from typing import Final

from scenario_runner.bus.envelope import arrival_envelope
from scenario_runner.cli.console import exit_on_error, print_fields, print_json
from scenario_runner.cli.outputs.acting import EVIDENCE_ARRIVED
from scenario_runner.cli.submit import Submission, open_bus
from scenario_runner.contracts.documents import parse_evidence_arrived
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.ids import arrival_message_id, checked_run_id
from scenario_runner.intake.roots import normalise_root
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import allowed_roots
from scenario_runner.service.production import require_class_of_producer

_FIELDS: Final = ("engine_run_root", "run_id", "message_id", "record")


def run(wiring_path: str, engine_run_root: str, run_id: str | None, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        wiring = load_wiring(wiring_path)
        require_class_of_producer(wiring)
        named = {} if run_id is None else {"run_id": checked_run_id(run_id)}
        payload = {"engine_run_root": engine_run_root, **named}
        parse_evidence_arrived(payload)
        normalise_root(engine_run_root, allowed_roots(wiring), os.getcwd())  # what intake would refuse is not sent
        message_id = arrival_message_id(engine_run_root, run_id or "")
        key = run_id or message_id
        data = arrival_envelope(wiring.control_bus_topic, message_id, time.time_ns() // 1000, key, payload)
        with open_bus(wiring) as send:
            (where,) = send([Submission(key, message_id, data)])
        if isinstance(where, Unavailable):
            raise where
        found = {"engine_run_root": engine_run_root, "run_id": run_id, "message_id": message_id, "record": where}
        if as_json:
            print_json(found, EVIDENCE_ARRIVED)
        else:
            print_fields(found, _FIELDS)
