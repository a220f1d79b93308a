"""Who may read and write what SR creates."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Modes:
    """Modes of what SR creates. A umask can only narrow them; what is there already keeps its own.

    Attributes:
        folder: Of a folder.
        file: Of a file.
    """

    folder: int
    file: int

    @property
    def umask(self) -> int:
        """The umask under which nothing wider is created, by SQLite or a child process either."""
        return 0o777 & ~self.folder


PRIVATE: Final = Modes(0o700, 0o600)
GROUP: Final = Modes(0o770, 0o660)
