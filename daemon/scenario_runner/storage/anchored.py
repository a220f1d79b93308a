"""A root folder that is held open, and proven to be the same store before and after every operation.

Operations relative to the descriptor never reach what took the folder's place: a bare mount point, another volume, a
folder that was moved there. The proof detects that something took its place.
"""

import os
import threading
from contextlib import suppress
from typing import Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.posix import O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK
from scenario_runner.storage.identity import MAX_MARKER, HiddenMarkerError, another_store, parse_marker
from scenario_runner.storage.modes import PRIVATE, Modes

_DIRECTORY: Final = os.O_RDONLY | O_DIRECTORY | O_CLOEXEC
_MARKER: Final = os.O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK
_FileId = tuple[int, ...]
"""Device and inode of a file; with its size and time of change where its content counts."""


def fsync_directory(path: str, dir_fd: int | None = None) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _id(info: os.stat_result) -> _FileId:
    return info.st_dev, info.st_ino


def _state(info: os.stat_result) -> _FileId:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


class Anchor:
    """A root folder and its marker, open as long as this object exists.

    The inode number of an open file is not used again, so an equal number means the same file.

    Attributes:
        fd: For ``dir_fd``.
        id: Device and inode of the folder.
        marker: Identity and state of the marker once it was read.
    """

    def __init__(self, path: str) -> None:
        self.marker: _FileId | None = None
        self._marker_fd = -1
        self.fd = os.open(path, _DIRECTORY)
        self.id = _id(os.fstat(self.fd))

    def __del__(self) -> None:
        for fd in (getattr(self, "fd", -1), self._marker_fd):
            if fd >= 0:
                os.close(fd)

    def read_marker(self, name: str, where: str) -> str:
        """The id of the store; empty when it has none.

        Raises:
            Unavailable: the marker cannot be read, or is none.
        """
        try:
            self._marker_fd = os.open(name, _MARKER, dir_fd=self.fd)
            self.marker = _state(os.fstat(self._marker_fd))
            data = os.read(self._marker_fd, MAX_MARKER)
        except FileNotFoundError:
            return ""
        except PermissionError as error:
            raise HiddenMarkerError(f"cannot read {where}: {error.strerror}") from error
        except OSError as error:
            raise Unavailable(f"cannot read {where}: {error.strerror}") from error
        return parse_marker(data, where)


def anchored(root: "str | AnchoredRoot") -> "AnchoredRoot":
    """A root folder by its path, or as it is."""
    return AnchoredRoot(root) if isinstance(root, str) else root


class AnchoredRoot:
    """The root folder of a store.

    Args:
        path: Where it is.
        modes: Of what is created there.
    """

    def __init__(self, path: str, modes: Modes = PRIVATE) -> None:
        self.path, self.modes = os.path.abspath(path), modes
        self._anchor: Anchor | None = None
        self._marker, self._identity = "", ""
        self._lock = threading.Lock()
        self._durable = False

    def identity(self, marker: str) -> str:
        """The id of the store that is there now; empty when there is none, or no folder at all.

        Args:
            marker: The marker, relative to the root.

        Raises:
            Unavailable: it cannot be read.
        """
        try:
            return Anchor(self.path).read_marker(marker, os.path.join(self.path, marker))
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise Unavailable(f"the folder {self.path} cannot be opened: {error.strerror}") from error

    def expect(self, marker: str, identity: str) -> None:
        """Accept only the store with this identity from now on, and never make a missing folder.

        Args:
            marker: The marker, relative to the root.
            identity: Its id.

        Raises:
            Unavailable: that store is not there now.
        """
        with self._lock:
            self._marker, self._identity, self._anchor = marker, identity, None
        self.proven()

    def proven(self) -> Anchor:
        """The open folder, after a check that the path still leads to it: one or two calls of ``stat``.

        Raises:
            Unavailable: it leads nowhere, or to another store.
        """
        anchor = self._anchor
        return anchor if anchor is not None and self._leads_to(anchor) else self._open()

    def prove(self, anchor: Anchor) -> None:
        """Prove that all operations since ``anchor`` was returned were done in the store.

        Raises:
            Unavailable: the path leads elsewhere now: what was written may be lost.
        """
        if self.proven() is not anchor:
            raise Unavailable(f"{self.path} was mounted anew in the middle of a write; it is tried again")

    def anchor_if_there(self) -> Anchor | None:
        """Like :meth:`proven`; None when there is no folder and no identity is known that says there should be one."""
        return None if not self._identity and not os.path.lexists(self.path) else self.proven()

    def make(self) -> Anchor:
        """Like :meth:`proven`, but a root that no identity is known of is made when it is missing.

        Raises:
            Unavailable: it cannot be made, or see :meth:`proven`.
        """
        if not self._durable and not self._identity:
            try:
                make_folder_durably(self.path, self.modes.folder)
            except OSError as error:
                raise Unavailable(f"cannot make the folder {self.path}: {error.strerror}") from error
            self._durable = True
        return self.proven()

    def _leads_to(self, anchor: Anchor) -> bool:
        try:
            if _id(os.stat(self.path)) != anchor.id:
                return False
            return not self._marker or _state(os.lstat(f"{self.path}/{self._marker}")) == anchor.marker
        except OSError:
            return False

    def _open(self) -> Anchor:
        with self._lock:
            if self._anchor is not None and self._leads_to(self._anchor):
                return self._anchor  # another thread has opened it meanwhile
            try:
                anchor = Anchor(self.path)
            except OSError as error:
                raise Unavailable(
                    f"the folder {self.path} cannot be opened: {error.strerror}; mount or restore it, or, if it was "
                    "never used, start the daemon once"
                ) from error
            if self._identity:
                found = anchor.read_marker(self._marker, os.path.join(self.path, self._marker))
                if found != self._identity:
                    raise another_store(self.path, self._identity, found)
            elif self._anchor is not None:
                raise Unavailable(f"another folder has taken the place of {self.path}; put the first one back")
            self._anchor = anchor
            return anchor


def make_folder_durably(path: str, mode: int) -> None:
    """Make a folder and its missing parents, and make their names durable, also of those that others made.

    Args:
        path: Absolute.
        mode: Of what is made.

    Raises:
        OSError: it cannot be made.
    """
    made = [path]
    while not os.path.isdir(os.path.dirname(made[-1])):
        made.append(os.path.dirname(made[-1]))
    for folder in reversed(made):
        with suppress(FileExistsError):
            os.mkdir(folder, mode)
        with suppress(PermissionError):  # a parent that we may not read was not made by us
            fsync_directory(os.path.dirname(folder))
