"""The reference on S3: the calls that a daemon made, by a plain client without SR."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Final

import obstore

from sr_tools.bench.on_parity.place import THREADS, Folder
from sr_tools.bench.references import in_threads
from sr_tools.bench.report import Json

S3_CALLS: Final = ("s3.put", "s3.get", "s3.head", "s3.list")
#: Passes over all calls: a server that pauses once must not make the reference slow.
_PASSES: Final = 2
_HOW: Final = (
    f"no SR: the same number and mix of S3 calls (PUT-if-absent of objects as large as SR's own, GET and HEAD of \
artifacts, LIST of a run root) by a plain obstore client from {THREADS} threads; two passes, their mean"
)


def calls_of(counts: Mapping[str, int]) -> int:
    """All S3 calls."""
    return sum(counts.get(kind, 0) for kind in S3_CALLS)


@dataclass(frozen=True)
class BareCalls:
    """S3 calls without SR.

    Attributes:
        counts: How many of each kind.
        sizes: Bytes of what is put, taken in turn.
        ledger: Where objects are put.
        engine: Where artifacts are.
        roots: Artifact keys by run root.
    """

    counts: Mapping[str, int]
    sizes: Sequence[int]
    ledger: Folder
    engine: Folder
    roots: Mapping[str, Sequence[str]]

    def reference(self, runs: int) -> tuple[Json, float]:
        """Make all calls; returns an entry ``reference`` for that many runs, and the seconds of a pass."""
        taken = [self._take(f"round-{number}") for number in range(_PASSES)]
        seconds = statistics.mean(wall for wall, _ in taken)
        calls = calls_of(self.counts)
        return {
            "value": round(runs / seconds, 1),
            "unit": "runs/s",
            "calls": calls,
            "calls_per_second": round(calls / seconds, 1),
            "seconds_each": [round(wall, 3) for wall, _ in taken],
            "cpu_ms_per_run": round(min(cpu for _, cpu in taken) * 1000 / runs, 2),
            "how": _HOW,
        }, seconds

    def _take(self, name: str) -> tuple[float, float]:
        """Make all calls, in a mixed order; returns seconds on the wall and of this process's CPU."""
        calls = [call for kind in S3_CALLS for call in self._calls(kind, name)]
        random.Random(0).shuffle(calls)
        started, cpu = time.perf_counter(), time.process_time()
        in_threads(THREADS, lambda call: call(), calls)
        return time.perf_counter() - started, time.process_time() - cpu

    def _calls(self, kind: str, name: str) -> list[Callable[[], object]]:
        keys, roots = [key for root in self.roots.values() for key in root], list(self.roots)
        numbers = range(self.counts.get(kind, 0))
        if kind == "s3.put":
            sizes = cycle(self.sizes)
            return [partial(self._put, self.ledger.key("bare", name, str(number)), next(sizes)) for number in numbers]
        if kind == "s3.list":
            return [partial(self._list, roots[number % len(roots)]) for number in numbers]
        call = self._get if kind == "s3.get" else self._head
        return [partial(call, keys[number % len(keys)]) for number in numbers]

    def _put(self, key: str, size: int) -> None:
        obstore.put(self.ledger.measured, key, bytes(size), mode="create", use_multipart=False)

    def _get(self, key: str) -> None:
        obstore.get(self.engine.measured, key).bytes()

    def _head(self, key: str) -> None:
        obstore.head(self.engine.measured, key)

    def _list(self, root: str) -> None:
        for _ in obstore.list(self.engine.measured, f"{root}/"):
            pass
