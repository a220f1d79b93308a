"""The object-store contract, over every backend.

A new backend is one more entry in ``BACKENDS``: how to open it, and the same as a script for another process. What is
particular to the file system is in test_filesystem_store.py and test_filesystem_durability.py.
"""

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes_support import run_together
from storage_support import MANY, PREFIX, PRIVATE, objects_in, version
from support import s3_place

from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import ListedObject, ObjectStore, ObjectTooLargeError
from scenario_runner.storage.filesystem import FilesystemStore
from scenario_runner.storage.s3 import S3Store
from scenario_runner.storage.sorting import sorted_objects

pytestmark = pytest.mark.integration


@dataclass
class Backend:
    """One store that can be opened again and again, here and in other processes."""

    open: Callable[[], ObjectStore]
    script: str

    def in_processes(self, body: str, count: int = 2) -> list[list[str]]:
        """Run a script in several processes that start together; ``store`` and ``me`` (a number) are defined."""
        return run_together(self.script, body, count)


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
