"""``stream adopt``: an operator confirms that a stream that was made anew is to be read."""

import time

from scenario_runner.cli.console import exit_on_error, print_err, print_fields, print_json
from scenario_runner.cli.outputs.acting import STREAM_ADOPT
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.kcl.stream_identity import adopt_new_stream
from scenario_runner.service.control_bus import open_lease_table, open_stream
from scenario_runner.service.production import load_to_write


def run(wiring_path: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        document = adopt_stream(wiring_path)
    if as_json:
        print_json(document, STREAM_ADOPT)
    else:
        print_fields(document, ("stream", "former_stream", "lease_table", "leases_forgotten", "begins_at", "outcome"))


def adopt_stream(wiring_path: str) -> Json:
    """Adopt the stream of a profile.

    Returns:
        ``{stream, former_stream, lease_table, leases_forgotten, begins_at, outcome}``.

    Raises:
        UsageError: the profile's control bus is no stream, or a daemon of the application runs.
        ConfigurationError: the profile is not valid, or the stream does not exist.
        Unavailable: the stream or DynamoDB does not answer.
    """
    wiring = load_to_write(wiring_path)
    stream, table = open_stream(wiring), open_lease_table(wiring)
    if stream is None:
        raise UsageError(f"the control bus of profile {wiring.profile_id} is not a stream")
    print_err(f"checking whether a daemon of {table.application} runs; this takes some seconds")
    state = adopt_new_stream(stream, table, time.sleep)
    adopted = bool(state.problem)
    return {
        "stream": state.stream,
        "former_stream": state.recorded if adopted else "",
        "lease_table": table.application,
        "leases_forgotten": len(state.leases) if adopted else 0,
        "begins_at": (wiring.kinesis_start_timestamp or wiring.kinesis_start_position) if adopted else "",
        "outcome": "adopted: start the daemons again" if adopted else "nothing to do: the leases are about this stream",
    }
