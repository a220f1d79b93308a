"""The seam to whatever runs an engine: launch an attempt, find it again, see its end, stop it.

The protocol of calls:

1. The caller inserts the attempt's row, with :attr:`EngineInvoker.place` as its handle, and only then calls ``launch``.
2. ``launch`` answers with a job. The caller keeps the job's handle in the row, and asks ``poll`` until the job has
   ended.
3. After a crash, or when ``launch`` raised ``Unavailable``, the caller asks ``find`` with what the row holds. A job is
   followed as before. None says that nothing of the attempt runs or will run; the attempt has then failed, and is not
   launched again. That holds for a caller who was stopped just before ``launch`` and goes on after ``find``, too: the
   launch then fails.
4. When the end is committed, ``forget`` lets the backend drop what it kept.

An attempt whose lease is lost is ended with ``stop`` where the backend is ``bound_to_lease``. And before an attempt is
launched, those before it are ended with ``stop`` by their ids, at the ``place`` of the backend, whatever their rows say
of their ends and handles: rows may have been restored from a ledger that others can write.

A handle is a hint where to look. No backend stops, or believes the end of, what does not bear the id of the attempt.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scenario_runner.contracts.errors import Refusal
from scenario_runner.contracts.reasons import Reason


class LaunchFailed(Refusal):
    """The engine was certainly not launched, and this attempt never will be.

    Attributes:
        another_attempt: The engine was not at fault, so that another attempt may succeed.
    """

    default_reason = Reason.ENGINE_LAUNCH_FAILED

    def __init__(self, detail: str, *, another_attempt: bool = False) -> None:
        super().__init__(detail)
        self.another_attempt = another_attempt


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a backend needs to launch one attempt.

    Attributes:
        attempt_id: hex32; equal ids are one launch.
        attempt_no: From 1.
        run_id: hex32.
        tokens: ``manifest_fingerprint``, ``parameter_hash``, ``seed``, ``scenario_id`` and ``scenario_set`` as text.
        engine_run_root: Where the engine is to write its run.
        invocation: The engine_invocation document as canonical JSON.
        invocation_path: Where the engine can read the same bytes.
        timeout_seconds: How long the engine may run.
        traceparent: W3C trace context; empty for none.
        start_by: On the monotonic clock: when the lease ends under which it is launched, and nothing may be started
            any more. A process that was stopped before the launch would otherwise launch what its successor has given
            up.
    """

    attempt_id: str
    attempt_no: int
    run_id: str
    tokens: Mapping[str, str]
    engine_run_root: str
    invocation: bytes = field(repr=False)
    invocation_path: str
    timeout_seconds: float
    traceparent: str = ""
    start_by: float = math.inf


@dataclass(frozen=True, slots=True)
class Job:
    """An attempt that was launched, as its row keeps it.

    Attributes:
        attempt_id: hex32.
        handle: Text with which its backend finds it; before ``launch`` has answered, the backend's ``place``.
        launched_us: When it was launched, in microseconds since the epoch; before ``launch`` has answered, the time of
            the row.
        timeout_seconds: How long the engine may run.
    """

    attempt_id: str
    handle: str
    launched_us: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How an attempt ended.

    Attributes:
        succeeded: The engine ended by itself with exit status 0.
        reason_code: ``ENGINE_EXIT_NONZERO``, ``ENGINE_TIMEOUT`` or ``ENGINE_LAUNCH_FAILED``; None when it succeeded.
        exit_code: Exit status; negative for the number of the signal that ended it; None when there was none.
        stop_code: What ended it, in the backend's words; empty when it ended by itself.
        detail: What happened, for a person.
        another_attempt: The engine was not at fault, so that another attempt may succeed.
        stdout: First and last bytes of what it wrote, with a marker for what was left out between them.
        stderr: The same of its errors.
        duration_ms: How long it ran.
    """

    succeeded: bool
    reason_code: Reason | None
    exit_code: int | None
    stop_code: str
    detail: str
    another_attempt: bool = False
    stdout: bytes = field(default=b"", repr=False)
    stderr: bytes = field(default=b"", repr=False)
    duration_ms: int = 0


class EngineInvoker(Protocol):
    """A backend that runs engines. Every thread may call it."""

    @property
    def name(self) -> str:
        """Name of the backend, as profiles and documents say it."""

    @property
    def place(self) -> str:
        """Where this process launches: the handle that a row keeps until ``launch`` has answered."""

    @property
    def bound_to_lease(self) -> bool:
        """Whether an engine must end with the lease of its run.

        True where only the process that launched it can follow it for certain. False where any owner of the run can:
        ending an engine of hours because a database was away for a minute would help nobody.
        """

    def require_room(self) -> None:
        """Make sure that this process can launch another engine now; asked before the attempt is counted.

        Raises:
            Unavailable: It cannot; later it may.
        """

    def launch(self, launch: Launch) -> Job:
        """Launch an attempt, or return the job of the first call with this attempt id.

        Raises:
            EngineRefusal: The command cannot be rendered for this run. Nothing was launched.
            LaunchFailed: Nothing was launched.
            Unavailable: It is not known whether something was launched. Ask ``find``.
        """

    def find(self, job: Job, unrenewed_seconds: float = 0.0) -> Job | None:
        """What has become of an attempt that may have been launched.

        Args:
            job: The attempt as its row holds it.
            unrenewed_seconds: For how long certainly nobody else has called ``renew`` for it: the time since this
                process claimed the run.

        Returns:
            The job, running or ended; None only when nothing of the attempt runs or will run.

        Raises:
            Unavailable: That is not known now.
        """

    def poll(self, jobs: Sequence[Job]) -> dict[str, JobEnd]:
        """The ends of those jobs that have ended, by attempt id. It does not wait, and may be asked again.

        A job is ended only when nothing of the attempt runs any more.

        Args:
            jobs: Jobs that ``launch`` or ``find`` of this process returned.

        Raises:
            Unavailable: The backend does not answer.
        """

    def renew(self, jobs: Iterable[Job]) -> None:
        """The leases of these jobs' runs were renewed: they may run on."""

    def stop(self, job: Job, check: Callable[[], None] = lambda: None) -> None:
        """End an attempt, whether it runs or not, and return when nothing of it runs any more.

        Args:
            job: The attempt.
            check: Called again and again by a backend that may wait for longer than this process may take to stop;
                what it raises ends the wait.

        Raises:
            Unavailable: It may still run.
        """

    def forget(self, job: Job) -> None:
        """The end of the job is committed: what is kept of it beyond its id may go."""

    def close(self) -> None:
        """End what cannot outlive this process, and let go of the rest."""
