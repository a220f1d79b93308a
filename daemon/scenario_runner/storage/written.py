"""Files whose bytes are durable before they have names: written and fsynced, then linked or renamed into place."""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from scenario_runner.storage.renames import rename_new
from scenario_runner.storage.write_out import start_writing_out

#: What a file system answers that has no hard links.
_NO_HARD_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def _fill(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_durably(key: str, data: bytes, mode: int, root: int) -> None:
    """Write a new file and fsync it; it must not exist. A file that could not be written whole is removed again."""
    fd = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=root)
    try:
        try:
            _fill(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(key, dir_fd=root)
        raise


def write_unnamed(folder: str, data: bytes, mode: int, root: int) -> int:
    """Write a file that has no name and start to write it out; it is gone when its descriptor, the result, is closed.

    Three times as fast as a temporary name when several threads write: they do not wait for the folder.
    """
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=root)
    try:
        _fill(fd, data)
        start_writing_out(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written and waits for its flush, and then for its name.

    Attributes:
        fd: The open file, which has no name; -1 for a temporary one.
        key: Its temporary name, or the one that it could have, relative to the root.
        root: Descriptor of the root.
    """

    fd: int
    key: str
    root: int

    def flush(self) -> None:
        """Make its bytes durable, which comes before :meth:`give_name`; a temporary file was fsynced when written."""
        if self.fd >= 0:
            os.fsync(self.fd)

    def give_name(self, key: str) -> None:
        """Link it, or rename it where there are no hard links; raises ``FileExistsError`` when the name is taken."""
        try:
            if self.fd < 0:
                os.link(self.key, key, src_dir_fd=self.root, dst_dir_fd=self.root)
            else:  # a descriptor for the source makes Python follow the link that /proc shows
                source = f"/proc/self/fd/{self.fd}"
                os.link(source, key, src_dir_fd=self.fd, dst_dir_fd=self.root, follow_symlinks=True)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS or not self._rename(key):
                raise

    def _rename(self, key: str) -> bool:
        if self.fd >= 0:
            info = os.fstat(self.fd)
            write_durably(self.key, os.pread(self.fd, info.st_size, 0), info.st_mode & 0o777, self.root)
        if rename_new(self.root, self.key, self.root, key):
            return True
        if self.fd >= 0:
            os.unlink(self.key, dir_fd=self.root)
        if _lexists(key, self.root):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), key)
        return False

    def release(self) -> None:
        """Close or remove the file under its temporary name; the name that it was given stays."""
        if self.fd >= 0:
            os.close(self.fd)
            return
        with suppress(FileNotFoundError):  # it was renamed
            os.unlink(self.key, dir_fd=self.root)


def _lexists(key: str, root: int) -> bool:
    try:
        os.lstat(key, dir_fd=root)
    except FileNotFoundError:
        return False
    return True
