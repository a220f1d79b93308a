"""The bulk pool: threads for runs whose examination costs more than a batch should wait for."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from scenario_runner.artifacts.budget import Share
from scenario_runner.authority.values import Claim
from scenario_runner.runs.batch import Deferred
from scenario_runner.service.fair_queue import TURN_SECONDS, FairQueue, Group
from scenario_runner.service.heartbeats import Heartbeats

Drive = Callable[[Sequence[Claim], Share], list[Deferred]]


class BulkPool:
    """Threads that drive runs in turns, in the order of a :class:`~scenario_runner.service.fair_queue.FairQueue`.

    An examination whose turn is over while others wait is broken off and goes on in a later turn. Digests of files that
    were read, and of the beginning of a large one, are kept between turns.

    Args:
        workers: Most examinations at a time.
        drive: Drives runs with the same evidence, and returns those whose turn was over; raises nothing.
        heartbeats: Where each thread reports the progress of its examination.
    """

    def __init__(self, workers: int, drive: Drive, heartbeats: Heartbeats | None = None) -> None:
        self._queue, self._drive = FairQueue(), drive
        self._heartbeats = heartbeats or Heartbeats(math.inf)
        self._changed = threading.Condition()  # guards the queue and `_stopped`
        self._stopped = False
        # Daemon threads: one that hangs in a dead mount must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"bulk-{n}", daemon=True) for n in range(workers)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def add(self, deferred: Sequence[Deferred]) -> None:
        """Queue runs; whoever renews leases must renew theirs meanwhile."""
        if not deferred:
            return  # else every batch would wake up every thread for nothing
        with self._changed:
            for item in deferred:
                self._queue.add(item)
            self._changed.notify_all()

    def stop(self, seconds: float) -> bool:
        """Begin nothing more, and wait until what is in progress has ended.

        Returns:
            False when something is still in progress after so many seconds.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, number: int) -> None:
        while (group := self._next()) is not None:
            began, unfinished = time.monotonic(), list[Deferred]()
            progress = self._heartbeats.begin(f"bulk:{number}", TURN_SECONDS, f"run {group.claims[0].run_id}")
            over = partial(self._is_over, group, progress)
            share = Share(seconds=TURN_SECONDS, over=over, spent_seconds=group.spent_seconds)
            try:
                unfinished = self._drive(group.claims, share)
            finally:
                self._heartbeats.end()
                with self._changed:
                    self._queue.done(group, [item.claim for item in unfinished], time.monotonic() - began)
                    self._changed.notify_all()

    def _is_over(self, group: Group, progress: Callable[[], None], seconds: float) -> bool:
        progress()  # whoever asks has just read a block, or waits for another examination, which reports itself
        with self._changed:
            return self._queue.is_over(group, seconds)

    def _next(self) -> Group | None:
        """Wait for a group whose turn it is; None when the pool was stopped."""
        with self._changed:
            while not self._stopped:
                group = self._queue.take()
                if group is not None:
                    return group
                self._changed.wait()
            return None
