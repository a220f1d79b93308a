"""How long a stop may take: below the limits of the supervisors that documents name."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from scenario_runner.cli import stopping
from scenario_runner.cli.stopping import longest_stop
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.profiles.wiring import parse_wiring

pytestmark = pytest.mark.unit

SPOOL: dict[str, Any] = {
    "profile_id": "p", "object_store_root": "s", "authority_store_dsn": "sqlite:///a.db", "control_bus_root": "b",
    "auth_mode": "disabled", "engine_catalogue_path": "c", "gate_map_path": "g", "schema_root": "s",
    "engine_contracts_root": "e",
}  # fmt: skip
STREAM = {**SPOOL, "control_bus_kind": "kinesis", "control_bus_stream": "s"}


def stop_of(profile: dict[str, Any], **changes: Any) -> float:
    return longest_stop(parse_wiring({**profile, **changes}, "wiring.yaml"))


def test_the_default_fits_into_what_supervisors_wait_and_the_highest_into_the_most_of_ecs() -> None:
    assert stop_of(SPOOL) == 50  # systemd: 90
    assert stop_of(STREAM) == 53
    assert stop_of(SPOOL, shutdown_seconds=110) == stop_of(STREAM, shutdown_seconds=110) == 117  # ECS: 120 at most
    assert stop_of(SPOOL, shutdown_seconds=1) == 31


@pytest.mark.parametrize(
    ("failure", "code"), [(None, 5), (ConfigurationError("here", "wrong", "correct it"), 2), (ValueError(), 70)]
)
def test_a_stop_that_hangs_is_no_defect_in_the_log_and_ends_with_the_code_of_what_failed_before(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException | None, code: int
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(stopping, "end_process", codes.append)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(sleep=lambda _seconds: None))
    daemon: Any = SimpleNamespace(stopping=threading.Event(), wiring=parse_wiring(SPOOL, "wiring.yaml"))
    supervisor: Any = SimpleNamespace(failure=failure)
    daemon.stopping.set()
    with structlog.testing.capture_logs() as logged:
        stopping._end_stuck_process(daemon, supervisor)
    assert codes == [code]
    assert [line["log_level"] for line in logged] == ["error"]
