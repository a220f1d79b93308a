"""A stream is deleted and made again under its name while the leases stay, with the real KCL."""

import json
import subprocess
from pathlib import Path

import pytest
from streaming import (
    ENDPOINT,
    MADE,
    WHY_NOT,
    KinesisWorld,
    client,
    delete_streams,
    make_stream,
    put_leases,
    requests_of,
    run_ids,
    seed_leases,
)
from support import COMMAND

from sr_tools.waiting import until

pytestmark = [pytest.mark.localstack, pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)]


def make_anew(world: KinesisWorld) -> None:
    kinesis = client()
    delete_streams([world.stream])
    MADE.remove(world.stream)

    def gone() -> bool:
        try:
            kinesis.describe_stream_summary(StreamName=world.stream)
        except kinesis.exceptions.ResourceNotFoundException:
            return True
        return False

    until(gone, "the stream is gone")
    make_stream(1, world.stream)


def ready(world: KinesisWorld) -> set[str]:
    return {str(row[0]) for row in world.rows("SELECT run_id FROM runs WHERE state = 'READY'")}


def leases_end(world: KinesisWorld) -> None:
    """What KCL makes of leases whose shard it cannot find any more."""
    for item in world.dynamodb.scan(TableName=world.application)["Items"]:
        world.dynamodb.put_item(TableName=world.application, Item={**item, "checkpoint": {"S": "SHARD_END"}})


@pytest.fixture
def world(tmp_path: Path) -> KinesisWorld:
    made = KinesisWorld(tmp_path / "world")
    seed_leases(made)
    return made


def test_a_stream_that_was_made_anew_is_refused_until_it_is_adopted_and_then_read(world: KinesisWorld) -> None:
    before, after = requests_of(world, 2)
    world.put(before)
    assert world.serve(timeout=120).returncode == 0
    assert ready(world) == run_ids([before])
    make_anew(world)
    world.put(after)
    profile = ("--wiring", str(world.wiring))
    for refused in (world.serve(timeout=60), world.command("doctor", *profile)):
        assert refused.returncode == 2
        said = refused.stdout + refused.stderr
        assert b"made anew" in said
        assert b"stream adopt" in said
    adopted = world.command("stream", "adopt", *profile, "--json")
    assert adopted.returncode == 0, adopted.stderr
    document = json.loads(adopted.stdout)
    assert document["leases_forgotten"] == 1
    assert document["former_stream"] != document["stream"]
    assert document["begins_at"] == "TRIM_HORIZON"
    assert world.command("doctor", *profile).returncode == 0
    assert world.leases() == {}
    put_leases(world)  # KCL would wait for up to half a minute before it does
    assert world.serve(timeout=180).returncode == 0
    assert ready(world) == run_ids([before, after])


def test_leases_that_ended_are_told_from_open_shards_by_a_new_authority_and_an_unmarked_table(
    world: KinesisWorld,
) -> None:
    (request,) = requests_of(world, 1)
    leases_end(world)
    world.put(request)
    for refused in (world.serve(timeout=60), world.command("doctor", "--wiring", str(world.wiring))):
        assert refused.returncode == 2
        assert b"is open on the stream" in refused.stdout + refused.stderr


def test_a_daemon_whose_stream_is_made_anew_under_it_ends_and_says_why(world: KinesisWorld) -> None:
    (request,) = requests_of(world, 1)
    log = world.root / "serve.log"
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy)]
    with log.open("wb") as file:
        daemon = subprocess.Popen([COMMAND, *arguments], stdout=file, stderr=file, start_new_session=True)
    try:
        world.put(request)
        until(lambda: ready(world), "the first request is read", 90)
        make_anew(world)
        assert daemon.wait(60) == 2
        assert b"made anew" in log.read_bytes()
    finally:
        daemon.kill()
        daemon.wait()
