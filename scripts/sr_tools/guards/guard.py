"""A guard, and the file without it."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard and the file without it.

    Attributes:
        file: Path in the repository.
        function: Qualified name of the function, or name of the statement, that it stands in.
        line: Line, from 1.
        kind: ``refusal``, ``check``, ``step``, ``filter`` or ``term``.
        text: Its source on one line.
        nth: Which of the guards of this function with the same text.
        without: The whole file with the guard deleted.
    """

    file: str
    function: str
    line: int
    kind: str
    text: str
    nth: int
    without: bytes

    @property
    def named(self) -> tuple[str, str, str]:
        """What names it in the list of equivalent ones, but for which of several."""
        return self.file, self.function, self.text

    @property
    def key(self) -> str:
        """Stays the same when the file changes elsewhere."""
        parts = (self.file, self.function, self.kind, self.text, str(self.nth))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
