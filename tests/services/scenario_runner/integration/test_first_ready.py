"""The main job, end to end, with the installed command."""

import pytest
from support import World

pytestmark = pytest.mark.integration


def test_a_submitted_request_becomes_ready_and_verifies(world: World) -> None:
    run = world.make_run()
    world.drop(run["request"])
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()
    code, status = world.query("status", run["run_id"])
    assert (code, status["state"]) == (0, "READY")
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [run["run_id"]]
    code, verified = world.query("verify", run["run_id"])
    assert (code, verified["outcome"]) == (0, "PASS"), verified
