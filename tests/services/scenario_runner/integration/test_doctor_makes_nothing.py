"""``doctor`` makes nothing of what it examines, and says where it asked and as whom."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from postgres_support import given_dsn
from support import ForkedWorld, s3_place

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def examined(world: ForkedWorld) -> dict[str, dict[str, Any]]:
    done = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (0, True), document
    return {check["check"]: check for check in document["checks"]}


def everything(root: Path) -> list[tuple[str, int, int]]:
    """Every path below a folder with its size and time of change."""
    found = [(str(path), path.lstat()) for path in sorted(root.rglob("*"))]
    return [(path, info.st_size, info.st_mtime_ns) for path, info in found if not os.path.isdir(path)] + [
        (path, 0, 0) for path, info in found if os.path.isdir(path)
    ]


def test_before_the_first_start_nothing_is_made_and_what_will_be_made_is_named(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    before = everything(world.root)
    found = examined(world)
    assert everything(world.root) == before
    for check in ("authority", "object store", "control bus"):
        assert "first start" in found[check]["detail"], found[check]
    assert not (world.root / "authority.db").exists()


def test_beside_a_profile_in_use_nothing_is_left_behind(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    assert world.serve().returncode == 0
    before = [path for path, *_ in everything(world.root)]
    found = examined(world)
    assert [path for path, *_ in everything(world.root)] == before
    assert "conditional creates" in found["object store"]["detail"]


def test_a_schema_of_an_older_release_is_left_to_the_next_start(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    with closing(sqlite3.connect(world.root / "authority.db")) as made:
        made.execute("PRAGMA user_version = 0")
        made.execute("CREATE TABLE something (a)")
    before = everything(world.root)
    done = world.command("doctor", "--wiring", str(world.wiring), "--json")
    (authority,) = [item for item in json.loads(done.stdout)["checks"] if item["check"] == "authority"]
    assert (authority["ok"], "next start" in authority["detail"]) == (True, True)
    assert everything(world.root) == before


def test_each_probe_names_its_endpoint_and_the_user_that_counts(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    found = examined(world)
    places = {"authority": "authority.db", "object store": "object-store", "control bus": "control-bus"}
    for check, place in places.items():
        assert place in found[check]["endpoint"]
        assert f"uid {os.geteuid()}" in found[check]["identity"]
    text = world.command("doctor", "--wiring", str(world.wiring)).stdout.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("ok    authority: ")]
    assert f"[{found['authority']['identity']} at {found['authority']['endpoint']}] " in line


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_what_the_first_start_cannot_make_is_found_with_its_remedy(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    closed = world.root / "closed"
    closed.mkdir(mode=0o500)
    world.write_profiles(authority_store_dsn=f"sqlite:///{closed / 'authority.db'}")
    done = world.command("doctor", "--wiring", str(world.wiring), "--json")
    (failed,) = [item for item in json.loads(done.stdout)["checks"] if item["check"] == "authority"]
    assert (done.returncode, failed["ok"], bool(failed["remedy"])) == (5, False, True)


@pytest.mark.parity
def test_on_a_fresh_bucket_and_database_nothing_is_made(tmp_path: Path) -> None:
    place, dsn = s3_place(), given_dsn()
    prefix = f"{place.prefix}/doctor-{os.getpid()}"
    root = f"s3://{place.bucket}/{prefix}"
    world = ForkedWorld(tmp_path / "world")
    world.write_profiles(
        object_store_root=root, authority_store_dsn=dsn, s3_endpoint_url=place.endpoint or None,
        s3_region=place.region or None, s3_path_style=place.path_style,
    )  # fmt: skip
    done = super(ForkedWorld, world).command(  # the native client of S3 does not survive a fork
        "doctor", "--wiring", str(world.wiring), "--json"
    )
    checks = {item["check"]: item for item in json.loads(done.stdout)["checks"]}
    assert place.client().list_objects_v2(Bucket=place.bucket, Prefix=prefix).get("KeyCount") == 0
    assert checks["object store"]["ok"], checks["object store"]["detail"]
    assert checks["object store"]["endpoint"]
    assert checks["object store"]["identity"]
    assert checks["authority"]["identity"]
