"""The object-store contract, over every backend; and what is particular to the file system.

A new backend is one more entry in ``BACKENDS``: how to open it, and the same as a script for another process.
"""

import errno
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from storage_support import objects_in
from support import s3_place

from scenario_runner.contracts.errors import ConfigurationError, SequenceError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage import write_out
from scenario_runner.storage.base import (
    ListedObject,
    NotAnObjectError,
    ObjectStore,
    ObjectTooLargeError,
    version_of,
)
from scenario_runner.storage.filesystem import FilesystemStore
from scenario_runner.storage.s3 import S3Store
from scenario_runner.storage.sorting import sorted_objects

pytestmark = pytest.mark.integration

PREFIX = "fraud-platform/sr"
PRIVATE = f"{PREFIX}/.private"
MANY = 1 << 20


@dataclass
class Backend:
    """One store that can be opened again and again, here and in other processes."""

    open: Callable[[], ObjectStore]
    script: str

    def in_processes(self, body: str, count: int = 2) -> list[list[str]]:
        """Run a script in several processes that start together; ``store`` and ``me`` (a number) are defined."""
        start = "me = int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()"
        source = f"import sys\n{self.script}\n{start}\n{body}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", source, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        finished = [process.communicate(timeout=120) for process in running]
        for process, (_, errors) in zip(running, finished, strict=True):
            assert process.returncode == 0, errors
        return [out.split() for out, _ in finished]


def _filesystem(folder: Path, pool: ThreadPoolExecutor) -> Backend:
    root = str(folder / "store")
    return Backend(
        lambda: FilesystemStore(root, PRIVATE, pool),
        "from scenario_runner.storage.filesystem import FilesystemStore\n"
        f"store = FilesystemStore({root!r}, {PRIVATE!r})",
    )


def _s3(folder: Path, pool: ThreadPoolExecutor) -> Backend:
    place = s3_place()
    prefix = f"{place.prefix}/{folder.parent.name}-{folder.name}-{secrets.token_hex(4)}".lstrip("/")
    bucket = f"S3Bucket({place.bucket!r}, S3Settings({place.endpoint!r}, {place.region!r}, {place.path_style!r}))"
    return Backend(
        lambda: S3Store(place.open_bucket(), prefix, PRIVATE, pool),
        "from scenario_runner.storage.s3 import S3Store\n"
        "from scenario_runner.storage.s3_client import S3Bucket, S3Settings\n"
        f"store = S3Store({bucket}, {prefix!r}, {PRIVATE!r})",
    )


BACKENDS: dict[str, Callable[[Path, ThreadPoolExecutor], Backend]] = {"filesystem": _filesystem, "s3": _s3}


@pytest.fixture(params=["filesystem", pytest.param("s3", marks=pytest.mark.parity)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with ThreadPoolExecutor(4) as pool:
        yield BACKENDS[request.param](tmp_path, pool)


@pytest.fixture
def store(backend: Backend) -> ObjectStore:
    return backend.open()


# --- create -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x00\xff\r\n", b"y" * (5 << 20)], ids=["nothing", "one byte", "binary", "5 MiB"]
)
def test_what_was_created_is_read_back(store: ObjectStore, data: bytes) -> None:
    assert store.create(f"{PREFIX}/a/b.json", data) is True
    found = store.read(f"{PREFIX}/a/b.json", 6 << 20)
    assert found is not None
    assert found.data == data
    assert found.version


def test_the_first_creation_wins_and_the_second_changes_nothing(backend: Backend) -> None:
    first, second = backend.open(), backend.open()
    assert first.create("a/b", b"first") is True
    before = second.read("a/b", MANY)
    assert second.create("a/b", b"second") is False
    assert first.create("a/b", b"first") is False
    assert first.read("a/b", MANY) == before
    assert before is not None
    assert before.data == b"first"


def test_of_sixteen_threads_exactly_one_creates_each_object(backend: Backend) -> None:
    stores = [backend.open() for _ in range(4)]
    start = threading.Barrier(16)

    def race(number: int) -> list[tuple[int, bool, bytes]]:
        store = stores[number % 4]
        start.wait(30)
        results = []
        for turn in range(25):
            won = store.create(f"race/{turn}/object.json", f"by {number}".encode() * 500)
            found = store.read(f"race/{turn}/object.json", MANY)
            assert found is not None, "whoever lost must find the winner's object"
            results.append((turn, won, found.data))
        return results

    with ThreadPoolExecutor(16) as pool:
        everything = [item for results in pool.map(race, range(16)) for item in results]
    for turn in range(25):
        assert sum(won for at, won, _ in everything if at == turn) == 1
        assert len({data for at, _, data in everything if at == turn}) == 1, "nobody ever saw a part of it"


def test_of_two_processes_exactly_one_creates_each_object(backend: Backend) -> None:
    outcomes = backend.in_processes(
        "for turn in range(200):\n"
        "    won = store.create(f'race/{turn}', f'by {me}'.encode())\n"
        "    print(int(won), store.read(f'race/{turn}', 100).data.decode()[-1])\n"
    )
    wins, seen = [out[::2] for out in outcomes], [out[1::2] for out in outcomes]
    assert [sorted(pair) for pair in zip(*wins, strict=True)] == [["0", "1"]] * 200
    assert seen[0] == seen[1]


# --- create many ------------------------------------------------------------------------------------------------------


def test_of_many_each_gets_the_answer_that_it_would_get_alone(store: ObjectStore) -> None:
    store.create("a/there", b"old")
    items = [("a/new", b"1"), ("a/there", b"2"), ("b/new", b""), ("a/new", b"3"), ("top", b"4")]
    assert store.create_many(items) == [True, False, True, False, True]
    found = {key: store.read(key, MANY) for key in ("a/new", "a/there", "b/new", "top")}
    assert {key: item and item.data for key, item in found.items()} == {
        "a/new": b"1",
        "a/there": b"old",
        "b/new": b"",
        "top": b"4",
    }


def test_many_may_be_none(store: ObjectStore) -> None:
    assert store.create_many([]) == []


@pytest.mark.parametrize("bad", ["../x", "/x", "a//b"])
def test_one_unsafe_key_among_many_is_our_defect_and_nothing_is_created(store: ObjectStore, bad: str) -> None:
    with pytest.raises(SequenceError):
        store.create_many([("a/first", b"1"), (bad, b"2"), ("a/third", b"3")])
    assert objects_in(store) == []


def test_each_of_many_files_is_there_before_the_next(tmp_path: Path) -> None:
    """Whoever sees the last of a batch sees all that came before it: signals appear in order."""
    root = str(tmp_path / "store")
    writer, reader = FilesystemStore(root, PRIVATE), FilesystemStore(root, PRIVATE)
    writer.create("there", b"")
    keys = [f"batch/{number:02d}/object.json" for number in range(12)]
    done = threading.Event()
    gaps: list[list[bool]] = []

    def watch() -> None:
        while not done.is_set():
            seen = [reader.read(key, MANY) is not None for key in reversed(keys)][::-1]  # the last is looked at first
            if sorted(seen, reverse=True) != seen:
                gaps.append(seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert writer.create_many([(key, b"x" * 1000) for key in keys]) == [True] * 12
    done.set()
    watcher.join(60)
    assert gaps == []
    assert all(reader.read(key, MANY) is not None for key in keys)


def test_of_two_processes_with_overlapping_batches_exactly_one_creates_each_object(backend: Backend) -> None:
    outcomes = backend.in_processes(
        "for turn in range(10):\n"
        "    keys = [f'race/{turn}/{number}' for number in range(10)]\n"
        "    order = keys if me else keys[::-1]\n"
        "    won = dict(zip(order, store.create_many([(key, b'by %d' % me) for key in order])))\n"
        "    print(*[int(won[key]) for key in keys])\n"
    )
    assert [sorted(pair) for pair in zip(*outcomes, strict=True)] == [["0", "1"]] * 100


# --- read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["nothing", "a/none", "a/b/c/none", "none/at/all", "a/b.json/below"])
def test_what_is_not_there_is_none(store: ObjectStore, key: str) -> None:
    store.create("a/b.json", b"x")
    assert store.read(key, MANY) is None


def test_a_read_is_bounded(store: ObjectStore) -> None:
    store.create("a", b"12345")
    for limit in (5, 6, MANY):
        found = store.read("a", limit)
        assert found is not None
        assert found.data == b"12345"
    for limit in (0, 1, 4):
        with pytest.raises(ObjectTooLargeError) as refused:
            store.read("a", limit)
        assert refused.value.reason is Reason.EVIDENCE_TOO_LARGE


def test_an_empty_object_is_not_an_absent_one(store: ObjectStore) -> None:
    store.create("a", b"")
    found = store.read("a", 0)
    assert found is not None
    assert found.data == b""


# --- replace ----------------------------------------------------------------------------------------------------------


def version(store: ObjectStore, key: str) -> str:
    found = store.read(key, MANY)
    assert found is not None
    return found.version


def test_an_object_that_is_settled_stays_as_it_is(backend: Backend) -> None:
    store, other = backend.open(), backend.open()
    store.create("a/b", b"one")
    assert store.replace("a/b", b"two", version(store, "a/b")) is True
    other.settle("a/b")
    assert other.read("a/b", MANY) == store.read("a/b", MANY)


def test_a_replace_needs_the_version_that_was_read(backend: Backend) -> None:
    store, other = backend.open(), backend.open()
    store.create("a/b", b"one")
    first = version(store, "a/b")
    assert other.replace("a/b", b"two", first) is True
    second = version(store, "a/b")
    assert second != first
    assert store.replace("a/b", b"three", first) is False
    assert store.replace("a/b", b"three", "") is False
    assert store.replace("a/b", b"three", "no such version") is False
    found = store.read("a/b", MANY)
    assert found is not None
    assert (found.data, found.version) == (b"two", second)
    assert store.replace("a/b", b"three", second) is True


def test_a_replace_does_not_create(store: ObjectStore) -> None:
    store.create("a", b"x")
    assert store.replace("b", b"y", version(store, "a")) is False
    assert store.read("b", MANY) is None


def test_the_version_changes_whenever_the_bytes_do(store: ObjectStore) -> None:
    store.create("a", b"0")
    seen = [version(store, "a")]
    for number in range(1, 6):
        assert store.replace("a", str(number).encode(), seen[-1])
        seen.append(version(store, "a"))
    assert len(set(seen)) == 6


def test_no_replace_of_many_threads_is_lost(backend: Backend) -> None:
    backend.open().create("counter", b"0")
    start = threading.Barrier(8)

    def count(_: int) -> None:
        store = backend.open()
        start.wait(30)
        for _ in range(10):
            while True:
                found = store.read("counter", 100)
                assert found is not None
                if store.replace("counter", str(int(found.data) + 1).encode(), found.version):
                    break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    found = backend.open().read("counter", 100)
    assert found is not None
    assert found.data == b"80"


def test_no_replace_of_two_processes_is_lost(backend: Backend) -> None:
    store = backend.open()
    store.create("counter", b"0")
    backend.in_processes(
        "for _ in range(100):\n"
        "    while True:\n"
        "        found = store.read('counter', 100)\n"
        "        if store.replace('counter', str(int(found.data) + 1).encode(), found.version):\n"
        "            break\n"
    )
    found = store.read("counter", 100)
    assert found is not None
    assert found.data == b"200"


# --- unsafe keys ------------------------------------------------------------------------------------------------------

UNSAFE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../x",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "a\x00b",
    "a\nb",
    "a\x7f",
    "a/\ud800",
]


@pytest.mark.parametrize("key", UNSAFE, ids=ascii)
def test_a_key_that_is_not_plain_and_relative_is_our_defect(store: ObjectStore, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.create(key, b"x"),
        lambda: store.read(key, 1),
        lambda: store.replace(key, b"x", "v"),
        lambda: store.locate(key),
    ]
    for call in calls:
        with pytest.raises(SequenceError):
            call()


def test_a_location_is_for_people_and_ends_in_the_key(store: ObjectStore) -> None:
    assert store.locate("a/b.json").endswith("/a/b.json")


# --- probe ------------------------------------------------------------------------------------------------------------


def test_a_store_that_keeps_its_promises_passes_the_probe_and_nothing_is_left_of_it(store: ObjectStore) -> None:
    before = objects_in(store)
    for _ in range(3):
        store.probe()
    assert objects_in(store) == before == []


def test_several_processes_may_probe_at_once(backend: Backend) -> None:
    backend.in_processes("for _ in range(20):\n    store.probe()\n", count=3)
    assert objects_in(backend.open()) == []


# --- the file system --------------------------------------------------------------------------------------------------


def test_a_listing_has_everything_below_a_folder_in_the_order_of_the_keys(store: ObjectStore) -> None:
    names = ["b", "a/2", "a/10", "a-b", "c/d/e", "ä", "A"]
    for name in names:
        store.create(f"list/{name}", name.encode() * 3)
    store.create("list2/other", b"x")
    found = list(store.list_objects("list"))
    assert [item.key for item in found] == sorted(f"list/{name}" for name in names)
    assert [item.size for item in found] == [len(item.key.removeprefix("list/").encode()) * 3 for item in found]
    assert all(item.modified_us > 10**15 for item in found)
    digests = [hashlib.md5(name.encode() * 3, usedforsecurity=False).hexdigest() for name in sorted(names)]
    assert [item.md5 for item in found] == (digests if isinstance(store, S3Store) else [""] * len(names))
    assert list(store.list_objects("nothing/here")) == []


@pytest.mark.parametrize("part", [1, 3, 100])
def test_a_listing_longer_than_memory_allows_is_sorted_in_parts(part: int) -> None:
    names = [f"{number * 7 % 10}-\udc80" for number in range(10)]
    given = [ListedObject(name, number, number) for number, name in enumerate(names)]
    assert list(sorted_objects(given, part)) == sorted(given, key=lambda item: item.key)


@pytest.fixture
def files(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(str(tmp_path / "store"), PRIVATE)


def private_files(store: FilesystemStore) -> list[str]:
    folder = os.path.join(store.root, PRIVATE)
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock")) if os.path.isdir(folder) else []


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
        patch.setattr(os, "fsync", _failing(real, errno.EIO, lambda fd: os.readlink(f"/proc/self/fd/{fd}") == folder))
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


def test_one_of_a_batch_whose_flush_fails_gets_no_name_and_does_not_take_the_others_along(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = os.fsync, b"second"

    def fsync(fd: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{fd}") and os.pread(fd, 10, 0) == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    files.create("a/0", b"x")
    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        first, second, third = files.create_many([("a/1", b"first"), ("a/2", bad), ("a/3", b"third")])
    assert (first, third) == (True, True)
    assert isinstance(second, Unavailable)
    assert objects_in(files, "a") == ["a/0", "a/1", "a/3"]
    assert set(os.listdir("/proc/self/fd")) == before, "its descriptor is closed"
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
            os, "fsync", _failing(os.fsync, errno.EIO, lambda fd: PRIVATE in os.readlink(f"/proc/self/fd/{fd}"))
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


def test_what_cannot_be_settled_is_unavailable(files: FilesystemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files.create("a/object", b"x")
    monkeypatch.setattr(os, "fsync", _failing(os.fsync, errno.EIO, lambda _fd: True))
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


def _failing(real: Callable[..., Any], code: int, when: Callable[..., bool]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    return call


FULL = {errno.ENOSPC: "full", errno.EDQUOT: "quota", errno.EROFS: "read-only", errno.EACCES: "permission"}


@pytest.mark.parametrize("code", FULL, ids=list(FULL.values()))
@pytest.mark.parametrize("call", ["write", "fsync", "link", "mkdir"])
def test_a_disk_that_is_full_or_locked_is_unavailable_and_leaves_nothing_behind(
    files: FilesystemStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    files.create("a/before", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _failing(getattr(os, call), code, lambda *_: True))
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
        patch.setattr(os, call, _failing(getattr(os, call), errno.ENOSPC, lambda *_: True))
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
    monkeypatch.setattr(os, "open", _failing(os.open, code, lambda name, *_: name == "a/object"))
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
