"""Where the invocation document of an attempt lies for the engine to read."""

import os
import tempfile
import time
from contextlib import suppress
from typing import Final, Protocol

from typing_extensions import override

from scenario_runner.contracts.errors import Unavailable

#: Longer than any engine runs: its timeout is a week at most.
KEPT_SECONDS: Final = 14 * 24 * 3600.0
_FOLDER: Final = "invocations"
_NEW: Final = ".new-"


class Invocations(Protocol):
    """Places of invocation documents. Every thread may write."""

    def write(self, attempt_id: str, data: bytes) -> str:
        """Put the document of an attempt where the engine can read it. The same bytes may be written again.

        Args:
            attempt_id: hex32.
            data: The document as canonical JSON.

        Returns:
            The place: an absolute path, or a URI.

        Raises:
            Unavailable: It cannot be written now.
        """


class FileInvocations(Invocations):
    """Documents in private files of this host, for engines that are processes of the same user.

    Args:
        folder: Private folder of all attempts.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(os.path.abspath(folder), _FOLDER)
        with suppress(OSError):  # there is no folder yet, or another daemon removes the same files
            for name in os.listdir(self._folder):
                _remove_if_old(os.path.join(self._folder, name))

    @override
    def write(self, attempt_id: str, data: bytes) -> str:
        path = os.path.join(self._folder, f"{attempt_id}.json")
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._write(path, data)
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror or error}") from error
        return path

    def _write(self, path: str, data: bytes) -> None:
        """A reader finds the whole document or none, also after a loss of power."""
        descriptor, new = tempfile.mkstemp(prefix=_NEW, dir=self._folder)  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError:
            with suppress(OSError):
                os.unlink(new)
            raise


def _remove_if_old(path: str) -> None:
    with suppress(OSError):
        if time.time() - os.stat(path).st_mtime > KEPT_SECONDS:  # the clock that stamps files
            os.unlink(path)
