"""The files of a SQLite database: created with the profile's modes, and proven to be the same as when it was opened.

SQLite goes on writing to a file that was removed or moved away, and reads it back. Only the path shows that no other
process will ever see what was committed.
"""

import os
from typing import Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.storage.anchored import make_folder_durably
from scenario_runner.storage.modes import Modes

#: The write-ahead log and its index.
_COMPANIONS: Final = ("-wal", "-shm")


class DatabaseFiles:
    """A database and the files that SQLite keeps next to it.

    Args:
        path: The database.
        modes: Of what is created.
    """

    def __init__(self, path: str, modes: Modes) -> None:
        self._path, self._modes = path, modes
        self._known: dict[str, tuple[int, int]] = {}

    def create(self) -> None:
        """Create the database as an empty file, and its folder, where they are missing; remember which file it is.

        Raises:
            Unavailable: it cannot be created.
        """
        try:
            make_folder_durably(os.path.dirname(os.path.abspath(self._path)), self._modes.folder)
            if not os.path.exists(self._path):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._modes.file))
            self._remember(self._path)
        except OSError as error:
            raise Unavailable(f"cannot create {self._path}: {error.strerror}") from error

    def remember(self) -> None:
        """Remember which file the database is; it must be there.

        Raises:
            Unavailable: it cannot be read.
        """
        try:
            self._remember(self._path)
        except OSError as error:
            raise Unavailable(f"cannot open {self._path}: {error.strerror}") from error

    def remember_companions(self) -> None:
        """Remember the log and its index, which stay the same files as long as the database is open."""
        for path in (self._path + suffix for suffix in _COMPANIONS):
            if os.path.exists(path):
                self._remember(path)

    def _remember(self, path: str) -> None:
        info = os.stat(path)
        self._known[path] = info.st_dev, info.st_ino

    def check(self) -> None:
        """Prove that the database, its log and its index are the files that were opened.

        Raises:
            Unavailable: one was removed or replaced.
        """
        for path in self._known:
            self._check(path)

    def check_database(self) -> None:
        """Like :meth:`check`, of the database alone: enough for reading."""
        self._check(self._path)

    def _check(self, path: str) -> None:
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) == self._known[path]:
                return
            what = "another file is there"
        except OSError as error:
            what = error.strerror or "it cannot be read"
        raise Unavailable(
            f"{path} was removed or replaced under the daemon ({what}): put that very file back, or restart the "
            "daemon to use what is there"
        )
