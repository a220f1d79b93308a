"""A runner with two batches at a time: neither waits for the other, and each run is driven once."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import World, need_posix

from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import compose_daemon
from scenario_runner.service.loops import Role
from scenario_runner.service.supervisor import Supervisor

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 120
RUNS = 20
"""More than a first batch holds."""


def test_a_batch_that_takes_long_does_not_keep_the_other_one_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_posix()
    world = World(tmp_path / "world", {"poll_seconds": 0.02})
    made = [world.make_run(f"run-{number}", outputs=["outlet_catalogue"], members=1) for number in range(RUNS)]
    for number, run in enumerate(made):
        world.drop(run["request"], f"{number}.json")
    daemon = replace(compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy))), batches=2)
    supervisor = Supervisor(daemon, Role.ALL)
    driven: list[list[str]] = []
    second = threading.Event()
    drive = daemon.driver.drive

    def driving(claims: Any, share: Any) -> Any:
        driven.append([claim.run_id for claim in claims])
        if len(driven) > 1:
            second.set()
        assert second.wait(PATIENCE_SECONDS), "the second batch waits for the end of the first one"
        return drive(claims, share)

    monkeypatch.setattr(daemon.driver, "drive", driving)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(world.signals("READY")) < RUNS:
            assert supervisor.failure is None, supervisor.failure
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {"runner", "runner:2"} <= {state.loop for state in supervisor.heartbeats.loops()}
    finally:
        daemon.stopping.set()
        second.set()
        thread.join()
        daemon.authority.close()
    assert sorted(run for batch in driven for run in batch) == sorted(run["run_id"] for run in made)


def test_where_evidence_lies_in_folders_there_is_one_batch_at_a_time(tmp_path: Path) -> None:
    need_posix()
    world = World(tmp_path / "world")
    daemon = compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
    daemon.authority.close()
    assert daemon.batches == 1
