"""Group commit: operations of many threads share one transaction, and with it one fsync.

An operation gets its result only after the commit that holds it is durable. If one operation of a group fails, the
group is rolled back and each operation runs in a transaction of its own, so that only the faulty one fails. If the
transaction cannot begin, all operations of the group fail.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from scenario_runner.contracts.errors import Unavailable

C = TypeVar("C")
T = TypeVar("T")
#: Operations in one transaction: a bound on how long the first of them waits. A daemon has some ten threads, so it is
#: reached only by a client that hands in operations without waiting for them.
_MAX_GROUP: Final = 256


class GroupCommitter(Generic[C]):
    """Runs the operations of all threads on one connection, in a thread of its own.

    Args:
        connect: Opens the connection, in that thread.
        begin: Starts a transaction.
        commit: Makes it durable.
        rollback: Undoes it.
        close: Closes the connection.
    """

    def __init__(
        self,
        connect: Callable[[], C],
        begin: Callable[[C], None],
        commit: Callable[[C], None],
        rollback: Callable[[C], None],
        close: Callable[[C], None],
    ) -> None:
        self._connect, self._begin, self._commit, self._rollback, self._close = (
            connect,
            begin,
            commit,
            rollback,
            close,
        )
        self._queue: queue.SimpleQueue[tuple[Callable[[C], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._loop, args=(ready,), name="authority", daemon=True)
        self._thread.start()
        ready.result()

    def run(self, operation: Callable[[C], T]) -> T:
        """Run an operation in a transaction; returns once it is durable."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the authority is closed")
            self._queue.put((operation, future))
        return future.result()

    def close(self) -> None:
        """Finish the operations that were handed in, then close the connection."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _loop(self, ready: Future[None]) -> None:
        try:
            connection = self._connect()
        except BaseException as error:  # noqa: BLE001 - handed to the caller that waits for it
            ready.set_exception(error)
            return
        ready.set_result(None)
        more = True
        while more:
            group, more = self._take()
            if group and not self._together(connection, group):
                for operation, future in group:
                    self._alone(connection, operation, future)
        self._close(connection)

    def _take(self) -> tuple[list[tuple[Callable[[C], Any], Future[Any]]], bool]:
        group = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) >= _MAX_GROUP or self._queue.empty():
                return group, True
            item = self._queue.get()
        return group, False

    def _together(self, connection: C, group: list[tuple[Callable[[C], Any], Future[Any]]]) -> bool:
        try:
            self._begin(connection)
        except BaseException as error:  # noqa: BLE001 - no operation's fault; each alone would wait as long
            self._undo(connection)
            for _, future in group:
                future.set_exception(error)
            return True
        try:
            results = [operation(connection) for operation, _ in group]
            self._commit(connection)
        except BaseException:  # noqa: BLE001 - each is run alone and reports for itself
            self._undo(connection)
            return False
        for (_, future), result in zip(group, results, strict=True):
            future.set_result(result)
        return True

    def _alone(self, connection: C, operation: Callable[[C], Any], future: Future[Any]) -> None:
        try:
            self._begin(connection)
            result = operation(connection)
            self._commit(connection)
        except BaseException as error:  # noqa: BLE001 - handed to the caller that waits for it
            self._undo(connection)
            future.set_exception(error)
        else:
            future.set_result(result)

    def _undo(self, connection: C) -> None:
        """Roll back. If that fails too, the connection refuses the next begin, and the callers get that error."""
        with suppress(Exception):
            self._rollback(connection)
