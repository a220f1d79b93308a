"""Evidence that is huge, that changes while it is read, or that is tampered with behind a kept digest."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hostile_evidence_support import (
    CHANGED,
    CONFLICT,
    LARGE,
    MIB,
    drain,
    flag_of,
    index_of,
    make,
    output_folder,
    polling,
    state_of,
)
from support import COMMAND, ForkedWorld, World

from scenario_runner.artifacts import local
from scenario_runner.artifacts.base import MAX_DOCUMENT_BYTES
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.plan import EvidenceBounds

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


# --- bounded memory and time


MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
sys.stderr.buffer.write(done.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_maxrss, used.ru_utime + used.ru_stime]))
"""
"""Measures a command from a small process: the kernel adds what a child shared with its parent before its exec."""


def peak_mib(world: World) -> tuple[int, float]:
    """Drain; returns the daemon's peak resident memory in MiB, and the seconds of a core that it took."""
    command = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, check=True, timeout=120)
    code, peak_kib, seconds = json.loads(done.stdout)
    assert code == 0, done.stderr.decode()[-2000:]
    return peak_kib // 1024, seconds


def test_huge_and_million_entry_indexes_are_refused_in_bounded_memory_and_time(world: World) -> None:
    made = [
        make(
            world, f"{kind} {segment}", outputs=[output], damage=kind, damage_target=f"gate.layer1.{segment}.validation"
        )
        for kind in ("index_huge", "index_million_entries")
        for segment, output in (("1A", "outlet_catalogue"), ("2A", "site_timezones"), ("3A", "zone_alloc"))
    ]
    for item in made:
        if item["damage"] == "index_huge":
            os.truncate(index_of(item, item["damage_target"].split(".")[2]), 50 * 10**9)
        world.drop(item["request"], f"{item['run_id']}.json")
    peak, seconds = peak_mib(world)
    assert {state_of(world, item) for item in made} == {("QUARANTINED", LARGE)}
    assert peak < 300, f"{peak} MiB"
    assert seconds < 20


@pytest.mark.parametrize("runs", [1, 4])
def test_indexes_just_under_the_cap_are_refused_in_bounded_memory(world: World, runs: int) -> None:
    piece = b"[[]],"  # as many objects per byte as JSON can hold
    for number in range(runs):
        made = make(world, f"dense {number}", outputs=["site_timezones"])
        index_of(made).write_bytes(b"[" + (piece * ((MAX_DOCUMENT_BYTES - 2) // len(piece)))[:-1] + b"]")
        world.drop(made["request"], f"{number}.json")
    peak, seconds = peak_mib(world)
    assert world.signals("READY") == []
    assert len(world.signals("TERMINAL")) == runs
    assert peak < 300, f"{peak} MiB"
    assert seconds < 20


def test_listings_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_FILES", 20)
    for folder, count in (("few", 20), ("many", 21), ("spread/a", 11), ("spread/b", 11)):
        (tmp_path / "run" / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "run" / folder / f"{number}").touch()
    artifacts = local.LocalArtifacts([str(tmp_path)], 1, None)
    root = artifacts.open(str(tmp_path / "run"), ReadBudget(bounds=EvidenceBounds(max_output_files=20)))
    assert len(root.files_under("few")) == 20
    for look in (
        lambda: root.files_under("many"),
        lambda: root.files_under("spread"),
        lambda: root.files_matching("many/*"),
    ):
        with pytest.raises(EvidenceRefused) as refused:
            look()
        assert refused.value.reason == LARGE
    root.close()
    artifacts.close()


# --- evidence that changes


@pytest.mark.parametrize("what", ["output touched", "output appended to", "member touched", "files come and go"])
def test_evidence_that_keeps_changing_is_looked_at_again_and_then_quarantined(tmp_path: Path, what: str) -> None:
    world = ForkedWorld(tmp_path / "w", {"digest_reuse": "off"})  # every look reads everything
    made = make(world, what, outputs=["s3_candidate_set_1A"])
    folder = output_folder(made)
    part = sorted(folder.iterdir())[0]
    with (folder / "large.bin").open("wb") as file:
        file.truncate(128 * MIB)  # one look takes long enough for a disturbance to fall into it
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            if what == "output touched":
                os.utime(part)
            elif what == "output appended to":
                with part.open("ab") as file:
                    file.write(b"x")
            elif what == "member touched":
                os.utime(flag_of(made).parent / "Zeta_report.bin")
            else:
                (folder / f"new-{number % 50}").touch()
                (folder / f"new-{(number + 25) % 50}").unlink(missing_ok=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        world.drop(made["request"])
        served = world.serve()
    finally:
        stop.set()
        thread.join()
    assert served.returncode == 0
    assert world.signals("READY") == []
    assert state_of(world, made) == ("QUARANTINED", CHANGED)


def test_evidence_that_is_completed_between_two_looks_becomes_ready(world: World) -> None:
    made = make(world, "late")
    flag = flag_of(made)
    text = flag.read_bytes()
    flag.unlink()
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made)[0] == "WAITING_EVIDENCE"
    flag.write_bytes(text)
    drain(world)
    assert state_of(world, made)[0] == "READY"


# --- digest reuse


def tamper_unseen(path: Path) -> None:
    """Other bytes, the same size and modification time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size


def aged(made: dict[str, Any]) -> None:
    """Wait until the whole run is old enough for its digests to be kept."""
    newest = max(path.stat().st_ctime for path in Path(made["engine_run_root"]).rglob("*"))
    with polling() as until:
        until(lambda: time.time() > newest + 2.2)


def kept_digests(world: World) -> int:
    with closing(sqlite3.connect(world.database)) as connection:
        return int(connection.execute("SELECT count(*) FROM digest_reuse").fetchone()[0])


def test_tampering_behind_an_unchanged_time_is_seen_though_digests_are_reused(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", {"poll_seconds": 0.05})
    made = make(
        world, "first", outputs=["outlet_catalogue", "s3_candidate_set_1A"], member_bytes=2 * MIB, part_bytes=2 * MIB
    )
    second = made["request"] | {"run_equivalence_key": "second"}
    third = made["request"] | {"run_equivalence_key": "third"}
    fourth = made["request"] | {"run_equivalence_key": "fourth"}
    part = sorted(output_folder(made).iterdir())[0]
    member = flag_of(made).parent / "Zeta_report.bin"
    aged(made)
    daemon = world.start()
    try:
        with polling() as until:
            world.drop(made["request"], "1.json")
            until(lambda: len(world.signals("READY")) == 1)
            world.drop(second, "2.json")
            until(lambda: len(world.signals("READY")) == 2)
            assert kept_digests(world) > 0  # or nothing is tried here
            tamper_unseen(part)
            world.drop(third, "3.json")
            until(lambda: len(world.signals("TERMINAL")) == 1)
            tamper_unseen(part)  # back to the right bytes
            tamper_unseen(member)
            world.drop(fourth, "4.json")
            until(lambda: len(world.signals("TERMINAL")) == 2)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert sorted(item["payload"]["reason_code"] for item in world.signals("TERMINAL")) == [
        CONFLICT,
        "INSTANCE_RECEIPT_DRIFT",
    ]
    assert len(world.signals("READY")) == 2


def test_tampering_between_two_daemons_is_seen_though_digests_outlive_them(world: World) -> None:
    made = make(world, "first", member_bytes=2 * MIB, part_bytes=2 * MIB)
    aged(made)
    world.drop(made["request"], "1.json")
    drain(world)
    assert kept_digests(world) > 0
    tamper_unseen(flag_of(made).parent / "Zeta_report.bin")
    world.drop(made["request"] | {"run_equivalence_key": "second"}, "2.json")
    drain(world)
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == [CONFLICT]
    assert world.query("verify", made["run_id"])[0] == 1  # and a careful reader of the first run sees it too


def test_digests_of_files_changed_a_moment_ago_are_not_kept(world: World) -> None:
    made = make(world, "young", member_bytes=2 * MIB, part_bytes=2 * MIB)
    for path in Path(made["engine_run_root"]).rglob("*.parquet"):
        os.utime(path, ns=(0, 0))  # an old modification time does not make a file old
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made)[0] == "READY"
    assert kept_digests(world) == 0
