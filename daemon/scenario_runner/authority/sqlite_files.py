"""The files of a SQLite database: created with the profile's modes, and proven to be the same as when it was opened.

SQLite goes on writing to a file that was removed or moved away, and reads it back; only its path tells that nobody else
will ever see what was committed.
"""

import os
from typing import Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.storage.anchored import make_folder_durably
from scenario_runner.storage.modes import Modes

_BESIDE: Final = ("-wal", "-shm")


class DatabaseFiles:
    """A database and what SQLite keeps beside it.

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

    def remember_beside(self) -> None:
        """Remember the files beside the database, which stay the same as long as it is open."""
        for path in (self._path + suffix for suffix in _BESIDE):
            if os.path.exists(path):
                self._remember(path)

    def _remember(self, path: str) -> None:
        info = os.stat(path)
        self._known[path] = info.st_dev, info.st_ino

    def check(self) -> None:
        """Prove that the database and the files beside it are those that were opened.

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
            what = error.strerror or "it cannot be looked at"
        raise Unavailable(
            f"{path} was removed or replaced under the daemon ({what}): put that very file back, or restart the "
            "daemon to use what is there"
        )
