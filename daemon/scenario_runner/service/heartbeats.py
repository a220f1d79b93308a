"""Heartbeats of the loops of a daemon: each loop reports its own progress, and whoever asks learns which one is stuck.

Progress is an iteration of the loop, also one that found nothing to do, and also a try that failed because
infrastructure does not answer: a loop that waits for infrastructure is alive. A loop is stuck when it has not come
round for longer than every legitimate step takes: then a call hangs.

Costly examinations and the work on engines run in threads of their own under leases. Each is a loop for as long as it
lasts, and makes progress with every block that it reads. Shard workers are processes: what is known of them is reported
for them.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoopState:
    """What is known of one loop.

    Attributes:
        loop: Its name; one of several alike has a number or a name after a colon, as in ``bulk:3``.
        seconds: Since its last progress; 0 while it waits for work without a bound.
        limit_seconds: After so many it is stuck.
        detail: What it works on, for a person; mostly empty.
    """

    loop: str
    seconds: float
    limit_seconds: float
    detail: str = ""

    @property
    def kind(self) -> str:
        """Its name without what tells it from others alike."""
        return self.loop.partition(":")[0]

    @property
    def stuck(self) -> bool:
        """Whether it has made no progress for too long."""
        return self.seconds > self.limit_seconds


@dataclass(slots=True)
class _Beat:
    limit_seconds: float
    at: float
    detail: str = ""
    resting: bool = False


class Heartbeats:
    """The loops of one daemon that run now.

    ``begin``, ``beat``, ``rest`` and ``end`` are called by the loop itself.

    Args:
        stuck_seconds: How long one step may take.
        monotonic: Seconds, never going back.
    """

    def __init__(self, stuck_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stuck_seconds, self._monotonic = stuck_seconds, monotonic
        self._beats: dict[str, _Beat] = {}
        self._others: Sequence[LoopState] = ()
        self._lock = threading.Lock()
        self._own = threading.local()

    @property
    def stuck_seconds(self) -> float:
        """How long one step may take."""
        return self._stuck_seconds

    def begin(self, loop: str, pause_seconds: float = 0.0, detail: str = "") -> Callable[[], None]:
        """This thread runs a loop from now on.

        Args:
            loop: Its name.
            pause_seconds: Its longest pause between two steps.
            detail: What it works on, for a person.

        Returns:
            Reports progress of this loop, from any thread that works for it.
        """
        beat = _Beat(self._stuck_seconds + pause_seconds, self._monotonic(), detail)
        with self._lock:
            self._beats[loop] = beat
        self._own.name, self._own.beat = loop, beat

        def progress() -> None:
            beat.at = self._monotonic()

        return progress

    def beat(self) -> None:
        """The loop of this thread has made progress; nothing in a thread that runs none."""
        beat: _Beat | None = getattr(self._own, "beat", None)
        if beat is not None:
            beat.at, beat.resting = self._monotonic(), False

    def rest(self) -> None:
        """The loop of this thread waits without a bound until there is work for it."""
        beat: _Beat | None = getattr(self._own, "beat", None)
        if beat is not None:
            beat.resting = True

    def end(self) -> None:
        """The loop of this thread has ended."""
        with self._lock:
            self._beats.pop(getattr(self._own, "name", ""), None)
        self._own.beat = None

    def report_others(self, states: Sequence[LoopState]) -> None:
        """What is known now of loops in other processes, which cannot report themselves here."""
        self._others = states

    def loops(self) -> list[LoopState]:
        """The loops that run now, by name."""
        with self._lock:
            beats = sorted(self._beats.items())
        now = self._monotonic()
        own = [
            LoopState(loop, 0.0 if beat.resting else max(0.0, now - beat.at), beat.limit_seconds, beat.detail)
            for loop, beat in beats
        ]
        return [*own, *self._others]
