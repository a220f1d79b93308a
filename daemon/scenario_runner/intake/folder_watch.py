"""Folders where runs wait for evidence: runs are told when something comes into them.

A root is told once it has been quiet for a moment. While an engine writes there, an examination would find half of what
it is about, and perhaps a file that is being written. A root where something is written all the time, such as a log, is
told every few seconds nevertheless: its evidence may be whole.

Only what this host writes is seen: a change on a network file system by another host is not. Roots, and folders below
them, are watched up to a number; runs beyond it are examined by their schedule, like all runs before they are watched.
Nothing is read but names, and links are not followed.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from scenario_runner.artifacts.inotify import Change, Inotify
from scenario_runner.authority.acts import Arrival
from scenario_runner.authority.arrivals import count_told
from scenario_runner.authority.base import Authority

#: Waiting runs whose roots are watched, those with the last deadlines: mostly the newest, whose evidence is on its way.
_MOST_RUNS: Final = 256
#: Folders of all these roots: some MB of the kernel's memory, and half of what a user may watch by default.
_MOST_FOLDERS: Final = 4096
#: Longer than an engine pauses between two writes that belong together, and shorter than anybody notices.
_QUIET_SECONDS: Final = 0.3
#: A root that is never quiet is told so long after its first change: a log that is written to all the time must not
#: keep runs waiting, and an engine that writes for hours costs an examination each time.
_MOST_SECONDS: Final = 10.0
#: How long folders are looked for at a time. A network file system may answer slowly, and a stop of the daemon waits
#: for it. Folders that are left out are not watched: their runs are examined by their schedule.
_SEARCH_SECONDS: Final = 2.0
#: How often it is asked where runs wait. A run that has begun to wait meanwhile is examined within that time anyway.
_ASK_SECONDS: Final = 2.0


class FolderWatch:
    """Watches the folders of waiting runs.

    Args:
        inotify: Tells of changes.
        authority: Whose runs wait.
        allowed: Absolute paths and ``s3://`` URIs of the allowed engine roots.
        wait_seconds: How long a step waits for a change.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self, inotify: Inotify, authority: Authority, allowed: Sequence[str], wait_seconds: float,
        monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        self._inotify, self._authority, self._wait_seconds = inotify, authority, wait_seconds
        self._allowed = tuple(root for root in allowed if root.startswith("/"))
        self._monotonic, self._ask_at, self._search_until = monotonic, 0.0, 0.0
        self._roots: frozenset[str] = frozenset()
        self._above: frozenset[str] = frozenset()
        self._since: dict[str, float] = {}
        self._changed_at: dict[str, float] = {}
        self._folders: dict[int, str] = {}

    def step(self) -> int:
        """Look where runs wait, wait for changes there, and tell the runs.

        Returns:
            How many runs were told.

        Raises:
            Unavailable: The authority does not answer.
        """
        came: set[str] = set()
        if self._monotonic() >= self._ask_at:
            self._ask_at = self._monotonic() + _ASK_SECONDS
            self._watch_roots(self._authority.waiting_roots(_MOST_RUNS))
            came = self._allowed_that_came()
        changed, now = self._changed_roots(self._inotify.changes(self._wait_seconds), came), self._monotonic()
        self._changed_at.update(dict.fromkeys(changed, now))
        self._since = dict.fromkeys(changed, now) | self._since
        due = [root for root, at in self._changed_at.items() if self._is_due(now, at, self._since[root])]
        if not due:
            return 0
        told = sum(self._authority.tell([Arrival(root) for root in due]))
        for root in due:
            del self._changed_at[root], self._since[root]
        count_told("folder", told)
        return told

    def close(self) -> None:
        """End all watches."""
        self._inotify.close()

    @staticmethod
    def _is_due(now: float, changed_at: float, since: float) -> bool:
        return now - changed_at >= _QUIET_SECONDS or now - since >= _MOST_SECONDS

    def _watch_roots(self, roots: Iterable[str]) -> None:
        """Watch these roots from now on, and no others."""
        wanted = frozenset(root for root in roots if self._allowed_above(root))
        if wanted == self._roots:
            return
        self._search_until = self._monotonic() + _SEARCH_SECONDS
        added, self._roots = wanted - self._roots, wanted
        self._above = frozenset(place for root in wanted for place in _upwards(root) if place != root)
        for watch, folder in list(self._folders.items()):
            if not self._concerns(folder):
                del self._folders[watch]
                self._inotify.forget(watch)
        for root in sorted(added):
            self._approach(root)

    def _allowed_that_came(self) -> set[str]:
        """Allowed roots that are not the folder that is watched: made or mounted since. Nothing else tells of it."""
        if len(self._folders) >= _MOST_FOLDERS:
            return set()
        watches = {place: self._inotify.watch(place) for place in self._allowed if self._concerns(place)}
        return {place for place, watch in watches.items() if watch is not None and watch not in self._folders}

    def _allowed_above(self, root: str) -> str:
        """The allowed root that a root is at or below; empty for none."""
        return next((place for place in self._allowed if _is_within(root, place)), "")

    def _at_or_above(self, place: str) -> list[str]:
        return [root for root in _upwards(place) if root in self._roots]

    def _below(self, place: str) -> list[str]:
        if place not in self._above:
            return []
        return [root for root in self._roots if _is_within(root, place)]

    def _concerns(self, folder: str) -> bool:
        """Whether a folder is in a root, or on the way to one."""
        return folder in self._above or bool(self._at_or_above(folder))

    def _approach(self, root: str) -> None:
        """Watch a root with all its folders, or what is there of the way to it."""
        place = self._allowed_above(root)
        steps = [step for step in root[len(place) :].split("/") if step]
        while self._watch(place):
            if not steps:
                self._watch_below(root)
                return
            place = f"{place.rstrip('/')}/{steps.pop(0)}"
        # It is not there yet: the watch of the folder above it, which was made first, tells when it comes.

    def _watch_below(self, place: str) -> None:
        """Watch a folder and all below it. Each is watched before it is listed, so that none is missed."""
        left = [place]
        while left:
            folder = left.pop()
            if not self._watch(folder):
                continue
            try:
                with os.scandir(folder) as entries:
                    left += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue  # it has gone, or may not be listed

    def _watch(self, folder: str) -> bool:
        """Watch a folder, which may be watched already; false when it is none, or the bounds of all are reached."""
        if len(self._folders) >= _MOST_FOLDERS or self._monotonic() > self._search_until:
            return False
        watch = self._inotify.watch(folder)
        if watch is not None:
            self._folders[watch] = folder
        return watch is not None

    def _changed_roots(self, changes: Iterable[Change], came: set[str]) -> set[str]:
        """The roots that are there and that changes concern; folders that have come are watched.

        Args:
            changes: What the kernel tells.
            came: Folders that have come, as is known already; what comes beside them is added.
        """
        self._search_until = self._monotonic() + _SEARCH_SECONDS
        filled: set[str] = set()
        for change in changes:
            if change.watch < 0:  # some were lost
                came.update(self._allowed)
            elif change.ended:
                self._folders.pop(change.watch, None)
            elif (folder := self._folders.get(change.watch)) is not None:
                (came if change.is_folder else filled).add(f"{folder}/{change.name}" if change.is_folder else folder)
        changed = {root for folder in filled for root in self._at_or_above(folder)}
        for folder in came:
            for root in self._below(folder):
                self._approach(root)
                changed.add(root)
            if within := self._at_or_above(folder):
                self._watch_below(folder)
                changed.update(within)
        return {root for root in changed if os.path.isdir(root)}


def _is_within(place: str, root: str) -> bool:
    return place == root or place.startswith(root.rstrip("/") + "/")


def _upwards(place: str) -> Iterator[str]:
    """A place, the folder that holds it, and so on up to the top."""
    while place:
        yield place
        place = place.rpartition("/")[0]
