"""Engines as tasks of ECS, with the installed daemon: a task runs on without its daemon, and the next one follows it.

The service is the fake of ``fake_ecs``, which honours ``clientToken`` as the real one does; moto makes a second task
for it, and ends every task by itself, so it could not show what is shown here. Neither runs a container: the test does
what the task would have done.
"""

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from crashing import Moment, is_stopped, launch, log_of, start, stop_unlocked, until, until_up
from fake_ecs import FakeEcs, fake_ecs
from invariants import Watch, check, paths_of
from support import World

pytestmark = pytest.mark.integration

CALLS = "scenario_runner.engine.ecs_calls:EcsCalls."
COMMITTED = "scenario_runner.authority.sqlite:SqliteAuthority.commit"
Daemon = subprocess.Popen[bytes]


class Cluster:
    """A world whose engine is a task of a cluster."""

    def __init__(self, folder: Path, fake: FakeEcs) -> None:
        self.fake = fake
        self.world = World(folder / "world", policy_changes={"attempt_limit": 3})
        maker = World(folder / "maker")
        made = maker.make_run("sealed", seed=1, members=3, parts=2, outputs=["s3_candidate_set_1A"])
        self.sealed = Path(made["engine_run_root"])
        request = {**made["request"], "requested_strategy": "FORCE_INVOKE", "run_equivalence_key": str(folder)}
        del request["engine_run_root"]
        self.record = json.dumps(request).encode()
        self.world.write_profiles(
            engine_invoker="ecs", engine_command=["run", "{invocation_path}"], engine_ecs_cluster="c",
            engine_ecs_task_definition="engine:1", engine_ecs_container="engine", engine_ecs_region="eu-west-1",
            engine_ecs_endpoint_url=fake.url, engine_run_root_template=f"{self.world.runs}/made/{{run_id}}",
            lease_seconds=2, poll_seconds=0.05,
        )  # fmt: skip
        self.world.drop(self.record)
        self.watch = Watch(paths_of(self.world))

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.world.database, timeout=15)) as connection, connection:
            return connection.execute(statement).fetchall()

    def task(self, number: int = 1) -> str:
        """The ARN of the n-th task, once it runs."""
        until(lambda: len(self.fake.tasks) >= number, f"task {number} runs; {self.log()}")
        return list(self.fake.tasks)[number - 1]

    def submitted(self) -> None:
        """Wait until the task is on record."""
        statement = "SELECT 1 FROM run_events WHERE kind = 'ENGINE_JOB_SUBMITTED'"
        until(lambda: len(self.sql(statement)) >= 1, f"the task is on record; {self.log()}")

    def make_up_an_end(self) -> None:
        """The row of the attempt says that its task has ended, and names another."""
        self.sql(
            "UPDATE engine_attempts SET ended_us = launched_us + 1, outcome = 'FAILED',"
            " reason_code = 'ENGINE_EXIT_NONZERO', handle = 'arn:aws:ecs:eu-west-1:123456789012:task/other/1'"
        )

    def work(self, arn: str) -> None:
        """Do what the task does, and stop it."""
        (run_id,) = self.sql("SELECT run_id FROM runs")[0]
        root = self.world.runs / "made" / run_id
        shutil.copytree(self.sealed, root, dirs_exist_ok=True)
        receipt = json.loads((root / "run_receipt.json").read_bytes())
        (root / "run_receipt.json").write_text(json.dumps({**receipt, "run_id": run_id}))
        self.fake.finish(arn, 0)

    def finish(self, daemon: Daemon, *, killed: bool = True) -> None:
        """Wait for READY, end the daemon, and judge."""
        until(lambda: self.world.signals("READY") != [], f"READY; {self.log()}", 60)
        until(lambda: self.sql("SELECT 1 FROM outbox WHERE sent_us IS NULL") == [], "it is marked sent")
        until_up(daemon)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0, self.log()
        assert check(paths_of(self.world), dropped=[self.record], watch=self.watch, killed=killed) == []

    def log(self) -> str:
        path = log_of(self.world)
        return path.read_text()[-3000:] if path.exists() else ""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with fake_ecs() as fake:
        yield Cluster(tmp_path, fake)


@contextmanager
def ended(*daemons: Daemon) -> Iterator[None]:
    try:
        yield
    finally:
        for daemon in daemons:
            with suppress(ProcessLookupError):
                daemon.kill()
            daemon.wait()


def test_a_daemon_killed_while_its_task_runs_is_followed_by_one_that_follows_the_task(cluster: Cluster) -> None:
    with ended(first := start(cluster.world)):
        arn = cluster.task()
        cluster.submitted()
        first.kill()
        first.wait()
    cluster.watch.look()
    with ended(second := start(cluster.world)):
        asked = cluster.fake.count("DescribeTasks")
        until(lambda: cluster.fake.count("DescribeTasks") > asked, f"the task is asked for; {cluster.log()}")
        cluster.work(arn)
        cluster.finish(second)
    assert (cluster.fake.count("RunTask"), cluster.fake.count("StopTask")) == (1, 0)
    assert cluster.sql("SELECT handle, outcome FROM engine_attempts") == [(arn, "SUCCEEDED")]


def test_a_task_whose_daemon_was_killed_before_it_was_on_record_is_found(cluster: Cluster) -> None:
    with ended(first := launch(cluster.world, Moment(CALLS + "run_task", "after"))):
        arn = cluster.task()
        assert first.wait(timeout=60) == -signal.SIGKILL
    with ended(second := start(cluster.world)):
        cluster.submitted()
        cluster.work(arn)
        cluster.finish(second)
    assert cluster.fake.count("RunTask") == 1
    assert cluster.sql("SELECT handle, outcome FROM engine_attempts") == [(arn, "SUCCEEDED")]


def test_an_attempt_of_which_ecs_knows_nothing_is_given_up_only_when_it_must_be_known(cluster: Cluster) -> None:
    with ended(first := launch(cluster.world, Moment(CALLS + "run_task"))):
        assert first.wait(timeout=60) == -signal.SIGKILL
    with ended(second := start(cluster.world)):
        until(lambda: cluster.fake.count("ListTasks") >= 4, f"it is looked for; {cluster.log()}")
        assert cluster.sql("SELECT count(*) FROM engine_attempts") == [(1,)]
        assert cluster.fake.count("RunTask") == 0
        until_up(second)
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=30) == 0
    cluster.sql("UPDATE engine_attempts SET launched_us = launched_us - 301000000")
    with ended(start(cluster.world)):
        cluster.work(cluster.task())
        cluster.sql("UPDATE engine_attempts SET launched_us = launched_us + 301000000 WHERE attempt_no = 1")
        until(lambda: cluster.world.signals("READY") != [], f"READY; {cluster.log()}", 60)
    assert cluster.fake.count("RunTask") == 1
    stops = cluster.sql("SELECT attempt_no, outcome, stop_code FROM engine_attempts ORDER BY attempt_no")
    assert stops == [(1, "FAILED", "LOST"), (2, "SUCCEEDED", "")]


def test_an_end_that_was_made_up_launches_no_second_task_beside_the_first(cluster: Cluster) -> None:
    """As after a rebuild from a ledger in which somebody wrote that the attempt had ended."""
    with ended(first := start(cluster.world)):
        arn = cluster.task()
        cluster.submitted()
        first.kill()
        first.wait()
    cluster.make_up_an_end()
    with ended(start(cluster.world)):
        again = cluster.task(2)
        assert cluster.fake.tasks[arn]["lastStatus"] == "STOPPED"
        changes = [name for name, _ in cluster.fake.requests if name in ("RunTask", "StopTask")]
        assert changes == ["RunTask", "StopTask", "RunTask"]
        cluster.work(again)
        until(lambda: cluster.world.signals("READY") != [], f"READY; {cluster.log()}", 60)


def test_a_daemon_that_waits_for_the_end_of_an_earlier_task_can_be_stopped(cluster: Cluster) -> None:
    """ECS gives a task minutes for its end; a daemon has seconds."""
    cluster.fake.stops_at_once = False
    with ended(first := start(cluster.world)):
        arn = cluster.task()
        cluster.submitted()
        first.kill()
        first.wait()
    cluster.make_up_an_end()
    with ended(second := start(cluster.world)):
        until(lambda: cluster.fake.count("StopTask") == 1, f"it is being stopped; {cluster.log()}")
        until_up(second)
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=30) == 0, cluster.log()
    assert cluster.sql("SELECT count(*) FROM runs WHERE lease_until_us = 0") == [(1,)], "its lease is given back"
    assert cluster.fake.count("RunTask") == 1, "nothing is launched beside the task, which may run"
    cluster.fake.finish(arn, 143)
    with ended(start(cluster.world)):
        cluster.work(cluster.task(2))
        until(lambda: cluster.world.signals("READY") != [], f"READY; {cluster.log()}", 60)


def test_a_daemon_that_is_told_to_stop_leaves_its_task_to_the_next_one(cluster: Cluster) -> None:
    with ended(first := start(cluster.world)):
        arn = cluster.task()
        cluster.submitted()
        until_up(first)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 0, cluster.log()
    assert cluster.sql("SELECT state FROM runs WHERE lease_until_us = 0") == [("EXECUTING",)]
    with ended(second := start(cluster.world)):
        cluster.work(arn)
        cluster.finish(second, killed=False)
    assert (cluster.fake.count("RunTask"), cluster.fake.count("StopTask")) == (1, 0)


def test_a_daemon_stopped_past_its_lease_before_the_launch_launches_nothing_when_it_goes_on(cluster: Cluster) -> None:
    with ended(first := launch(cluster.world, Moment(CALLS + "run_task"), action="stop")):
        until(lambda: is_stopped(first), f"it stops; {cluster.log()}")
        # For five minutes nobody knows whether it has launched the task; here they are over at once.
        cluster.sql("UPDATE engine_attempts SET launched_us = launched_us - 301000000")
        with ended(start(cluster.world)):
            arn = cluster.task()
            first.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            cluster.work(arn)
            cluster.sql("UPDATE engine_attempts SET launched_us = launched_us + 301000000 WHERE attempt_no = 1")
            until(lambda: cluster.world.signals("READY") != [], f"READY; {cluster.log()}", 60)
    assert (cluster.fake.count("RunTask"), cluster.fake.count("StopTask")) == (1, 0)


def test_a_daemon_stopped_past_its_lease_while_its_task_runs_stops_no_task_of_its_successor(cluster: Cluster) -> None:
    with ended(first := start(cluster.world)):
        arn = cluster.task()
        cluster.submitted()
        stop_unlocked(first, cluster.world.database)
        with ended(second := start(cluster.world)):
            until(lambda: cluster.sql("SELECT lease_epoch FROM runs") == [(2,)], "it is taken over", 30)
            first.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            assert cluster.fake.count("StopTask") == 0
            cluster.work(arn)
            until(lambda: cluster.world.signals("READY") != [], f"READY; {cluster.log()}", 60)
            first.send_signal(signal.SIGTERM)
            assert first.wait(timeout=30) == 0, cluster.log()
            cluster.finish(second)
    assert cluster.fake.count("RunTask") == 1
