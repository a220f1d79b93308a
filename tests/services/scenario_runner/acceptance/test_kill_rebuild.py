"""A rebuild is killed in its middle, with the processes that read for it, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from crashing import until
from rebuild_support import SMALL, Lost
from support import World

pytestmark = pytest.mark.integration

#: More than three transactions of a rebuild, and enough for it to start other processes.
RUNS = 3200


@pytest.fixture
def lost(tmp_path: Path) -> Lost:
    """A world with many READY runs over one engine run."""
    found = object.__new__(Lost)
    found.world = World(tmp_path / "w", {})
    request = found.world.make_run("shared", seed=1, **SMALL)["request"]
    for number in range(RUNS):
        found.world.drop({**request, "run_equivalence_key": f"shared-{number}"}, f"{number}.json")
    found.serve()
    assert found.sql("SELECT state, count(*) FROM runs GROUP BY state") == [("READY", RUNS)]
    return found


def committed(lost: Lost) -> int:
    """Runs that a rebuild has committed so far."""
    try:
        with closing(sqlite3.connect(f"file:{lost.world.database}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not made yet


def gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_rebuild_goes_on_and_gives_the_same_database(lost: Lost) -> None:
    before = lost.rows()
    lost.lose()
    command = (str(Path(sys.executable).parent / "scenario-runner"), "authority", "rebuild", "--wiring")
    rebuild = subprocess.Popen(
        [*command, str(lost.world.wiring), "--reason", "killed"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: committed(lost) > 0, "the first runs are committed", 60, pause=0.002)
    finally:
        rebuild.send_signal(signal.SIGKILL)
        rebuild.wait()
    until(lambda: gone(rebuild.pid), "no process that read for it is left", 30)
    assert 0 < committed(lost) < RUNS
    served = lost.world.serve()
    assert (served.returncode, b"REBUILD_UNFINISHED" in served.stderr) == (2, True)

    code, findings, report = lost.rebuild()
    assert (code, findings, report["restored"]) == (0, [], RUNS)
    assert lost.rows() == before
    assert lost.sql("SELECT action, outcome FROM operator_actions") == [("authority.rebuild", "REBUILT")]
    assert lost.sql("SELECT count(*) FROM unfinished_rebuild") == [(0,)]
    assert json.loads(lost.world.command("ledger", "check", "--wiring", str(lost.world.wiring), "--json").stdout)[
        "summary"
    ]["findings"] == 0  # fmt: skip
