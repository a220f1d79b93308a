"""The object store in files: careless stores, a full disk, what is no regular file, and the sweeping of leftovers."""

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage_support import MANY, PRIVATE, failing, objects_in, private_files, version

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import NotAnObjectError, ObjectTooLargeError
from scenario_runner.storage.filesystem import FilesystemStore

pytestmark = pytest.mark.integration


@pytest.fixture
def files(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(str(tmp_path / "store"), PRIVATE)


class OverwritingStore(FilesystemStore):
    """A store whose creates are not conditional."""

    def create(self, key: str, data: bytes) -> bool:
        path = self.locate(key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        return True


class LyingStore(FilesystemStore):
    """A store that says it created what it did not."""

    def create(self, key: str, data: bytes) -> bool:
        super().create(key, data)
        return True


class UnguardedStore(FilesystemStore):
    """A store whose replaces ignore the version."""

    def replace(self, key: str, data: bytes, version: str) -> bool:
        with open(self.locate(key), "wb") as file:
            file.write(data)
        return True


@pytest.mark.parametrize("careless", [OverwritingStore, LyingStore, UnguardedStore])
def test_a_store_that_ignores_conditions_fails_the_probe(careless: type[FilesystemStore], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        careless(str(tmp_path / "store"), PRIVATE).probe()
    assert refused.value.reason is Reason.STORE_UNSAFE
    assert refused.value.remedy


FULL = {errno.ENOSPC: "full", errno.EDQUOT: "quota", errno.EROFS: "read-only", errno.EACCES: "permission"}


@pytest.mark.parametrize("code", FULL, ids=list(FULL.values()))
@pytest.mark.parametrize("call", ["write", "fsync", "link", "mkdir"])
def test_a_disk_that_is_full_or_locked_is_unavailable_and_leaves_nothing_behind(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    files.create("a/before", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), code, lambda *_: True))
        with pytest.raises(Unavailable) as refused:
            files.create("b/object", b"x" * 1000)
    assert FULL[code] in refused.value.detail
    assert files.root in refused.value.detail
    assert files.read("b/object", MANY) is None
    assert private_files(files) == [], "each retry would fill the disk further"
    assert files.create("b/object", b"y") is True


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_replacement_that_fails_leaves_the_old_object_whole(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files.create("a", b"old")
    before = version(files, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), errno.ENOSPC, lambda *_: True))
        with pytest.raises(Unavailable, match="full"):
            files.replace("a", b"new" * 1000, before)
    assert version(files, "a") == before
    assert private_files(files) == []
    assert files.replace("a", b"new", before) is True


def test_a_write_that_takes_only_a_part_is_continued(files: FilesystemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    files.create("a", b"0123456789" * 10)
    found = files.read("a", MANY)
    assert found is not None
    assert found.data == b"0123456789" * 10


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ELOOP])
def test_what_may_not_be_read_is_never_absent(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    files.create("a/object", b"x")
    monkeypatch.setattr(os, "open", failing(os.open, code, lambda name, *_: name == "a/object"))
    with pytest.raises(Unavailable) as refused:
        files.read("a/object", MANY)
    assert files.locate("a/object") in refused.value.detail
    with pytest.raises(Unavailable):
        files.replace("a/object", b"y", "v")


def test_a_file_where_a_folder_should_be_is_unavailable_and_not_overwritten(files: FilesystemStore) -> None:
    files.create("a", b"a file")
    for key in ("a/b", "a/b/c", "a/b/c/d"):
        with pytest.raises(Unavailable):
            files.create(key, b"x")
    found = files.read("a", MANY)
    assert found is not None
    assert found.data == b"a file"
    assert private_files(files) == []


def test_a_file_where_the_private_folder_should_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store/fraud-platform").mkdir(parents=True)
    (tmp_path / "store/fraud-platform/sr").write_text("in the way", "utf-8")
    store = FilesystemStore(str(tmp_path / "store"), PRIVATE)
    with pytest.raises(Unavailable):
        store.create("a", b"x")
    with pytest.raises(Unavailable):
        store.probe()


def _link(path: str) -> None:
    os.symlink("/etc/hostname", path)


def _folder(path: str) -> None:
    os.mkdir(path)


def _pipe(path: str) -> None:
    os.mkfifo(path)


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


@pytest.mark.parametrize(
    "make", [_link, _folder, _pipe, _socket], ids=["a symbolic link", "a folder", "a pipe", "a socket"]
)
def test_what_is_no_regular_file_is_neither_read_nor_absent_nor_an_outage(
    files: FilesystemStore, make: Callable[[str], None]
) -> None:
    files.create("a/beside", b"x")
    make(files.locate("a/object"))
    with pytest.raises(NotAnObjectError, match="not a regular file"):
        files.read("a/object", MANY)
    with pytest.raises(NotAnObjectError):
        files.replace("a/object", b"y", "v")
    assert files.create("a/object", b"x") is False


@pytest.mark.parametrize("removed", ["a", "a/b", PRIVATE])
def test_a_folder_that_was_removed_is_made_again_at_the_latest_for_the_next_try(
    files: FilesystemStore, removed: str
) -> None:
    files.create("a/b/one", b"x")
    shutil.rmtree(files.locate(removed))
    try:
        files.create("a/b/two", b"x")
    except Unavailable:
        assert files.create("a/b/two", b"x") is True
    found = files.read("a/b/two", MANY)
    assert found is not None
    assert files.replace("a/b/two", b"y", found.version) is True
    assert private_files(files) == []


def test_a_file_that_grows_while_it_is_read_stays_bounded(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.create("a", b"12345")
    path, real = files.locate("a"), os.fstat

    def growing(fd: int) -> os.stat_result:
        info = real(fd)
        with open(path, "ab") as file:
            file.write(b"x" * 10)
        return info

    monkeypatch.setattr(os, "fstat", growing)
    with pytest.raises(ObjectTooLargeError):
        files.read("a", 5)


# --- sweeping ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def leftovers(files: FilesystemStore) -> dict[str, str]:
    """Temporary files of killed processes: two old, one that may still be in use, and a lock."""
    files.create("a", b"x")
    folder = os.path.join(files.root, PRIVATE)
    found = {}
    for name, age in (("old-1.tmp", 7200), ("old-2.tmp", 90_000), ("new.tmp", 5), ("00.lock", 90_000)):
        found[name] = os.path.join(folder, name)
        with open(found[name], "wb") as file:
            file.write(b"left behind")
        os.utime(found[name], (time.time() - age,) * 2)
    return found


def test_old_temporary_files_are_swept_and_young_ones_and_locks_stay(
    files: FilesystemStore, leftovers: dict[str, str]
) -> None:
    assert files.sweep() == 2
    assert {name: os.path.exists(path) for name, path in leftovers.items()} == {
        "old-1.tmp": False, "old-2.tmp": False, "new.tmp": True, "00.lock": True,
    }  # fmt: skip
    assert files.sweep() == 0
    assert objects_in(files) == ["a"]


def test_two_processes_may_sweep_at_once(
    files: FilesystemStore, leftovers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is faster: each file is gone when this one comes to remove it."""
    real = os.unlink

    def slower(path: str, **options: Any) -> None:
        real(path, **options)
        real(path, **options)

    monkeypatch.setattr(os, "unlink", slower)
    files.sweep()
    monkeypatch.undo()
    assert not os.path.exists(leftovers["old-1.tmp"])


def test_what_is_no_file_among_the_temporary_ones_is_left_where_it_is(
    files: FilesystemStore, leftovers: dict[str, str]
) -> None:
    folder = os.path.join(files.root, PRIVATE, "planted.tmp")
    os.mkdir(folder)
    os.utime(folder, (1, 1))
    assert files.sweep() == 2
    assert os.path.isdir(folder)


def test_a_store_that_was_never_used_has_nothing_to_sweep(files: FilesystemStore) -> None:
    assert files.sweep() == 0
    assert not os.path.exists(files.root)
