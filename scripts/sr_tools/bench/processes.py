"""What a process holds, as /proc says: memory, open files, threads, children, CPU."""

import os
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

#: A series is compared by fifths: the first is the warm-up, the second is what the last is compared with.
_PARTS: Final = 5


@dataclass(frozen=True)
class Sample:
    """What a process held at one moment.

    Attributes:
        rss: Resident bytes.
        anonymous: Of these, bytes that are no file's: the heap and stacks.
        files: Open file descriptors.
        threads: Threads.
        children: How many children it had.
        children_rss: Their resident bytes.
    """

    rss: int
    anonymous: int
    files: int
    threads: int
    children: int
    children_rss: int


def sample(pid: int) -> Sample:
    """What a process holds now.

    Raises:
        OSError: There is no such process.
    """
    own, below = _status(pid), list(children(pid))
    return Sample(
        rss=own["VmRSS"] * 1024,
        anonymous=own["RssAnon"] * 1024,
        files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=own["Threads"],
        children=len(below),
        children_rss=sum(_rss(child) for child in below),
    )


def children(pid: int) -> Iterable[int]:
    """Ids of the direct children of a process."""
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):  # a thread that ended in the meantime
            yield from map(int, Path(f"/proc/{pid}/task/{task}/children").read_text("ascii").split())


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Trend:
    """How a series went.

    Attributes:
        medians: Of each fifth.
    """

    medians: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Trend":
        """The trend of at least five values in their order.

        Raises:
            ValueError: They are fewer.
        """
        if len(values) < _PARTS:
            raise ValueError(f"{len(values)} samples show no trend; at least {_PARTS} are needed")
        edges = [len(values) * part // _PARTS for part in range(_PARTS + 1)]
        return cls([statistics.median(values[begin:end]) for begin, end in pairwise(edges)])

    @property
    def early(self) -> float:
        """Median of the second fifth."""
        return self.medians[1]

    @property
    def late(self) -> float:
        """Median of the last fifth."""
        return self.medians[-1]

    @property
    def growth(self) -> float:
        """Growth in percent; 0 when there was nothing early and nothing late."""
        if self.early == 0:
            return 100.0 if self.late else 0.0
        return (self.late / self.early - 1) * 100


class Sampler:
    """Takes a sample of a process at a steady pace, as a context.

    Args:
        pid: The process.
        seconds: Between two samples.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self.samples: list[Sample] = []
        self._pid, self._seconds = pid, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            try:
                self.samples.append(sample(self._pid))
            except (OSError, KeyError):
                return  # it ended; whoever waits for it says so
            due += self._seconds

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _status(pid: int) -> dict[str, int]:
    """Numbers of a process; a zombie has none for its memory."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    pairs = (line.split()[:2] for line in lines)
    return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}


def _rss(pid: int) -> int:
    try:
        return _status(pid).get("VmRSS", 0) * 1024
    except OSError:
        return 0
