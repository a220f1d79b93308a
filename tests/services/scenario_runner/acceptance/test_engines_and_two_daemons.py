"""Engines of runs that change hands: launched once, one at a time, none left over, whoever stops, dies or is late."""

import signal
import time
from pathlib import Path

import pytest
from crashing import Fork, Moment, is_stopped, until
from engine_scene import FOLDER, INVOKER, LANE, LEDGER, ROWS, WIRING, EngineScene, ended

pytestmark = pytest.mark.integration

STOPPED: dict[str, Moment] = {
    "after its attempt is on record": Moment(ROWS + "commit", "after"),
    "before the attempt has a folder": Moment(FOLDER + "create"),
    "after the attempt has a folder": Moment(FOLDER + "create", "after"),
    "before it hands the launch over": Moment(INVOKER + "hand_over"),
    "after it handed the launch over": Moment(INVOKER + "hand_over", "after"),
    "before the submission is on record": Moment(ROWS + "commit", nth=2),
    "while the engine runs": Moment(LANE + "_park", "after"),
    "after it saw the end": Moment(INVOKER + "SubprocessInvoker.poll", "after", after_result=True),
    "after it wrote the logs": Moment(LEDGER + "write_attempt_logs", "after"),
    "before the end is on record": Moment(ROWS + "commit", nth=3),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_daemon_stopped_past_its_lease_and_continued_launches_nothing_twice(name: str, tmp_path: Path) -> None:
    scene, first = stopped_at(STOPPED[name], tmp_path)
    with ended(first):
        launched = len(scene.engine.launches())
        second = Fork(scene.world)
        with ended(second):
            # The engine of the second daemon runs when the first one goes on; where there cannot be one, it has waited.
            late = time.monotonic() + 2 * WIRING["lease_seconds"] + 2
            while len(scene.engine.launches()) == launched and not scene.settled() and time.monotonic() < late:
                time.sleep(0.05)
            scene.watch.look()
            first.send_signal(signal.SIGCONT)
            scene.finish(first, second)


def stopped_at(moment: Moment, folder: Path) -> tuple[EngineScene, Fork]:
    """A world whose daemon stopped itself (SIGSTOP) at a moment, holding no lock of the database."""
    for attempt in range(8):
        scene = EngineScene(folder / str(attempt))
        daemon = Fork(scene.world, moment=moment, action="stop")
        until(lambda scene=scene, daemon=daemon: is_stopped(daemon), f"{moment} comes; {scene.log()}")
        if not scene.is_locked():
            return scene, daemon
        with ended(daemon):
            pass
    raise AssertionError("the daemon always stopped with the database locked")
