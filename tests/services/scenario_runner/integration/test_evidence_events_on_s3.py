"""Objects come for a run that waits, and S3 says so through a queue: the run is READY at once, before it is due."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from postgres_support import Schema, given_dsn
from support import SMALL, S3Place, World, s3_place

from scenario_runner.authority.connect import connect_authority
from scenario_runner.intake.evidence_queue import EvidenceQueue
from scenario_runner.storage.modes import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.parity]


class Events:
    """A bucket that tells a queue of new objects, and a world whose engine root is that bucket."""

    def __init__(self, folder: Path, place: S3Place, endpoint: str, **wiring: Any) -> None:
        import boto3

        self.name = f"sr-events-{secrets.token_hex(6)}"
        self.s3 = replace(place, bucket=self.name).client()
        self.sqs = boto3.client("sqs", endpoint_url=endpoint, region_name=place.region)
        self.s3.create_bucket(Bucket=self.name)
        self.url = self.sqs.create_queue(QueueName=self.name)["QueueUrl"]
        self.world = World(
            folder,
            {
                "engine_roots": [f"s3://{self.name}/runs"], "evidence_events_queue_url": self.url,
                "s3_endpoint_url": place.endpoint, "s3_region": place.region, "s3_path_style": True,
                **wiring,
            },
        )  # fmt: skip

    def notify(self) -> None:
        arn = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        told = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}
        self.s3.put_bucket_notification_configuration(
            Bucket=self.name, NotificationConfiguration={"QueueConfigurations": [told]}
        )

    def upload(self, folder: Path, name: str) -> None:
        """Put an engine run under a root: flags last, because a run may be examined between any two objects."""
        files = (path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: (path.suffix == ".flag", path)):
            key = f"runs/{name}/{path.relative_to(folder).as_posix()}"
            self.s3.put_object(Bucket=self.name, Key=key, Body=path.read_bytes())

    def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def close(self) -> None:
        for item in self.s3.list_objects_v2(Bucket=self.name).get("Contents", []):
            self.s3.delete_object(Bucket=self.name, Key=item["Key"])
        self.s3.delete_bucket(Bucket=self.name)
        self.sqs.delete_queue(QueueUrl=self.url)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    endpoint = os.environ.get("SR_TEST_SQS_ENDPOINT_URL")
    if not endpoint:
        pytest.skip("SR_TEST_SQS_ENDPOINT_URL is not set: no queue to test against")
    made = Events(tmp_path / "world", s3_place(), endpoint)
    yield made
    made.close()


class Rows:
    """The rows of runs, on either engine."""

    def __init__(self, world: World, schema: Schema | None) -> None:
        self._world, self._schema = world, schema

    def __call__(self, text: str) -> list[Any]:
        if self._schema is not None:
            return self._schema.query(text)
        with closing(sqlite3.connect(self._world.database)) as connection, connection:
            return connection.execute(text).fetchall()


def states(world: World) -> list[str]:
    with closing(sqlite3.connect(world.database)) as connection:
        return [state for (state,) in connection.execute("SELECT state FROM runs")]


def until(true: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_run_that_waits_is_ready_once_its_last_object_has_come(events: Events) -> None:
    world, made = events.world, events.world.make_run("k", **SMALL)
    folder = world.root.parent / str(made["request"]["engine_run_root"])
    world.drop(made["request"] | {"engine_run_root": f"s3://{events.name}/runs/night one"})
    assert world.serve().returncode == 0
    assert states(world) == ["WAITING_EVIDENCE"]
    with closing(sqlite3.connect(world.database)) as connection, connection:
        connection.execute("UPDATE runs SET due_us = due_us + 100000000")
    events.notify()
    events.sqs.send_message(QueueUrl=events.url, MessageBody="no event")
    daemon = world.start()
    events.upload(folder, "night one")
    until(lambda: states(world) == ["READY"], "the run was not told")
    until(lambda: events.left() == 0, "messages are left on the queue")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert world.query("verify", made["run_id"])[0] == 0


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_daemons_that_share_a_queue_tell_each_others_runs(tmp_path: Path, engine: str) -> None:
    endpoint = os.environ.get("SR_TEST_SQS_ENDPOINT_URL")
    if not endpoint:
        pytest.skip("SR_TEST_SQS_ENDPOINT_URL is not set: no queue to test against")
    schema = Schema(given_dsn()) if engine == "postgres" else None
    keys = {"authority_store_dsn": schema.dsn} if schema is not None else {}
    events = Events(tmp_path / "world", s3_place(), endpoint, **keys)
    world, rows = events.world, Rows(events.world, schema)
    folders = []
    for number in range(6):
        made = world.make_run(f"k{number}", seed=number, **SMALL)
        folders.append(world.root.parent / str(made["request"]["engine_run_root"]))
        world.drop(made["request"] | {"engine_run_root": f"s3://{events.name}/runs/r{number}"}, f"{number}.json")
    assert world.serve().returncode == 0
    rows("UPDATE runs SET due_us = due_us + 100000000")
    events.notify()
    # The third one examines runs and hears nothing itself: what the others hear, it finds in the rows.
    world.write_profiles(evidence_events_queue_url=None)
    without_queue = world.wiring.rename(world.root / "without-queue.yaml")
    world.write_profiles()
    listening = [world.start() for _ in range(2)]
    deaf = world.start("--wiring", str(without_queue))
    until(lambda: rows("SELECT count(*) FROM daemons")[0][0] == 3, "all have started")
    for number, folder in enumerate(folders):
        events.upload(folder, f"r{number}")
    until(lambda: {row[0] for row in rows("SELECT state FROM runs")} == {"READY"}, "a run was not told")
    until(lambda: events.left() == 0, "messages are left on the queue")
    for daemon in (*listening, deaf):
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0
    assert len(world.signals("READY")) == 6
    events.close()
    if schema is not None:
        schema.drop()


def test_what_one_process_hears_another_one_examines(events: Events) -> None:
    """The message is in one process, the run in another: they share rows and nothing else."""
    world, made = events.world, events.world.make_run("k", **SMALL)
    folder = world.root.parent / str(made["request"]["engine_run_root"])
    world.drop(made["request"] | {"engine_run_root": f"s3://{events.name}/runs/r"})
    assert world.serve().returncode == 0
    rows = Rows(world, None)
    rows("UPDATE runs SET due_us = due_us + 100000000")
    events.notify()
    world.write_profiles(evidence_events_queue_url=None)
    deaf = world.start()
    events.upload(folder, "r")
    authority = connect_authority(f"sqlite:///{world.database}", "test", PRIVATE)
    queue = EvidenceQueue(events.sqs, events.url, authority, [f"s3://{events.name}/runs"])
    while events.left():
        queue.step()
    until(lambda: rows("SELECT state FROM runs") == [("READY",)], "told, and not READY")
    authority.close()
    deaf.send_signal(signal.SIGTERM)
    assert deaf.wait(30) == 0


def test_a_queue_that_goes_while_it_is_read_is_heard_again_when_it_is_back(events: Events) -> None:
    world, made = events.world, events.world.make_run("k", **SMALL)
    folder = world.root.parent / str(made["request"]["engine_run_root"])
    world.drop(made["request"] | {"engine_run_root": f"s3://{events.name}/runs/r"})
    assert world.serve().returncode == 0
    Rows(world, None)("UPDATE runs SET due_us = due_us + 100000000")
    daemon = world.start("--log-format", "json")
    events.sqs.delete_queue(QueueUrl=events.url)
    time.sleep(5)  # the daemon finds out
    other = world.make_run("other", seed=8, **SMALL)
    world.drop(other["request"] | {"engine_run_root": f"s3://{events.name}/runs/other"}, "other.json")
    events.upload(world.root.parent / str(other["request"]["engine_run_root"]), "other")
    until(lambda: "READY" in states(world), "a new run is served meanwhile")
    assert events.sqs.create_queue(QueueName=events.name)["QueueUrl"] == events.url
    events.notify()
    events.upload(folder, "r")
    until(lambda: states(world) == ["READY", "READY"], "the queue is heard again")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.stderr is not None
    lines = [line for line in daemon.stderr.read().decode().splitlines() if "cannot be read" in line]
    assert daemon.wait(30) == 0
    assert 1 <= len(lines) < 20, "it is said, and not all the time"


def test_doctor_looks_at_the_queue(events: Events) -> None:
    def found(check: str) -> dict[str, Any]:
        done = events.world.command("doctor", "--wiring", str(events.world.wiring), "--json")
        (item,) = [item for item in json.loads(done.stdout)["checks"] if item["check"] == check]
        return dict(item)

    assert events.name in found("evidence events")["detail"]
    assert (
        "sqs:DeleteMessage, sqs:GetQueueAttributes, sqs:ReceiveMessage" in found("permissions of the queue")["detail"]
    )
    events.world.write_profiles(evidence_events_queue_url=events.url + "-gone")
    assert found("evidence events")["ok"] is False


def test_a_queue_that_is_gone_stops_no_daemon(events: Events) -> None:
    world, made = events.world, events.world.make_run("k", **SMALL)
    world.write_profiles(engine_roots=[str(world.runs)], evidence_events_queue_url=events.url + "-gone")
    daemon = world.start("--log-format", "json")
    world.drop(made["request"])
    until(lambda: world.signals("READY"), "the run was not served")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.stderr is not None
    log = daemon.stderr.read().decode()
    assert daemon.wait(30) == 0
    assert "cannot be read" in log
