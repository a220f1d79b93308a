"""SIGKILL before and after each step of an attempt: no launch twice, no two at a time, no orphan, the same verdicts.

Before a step, a daemon is killed and another one is started. After it, a daemon is killed while another one runs beside
it and takes over. Each kill meets a run of its own.
"""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from crashing import Fork, Moment, holder_of, is_stopped, until, until_up
from engine_scene import EFFECTS, FOLDER, INVOKER, LANE, LEDGER, ROWS, EngineScene, ended

pytestmark = pytest.mark.integration

EXECUTION = "scenario_runner.runs.execution:"
POINTS: dict[str, Moment] = {
    "plan written": Moment(LEDGER + "write_plans", match="run_id"),
    "invocation document written": Moment("scenario_runner.engine.invocations:FileInvocations.write"),
    "attempt prepared": Moment(EFFECTS + "_prepare"),
    "attempt's events inserted, before the commit": Moment(ROWS + "_append", match="LAUNCH_REQUESTED"),
    "attempt's row committed": Moment(ROWS + "commit"),
    "attempt's folder made": Moment(FOLDER + "create"),
    "attempt's folder named": Moment("os:rename", match=".new-"),
    "keeper started": Moment(INVOKER + "start_keeper"),
    "keeper watched": Moment(INVOKER + "SubprocessInvoker._add"),
    "launch handed over": Moment(INVOKER + "hand_over"),
    "engine launched": Moment(INVOKER + "SubprocessInvoker.launch"),
    "submission committed": Moment(ROWS + "commit", nth=2),
    "run parked": Moment(LANE + "_park"),
    "engine followed": Moment(LANE + "_ends"),
    "engine's end seen": Moment(INVOKER + "SubprocessInvoker.poll", after_result=True),
    "receipt read": Moment(EFFECTS + "_read_receipt"),
    "logs written": Moment(LEDGER + "write_attempt_logs"),
    "first log linked": Moment("os:link", match="/engine_attempt_logs/"),
    "second log linked": Moment("os:link", match="/engine_attempt_logs/", nth=2),
    "end judged": Moment(EXECUTION + "attempt_ended"),
    "end inserted, before the commit": Moment(ROWS + "_append", match="ATTEMPT_FINISHED"),
    "end committed": Moment(ROWS + "commit", nth=3),
    "outputs forgotten": Moment(INVOKER + "SubprocessInvoker.forget"),
    "evidence measured": Moment("scenario_runner.evidence.examine:measure"),
    "receipts written": Moment(LEDGER + "write_receipts", match="output_id"),
    "facts view written": Moment(LEDGER + "write_facts_views", match="FactsView"),
    "READY signal inserted, before the commit": Moment(ROWS + "_add_signal"),
}


@pytest.mark.parametrize("target", sorted({moment.at for moment in POINTS.values()}))
def test_each_call_at_which_a_daemon_is_killed_exists(target: str) -> None:
    holder, name = holder_of(target)
    assert callable(getattr(holder, name))


@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_killed_before_and_after(point: str, tmp_path: Path) -> None:
    scene, moment = EngineScene(tmp_path, seconds=0.3), POINTS[point]
    if not moment.after_result:
        killed_at(scene, moment)
        scene.ask()
    after = replace(moment, when="after")
    with ended(other := taken_over_at(scene, after)):
        scene.finish(other, killed=True)


def killed_at(scene: EngineScene, moment: Moment) -> None:
    """A daemon is killed at a moment."""
    with Fork(scene.world, moment=moment) as victim:
        assert victim.wait() == -signal.SIGKILL, scene.log()
    scene.watch.look()
    scene.hurry()


def taken_over_at(scene: EngineScene, moment: Moment) -> Fork:
    """A daemon is killed at a moment, and the one that runs beside it."""
    with Fork(scene.world, moment=moment, action="stop") as victim:
        until(lambda: is_stopped(victim), f"{moment} comes; {scene.log()}")
        locked = scene.is_locked()  # then no other daemon can start while this one is only stopped
        if not locked:
            until_up(other := Fork(scene.world))
    scene.watch.look()
    return Fork(scene.world) if locked else other
