"""The object store in files: what is durable before a call returns, in which order, and what a failed flush leaves."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from storage_support import MANY, PRIVATE, failing, objects_in, private_files, version

from scenario_runner.contracts.errors import SequenceError, Unavailable
from scenario_runner.storage import write_out
from scenario_runner.storage.base import version_of
from scenario_runner.storage.filesystem import FilesystemStore

pytestmark = pytest.mark.integration


@pytest.fixture
def files(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(str(tmp_path / "store"), PRIVATE)


@dataclass
class Calls:
    """What the store asked of the operating system, in order."""

    log: list[tuple[str, str]]

    def index(self, *entry: str) -> int:
        return self.log.index((entry[0], entry[1]))

    def last(self, *entry: str) -> int:
        return len(self.log) - 1 - self.log[::-1].index((entry[0], entry[1]))


def _resolved(path: str, options: dict[str, Any]) -> str:
    """A path that is relative to an open folder, whole."""
    fd = options.get("dst_dir_fd", options.get("dir_fd"))
    return path if fd is None else os.path.join(os.readlink(f"/proc/self/fd/{fd}"), path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorded = Calls([])
    real = {name: getattr(os, name) for name in ("fsync", "link", "rename", "mkdir", "unlink", "write")}

    def record(name: str, describe: Callable[..., str]) -> None:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            text = _resolved(describe(*arguments), options)
            result = real[name](*arguments, **options)
            recorded.log.append((name, text))
            return result

        monkeypatch.setattr(os, name, wrapper)

    for name in ("fsync", "write"):
        record(name, lambda fd, *_: os.readlink(f"/proc/self/fd/{fd}"))
    for name in ("link", "rename"):
        record(name, lambda _source, target, *_: str(target))
    for name in ("mkdir", "unlink"):
        record(name, lambda path, *_: str(path))
    return recorded


def test_a_new_object_is_durable_before_its_name_and_its_name_before_the_call_returns(
    files: FilesystemStore, calls: Calls
) -> None:
    files.create("warm/up", b"x")
    calls.log.clear()
    files.create("warm/object", b"x")
    path = files.locate("warm/object")
    (written,) = {text for name, text in calls.log if name == "write"}
    assert calls.last("write", written) < calls.index("fsync", written) < calls.index("link", path)
    assert calls.index("link", path) < calls.last("fsync", os.path.dirname(path))


def test_each_new_folder_is_made_durable_in_its_parent(files: FilesystemStore, calls: Calls) -> None:
    files.create("a/b/c/object", b"x")
    for folder in ("a", "a/b", "a/b/c"):
        path = os.path.join(files.root, folder)
        assert calls.index("mkdir", path) < calls.last("fsync", os.path.dirname(path))


def test_a_folder_that_another_process_made_is_made_durable_too(files: FilesystemStore, calls: Calls) -> None:
    os.makedirs(os.path.join(files.root, "a/b"))
    calls.log.clear()
    files.create("a/b/object", b"x")
    synced = {text for name, text in calls.log if name == "fsync"}
    assert {files.root, os.path.join(files.root, "a"), os.path.join(files.root, "a/b")} <= synced


def test_every_object_and_folder_of_a_batch_is_durable_before_the_call_returns(
    files: FilesystemStore, calls: Calls
) -> None:
    keys = ["a/1", "a/2", "b/c/3", "4"]
    assert files.create_many([(key, b"x") for key in keys]) == [True] * 4
    links = [text for name, text in calls.log if name == "link"]
    assert links == [files.locate(key) for key in keys]
    written = [text for name, text in calls.log if name == "write"]
    assert len(written) == 4
    for path in written:
        assert calls.index("fsync", path) < calls.index("link", links[0])
    for path in links:
        assert calls.index("link", path) < calls.last("fsync", os.path.dirname(path))


def test_a_batch_whose_folder_cannot_be_made_durable_promises_nothing(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.create("a/before", b"x")
    folder = os.path.join(files.root, "a")
    real = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(real, errno.EIO, lambda fd: os.readlink(f"/proc/self/fd/{fd}") == folder))
        (result,) = files.create_many([("a/object", b"x")])
        assert isinstance(result, Unavailable)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    files.create("a/object", b"x")
    assert folder in synced, "the name of the first try was never made durable, so the second has to"


def test_files_of_a_batch_are_on_their_way_to_the_disk_before_the_first_is_flushed(
    files: FilesystemStore, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One commit of a journal then carries them all. Each is flushed itself nevertheless."""
    started: list[str] = []

    def start(fd: int, _offset: int, _bytes: int, _flags: int) -> int:
        started.append(os.readlink(f"/proc/self/fd/{fd}"))
        assert ("write", started[-1]) in calls.log
        assert not any(name == "fsync" and PRIVATE in path for name, path in calls.log)
        return -1  # what it answers does not matter

    files.create("a/0", b"x")
    calls.log.clear()
    monkeypatch.setattr(write_out, "_sync_file_range", lambda: start)
    assert files.create_many([(f"a/{number}", b"x") for number in range(1, 6)]) == [True] * 5
    flushed = [path for name, path in calls.log if name == "fsync" and PRIVATE in path]
    assert sorted(flushed) == sorted(started)
    assert len(set(started)) == 5


def test_files_are_durable_where_the_write_out_cannot_be_started_early(
    files: FilesystemStore, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_out, "_sync_file_range", lambda: None)
    assert files.create("a/object", b"x") is True
    (written,) = {text for name, text in calls.log if name == "write"}
    assert calls.index("fsync", written) < calls.index("link", files.locate("a/object"))


def open_below(root: str) -> list[str]:
    """What this process has open below a folder, files without a name included; other tests' threads open others."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(path for path in found if path.startswith(root))


def test_one_of_a_batch_whose_flush_fails_gets_no_name_and_does_not_take_the_others_along(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = os.fsync, b"second"

    def fsync(fd: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{fd}") and os.pread(fd, 10, 0) == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    files.create("a/0", b"x")
    before = open_below(files.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        first, second, third = files.create_many([("a/1", b"first"), ("a/2", bad), ("a/3", b"third")])
    assert (first, third) == (True, True)
    assert isinstance(second, Unavailable)
    assert objects_in(files, "a") == ["a/0", "a/1", "a/3"]
    assert open_below(files.root) == before, "its descriptor is closed"
    assert files.create("a/2", bad) is True


@pytest.mark.parametrize("replaces", [False, True], ids=["create", "replace"])
def test_bytes_whose_flush_failed_are_written_again_and_not_only_flushed_again(
    files: FilesystemStore, calls: Calls, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    """After a failed fsync the system may take the pages for clean, so that the next fsync of the file succeeds."""
    files.create("a/object" if replaces else "a/before", b"old")

    def write() -> bool:
        return files.replace("a/object", b"new", version_of(b"old")) if replaces else files.create("a/object", b"new")

    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", failing(os.fsync, errno.EIO, lambda fd: PRIVATE in os.readlink(f"/proc/self/fd/{fd}"))
        )
        with pytest.raises(Unavailable):
            write()
    found = files.read("a/object", MANY)
    assert (found.data if found else None) == (b"old" if replaces else None)
    calls.log.clear()
    assert write() is True
    (written,) = {text for name, text in calls.log if name == "write"}
    named = calls.index("rename" if replaces else "link", files.locate("a/object"))
    assert calls.index("write", written) < calls.index("fsync", written) < named


def test_what_was_read_is_settled_by_a_flush_of_its_folder(files: FilesystemStore, calls: Calls) -> None:
    for key in ("object", "a/object"):
        files.create(key, b"x")
        calls.log.clear()
        files.settle(key)
        assert calls.log == [("fsync", os.path.dirname(files.locate(key)))]


def test_a_key_that_is_not_plain_cannot_be_settled_and_is_our_defect(files: FilesystemStore) -> None:
    files.create("a/b", b"x")
    with pytest.raises(SequenceError):
        files.settle("a/../b")


def test_what_cannot_be_settled_is_unavailable(files: FilesystemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files.create("a/object", b"x")
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EIO, lambda _fd: True))
    with pytest.raises(Unavailable):
        files.settle("a/object")


def test_one_of_a_batch_that_cannot_be_written_does_not_take_the_others_along(files: FilesystemStore) -> None:
    files.create("a", b"a file where a folder should be")
    first, second, third = files.create_many([("b/1", b"1"), ("a/2", b"2"), ("b/3", b"3")])
    assert (first, third) == (True, True)
    assert isinstance(second, Unavailable)
    assert objects_in(files, "b") == ["b/1", "b/3"]
    assert private_files(files) == []


def test_a_replacement_is_durable_before_its_name_and_its_name_before_the_call_returns(
    files: FilesystemStore, calls: Calls
) -> None:
    files.create("a/object", b"x")
    calls.log.clear()
    assert files.replace("a/object", b"y", version(files, "a/object"))
    path = files.locate("a/object")
    (written,) = {text for name, text in calls.log if name == "write"}
    assert calls.last("write", written) < calls.index("fsync", written) < calls.index("rename", path)
    assert calls.index("rename", path) < calls.last("fsync", os.path.dirname(path))


def test_an_object_that_another_call_created_is_durable_too_before_this_one_returns(
    files: FilesystemStore, calls: Calls
) -> None:
    """The other process may have linked it and not yet synced the folder; "it is there" is a promise as well."""
    FilesystemStore(files.root, PRIVATE).create("a/object", b"x")
    calls.log.clear()
    assert files.create("a/object", b"y") is False
    assert ("fsync", os.path.dirname(files.locate("a/object"))) in calls.log


def test_nothing_is_left_in_the_private_folder_after_success(files: FilesystemStore) -> None:
    files.create("a/object", b"x")
    files.create("a/object", b"y")
    files.replace("a/object", b"z", version(files, "a/object"))
    files.replace("a/object", b"z", "stale")
    files.probe()
    assert private_files(files) == []
    assert objects_in(files) == ["a/object"]
