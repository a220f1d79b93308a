"""Files of a spool that are no records, and records that once stopped the daemon: the good ones become READY."""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile_records import encoded
from hostile_requests_support import Drained, drain, rows
from support import SMALL, World

from scenario_runner.cli.runs import list_runs

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def oddities(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("oddities") / "world")
    good = [world.make_run(f"good-{number}", data_seed=number + 1, **SMALL) for number in range(3)]
    request = encoded(good[0]["request"] | {"run_equivalence_key": "through a link"})
    world.drop(b"x", "first.json").unlink()
    spool = world.bus / "requests"
    (world.root / "elsewhere.json").write_bytes(request)
    (spool / "link.json").symlink_to(world.root / "elsewhere.json")
    (spool / "dangling.json").symlink_to("nowhere")
    (spool / "loop.json").symlink_to("loop.json")
    (spool / "to-a-folder.json").symlink_to(world.root)
    os.mkfifo(spool / "fifo.json")
    (spool / "folder.json").mkdir()
    (spool / "folder.json" / "inside.json").write_bytes(request)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        here = Path.cwd()
        os.chdir(spool)  # a socket's name is short
        try:
            server.bind("socket.json")
        finally:
            os.chdir(here)
    with (spool / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("notes.txt", ".hidden.json", "half.json.tmp", "UPPER.JSON"):
        (spool / name).write_bytes(request)
    Path(os.fsdecode(os.fsencode(spool) + b"/not-\xff\xfe-utf8.json")).write_bytes(b"not json")
    (spool / "new\nline.json").write_bytes(b"not json")
    (spool / ("n" * 250 + ".json")).write_bytes(b"not json")
    (spool / "quote\"'$(id)`;.json").write_bytes(b"not json")
    done = drain(world, {}, good)
    world.drop(good[1]["request"] | {"run_equivalence_key": "same name", "seed": "7"}, "a-good-0.json")
    world.drop(encoded(good[1]["request"]) + b" ", "a-good-0.json".replace("a-good-0", "z-good-1"))
    again = world.serve()
    return Drained(world, done.sent, done.good, max(done.code, again.returncode), done.log + again.stderr.decode())


def test_what_is_no_readable_file_is_rejected_and_the_good_requests_become_ready(oddities: Drained) -> None:
    assert oddities.code == 0, oddities.log[-2000:]
    assert {item["payload"]["run_id"] for item in oddities.world.signals("READY")} == set(oddities.good)
    for name in (
        "link.json",
        "dangling.json",
        "loop.json",
        "to-a-folder.json",
        "fifo.json",
        "folder.json",
        "socket.json",
    ):
        assert oddities.record(name)["reason_code"] == "RECORD_UNREADABLE", name
        assert oddities.reason(name)["disposition"] == "REJECTED"
        assert os.path.lexists(oddities.world.bus / "rejected" / name)
    assert (oddities.world.root / "elsewhere.json").exists()
    assert oddities.record("sparse.json")["reason_code"] == "RECORD_TOO_LARGE"
    assert (oddities.world.bus / "rejected" / "sparse.json").stat().st_size == 1 << 40


def test_names_of_any_bytes_are_served(oddities: Drained) -> None:
    kept = set(os.listdir(os.fsencode(oddities.world.bus / "rejected")))
    assert {b"not-\xff\xfe-utf8.json", b"new\nline.json", b"n" * 250 + b".json", b"quote\"'$(id)`;.json"} <= kept
    refused = [item for item in oddities.world.rejected() if item["reason_code"] == "RECORD_NOT_JSON"]
    assert len(refused) == 4


def test_what_is_not_named_like_a_record_is_left_alone(oddities: Drained) -> None:
    left = {path.name for path in (oddities.world.bus / "requests").iterdir()}
    assert left == {"notes.txt", ".hidden.json", "half.json.tmp", "UPPER.JSON"}


def test_the_same_name_with_other_contents_is_another_record(oddities: Drained) -> None:
    found = [
        (row["record_key"].partition("#")[0], row["disposition"])
        for row in rows(oddities.world, "SELECT * FROM intake_records WHERE record_key LIKE '%-good-%'")
    ]
    assert sorted(found) == [
        ("spool/a-good-0.json", "ACCEPTED"),
        ("spool/a-good-0.json", "REJECTED"),
        ("spool/a-good-2.json", "ACCEPTED"),
        ("spool/z-good-1.json", "ACCEPTED"),
        ("spool/z-good-1.json", "DUPLICATE"),
    ]
    consumed = oddities.world.bus / "consumed"
    assert len([path for path in consumed.iterdir() if path.name.startswith("z-good-1")]) == 2  # none overwritten


# --- poison: one record each, in a world of its own, because it once stopped the daemon for good


def assert_a_poison_does_not_stop_the_daemon(world: World, poison: Callable[[Path], object]) -> None:
    made = world.make_run(**SMALL)
    world.drop(made["request"], "z-good.json")
    poison(world.bus / "requests")
    served = world.serve()
    assert b"Traceback" not in served.stderr, served.stderr.decode()[-1500:]
    assert served.returncode == 0
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]
    assert not list((world.bus / "requests").iterdir())


def test_a_signal_whose_message_id_is_no_unicode_text_does_not_stop_the_daemon(world: World) -> None:
    record = b'{"attributes": {"kind": "READY"}, "message_id": "\\ud800", "payload": {}}'
    assert_a_poison_does_not_stop_the_daemon(world, lambda spool: (spool / "a.json").write_bytes(record))


def test_a_link_with_a_name_that_is_not_utf_8_does_not_stop_the_daemon(world: World) -> None:
    assert_a_poison_does_not_stop_the_daemon(
        world, lambda spool: os.symlink(b"/nowhere", os.fsencode(spool) + b"/a\xff.json")
    )


def test_a_signal_with_nested_lists_of_any_depth_does_not_stop_the_daemon(world: World) -> None:
    def poison(spool: Path) -> None:
        for depth in range(850, 1000, 3):
            text = f'{{"attributes": {{"kind": "READY"}}, "message_id": {"[" * depth}{"]" * depth}, "payload": {{}}}}'
            (spool / f"a{depth}.json").write_text(text)

    assert_a_poison_does_not_stop_the_daemon(world, poison)


def test_the_longest_name_used_twice_does_not_stop_the_daemon(world: World) -> None:
    name = "\u00e9" * 125 + ".json"  # 255 bytes in 130 characters
    for folder in ("consumed", "rejected"):
        (world.bus / folder).mkdir(parents=True)
        (world.bus / folder / name).write_bytes(b"an older one")
    assert_a_poison_does_not_stop_the_daemon(world, lambda spool: (spool / name).write_bytes(b"not json"))
    assert (world.bus / "rejected" / name).read_bytes() == b"an older one"


def test_a_rejected_record_that_is_dropped_again_is_judged_again(tmp_path: Path) -> None:
    world = World(tmp_path / "w", {"auth_mode": "allowlist", "auth_allowlist": ["somebody else"]})
    made = world.make_run(**SMALL)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    assert [item["reason_code"] for item in world.rejected()] == ["AUTH_DENIED"]
    world.wiring_changes = {}
    world.write_profiles()  # the operator mends the profile and moves the file back
    (world.bus / "rejected/request.json").rename(world.bus / "requests/request.json")
    assert world.serve().returncode == 0
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]


def test_a_hard_link_whose_file_is_rewritten_after_its_admission_is_a_record_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run("linked", outputs=["outlet_catalogue"], members=3, member_bytes=64, parts=2, part_bytes=64)
    mine = world.root / "mine.json"
    dropped = world.bus / "requests" / "request.json"
    dropped.parent.mkdir(parents=True)
    for key in ("first", "second"):
        mine.write_text(json.dumps(made["request"] | {"run_equivalence_key": key}), "utf-8")
        os.link(mine, dropped)
        world.serve()
        assert not dropped.exists()
    assert {item["run_equivalence_key"] for item in list_runs(str(world.wiring), None, 10)} == {"first", "second"}


@pytest.mark.parametrize("key", ["contract_version", "schema_version", "version"])
@pytest.mark.parametrize(("value", "code"), [("9.9", 1), ("v7", 1), (99, 1), ("v0", 0), (0, 0)])
def test_another_contract_version_is_refused_by_name(world: World, key: str, value: object, code: int) -> None:
    made = world.make_run("versioned", outputs=["outlet_catalogue"], members=3, member_bytes=64)
    envelope = {
        "topic": "fp.bus.control.v1", "message_id": "m1", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "RUN_REQUEST", key: value}, "partition_key": "p", "payload": made["request"],
    }  # fmt: skip
    file = world.root / "envelope.json"
    file.write_text(json.dumps(envelope), "utf-8")
    done = world.command("submit", str(file), "--wiring", str(world.wiring))
    assert done.returncode == code
    assert (b"KIND_UNKNOWN" in done.stderr) is bool(code)
    world.drop(envelope)
    world.serve()
    assert [item["reason_code"] for item in world.rejected()] == ["KIND_UNKNOWN"] * code
