"""The intake of a spool, step by step and on a clock of the test: what is claimed, waited for, refused, put away."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from support import REPO, World

from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.types import KEY_MAX_LENGTH
from scenario_runner.intake import spool_files, validate
from scenario_runner.intake.spool import BATCH, TAKE_OVER_SECONDS, SpoolConsumer
from scenario_runner.intake.spool_check import files_not_taken
from scenario_runner.intake.spool_files import QUIET_SECONDS, SpoolFiles
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack
from scenario_runner.storage import renames
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.filesystem import FilesystemStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scenario_runner.authority.values import Admission, Admitted

pytestmark = pytest.mark.integration

OLD = (1_700_000_000, 1_700_000_000)


@dataclass
class Spool:
    """A spool with its intake, an authority, and a clock that only the test moves."""

    world: World
    rules: Any
    now: float = 0.0
    during: Callable[[], object] = lambda: None
    others: list[SqliteAuthority] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority = SqliteAuthority(str(self.world.database))
        self.intake = self.another()

    def another(self) -> SpoolConsumer:
        """One more intake on this spool, opened."""
        made = SpoolConsumer(str(self.world.bus), self, self.rules, lambda: self.now)  # type: ignore[arg-type]
        made.open()
        return made

    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        """The authority's, with something that happens just before."""
        self.during()
        return self.authority.admit(records)

    def request(self, key: str, **changes: Any) -> dict[str, Any]:
        hex64 = "a" * 64
        return {
            "run_equivalence_key": key, "manifest_fingerprint": hex64, "parameter_hash": hex64, "seed": 7,
            "scenario": {"scenario_id": "baseline"}, "engine_run_root": str(self.world.runs / "run"),
            "window": {"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00Z",
                       "window_tz": "UTC"},
            **changes,
        }  # fmt: skip

    def drop(self, key: str, name: str = "request.json") -> None:
        self.world.drop(self.request(key), name)

    def path(self, *parts: str) -> Path:
        return self.world.bus.joinpath(*parts)

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in self.path(folder).iterdir() if not path.name.endswith(".reason.json"))

    def claimed(self) -> list[str]:
        return sorted(path.name for path in self.path(".private/claimed").rglob("*") if path.is_file())

    def records(self) -> list[tuple[str, str]]:
        """(name, disposition) of every record."""
        with closing(sqlite3.connect(self.world.database)) as connection:
            rows = connection.execute("SELECT record_key, disposition FROM intake_records ORDER BY received_us, 1")
            return [(key.removeprefix("spool/").partition("#")[0], disposition) for key, disposition in rows]

    def keys(self) -> set[str]:
        return {run.run_equivalence_key for run in self.authority.runs(None, 100)}

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    world = World(tmp_path_factory.mktemp("rules"))
    wiring = load_wiring(str(world.wiring))
    made = make_admission_policy(wiring, load_policy(str(world.policy)), open_pack(wiring))
    object.__setattr__(made, "engine_roots", ["/"])
    return made


@pytest.fixture
def spool(world: World, rules: Any) -> Iterator[Spool]:
    made = Spool(world, rules)
    yield made
    made.authority.close()


def unavailable() -> None:
    raise Unavailable("the authority is away")


# ---------------------------------------------------------------- one name, many drops


def again_by_rename(spool: Spool) -> None:
    spool.drop("second")
    spool.drop("third")


def again_by_removal(spool: Spool) -> None:
    for key in ("second", "third"):
        spool.path("requests/request.json").unlink(missing_ok=True)
        spool.path("requests/request.json").write_text(json.dumps(spool.request(key)))


@pytest.mark.parametrize("again", [again_by_rename, again_by_removal])
def test_what_is_dropped_under_the_name_of_a_request_that_is_being_admitted_is_admitted_next(
    spool: Spool, again: Callable[[Spool], None]
) -> None:
    """Whatever inode number it gets: on ext4 it is often the very one that has just become free."""
    spool.drop("first")
    spool.during = lambda: again(spool)
    assert spool.intake.step() == 1
    assert spool.names("requests") == ["request.json"]
    spool.during = lambda: None
    assert spool.intake.step() == 1
    assert spool.keys() == {"first", "third"}
    assert len(spool.names("consumed")) == 2
    assert spool.claimed() == []


def test_the_same_bytes_under_the_same_name_are_a_record_for_each_drop(spool: Spool) -> None:
    for _ in range(3):
        spool.drop("only")
        os.utime(spool.path("requests/request.json"), OLD)
        spool.intake.step()
    assert sorted(spool.records()) == [("request.json", "ACCEPTED")] + [("request.json", "DUPLICATE")] * 2
    assert len(spool.names("consumed")) == 3


def test_where_a_rename_may_replace_no_name_is_used_that_another_file_could_have(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renames, "_renameat2", lambda: None)
    for key in ("first", "second"):
        spool.drop(key)
        spool.intake.step()
    assert spool.keys() == {"first", "second"}
    assert len(spool.names("consumed")) == 2
    assert "request.json" not in spool.names("consumed")


def test_a_file_that_is_changed_between_reading_and_admission_is_read_again(spool: Spool) -> None:
    spool.drop("first")
    with spool.path("requests/request.json").open("r+b") as file:

        def change() -> None:
            file.truncate(0)
            file.write(json.dumps(spool.request("second in its place")).encode())
            file.flush()

        spool.during = change
        spool.intake.step()
        spool.during = lambda: None
    assert spool.claimed() == ["request.json"]
    spool.intake.step()
    assert spool.keys() == {"first", "second in its place"}
    assert spool.claimed() == []


# ---------------------------------------------------------------- a kill, an outage, another daemon


def test_what_was_claimed_before_a_kill_is_admitted_by_the_next_start(spool: Spool) -> None:
    spool.drop("one")
    spool.during = unavailable
    with pytest.raises(Unavailable):
        spool.intake.step()
    assert (spool.names("requests"), spool.claimed()) == ([], ["request.json"])
    assert spool.intake.empty() is False
    spool.during = lambda: None
    after = spool.another()
    assert after.step() == 1
    assert (spool.keys(), spool.names("consumed"), spool.claimed()) == ({"one"}, ["request.json"], [])
    assert after.empty() is True
    assert os.listdir(spool.path(".private/claimed")) == []


def test_a_record_that_was_admitted_before_a_kill_keeps_its_disposition(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.drop("one")
    with monkeypatch.context() as killed:
        killed.setattr(SpoolConsumer, "_acknowledge", lambda *_: None)
        spool.intake.step()
    assert spool.records() == [("request.json", "ACCEPTED")]
    spool.another().step()
    assert spool.records() == [("request.json", "ACCEPTED")]
    assert spool.names("consumed") == ["request.json"]


def test_what_another_daemon_has_claimed_is_left_to_it_for_a_while_and_then_taken_over(spool: Spool) -> None:
    other = spool.another()
    spool.drop("one")
    spool.during = unavailable
    with pytest.raises(Unavailable):
        other.step()
    spool.during = lambda: None
    spool.pass_seconds(1)
    spool.intake.step()  # sees it
    spool.pass_seconds(TAKE_OVER_SECONDS - 1)
    assert spool.intake.step() == 0
    assert spool.claimed() == ["request.json"]
    spool.pass_seconds(1.1)
    assert spool.intake.step() == 1
    other.step()  # goes on, and finds nothing left to do
    assert spool.records() == [("request.json", "ACCEPTED")]
    assert spool.names("consumed") == ["request.json"]


def test_two_daemons_that_have_judged_one_file_dispose_of_it_once(spool: Spool) -> None:
    other = spool.another()
    spool.world.drop(b"not json", "bad.json")
    os.utime(spool.path("requests/bad.json"), OLD)
    spool.during = unavailable
    with pytest.raises(Unavailable):
        other.step()
    taker = spool.another()

    def meanwhile() -> None:
        spool.during = lambda: None
        other.step()

    spool.during = meanwhile
    taker.step()
    assert spool.records() == [("bad.json", "REJECTED")]
    assert spool.names("rejected") == ["bad.json"]
    assert len(spool.world.rejected()) == 1


def test_while_the_authority_is_away_no_more_is_claimed_than_one_batch(spool: Spool) -> None:
    for number in range(300):
        spool.drop(f"key-{number}", f"{number:03d}.json")
    spool.during = unavailable
    for _ in range(4):
        with pytest.raises(Unavailable):
            spool.intake.step()
        spool.pass_seconds(1)
    assert len(spool.claimed()) == BATCH
    spool.during = lambda: None
    while spool.intake.step():
        pass
    assert len(spool.records()) == 300


def test_a_file_that_the_disk_fails_to_read_is_told_and_tried_again_and_holds_up_nobody(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = spool_files.read

    def read(folders: Any, file: Any) -> Any:
        if file.name == "aa.json":
            raise OSError(5, "Input/output error", file.path)
        return real(folders, file)

    spool.drop("bad sector", "aa.json")
    spool.drop("good", "zz.json")
    with monkeypatch.context() as failing:
        failing.setattr(spool_files, "read", read)
        with pytest.raises(Unavailable, match=r"aa\.json"):
            spool.intake.step()
        assert spool.keys() == {"good"}
        spool.drop("another good one", "zz.json")
        assert spool.intake.step() == 1
        assert spool.intake.empty() is False
    spool.pass_seconds(6)
    spool.intake.step()
    assert spool.keys() == {"good", "another good one", "bad sector"}


# ---------------------------------------------------------------- files that are still being written


def test_a_slow_copy_is_waited_for_while_it_grows_and_holds_up_nobody(spool: Spool) -> None:
    data = json.dumps(spool.request("slow")).encode()
    with spool.path("requests/slow.json").open("wb", 0) as file:
        spool.drop("quick", "zz.json")
        for start in range(0, len(data), 60):
            file.write(data[start : start + 60])
            spool.intake.step()
            spool.pass_seconds(QUIET_SECONDS - 0.1)
            assert spool.keys() >= {"quick"}
    spool.intake.step()
    assert spool.keys() == {"quick", "slow"}
    assert spool.world.rejected() == []


@pytest.mark.parametrize("data", [b"", b'{"run_equivalence_key": "cut o'])
def test_what_stays_incomplete_is_refused_after_a_quiet_while_and_the_reason_says_how_to_drop(
    spool: Spool, data: bytes
) -> None:
    spool.world.drop(data, "torn.json", fresh=True)
    spool.intake.step()
    spool.pass_seconds(QUIET_SECONDS - 0.1)
    spool.intake.step()
    assert spool.records() == []
    assert spool.intake.empty() is False
    spool.pass_seconds(0.5)
    spool.intake.step()
    (reason,) = spool.world.rejected()
    assert reason["reason_code"] == "RECORD_NOT_JSON"
    assert "rename" in reason["detail"]
    assert spool.path("rejected/torn.json").read_bytes() == data


def test_what_nobody_has_written_to_for_a_while_is_refused_at_once(spool: Spool) -> None:
    spool.world.drop(b"{", "torn.json", fresh=True)
    os.utime(spool.path("requests/torn.json"), OLD)
    assert spool.intake.step() == 1
    assert spool.names("rejected") == ["torn.json"]


def test_a_file_that_is_touched_for_ever_is_not_waited_for_for_ever(spool: Spool) -> None:
    with spool.path("requests/endless.json").open("wb", 0) as file:
        for _ in range(70):
            file.write(b"x")
            spool.intake.step()
            spool.pass_seconds(1)
    assert spool.names("rejected") == ["endless.json"]


def test_many_incomplete_files_do_not_keep_a_good_one_waiting(spool: Spool) -> None:
    for number in range(300):
        (spool.path("requests") / f"{number:03d}.json").write_bytes(b"{")
    spool.drop("good", "zz.json")
    for _ in range(4):
        spool.intake.step()
        spool.pass_seconds(0.3)  # by now the first ones are due again
    assert spool.keys() == {"good"}


# ---------------------------------------------------------------- the spool itself


def test_a_spool_that_another_folder_stands_in_the_place_of_is_unavailable_and_nothing_is_moved(spool: Spool) -> None:
    spool.drop("one")
    bus, away = spool.world.bus, spool.world.root / "away"
    bus.rename(away)
    SpoolPaths(str(bus)).make()
    for call in (spool.intake.step, spool.intake.empty):
        with pytest.raises(Unavailable, match="another folder has taken the place"):
            call()
    assert os.listdir(bus / ".private/claimed") == []
    shutil.rmtree(bus)
    with pytest.raises(Unavailable):
        spool.intake.step()
    assert not bus.exists()
    away.rename(bus)
    assert spool.intake.step() == 1


def test_a_spool_that_goes_away_in_the_middle_of_a_start_is_an_outage_and_no_unfit_file_system(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = spool.world.root / "away"

    def gone(_fd: int) -> bool:
        if not away.exists():
            spool.world.bus.rename(away)
        return True

    with monkeypatch.context() as unmounted:
        unmounted.setattr(spool_files, "may_rename_in", gone)
        with pytest.raises(Unavailable, match="No such file"):
            spool.another()
    away.rename(spool.world.bus)
    spool.drop("one")
    assert spool.another().step() == 1


def test_a_requests_folder_that_was_made_anew_is_read(spool: Spool) -> None:
    shutil.rmtree(spool.path("requests"))
    with pytest.raises(Unavailable, match="requests"):
        spool.intake.step()
    spool.drop("one")
    assert spool.intake.step() == 1


def test_a_folder_on_another_mount_is_refused_at_start_with_its_name(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    SpoolPaths(str(world.bus)).make()
    command = Path(sys.executable).parent / "scenario-runner"
    script = (
        f"mount -t tmpfs none {world.bus}/requests && exec {command} serve --wiring {world.wiring} "
        f"--policy {world.policy} --until-idle"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    if "permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("this machine does not let root mount")
    assert done.returncode == 2, done.stderr
    assert "control-bus/requests: files cannot be renamed" in done.stderr
    assert "one file system" in done.stderr


def test_a_folder_that_may_not_be_changed_is_refused_at_start_with_its_name(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        spool_files, "may_rename_in", lambda fd: not os.readlink(f"/proc/self/fd/{fd}").endswith("consumed")
    )
    with pytest.raises(ConfigurationError, match="control-bus/consumed"):
        spool.another()


def test_the_whole_way_to_ready_needs_no_hard_links(world: World) -> None:
    made = world.make_run("one", outputs=["outlet_catalogue"], members=2, member_bytes=64, parts=2, part_bytes=64)
    world.drop(made["request"])
    world.drop(b"[]", "bad.json")
    program = (
        "import os, errno\n"
        "def link(*_, **__): raise PermissionError(errno.EPERM, 'no hard links here')\n"
        "os.link = link\n"
        "from scenario_runner.cli.main import main\n"
        "main()\n"
    )
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]
    assert [item["record"] for item in world.rejected()] == ["bad.json"]
    assert world.query("verify", made["run_id"])[0] == 0
    left = [path for path in world.root.rglob(".private/**/*") if path.is_file() and path.suffix == ".tmp"]
    assert left == []


def test_a_request_whose_validation_fails_is_kept_and_blocks_no_other(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = validate._validate

    def failing(message: Any, *more: Any) -> Admission:
        if b"poison" in message.raw:
            raise KeyError("a defect of ours")
        return real(message, *more)

    monkeypatch.setattr(validate, "_validate", failing)
    spool.drop("poison", "aa.json")
    spool.drop("good", "zz.json")
    assert spool.intake.step() == 2
    assert spool.keys() == {"good"}
    assert [item["reason_code"] for item in spool.world.rejected()] == ["INTERNAL_ERROR"]
    assert spool.names("rejected") == ["aa.json"]


# ---------------------------------------------------------------- what nobody takes


def test_files_that_nobody_takes_are_named_once_in_the_log_and_by_doctor(spool: Spool) -> None:
    folder = spool.path("requests")
    for name in ("UPPER.JSON", "request.json.txt", "many.jsonl", "being-written.json.tmp", ".hidden.json", ".old.json"):
        (folder / name).write_text("{}")
    os.utime(folder / ".old.json", OLD)
    (folder / "sub").mkdir()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            spool.intake.step()
    expected = [".old.json", "UPPER.JSON", "many.jsonl", "request.json.txt", "sub"]
    assert sorted(line["file"] for line in logs if "file" in line) == expected
    assert spool.intake.empty() is True
    files = SpoolFiles(AnchoredRoot(str(spool.world.bus)))
    files.open()
    assert sorted(files_not_taken(files)) == expected
    done = spool.world.command("doctor", "--wiring", str(spool.world.wiring))
    assert done.returncode == 2
    assert b"requests that nobody takes: UPPER.JSON" in done.stdout
    assert b"rename it to *.json" in done.stdout


@pytest.mark.parametrize(("kind", "writable", "stuck"), [("folder", False, True), ("folder", True, False),
                                                         ("file", False, False)])  # fmt: skip
def test_a_folder_that_the_daemon_may_not_write_to_cannot_be_moved_and_the_remedy_is_said(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, kind: str, writable: bool, stuck: bool
) -> None:
    """To rename a folder is to write to it; a file may be renamed by whoever may write to its parent."""
    path = spool.path("requests/in-the-way.json")
    path.mkdir() if kind == "folder" else path.write_text("{}")
    files = SpoolFiles(AnchoredRoot(str(spool.world.bus)))
    files.open()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_given, **_more: writable)
    assert ("may not move: remove it" in files_not_taken(files).get("in-the-way.json", "")) is stuck
    assert kind == "folder" or "in-the-way.json" not in files_not_taken(files), "it is taken"


def test_a_request_that_cannot_be_renamed_is_said_once_tried_again_and_holds_up_nobody(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(source: str, target: str, **more: Any) -> None:
        if source == "aa.json":
            raise PermissionError(1, "Operation not permitted")
        real(source, target, **more)

    spool.drop("stuck", "aa.json")
    spool.drop("good", "zz.json")
    with monkeypatch.context() as forbidden, structlog.testing.capture_logs() as logs:
        forbidden.setattr(os, "rename", rename)
        for _ in range(4):
            spool.intake.step()
            spool.pass_seconds(6)
        assert spool.keys() == {"good"}
        assert spool.intake.empty() is True
    assert [line["file"] for line in logs if "cannot be taken" in line["event"]] == ["aa.json"]
    spool.intake.step()
    assert spool.keys() == {"good", "stuck"}


def test_a_record_larger_than_the_bus_takes_is_refused_at_once_though_it_may_still_grow(spool: Spool) -> None:
    spool.world.drop(b"x" * (MAX_RECORD_BYTES + 1), "large.json")
    assert spool.intake.step() == 1
    assert [item["reason_code"] for item in spool.world.rejected()] == ["RECORD_TOO_LARGE"]


# ---------------------------------------------------------------- what a refusal says


def refuse(spool: Spool, data: bytes) -> dict[str, Any]:
    """Drop a record that is refused at once; returns its reason file."""
    spool.world.drop(data, "refused.json")
    os.utime(spool.path("requests/refused.json"), OLD)
    spool.intake.step()
    (reason,) = spool.world.rejected()
    return reason


HINTS = ("is empty", "UTF-16", "base64")


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b" \n\t", "is empty"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32-be"), "UTF-16"),
        (b"eyJhIjogMX0=", "base64"),
        (b'{"a": ', ""),
        (b"\0\0\0\1binary", ""),
        (b"see the wiki", ""),
    ],
    ids=["empty", "UTF-16", "UTF-32", "base64", "cut off", "binary", "text"],
)
def test_what_was_sent_in_the_place_of_json_is_named_only_when_it_is_recognised(
    spool: Spool, data: bytes, hint: str
) -> None:
    reason = refuse(spool, data)
    assert reason["reason_code"] == "RECORD_NOT_JSON"
    assert [word for word in HINTS if word in reason["detail"]] == ([hint] if hint else [])
    assert reason["detail"].startswith(" (") is False, "a remark on nothing"


@pytest.mark.parametrize(
    ("key", "named"),
    [("k", True), ("k" * KEY_MAX_LENGTH, True), ("k" * (KEY_MAX_LENGTH + 1), False), ("", False), (7, False)],
    ids=["short", "longest", "too long", "empty", "a number"],
)
def test_a_refusal_names_a_run_only_by_a_key_that_a_run_may_have(spool: Spool, key: Any, named: bool) -> None:
    reason = refuse(spool, json.dumps(spool.request("x", run_equivalence_key=key, seed="no number")).encode())
    assert reason["reason_code"] == "REQUEST_SCHEMA_INVALID"
    assert bool(reason["run_id"]) is named
    with closing(sqlite3.connect(spool.world.database)) as connection:
        signals = connection.execute("SELECT count(*) FROM outbox WHERE kind = 'REQUEST_REJECTED'").fetchone()
    assert signals == (int(named),)


# ---------------------------------------------------------------- what an idle intake costs, and outages


def test_an_idle_step_changes_no_folder_and_looks_for_claims_of_others_once_a_second(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    real = spool_files.claimed_lots
    monkeypatch.setattr(spool_files, "claimed_lots", lambda folders: looks.append(1) or real(folders))
    spool.pass_seconds(10)
    spool.intake.step()
    before = spool.path(".private/claimed").stat().st_mtime_ns
    for _ in range(5):
        spool.intake.step()
        spool.pass_seconds(0.1)
    assert spool.path(".private/claimed").stat().st_mtime_ns == before
    assert len(looks) == 1
    spool.pass_seconds(1)
    spool.intake.step()
    assert len(looks) == 2


def test_a_spool_is_empty_only_when_nothing_waits_and_nothing_lies_claimed(spool: Spool) -> None:
    assert spool.intake.empty() is True
    spool.drop("one")
    assert spool.intake.empty() is False, "it waits"
    spool.during = unavailable
    with pytest.raises(Unavailable):
        spool.intake.step()
    assert (spool.names("requests"), spool.intake.empty()) == ([], False), "it lies claimed"
    spool.during = lambda: None
    spool.intake.step()
    assert spool.intake.empty() is True


def test_a_refused_request_is_put_away_only_after_its_reason_is_written(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.world.drop(b"[]", "bad.json")
    os.utime(spool.path("requests/bad.json"), OLD)
    away = Unavailable("the disk is full")
    with monkeypatch.context() as full:
        full.setattr(FilesystemStore, "create_many", lambda _, items: [away for _ in items])
        with pytest.raises(Unavailable, match="the disk is full"):
            spool.intake.step()
    assert (spool.names("rejected"), spool.claimed()) == ([], ["bad.json"])
    spool.intake.step()
    assert spool.names("rejected") == ["bad.json"]
    assert len(spool.world.rejected()) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["rename", "rmdir"])
def test_an_error_that_is_not_about_one_file_is_an_outage(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    spool.drop("one")
    with monkeypatch.context() as broken, structlog.testing.capture_logs() as logs:
        broken.setattr(os, call, fail)
        with pytest.raises(Unavailable, match=os.strerror(error)):
            spool.intake.step()
    assert not [line for line in logs if "cannot be taken" in line["event"]]
    spool.intake.step()
    assert spool.keys() == {"one"}


def test_a_requests_folder_that_may_not_be_changed_any_more_is_an_outage_and_blames_no_file(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    spool.drop("one")
    with monkeypatch.context() as broken, structlog.testing.capture_logs() as logs:
        broken.setattr(os, "rename", denied)
        broken.setattr(os, "access", lambda *_, **__: False)
        with pytest.raises(Unavailable, match="Permission denied"):
            spool.intake.step()
    assert not [line for line in logs if "cannot be taken" in line["event"]]
    spool.intake.step()
    assert spool.keys() == {"one"}


def test_a_process_that_has_no_descriptors_left_refuses_no_file_for_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_(path: Any, *more: Any, **named: Any) -> int:
        if str(path).endswith("one.json"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *more, **named)

    spool.drop("one", "one.json")
    with monkeypatch.context() as full:
        full.setattr(os, "open", open_)
        with pytest.raises(Unavailable, match="Too many open files"):
            spool.intake.step()
    assert spool.records() == []
    spool.pass_seconds(6)
    spool.intake.step()
    assert spool.keys() == {"one"}


@pytest.mark.parametrize(
    "make",
    [lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: path.symlink_to("/etc/hostname")],  # noqa: PLW0108
    ids=["a folder", "a pipe", "a link"],
)
def test_what_is_no_regular_file_is_refused_at_once_as_that(spool: Spool, make: Callable[[Path], object]) -> None:
    make(spool.path("requests/odd.json"))
    spool.drop("good", "zz.json")
    assert spool.intake.step() == 2
    (reason,) = spool.world.rejected()
    assert (reason["reason_code"], reason["detail"]) == ("RECORD_UNREADABLE", "it is not a regular file")
    assert spool.keys() == {"good"}


def test_a_file_that_is_read_in_small_pieces_is_read_whole(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.read
    spool.drop("pieces")
    with monkeypatch.context() as slow:
        slow.setattr(os, "read", lambda fd, size: real(fd, min(size, 7)))
        spool.intake.step()
    assert spool.keys() == {"pieces"}


def test_a_file_system_that_cannot_make_names_durable_is_refused_at_start_and_left_clean(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("consumed"):
            raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as odd:
        odd.setattr(os, "fsync", fsync)
        with pytest.raises(ConfigurationError, match="made durable"):
            spool.another()
    assert spool.claimed() == []


@pytest.mark.parametrize(
    ("user", "sticky", "folder", "said"),
    [
        (12345, True, False, "sticky"),
        (12345, False, False, "Operation not permitted"),
        (12345, False, True, "it is a folder"),
        (0, True, True, "Operation not permitted"),
    ],
    ids=["sticky", "not sticky", "a folder", "the superuser"],
)
def test_why_a_request_cannot_be_taken_is_said_as_far_as_it_is_known(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, user: int, sticky: bool, folder: bool, said: str
) -> None:
    def rename(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if folder:
        spool.path("requests/aa.json").mkdir()
    else:
        spool.drop("stuck", "aa.json")
    spool.path("requests").chmod(0o1777 if sticky else 0o777)
    with monkeypatch.context() as other, structlog.testing.capture_logs() as logs:
        other.setattr(os, "rename", rename)
        other.setattr(os, "geteuid", lambda: user)
        other.setattr(os, "access", lambda path, *_, **__: path == ".")
        spool.intake.step()
    (line,) = [line for line in logs if "cannot be taken" in line["event"]]
    assert said in line["detail"]


def test_the_owner_of_a_sticky_folder_and_the_owner_of_the_file_are_not_told_of_the_sticky_bit(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")

    def rename(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    spool.drop("stuck", "aa.json")
    spool.path("requests").chmod(0o1777)
    for owners in ((12345, 0), (0, 12345)):
        for path, owner in zip((spool.path("requests"), spool.path("requests/aa.json")), owners, strict=True):
            os.chown(path, owner, -1)
        with monkeypatch.context() as other, structlog.testing.capture_logs() as logs:
            other.setattr(os, "rename", rename)
            other.setattr(os, "geteuid", lambda: 12345)
            made = SpoolConsumer(str(spool.world.bus), spool, spool.rules, lambda: spool.now)  # type: ignore[arg-type]
            made.step()
        (line,) = [line for line in logs if "cannot be taken" in line["event"]]
        assert "sticky" not in line["detail"]
