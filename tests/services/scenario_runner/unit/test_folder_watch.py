"""Folders where runs wait: what comes into them is told once it is quiet, with the inotify of this system."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from scenario_runner.artifacts.inotify import Change, Inotify
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.intake import folder_watch
from scenario_runner.intake.folder_watch import FolderWatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scenario_runner.authority.acts import Arrival

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify"),
]


class Scene:
    """A watch of one engine root, whose clock a test moves, and an authority where runs wait."""

    def __init__(self, root: Path, inotify: Any = None) -> None:
        self.root, self.now = root, 0.0
        root.mkdir(exist_ok=True)
        self.waits: list[str] = []
        self.told: list[list[str]] = []
        self.away: Unavailable | None = None
        self.inotify = inotify or Inotify()
        authority: Any = self
        self.watch = FolderWatch(self.inotify, authority, [str(root), "s3://b/p"], 0.0, lambda: self.now)

    def waiting_roots(self, _most: int) -> list[str]:
        return self.waits

    def tell(self, arrivals: Sequence[Arrival]) -> list[int]:
        if self.away is not None:
            raise self.away
        self.told.append([arrival.engine_run_root.removeprefix(f"{self.root}/") for arrival in arrivals])
        return [1 for _ in arrivals]

    def wait_at(self, *names: str) -> None:
        self.waits = [f"{self.root}/{name}" for name in names]
        self.now += 10
        self.watch.step()

    def heard(self) -> list[str]:
        """Roots that are told after a while of quiet, whatever has happened until now."""
        self.told.clear()
        self.watch.step()
        self.now += 0.29
        self.watch.step()
        assert self.told == [], "it was not quiet for long enough"
        self.now += 0.02
        self.watch.step()
        return sorted(root for roots in self.told for root in roots)

    def write(self, name: str, text: str = "x") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "runs")
    yield made
    made.watch.close()


def test_a_root_that_comes_with_all_its_folders_is_told(scene: Scene) -> None:
    scene.wait_at("a/b/run")
    assert scene.heard() == []
    scene.write("a/b/run/data/deep/f")
    assert scene.heard() == ["a/b/run"]
    assert scene.heard() == [], "once"
    scene.write("a/b/run/data/deep/g")
    assert scene.heard() == ["a/b/run"], "its folders were watched when they came"
    scene.write("a/b/run/data/deeper/and/deeper/h")
    assert scene.heard() == ["a/b/run"]
    scene.write("a/b/run/data/deeper/and/deeper/i")
    assert scene.heard() == ["a/b/run"]


def test_a_root_that_is_there_is_watched_with_what_is_below_it(scene: Scene) -> None:
    scene.write("run/data/f")
    scene.wait_at("run")
    assert scene.heard() == []
    scene.write("run/data/f", "again")
    assert scene.heard() == ["run"]


def test_a_root_that_is_moved_into_place_is_told(scene: Scene) -> None:
    scene.write(".making/data/f")
    scene.wait_at("run")
    (scene.root / ".making").rename(scene.root / "run")
    assert scene.heard() == ["run"]


def test_what_comes_elsewhere_is_told_to_nobody(scene: Scene) -> None:
    scene.wait_at("run", "run2/x")
    scene.write("run10/f")
    scene.write("f")
    assert scene.heard() == []


def test_a_file_that_is_being_written_is_not_told_before_it_is_closed(scene: Scene) -> None:
    scene.write("run/f")
    scene.wait_at("run")
    with (scene.root / "run/flag").open("w") as file:
        file.write("half")
        file.flush()
        assert scene.heard() == []
    assert scene.heard() == ["run"]


def test_a_root_is_not_told_while_it_is_written_to(scene: Scene) -> None:
    scene.write("run/f")
    scene.wait_at("run")
    for number in range(10):
        scene.now += 0.2
        scene.write(f"run/f{number}")
        scene.watch.step()
    assert scene.told == []
    assert scene.heard() == ["run"]


def test_a_root_that_is_never_quiet_is_told_every_ten_seconds(scene: Scene) -> None:
    scene.write("run/f")
    scene.wait_at("run")
    told = list[float]()
    began = scene.now
    while scene.now - began < 25:
        scene.write("run/log")
        scene.watch.step()
        told += [round(scene.now - began) for _ in scene.told]
        scene.told.clear()
        scene.now += 0.25
    assert told == [10, 20]


def test_an_allowed_root_that_is_made_anew_is_watched_again(scene: Scene) -> None:
    """So is one that is mounted while runs wait, or that was not there when the daemon began."""
    scene.wait_at("a/run")
    scene.root.rename(scene.root.with_name("elsewhere"))
    scene.root.mkdir()
    scene.now += 10
    assert scene.heard() == []
    scene.write("a/run/f")
    assert scene.heard() == ["a/run"]
    shutil.rmtree(scene.root)
    scene.watch.step()
    scene.write("a/run/f")
    scene.now += 10
    assert scene.heard() == ["a/run"], "what has come before it is watched again is told"
    scene.now += 10
    assert scene.heard() == [], "once"


def test_an_allowed_root_beyond_the_bound_is_not_told_again_and_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write("run/f")
    scene.wait_at("run")
    monkeypatch.setattr(folder_watch, "_MOST_FOLDERS", 1)
    scene.root.rename(scene.root.with_name("elsewhere"))
    scene.write("run/f")
    for _ in range(3):
        scene.now += 10
        assert scene.heard() == []


def test_links_are_not_followed(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    scene.write("run/f")
    (scene.root / "run/link").symlink_to(outside)
    (scene.root / "linked").symlink_to(outside)
    scene.wait_at("run", "linked")
    (outside / "f").write_text("x")
    (outside / "folder/f").write_text("x")
    assert scene.heard() == []


def test_roots_where_no_run_waits_any_more_are_let_go(scene: Scene) -> None:
    scene.write("one/data/f")
    scene.write("two/data/f")
    scene.wait_at("one", "two")
    watched = len(scene.watch._folders)
    scene.wait_at("two")
    assert len(scene.watch._folders) == watched - 2
    scene.write("one/data/g")
    assert scene.heard() == []
    scene.write("two/data/g")
    assert scene.heard() == ["two"]


def test_a_root_that_was_removed_and_comes_again_is_told(scene: Scene) -> None:
    path = scene.write("run/f")
    scene.wait_at("run")
    path.unlink()
    path.parent.rmdir()
    scene.watch.step()
    scene.write("run/f")
    assert scene.heard() == ["run"]


def test_roots_on_s3_and_those_that_are_not_allowed_are_not_watched(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "runs10").mkdir()
    scene.waits = ["s3://b/p/run", str(tmp_path / "runs10"), "", str(tmp_path)]
    scene.now += 10
    scene.watch.step()
    assert scene.watch._folders == {}


def test_no_more_folders_are_watched_than_the_bound(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watch, "_MOST_FOLDERS", 5)
    for number in range(20):
        scene.write(f"run/d{number}/f")
    scene.wait_at("run")
    assert len(scene.watch._folders) == 5


def test_a_file_system_that_answers_slowly_does_not_hold_a_step_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(folder: str) -> int | None:
        scene.now += 0.3
        return watch(folder)

    watch = scene.inotify.watch
    monkeypatch.setattr(scene.inotify, "watch", slow)
    for number in range(20):
        scene.write(f"run/d{number}/f")
        scene.write(f"other{number}/f")
    began = scene.now
    scene.wait_at("run", *(f"other{number}" for number in range(20)))
    assert scene.now - began <= 10 + 2 * 2 + 1, "10 of them are of the test; it would take 12 without a bound"


def test_a_root_whose_runs_could_not_be_told_is_told_later(scene: Scene) -> None:
    scene.write("run/f")
    scene.wait_at("run")
    scene.write("run/g")
    scene.watch.step()
    scene.now += 1
    scene.away = Unavailable("the database is away")
    with pytest.raises(Unavailable):
        scene.watch.step()
    scene.away = None
    scene.watch.step()
    assert scene.told == [["run"]]


class Lossy(Inotify):
    """An inotify whose queue has overflowed."""

    lost = False

    def changes(self, seconds: float) -> list[Change]:
        found = super().changes(seconds)
        if not self.lost:
            return found
        self.lost = False
        return [Change(-1, "", is_folder=False, ended=False)]


class Refusing:
    """An inotify without room for any watch, which notes what it was asked to watch."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def watch(self, folder: str) -> None:
        self.asked.append(folder)

    def changes(self, _seconds: float) -> list[Change]:
        return []


def test_a_folder_on_the_way_to_one_root_is_not_told_to_the_runs_of_another(scene: Scene) -> None:
    scene.write("b/f")
    scene.wait_at("a/run", "b")
    assert scene.heard() == []
    scene.write("a/run/f")
    assert scene.heard() == ["a/run"]


def test_where_no_run_waits_in_a_folder_nothing_is_watched(tmp_path: Path) -> None:
    inotify = Refusing()
    scene = Scene(tmp_path / "runs", inotify)
    assert scene.heard() == []
    scene.waits, scene.now = ["s3://b/p/run"], scene.now + 10
    assert scene.heard() == []
    assert inotify.asked == []


def test_a_root_that_cannot_be_watched_is_not_told_each_time_that_it_is_looked_for(tmp_path: Path) -> None:
    inotify = Refusing()
    scene = Scene(tmp_path / "runs", inotify)
    scene.write("run/f")
    scene.wait_at("run")
    assert scene.heard() == []
    assert str(scene.root) in inotify.asked


def test_a_folder_beyond_the_bound_is_not_listed_either(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(folder_watch, "_MOST_FOLDERS", 3)  # the allowed root, the run's, and one below it
    monkeypatch.setattr(folder_watch.os, "scandir", lambda path: listed.append(path) or scandir(path))
    scene.write("run/data/deep/f")
    scene.wait_at("run")
    assert listed == [f"{scene.root}/run", f"{scene.root}/run/data"]


def test_changes_that_were_lost_may_have_been_of_any_root(tmp_path: Path) -> None:
    inotify = Lossy()
    scene = Scene(tmp_path / "runs", inotify)
    scene.write("one/f")
    scene.wait_at("one", "absent")
    scene.write("one/new/f")
    inotify.lost = True
    assert scene.heard() == ["one"]
    scene.write("one/new/g")
    assert scene.heard() == ["one"], "what came unseen is watched"
    scene.wait_at("one", "two/run")
    (tmp_path / "runs/two").mkdir()
    inotify.lost = True
    assert scene.heard() == ["one"]
    scene.write("two/run/f")
    assert scene.heard() == ["two/run"], "so is what came unseen on the way to a root"
    scene.watch.close()


def test_a_change_is_there_at_once_and_nothing_is_waited_for_in_vain(tmp_path: Path) -> None:
    inotify = Inotify()
    watch = inotify.watch(str(tmp_path))
    began = time.monotonic()
    assert inotify.changes(0.05) == []
    assert time.monotonic() - began >= 0.04
    (tmp_path / "ü\n").mkdir()
    assert inotify.changes(30) == [Change(watch or 0, "ü\n", is_folder=True, ended=False)]
    assert inotify.watch(str(tmp_path / "nothing")) is None
    assert watch is not None
    inotify.forget(watch)
    assert [change.ended for change in inotify.changes(30)] == [True]
    inotify.close()


def test_a_system_without_inotify_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_given, **_named: object())
    with pytest.raises(OSError, match="no inotify"):
        Inotify()
    assert os.name
