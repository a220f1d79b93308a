"""How many runs the runner claims at a time: as many as it drives in about a second.

A large batch pays commits, directory fsyncs and the examination of equal evidence once for all of its runs. But each of
its runs waits for the whole batch. Where each run has evidence of its own on an S3 that answers after 25 ms, 64 runs
take 14 s. The relay then writes documents of runs half-way, which takes 15.5 S3 calls a run instead of 12
(docs/benchmarks.md).
"""

from typing import Final

#: Time that a batch should take: well below the quiet period after which the relay writes documents half-way.
_SECONDS: Final = 1.0
#: Fewer would share a commit and its round trips among too few, and a slow start would keep later batches small.
_LEAST: Final = 8
#: More runs share nothing that 64 do not share; batches of 32 make one known world slower.
_MOST: Final = 64


class BatchSize:
    """The size of the next batch, from the pace of the last one. It begins small, so that the pace is known early."""

    def __init__(self) -> None:
        self.runs: int = _LEAST

    def drove(self, runs: int, seconds: float) -> None:
        """Take over the pace of a batch.

        Args:
            runs: Runs in it, at least one.
            seconds: What it took.
        """
        pace = runs / max(seconds, 1e-3)
        self.runs = max(_LEAST, min(_MOST, int(pace * _SECONDS)))
