"""Changes in folders as the kernel tells them (``inotify(7)`` of Linux), which Python's ``os`` does not offer."""

import ctypes
import os
import select
import struct
from typing import Final, NamedTuple

#: Flags of inotify_init1(2).
_NONBLOCK: Final = 0o4000
#: The same.
_CLOEXEC: Final = 0o2000000
#: Bits of inotify(7): what is watched for ...
_CLOSE_WRITE, _MOVED_TO, _CREATE = 0x8, 0x80, 0x100
#: ... what an event may be beside that ...
_OVERFLOW, _IGNORED, _IS_FOLDER = 0x4000, 0x8000, 0x40000000
#: ... and how a place is watched.
_ONLY_FOLDERS, _NO_LINKS = 0x01000000, 0x02000000
#: A file was closed after it was written, something was moved there, or a folder was made. A file that was made is not
#: told: it is empty at that moment.
_MASK: Final = _CLOSE_WRITE | _MOVED_TO | _CREATE | _ONLY_FOLDERS | _NO_LINKS
#: ``struct inotify_event``: watch, mask, cookie, length of the name that follows.
_EVENT: Final = struct.Struct("iIII")
#: Some thousand events, or a few hundred with long names.
_READ_BYTES: Final = 1 << 16


class Change(NamedTuple):
    """Something has come into a watched folder.

    Attributes:
        watch: Which; -1 when changes were lost, so that anything may have come anywhere.
        name: What.
        is_folder: Whether it is a folder.
        ended: The watch is over: its folder is gone.
    """

    watch: int
    name: str
    is_folder: bool
    ended: bool


class Inotify:
    """Watches folders; each watch is a small number.

    Raises:
        OSError: This system has no inotify, or no room for one more.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(None, use_errno=True)
            begin, add, remove = library.inotify_init1, library.inotify_add_watch, library.inotify_rm_watch
        except (AttributeError, TypeError) as error:
            raise OSError("this system has no inotify") from error
        add.argtypes, remove.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32), (ctypes.c_int, ctypes.c_int)
        self._add, self._remove = add, remove
        self._fd = begin(_NONBLOCK | _CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "no inotify can be opened")

    def watch(self, folder: str) -> int | None:
        """Watch a folder; None when it is none, or the kernel has no room for another watch."""
        found = self._add(self._fd, os.fsencode(folder), _MASK)
        return None if found < 0 else int(found)

    def forget(self, watch: int) -> None:
        """End a watch; one that has ended already stays so."""
        self._remove(self._fd, watch)

    def changes(self, seconds: float) -> list[Change]:
        """What has changed since the last call; waits for so long while it is nothing."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return []
        data, at, found = os.read(self._fd, _READ_BYTES), 0, list[Change]()
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            folder, ended = bool(mask & _IS_FOLDER), bool(mask & _IGNORED)
            if folder or not mask & _CREATE:
                found.append(Change(-1 if mask & _OVERFLOW else watch, name, folder, ended))
        return found

    def close(self) -> None:
        """End all watches."""
        os.close(self._fd)
