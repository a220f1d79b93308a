"""A herd that is woken by one message, and how long new runs take that are asked for meanwhile."""

import argparse
import subprocess
import time
from typing import Final

from sr_tools.bench.daemon import Daemon
from sr_tools.bench.herd import Herd
from sr_tools.bench.report import CheckFailedError, Json, note, result
from sr_tools.bench.world import World

#: A new run is READY within this, from its admission, whatever else is due: a batch that is in flight, and its own.
_MOST_MS: Final = 2000
#: Between two new runs while the herd is driven.
_BETWEEN_SECONDS: Final = 0.5
#: New runs before the herd is woken. The first reads its evidence, the others find it known.
_ALONE: Final = 6
#: Due runs that are no sign of the herd: new ones.
_FEW: Final = 20
#: Which READY runs are meant, see :meth:`World.times`.
_KEY: Final = "r.run_equivalence_key LIKE '{}-%'"
#: Microseconds from the admission of runs to their decision, in the order of admission.
_DECIDED: Final = (
    "SELECT updated_us - admitted_us FROM runs WHERE state = 'READY' AND run_equivalence_key LIKE '{}-%' "
    "ORDER BY admitted_us"
)


def measure_woken(herd: Herd, options: argparse.Namespace) -> list[Json]:
    """Serve, say that evidence has come where the herd waits, and ask for new runs until all of it was examined."""
    world = herd.world
    world.write("wiring", world.wiring() | {"evidence_watch": "off"})  # nothing but the message shall wake it
    with world.serve() as daemon:
        daemon.wait_for_start()
        for number in range(_ALONE):
            _ask(herd, daemon, f"alone-{number}")
            time.sleep(_BETWEEN_SECONDS)
        began = _wake(herd, daemon)
        note(f"woken: {_due(world)} runs are due")
        asked = _ask_meanwhile(herd, daemon)
        herd_seconds = time.perf_counter() - began
        daemon.until(lambda: len(world.times(_KEY.format("new"))) >= asked, "a new run was not READY", pause=0.05)
        usage = daemon.stop()
    alone, new = (_milliseconds(world, key) for key in ("alone", "new"))
    decided = [round(took / 1000, 1) for (took,) in world.query(_DECIDED.format("new"))]
    ready = world.query("SELECT count(*) FROM runs WHERE state = 'READY' AND run_equivalence_key LIKE 'herd-%'")[0][0]
    how = (
        f"admission to READY on the bus of a run that is admitted once {options.woken_runs} runs which wait for one "
        f"root have been made due by one EVIDENCE_ARRIVED, on {herd.where}; "
        f"{'their evidence has come' if options.woken_come else 'the root is still absent'}"
    )
    more = {
        "decided_ms": decided[0], "longest_ms": max(new), "longest_decided_ms": max(decided), "new_runs": len(new),
        "new_ms": new[:20], "alone_ms": min(alone[1:]), "herd_seconds": round(herd_seconds, 2),
        "herd_ready": int(ready), "cpu_seconds": round(usage.cpu, 2),
    }  # fmt: skip
    return [result("woken_new_run", new[0], "ms", f"<= {_MOST_MS}", how, met=new[0] <= _MOST_MS, **more)]


def _milliseconds(world: World, key: str) -> list[float]:
    """From admission to READY on the bus, in the order of admission."""
    return [round((sent - admitted) / 1000, 1) for admitted, sent in sorted(world.times(_KEY.format(key)))]


def _due(world: World) -> int:
    """Runs that are due, those under lease as well."""
    rows = world.query(f"SELECT count(*) FROM runs WHERE due_us IS NOT NULL AND due_us <= {time.time_ns() // 1000}")
    return int(rows[0][0])


def _ask(herd: Herd, daemon: Daemon, key: str) -> None:
    """Ask for a run, and wait until it is READY on the bus."""
    herd.world.drop(herd.request, key)
    condition = f"r.run_equivalence_key = '{key}'"
    daemon.until(lambda: herd.world.times(condition), f"{key} was not READY", pause=0.02)


def _wake(herd: Herd, daemon: Daemon) -> float:
    """Say that evidence has come, and wait until the herd is due; returns when it was, by the clock of the machine."""
    subject = herd.world.subject
    wiring = str(herd.world.root / "wiring.yaml")
    command = [subject.command, "evidence", "arrived", herd.root, "--wiring", wiring]
    done = subprocess.run(command, env=subject.environment(), capture_output=True, check=False)
    if done.returncode != 0:
        raise CheckFailedError(f"evidence arrived ended with {done.returncode}: {done.stderr.decode()[-300:]}")
    daemon.until(lambda: _due(herd.world) > _FEW, "the herd was not woken", pause=0.01)
    return time.perf_counter()


def _ask_meanwhile(herd: Herd, daemon: Daemon) -> int:
    """Ask for a new run now and then until no run of the herd is due; returns for how many."""
    asked = 0
    while asked == 0 or _due(herd.world) > _FEW:
        if daemon.ended:
            raise CheckFailedError("the daemon ended")
        herd.world.drop(herd.request, f"new-{asked}")
        asked += 1
        time.sleep(_BETWEEN_SECONDS)
    return asked
