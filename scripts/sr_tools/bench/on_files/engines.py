"""Engines in flight: what they cost the daemon, and what they take from the other runs."""

import argparse
import time
from pathlib import Path
from typing import Final

from sr_tools.bench.processes import children, cpu_of
from sr_tools.bench.report import CheckFailedError, Json, note, result
from sr_tools.bench.world import RACY_SECONDS, SMALL, World, run_id_of, steady_seconds, with_digest

#: Seconds over which the CPU of the daemon and its keepers is counted: several lease renewals and a hundred polls.
_WINDOW_SECONDS: Final = 20.0
_RUNNING: Final = "SELECT count(*) FROM engine_attempts WHERE ended_us IS NULL AND handle LIKE '%|%|%|%|%'"
_ENDS: Final = "SELECT exit_code, count(*) FROM engine_attempts GROUP BY exit_code"
_OTHER: Final = "r.run_equivalence_key LIKE 'other-%'"


class EngineWorld(World):
    """A world whose engine sleeps. It leaves no run, so its runs fail when it wakes up."""

    def wiring(self) -> Json:
        """The wiring profile."""
        return super().wiring() | {
            "engine_command": ["/bin/sleep", "60"],
            "engine_command_timeout_seconds": 600,
            "engine_attempts_dir": str(self.root / "attempts"),
            "engine_run_root_template": f"{self.runs}/made/{{run_id}}",
        }

    @staticmethod
    def policy() -> Json:
        """The policy profile: one attempt, since each of them fails."""
        return with_digest(World.policy() | {"attempt_limit": 1})

    def request(self) -> Json:
        """A request that needs the engine."""
        made = self.make_engine_run("needs-engine", 0)
        del made["engine_run_root"]
        return made | {"requested_strategy": "FORCE_INVOKE"}


def engines(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Engines that run for a minute: CPU of SR meanwhile, leases, and the rate of other runs beside them."""
    count, others = options.engines, options.engines_other_runs
    alone = _rate_of_others(World.make(folder / "alone", options), others, note_text="without engines")
    world = EngineWorld(folder / "with", folder / "with/runs", options.subject, options.timeout)
    world.prepare()
    request = world.request()
    for number in range(count):
        world.drop(request, f"engine-{number}")
    note(f"engines: launching {count}")
    with world.serve() as daemon:
        began = time.monotonic()
        daemon.until(lambda: world.query(_RUNNING)[0][0] == count if world.query(_RUNNING) else False,
                     "not all engines were launched", seconds=120)  # fmt: skip
        launched = time.monotonic() - began
        before, at = _cpu_of_tree(daemon.process.pid), time.monotonic()
        time.sleep(_WINDOW_SECONDS)
        after, passed = _cpu_of_tree(daemon.process.pid), time.monotonic() - at
        share = (sum(after.values()) - sum(before.get(pid, 0.0) for pid in after)) / passed
        own = (after[daemon.process.pid] - before[daemon.process.pid]) / passed
        beside = _others(world, others, daemon)
        running = int(world.query(_RUNNING)[0][0])
        daemon.until(lambda: world.query(_RUNNING)[0][0] == 0, "engines did not end", seconds=180)
        daemon.stop()
    lost = sum("lease lost" in line for line in world.logs[-1].read_text("utf-8").splitlines())
    ends = dict(world.query(_ENDS))
    if ends != {0: count} or lost:
        raise CheckFailedError(f"engines ended {ends}, {lost} leases were lost; {count} with 0 and none expected")
    ratio = beside / alone
    how = (
        f"{count} engines of 60 s (`sleep`) in flight in one daemon, over {_WINDOW_SECONDS:g} s; their own CPU left out"
    )
    more: Json = {"daemon_share": round(own, 4), "launch_seconds": round(launched, 2), "leases_lost": lost}
    rate: Json = {"alone_runs_per_second": round(alone, 1), "beside_runs_per_second": round(beside, 1)}
    return [
        result("engines_cpu", share, "of a core", "<= 0.05", f"CPU of daemon and keepers: {how}", met=share <= 0.05,
               **more),
        result("engines_other_runs", ratio, "ratio", ">= 0.9",
               f"steady rate of {others} small runs ({SMALL}) beside {running} engines, over that without engines",
               met=ratio >= 0.9, **rate),
    ]  # fmt: skip


def _rate_of_others(world: World, count: int, note_text: str) -> float:
    note(f"engines: {count} runs {note_text}")
    with world.serve() as daemon:
        daemon.wait_for_start()
        rate = _others(world, count, daemon)
        daemon.stop()
    return rate


def _others(world: World, count: int, daemon: object) -> float:
    """Steady rate of small runs on one engine run, which are dropped while the daemon serves."""
    del daemon
    request = world.make_engine_run("other", 1)
    time.sleep(RACY_SECONDS)
    run_ids = [world.drop(request, f"other-{number}") for number in range(count)]
    assert run_ids[0] == run_id_of("other-0")
    deadline = time.monotonic() + world.timeout
    while len(times := world.times(_OTHER)) < count:
        if time.monotonic() > deadline:
            raise CheckFailedError(f"{len(times)} of {count} other runs are READY")
        time.sleep(0.05)
    return count / steady_seconds(times)


def _cpu_of_tree(root: int) -> dict[int, float]:
    """CPU seconds of a process and its children, by process id. Engines are children of the keepers, and left out."""
    return {pid: cpu_of(pid) for pid in (root, *children(root))}
