"""Whether anything stands at run roots on a file system, beside what an examination says when it opens them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from scenario_runner.artifacts import local_look
from scenario_runner.artifacts.base import RootsSeen
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.artifacts.schemes import ArtifactsByScheme
from scenario_runner.contracts.errors import EvidenceMissing, EvidenceRefused

if TYPE_CHECKING:
    from scenario_runner.artifacts.base import Artifacts

pytestmark = pytest.mark.integration


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def reader(*bases: Path) -> ArtifactsByScheme:
    return ArtifactsByScheme({"": LocalArtifacts([str(base) for base in bases], 1, None)})


def look(base: Path, *names: str) -> RootsSeen:
    return reader(base).look([str(base / name) for name in names])


def is_absent(base: Path, name: str) -> bool:
    """What an examination would say."""
    try:
        reader(base).open(str(base / name), ReadBudget()).close()
    except EvidenceMissing:
        return True
    except EvidenceRefused:
        pass
    return False


def test_more_roots_than_are_asked_at_a_time_are_looked_for_where_they_are(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_look, "_ASKED_AT_A_TIME", 2)
    for name in ("a/1", "b/3"):
        (base / name).mkdir(parents=True)
    seen = look(base, "a/1", "a/2", "b/3")
    assert (seen.there, seen.absent) == ({str(base / "a/1")}, {str(base / "a/2")})


def test_what_lies_beside_an_allowed_root_is_not_listed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise AssertionError(path)

    with monkeypatch.context() as patched:
        patched.setattr(local_look.os, "scandir", refuse)
        seen = reader(base).look([str(base)])
    assert seen.there == {str(base)}


@pytest.mark.parametrize("siblings", [0, 100], ids=["by listing", "one by one"])
def test_a_look_says_absent_exactly_where_an_examination_does(base: Path, siblings: int) -> None:
    (base / "there").mkdir()
    (base / "file").write_text("x")
    (base / "link").symlink_to(base / "there")
    (base / "dangling").symlink_to(base / "nothing")
    os.mkfifo(base / "fifo")
    for number in range(siblings):
        (base / f"sibling-{number}").mkdir()
    names = ["absent", "dangling", "fifo", "file", "link", "there", "there!"]
    seen = look(base, *names)
    assert seen.unknown == {}
    assert sorted(seen.absent) == [str(base / name) for name in names if is_absent(base, name)]
    assert sorted(seen.there) == [str(base / name) for name in names if not is_absent(base, name)]


@pytest.mark.parametrize("siblings", [0, 100])
def test_one_look_answers_for_roots_in_folders_of_their_own(base: Path, siblings: int) -> None:
    (base / "day/two").mkdir(parents=True)
    for number in range(siblings):
        (base / f"day/sibling-{number}").mkdir()
    (base / "file").write_text("x")
    asked = ["day/one", "day/two", "file/one", "other/one"]
    seen = look(base, *asked)
    assert sorted(seen.there) == [str(base / "day/two"), str(base / "file/one")]
    assert sorted(seen.absent) == [str(base / "day/one"), str(base / "other/one")]


def test_no_more_roots_are_asked_for_at_a_time_than_take_a_moment(base: Path) -> None:
    asked = [f"{number:03d}/run" for number in range(300)]
    (base / "299").mkdir()
    assert len(look(base, *asked).absent) == 256
    assert len(look(base, *asked[256:]).absent) == 44


def test_roots_of_one_folder_are_all_answered_for_by_its_listing(base: Path) -> None:
    (base / "299").mkdir()
    seen = look(base, *(f"{number:03d}" for number in range(300)))
    assert (len(seen.there), len(seen.absent)) == (1, 299)


@pytest.mark.parametrize("siblings", [0, 100], ids=["by listing", "one by one"])
def test_a_root_that_cannot_be_looked_at_leaves_no_other_one_unknown(
    base: Path, siblings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lstat(path: str) -> os.stat_result:
        if path.endswith("denied"):
            raise PermissionError(13, "Permission denied", path)
        return os.lstat(path)

    monkeypatch.setattr(local_look, "os", SimpleNamespace(**vars(os) | {"lstat": lstat}))
    (base / "there").mkdir()
    for number in range(siblings):
        (base / f"sibling-{number}").mkdir()
    too_long = "x" * 300
    seen = look(base, "absent", "denied", "there", too_long)
    assert str(base / "there") in seen.there
    assert str(base / "absent") in seen.absent
    assert list(seen.unknown) == ([str(base / "denied")] if siblings else [])
    if siblings:
        assert str(base / too_long) in seen.there, "an examination says what is wrong with it"


@pytest.mark.parametrize("folder", ["x" * 300, "loop"])
def test_a_folder_that_cannot_be_entered_is_left_to_an_examination(base: Path, folder: str) -> None:
    (base / "loop").symlink_to(base / "loop")
    assert look(base, f"{folder}/one").there == {str(base / folder / "one")}
    with pytest.raises(EvidenceRefused):
        reader(base).open(str(base / folder / "one"), ReadBudget())


def test_a_folder_whose_names_cannot_be_read_is_asked_for_each_root(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(local_look, "os", SimpleNamespace(**vars(os) | {"scandir": denied}))
    (base / "there").mkdir()
    assert look(base, "absent", "there") == RootsSeen(
        frozenset({str(base / "there")}), frozenset({str(base / "absent")})
    )


def test_a_file_in_the_place_of_a_folder_above_is_something_to_examine(base: Path) -> None:
    (base / "day").write_text("x")
    assert look(base, "day/one").there == {str(base / "day/one")}
    assert not is_absent(base, "day/one")


def test_an_allowed_root_that_is_away_makes_no_root_absent(base: Path) -> None:
    base.rename(base.with_name("elsewhere"))
    seen = look(base, "one", "two")
    assert (seen.there, seen.absent) == (frozenset(), frozenset())
    assert sorted(seen.unknown) == [str(base / "one"), str(base / "two")]
    assert "cannot be looked at" in seen.unknown[str(base / "one")]


def test_a_root_that_is_not_allowed_is_neither_there_nor_absent(base: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    private = [str(tmp_path / "private"), str(tmp_path / "private-too")]
    seen = reader(base).look([private[0], str(base / "one"), private[1]])
    assert list(seen.unknown) == private, "one step for all of them"
    assert "engine_roots" in seen.unknown[str(tmp_path / "private")]
    assert (seen.there, seen.absent) == (frozenset(), frozenset())


def test_an_allowed_root_that_is_a_run_root_itself_is_there(base: Path) -> None:
    assert reader(base).look([str(base)]) == RootsSeen(there=frozenset({str(base)}))


def test_roots_of_different_allowed_roots_are_looked_at_apart(base: Path) -> None:
    (base / "own").mkdir()
    seen = reader(base, base / "own").look([str(base / "one"), str(base / "own")])
    assert seen == RootsSeen(absent=frozenset({str(base / "one")}))


def test_an_allowed_root_behind_a_link_is_followed(base: Path, tmp_path: Path) -> None:
    (base / "one").mkdir()
    (tmp_path / "link").symlink_to(base)
    seen = reader(tmp_path / "link").look([str(tmp_path / "link/one"), str(tmp_path / "link/two")])
    assert (seen.there, seen.absent) == ({str(tmp_path / "link/one")}, {str(tmp_path / "link/two")})


def test_a_folder_is_listed_while_that_costs_less_than_a_question_for_each_root(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stands = local_look._stands
    monkeypatch.setattr(local_look, "_stands", lambda path: asked.append(path) or stands(path))
    for number in range(16):
        (base / f"sibling-{number}").mkdir()
    assert len(look(base, "a", "b").absent) == 2
    assert asked == []
    (base / "one more").mkdir()
    assert len(look(base, "a", "b").absent) == 2
    assert asked == [str(base / "a"), str(base / "b")]


class Remote:
    """A reader of another store, which says what it is asked for."""

    remote = True

    def look(self, roots: Sequence[str]) -> RootsSeen:
        return RootsSeen(there=frozenset(roots))


def test_each_root_is_looked_at_by_the_reader_of_its_scheme(base: Path) -> None:
    readers = ArtifactsByScheme({"": LocalArtifacts([str(base)], 1, None), "s3": cast("Artifacts", Remote())})
    ours, theirs = [str(base / "a"), str(base / "b")], ["s3://bucket/a", "s3://bucket/b"]
    assert readers.look([ours[0], *theirs, ours[1]]) == RootsSeen(absent=frozenset(ours))
    assert readers.look([*theirs, *ours]) == RootsSeen(there=frozenset(theirs))


def test_a_folder_is_unknown_where_folders_cannot_be_read() -> None:
    seen = ArtifactsByScheme({"s3": cast("Artifacts", Remote())}).look(["/runs/a", "/runs/b"])
    assert list(seen.unknown) == ["/runs/a", "/runs/b"]
    assert "an engine run in a folder" in seen.unknown["/runs/a"]


def test_no_more_of_a_folder_is_read_than_decides_how_to_look(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (base / f"sibling-{number}").mkdir()
    read: list[str] = []

    @contextmanager
    def scanned(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with os.scandir(folder) as scan:
            yield (read.append(entry.name) or entry for entry in scan)

    monkeypatch.setattr(local_look, "os", SimpleNamespace(**vars(os) | {"scandir": scanned}))
    assert len(look(base, "a", "b").absent) == 2
    assert len(read) == 17


def test_one_look_asks_for_a_bounded_number_of_roots_one_by_one(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_look, "_NAMES_FOR_A_ROOT", 0)
    (base / "one").mkdir()
    names = [f"{number:04d}" for number in range(1000)]
    assert look(base, *names).absent == {str(base / name) for name in names[:256]}
