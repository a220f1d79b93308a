"""The folders of a spool: what stands in their place, what nobody takes, what may not be changed; and outages."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from spool_support import OLD, Spool, unavailable
from support import REPO, World

from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.intake import spool_files, validate
from scenario_runner.intake.spool import SpoolConsumer
from scenario_runner.intake.spool_check import files_not_taken
from scenario_runner.intake.spool_files import SpoolFiles
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.filesystem import FilesystemStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from scenario_runner.authority.values import Admission

pytest_plugins = ("spool_fixtures",)
pytestmark = pytest.mark.integration


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
