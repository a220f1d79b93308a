"""Performs the effects of an engine, for one run at a time."""

from collections.abc import Callable
from dataclasses import replace

from scenario_runner.artifacts.base import MAX_FLAG_BYTES, Artifacts, Kind
from scenario_runner.artifacts.budget import UNLIMITED, ReadBudget
from scenario_runner.authority.values import Claim
from scenario_runner.contracts.errors import (
    EngineRefusal,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    SequenceError,
    Unavailable,
)
from scenario_runner.contracts.plan import DEFAULT_BOUNDS
from scenario_runner.engine.attempt import Attempt, launch_of
from scenario_runner.engine.invocations import Invocations
from scenario_runner.engine.invoker import EngineInvoker, Job
from scenario_runner.engine.run_receipt import RUN_RECEIPT
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.runs.effects import (
    Effect,
    EndEarlier,
    FindJob,
    LaunchEngine,
    Prepared,
    PrepareLaunch,
    ReadRunReceipt,
    WriteAttemptLogs,
)
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.member import Answer
from scenario_runner.tracing import SpanName, traceparent_of


class EngineEffects:
    """Performs the effects of an engine but :class:`~scenario_runner.runs.effects.AwaitEnd`.

    Args:
        invoker: The backend.
        invocations: Where invocation documents are put.
        artifacts: Opens engine run roots.
        ledger: Where logs of attempts are kept.
        leases: Leases of this process.
        timeout_seconds: How long an engine may run.
    """

    def __init__(
        self,
        invoker: EngineInvoker,
        invocations: Invocations,
        artifacts: Artifacts,
        ledger: Ledger,
        leases: Leases,
        timeout_seconds: float,
    ) -> None:
        self.invoker = invoker
        self._invocations, self._artifacts, self._ledger = invocations, artifacts, ledger
        self._leases, self._timeout_seconds = leases, timeout_seconds

    def perform(
        self, effect: Effect, claim: Claim, seconds_since_claim: float, beat: Callable[[], None] = lambda: None
    ) -> Answer:
        """Perform one effect.

        Args:
            effect: One of the engine.
            claim: The run under lease.
            seconds_since_claim: For how long certainly nobody else has held its lease.
            beat: Called in the course of what may take minutes, for as long as it makes progress.

        Returns:
            The answer to the effect.
        """

        def check(*, may_outlast_stop: bool = False) -> None:
            beat()
            self._leases.check(claim, may_outlast_stop=may_outlast_stop)

        if isinstance(effect, EndEarlier):
            check()
            # By its id alone, as one of long ago: what its backend does not list now will not appear later.
            earlier = Job(effect.attempt_id, self.invoker.place, launched_us=0, timeout_seconds=0)
            self.invoker.stop(earlier, lambda: check(may_outlast_stop=True))
            return None
        if isinstance(effect, PrepareLaunch):
            return self._prepare(effect.attempt)
        if isinstance(effect, LaunchEngine):
            self._leases.check(claim)  # the row is committed, and an engine is for its lease only
            return self.invoker.launch(replace(effect.launch, start_by=self._leases.valid_until(claim)))
        if isinstance(effect, FindJob):
            return self._find(effect, seconds_since_claim)
        if isinstance(effect, ReadRunReceipt):
            return self._read_receipt(effect.engine_run_root, check)
        if isinstance(effect, WriteAttemptLogs):
            self._leases.check(claim)
            attempt, end = effect.attempt, effect.end
            return self._ledger.write_attempt_logs(
                attempt.intent.run_id, attempt.attempt_no, end.stdout, end.stderr
            )  # fmt: skip
        raise SequenceError(f"no performer for {type(effect)}")

    def _find(self, effect: FindJob, seconds_since_claim: float) -> Job | None:
        if effect.invoker != self.invoker.name:
            job, ours = effect.job, self.invoker.name
            raise Unavailable(
                f"attempt {job.attempt_id} was launched by {effect.invoker!r} ({job.handle}) and may run, and this "
                f"profile's engine is {ours!r}; let a daemon with the former profile follow it"
            )
        return self.invoker.find(effect.job, seconds_since_claim)

    def _prepare(self, attempt: Attempt) -> Prepared:
        self.invoker.require_room()
        self._require_allowed(attempt.engine_run_root)
        launch = launch_of(attempt, "", self._timeout_seconds)
        path = self._invocations.write(attempt.attempt_id, launch.invocation)
        return Prepared(
            launch_of(attempt, path, self._timeout_seconds, _traceparent(attempt)), self.invoker.name,
            self.invoker.place,
        )  # fmt: skip

    def _require_allowed(self, root: str) -> None:
        """The profile may have changed since admission, and an engine must write under its roots only.

        Raises:
            EngineRefusal: the root is no place for an engine run, or a link leads elsewhere.
            Unavailable: this profile does not allow it.
        """
        try:
            with ReadBudget(lambda _hashed: None, UNLIMITED, DEFAULT_BOUNDS) as budget:
                self._artifacts.open(root, budget).close()
        except EvidenceMissing:
            return  # the engine makes it
        except EvidenceRefused as refused:
            raise EngineRefusal(f"no engine may write to the run root: {refused.detail}") from refused

    def _read_receipt(self, root: str, heartbeat: Callable[[], None]) -> bytes | None:
        with ReadBudget(lambda _hashed: heartbeat(), UNLIMITED, DEFAULT_BOUNDS) as budget:
            try:
                opened = self._artifacts.open(root, budget)
            except EvidenceMissing:
                return None
            try:
                if opened.kind(RUN_RECEIPT) is Kind.ABSENT:
                    return None
                return opened.read(RUN_RECEIPT, MAX_FLAG_BYTES)
            except EvidenceMissing:
                return None
            except EvidenceChanged as changed:
                raise Unavailable(f"{RUN_RECEIPT} changed while it was read: {changed.detail}") from changed
            finally:
                opened.close()


def _traceparent(attempt: Attempt) -> str:
    """The context that an engine may go on from."""
    return traceparent_of(attempt.intent.run_id, SpanName.ENGINE_ATTEMPT, str(attempt.attempt_no))
