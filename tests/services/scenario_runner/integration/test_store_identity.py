"""Whether a store is the one that its authority knows: the contract over every backend, and what each is told by."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from authority_support import Clock, asking
from s3_support import spot_on

from scenario_runner.authority import sqlite as sqlite_module
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.errors import SequenceError, Unavailable
from scenario_runner.service.identity import NamedStore, adopt, establish_identities, require_known
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.base import ObjectStore
from scenario_runner.storage.filesystem import FilesystemStore
from scenario_runner.storage.locks import BoundedLocks
from scenario_runner.storage.modes import GROUP, PRIVATE, Modes

pytestmark = pytest.mark.integration

FOLDER = "fraud-platform/sr/.private"
MARKER = f"{FOLDER}/store.json"
ID, OTHER = "a" * 32, "b" * 32


@dataclass
class Place:
    """A place for a store, with what may happen to it behind the store's back."""

    open: Callable[[], ObjectStore]
    put: Callable[[str, bytes], object]
    remove: Callable[[str], object]
    data: Callable[[str], bytes | None]
    later: Callable[[], None]


def _folder(root: Path) -> Place:
    def put(key: str, data: bytes) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)

    return Place(
        lambda: FilesystemStore(str(root), FOLDER),
        put,
        lambda key: (root / key).unlink(missing_ok=True),
        lambda key: (root / key).read_bytes() if (root / key).exists() else None,
        lambda: None,
    )


@pytest.fixture(params=["a folder", pytest.param("S3", marks=pytest.mark.parity)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "a folder":
        yield _folder(tmp_path / "store")
        return
    from scenario_runner.storage.s3 import S3Store

    now = [0.0]

    def later() -> None:
        now[0] += 10

    with ThreadPoolExecutor(4) as pool, spot_on("first", monkeypatch.setenv) as spot:
        yield Place(
            lambda: S3Store(spot.bucket(), spot.prefix, FOLDER, pool, monotonic=lambda: now[0]),
            spot.put,
            spot.remove,
            spot.data,
            later,
        )


def marker(identity: str) -> bytes:
    return json.dumps({"store_id": identity}).encode()


def test_the_first_identity_that_is_left_stays(place: Place) -> None:
    first, second = place.open(), place.open()
    assert first.identity() == ""
    assert first.leave_identity(ID) == ID
    assert second.leave_identity(OTHER) == ID
    assert (first.identity(), second.identity()) == (ID, ID)
    first.expect(ID)
    assert first.create("a", b"x") is True


@pytest.mark.parametrize("found", [None, marker(OTHER), b"", b"{", b'{"store_id": 7}', b"[]", b"x" * 100_000])
def test_a_store_without_its_marker_is_unavailable_until_it_is_back(place: Place, found: bytes | None) -> None:
    store = place.open()
    store.leave_identity(ID)
    store.expect(ID)
    assert store.create("a", b"x") is True
    stored = store.read("a", 10)
    assert stored is not None
    place.remove(MARKER) if found is None else place.put(f"{FOLDER}/other", b"") or swap(place, found)
    place.later()
    calls: list[Callable[[], Any]] = [
        lambda: store.create("b", b"x"),
        lambda: store.replace("a", b"y", stored.version),
        lambda: store.read("nothing", 10),
        lambda: store.held().read("a", 10),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            call()
    results = store.create_many([("b", b"x"), ("c", b"x")])
    assert [isinstance(result, Unavailable) for result in results] == [True, True]
    assert (place.data("a"), place.data("b"), place.data("c")) == (b"x", None, None)
    swap(place, marker(ID))
    place.later()
    assert store.create_many([("b", b"x"), ("c", b"x")]) == [True, True]
    assert store.read("nothing", 10) is None


def test_what_is_read_at_once_comes_from_the_folder_that_was_proven(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = FilesystemStore(str(root), FOLDER)
    store.leave_identity(ID)
    store.expect(ID)
    store.create("a", b"first")
    held = store.held()
    root.rename(tmp_path / "away")
    (root / FOLDER).mkdir(parents=True)
    (root / "a").write_bytes(b"other")
    (root / MARKER).write_bytes(marker(ID))
    found = held.read("a", 10)
    assert found is not None
    assert found.data == b"first", "the bytes that were written to the store that was proven"
    with pytest.raises(Unavailable):
        held.read("b", 10)
    with pytest.raises(SequenceError):
        held.read("../a", 10)


def swap(place: Place, data: bytes) -> None:
    """Another object in the place of the marker: in a folder another file, as on another volume."""
    place.remove(MARKER)
    place.put(MARKER, data)


# --- both sides -------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[SqliteAuthority]:
    made = SqliteAuthority(str(tmp_path / "rows/authority.db"), Clock())
    yield made
    made.close()


def named(place: Place, where: str = "/store") -> NamedStore:
    return NamedStore("object_store", where, place.open())


def test_a_first_start_leaves_one_identity_on_both_sides(place: Place, authority: SqliteAuthority) -> None:
    assert require_known(named(place), authority) == ""
    establish_identities([named(place)], authority)
    known = require_known(named(place), authority)
    assert len(known) == 32
    establish_identities([named(place)], authority)
    assert require_known(named(place), authority) == known == place.open().identity()


def test_an_authority_learns_the_identity_of_a_store_in_use_under_every_name(
    place: Place, authority: SqliteAuthority
) -> None:
    place.open().leave_identity(ID)
    for where in ("/store", "/the/same/elsewhere"):
        establish_identities([named(place, where)], authority)
        assert require_known(named(place, where), authority) == ID


@pytest.mark.parametrize("there", ["", OTHER])
def test_another_store_is_refused_with_both_ids_and_nothing_is_written_anywhere(
    place: Place, authority: SqliteAuthority, tmp_path: Path, there: str
) -> None:
    authority.identity("object_store//store", ID)
    if there:
        place.open().leave_identity(there)
    fresh = NamedStore("spool", str(tmp_path / "bus"), FilesystemStore(str(tmp_path / "bus"), ".private"))
    with pytest.raises(Unavailable) as refused:
        establish_identities([fresh, named(place)], authority)
    for words in ("/store", ID, there or "absent", "Mount", "stores adopt"):
        assert words in refused.value.detail
    assert place.open().identity() == there
    assert not (tmp_path / "bus").exists(), "a start that is refused leaves nothing in the other stores"
    assert authority.identity(fresh.name, "") == ""


def test_what_was_adopted_is_known_from_then_on_and_adopting_it_again_changes_nothing(
    place: Place, authority: SqliteAuthority
) -> None:
    authority.identity("object_store//store", ID)
    place.put("there", b"x")
    done = adopt(named(place), authority)
    assert (done.old, len(done.new)) == (ID, 32)
    assert done.new != ID, "daemons that expect the old store must not go on with the new one"
    again = adopt(named(place), authority)
    assert again.old == again.new == done.new
    establish_identities([named(place)], authority)


def test_a_store_with_an_identity_is_adopted_with_it(place: Place, authority: SqliteAuthority) -> None:
    authority.identity("object_store//store", ID)
    place.open().leave_identity(OTHER)
    assert adopt(named(place), authority).new == OTHER
    assert require_known(named(place), authority) == OTHER


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path) -> FilesystemStore:
    store = FilesystemStore(str(tmp_path / "store"), FOLDER)
    store.leave_identity(ID)
    store.expect(ID)
    store.create("a", b"x")
    return store


def files_below(folder: str) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


def test_what_is_written_while_the_mount_goes_away_lands_in_the_store_and_is_not_promised(
    known: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(*arguments: Any, **options: Any) -> None:
        os.rename(known.root, f"{known.root}.mounted")
        os.mkdir(known.root)
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        (result,) = known.create_many([("b", b"x")])
    assert isinstance(result, Unavailable)
    assert files_below(known.root) == []
    os.rmdir(known.root)
    os.rename(f"{known.root}.mounted", known.root)
    assert known.create("b", b"x") is False


def test_a_replacement_while_the_mount_goes_away_is_not_promised(
    known: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = known.read("a", 10)
    assert stored is not None
    real = os.rename

    def rename(*arguments: Any, **options: Any) -> None:
        real(known.root, f"{known.root}.mounted")
        os.mkdir(known.root)
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(Unavailable):
            known.replace("a", b"y", stored.version)
    assert files_below(known.root) == []


def test_a_volume_that_is_mounted_anew_is_known_by_its_marker(known: FilesystemStore) -> None:
    """Another device or inode than before, the same contents."""
    shutil.copytree(known.root, f"{known.root}.again")
    os.rename(known.root, f"{known.root}.first")
    os.rename(f"{known.root}.again", known.root)
    assert known.create("b", b"x") is True
    assert os.path.exists(os.path.join(known.root, "b"))
    shutil.rmtree(f"{known.root}.first")
    assert known.read("a", 10) is not None


def test_an_identical_marker_does_not_make_the_old_folder_ours(known: FilesystemStore) -> None:
    """A snapshot of hard links shares the marker's inode: what counts is that the path leads to what is written to."""
    snapshot = f"{known.root}.snapshot"
    shutil.copytree(known.root, snapshot, copy_function=os.link)
    os.rename(known.root, f"{known.root}.first")
    os.rename(snapshot, known.root)
    assert known.create("b", b"x") is True
    assert os.path.exists(os.path.join(known.root, "b"))


def test_a_folder_that_is_known_is_never_made(known: FilesystemStore) -> None:
    os.rename(known.root, f"{known.root}.mounted")
    for call in (lambda: known.create("b", b"x"), known.sweep, known.probe):
        with pytest.raises(Unavailable):
            call()  # type: ignore[no-untyped-call]
    assert not os.path.exists(known.root)


def test_a_store_that_was_just_opened_makes_no_folder_either(known: FilesystemStore) -> None:
    opened = FilesystemStore(known.root, FOLDER)
    opened.expect(ID)
    os.rename(known.root, f"{known.root}.mounted")
    with pytest.raises(Unavailable):
        opened.create("b", b"x")
    assert not os.path.exists(known.root)


def test_roots_that_were_left_behind_are_closed(known: FilesystemStore) -> None:
    def opened() -> int:
        return sum(1 for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))

    before = opened()
    for number in range(20):
        shutil.copytree(known.root, f"{known.root}.again")
        os.rename(known.root, f"{known.root}.{number}")
        os.rename(f"{known.root}.again", known.root)
        known.create(str(number), b"x")
    assert opened() <= before + 1


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
@pytest.mark.parametrize("modes", [PRIVATE, GROUP])
def test_nothing_is_created_wider_than_the_modes(tmp_path: Path, modes: Modes, umask: int) -> None:
    old = os.umask(umask)
    try:
        store = FilesystemStore(AnchoredRoot(str(tmp_path / "new/store"), modes), FOLDER)
        store.create("a/b", b"x")
        stored = store.read("a/b", 10)
        assert stored is not None
        store.replace("a/b", b"y", stored.version)
        SqliteAuthority(str(tmp_path / "new/rows/a.db"), modes=modes).close()
    finally:
        os.umask(old)
    for path in (tmp_path / "new").rglob("*"):
        allowed = modes.folder if path.is_dir() else modes.file
        assert path.stat().st_mode & 0o777 == allowed & ~umask, path


# --- locks ------------------------------------------------------------------------------------------------------------


def test_waiting_for_a_lock_is_bounded_and_once_it_was_in_vain_not_repeated_for_every_object(tmp_path: Path) -> None:
    import fcntl

    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += 0.5

    locks = BoundedLocks(lambda: now[0], sleep)
    path = tmp_path / "lock"
    with path.open("wb") as ours, path.open("rb") as theirs, (tmp_path / "free").open("wb") as free:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match=str(path)):
            locks.acquire(ours.fileno(), str(path))
        waited = len(slept)
        assert 0 < waited < 20
        for _ in range(100):
            with pytest.raises(Unavailable):
                locks.acquire(ours.fileno(), str(path))
        assert len(slept) == waited
        locks.acquire(free.fileno(), "free")
        now[0] += 60
        with pytest.raises(Unavailable):
            locks.acquire(ours.fileno(), str(path))
        assert len(slept) > waited
        fcntl.flock(theirs, fcntl.LOCK_UN)
        locks.acquire(ours.fileno(), str(path))


# --- SQLite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["authority.db", "authority.db-wal", "authority.db-shm"])
def test_a_commit_into_a_file_that_is_not_there_any_more_is_not_promised(
    authority: SqliteAuthority, tmp_path: Path, name: str
) -> None:
    path, away = tmp_path / "rows" / name, tmp_path / name
    authority.admit([asking("k")])
    path.rename(away)
    with pytest.raises(Unavailable, match="removed or replaced"):
        authority.admit([asking("l")])
    path.touch()
    with pytest.raises(Unavailable, match="removed or replaced"):
        authority.admit([asking("l")])
    path.unlink()
    away.rename(path)
    assert [item.repeated for item in authority.admit([asking("k"), asking("l")])] == [True, False]


def test_a_database_that_is_moved_away_in_the_middle_of_a_commit_promises_nothing(
    authority: SqliteAuthority, tmp_path: Path
) -> None:
    path, away = tmp_path / "rows/authority.db", tmp_path / "authority.db"

    def operation(connection: sqlite3.Connection) -> str:
        path.rename(away)
        return "done"

    with pytest.raises(Unavailable, match="removed or replaced"):
        authority._write(operation)


@pytest.fixture
def other(tmp_path: Path) -> Callable[[], None]:
    """Puts another database in the place of the authority's."""
    SqliteAuthority(str(tmp_path / "other.db")).close()

    def swap_databases() -> None:
        (tmp_path / "rows/authority.db").rename(tmp_path / "authority.db")
        (tmp_path / "other.db").rename(tmp_path / "rows/authority.db")

    return swap_databases


def test_nothing_is_read_once_another_database_took_the_place_of_ours(
    authority: SqliteAuthority, other: Callable[[], None]
) -> None:
    authority.admit([asking("k")])
    assert authority.pending().runs is True
    other()
    with pytest.raises(Unavailable, match="removed or replaced"):
        authority.pending()
    with ThreadPoolExecutor(1) as pool, pytest.raises(Unavailable, match="removed or replaced"):
        pool.submit(authority.pending).result()


def test_a_thread_that_opens_another_database_does_not_read_from_it(
    authority: SqliteAuthority, other: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite_module._enter_wal

    def late(connection: sqlite3.Connection) -> None:
        other()
        real(connection)

    monkeypatch.setattr(sqlite_module, "_enter_wal", late)
    with pytest.raises(Unavailable, match="removed or replaced"):
        authority.pending()


def test_a_lock_of_another_process_fails_all_that_wait_for_it_in_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.2)
    path = str(tmp_path / "a.db")
    authority = SqliteAuthority(path, Clock())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun: list[None] = []
    real = authority._files.check
    monkeypatch.setattr(authority._files, "check", lambda: (begun.append(None), real())[1])
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(authority.admit, [asking(str(number))]) for number in range(12)]
        failures = [future.exception() for future in waiting]
    assert all(isinstance(failure, Unavailable) for failure in failures)
    assert any("by another process" in str(failure) for failure in failures), "the one that reached SQLite names it"
    assert len(begun) < 12, "the others do not wait for SQLite one after the other"
    other.close()
    authority.close()
