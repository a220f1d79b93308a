"""Leases held by this process, renewed in the background.

They are checked while evidence is examined, and before plans, receipts and facts views are written.

A worker that was stopped for longer than its lease (SIGSTOP, a long pause) finds out here, before it writes; if it
did not, the fencing epoch in the authority's WHERE clause would still refuse it.
"""

import math
import threading
from collections.abc import Callable

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Claim
from scenario_runner.contracts.errors import LeaseLostError, StoppingError, Unavailable
from scenario_runner.contracts.times import MICROS


class Leases:
    """What this owner holds.

    Args:
        authority: Grants and renews.
        owner: Name of this process as an owner.
        seconds: Length of a lease.
        monotonic: Seconds, never going back.
        only: The only run to claim; empty for every run.
    """

    def __init__(
        self, authority: Authority, owner: str, seconds: float, monotonic: Callable[[], float], only: str = ""
    ) -> None:
        self._authority, self.owner, self._monotonic, self._only = authority, owner, monotonic, only
        self.seconds = seconds
        self._valid_until: dict[tuple[str, int], float] = {}
        self._ends = math.inf
        self._gave_up = False
        self._lock = threading.Lock()

    @property
    def micros(self) -> int:
        """Length of a lease in microseconds."""
        return int(self.seconds * MICROS)

    @property
    def held(self) -> int:
        """How many leases are held."""
        return len(self._valid_until)

    def claim(self, limit: int) -> list[Claim]:
        """Claim due runs."""
        asked = self._monotonic()
        claims = self._authority.claim(self.owner, limit, self.micros, only=self._only)
        with self._lock:
            for claim in claims:
                self._valid_until[claim.run_id, claim.epoch] = asked + self.seconds
        return claims

    def renew(self) -> set[tuple[str, int]]:
        """Renew everything that is held, and nothing that is not; called a few times per lease.

        Returns:
            (run id, epoch) of the leases that were renewed.
        """
        with self._lock:
            held = list(self._valid_until)
        if not held:
            return set()
        asked = self._monotonic()
        try:
            kept = self._authority.renew(self.owner, held, self.micros)
        except Unavailable:
            return set()  # the leases run out by themselves if this lasts
        with self._lock:
            for key in held:
                if key in self._valid_until:
                    # A lease that somebody else has, because a clock jumped or this process was taken for dead, is lost
                    # now and not when it would have run out.
                    self._valid_until[key] = asked + self.seconds if key in kept else 0.0
        return kept

    def check(self, claim: Claim, *, may_outlast_stop: bool = False) -> None:
        """Make sure a lease is still ours, and that there is time left for what it is for.

        Args:
            claim: The run under lease.
            may_outlast_stop: What it is for may take longer than a stop of the process: it ends when the stop begins.

        Raises:
            LeaseLostError: it ran out, or was never ours.
            StoppingError: the process was told to stop, and the time for what was in progress is over.
        """
        now = self._monotonic()
        if now >= self._ends or (may_outlast_stop and self._ends < math.inf):
            self._gave_up = True
            raise StoppingError("the process stops; what it had not finished is done again by whoever claims the run")
        if now >= self._valid_until.get((claim.run_id, claim.epoch), 0.0):
            raise LeaseLostError(f"the lease of run {claim.run_id} (epoch {claim.epoch}) ran out")

    def valid_until(self, claim: Claim) -> float:
        """When a lease that is ours ends, on the monotonic clock, unless it is renewed."""
        return self._valid_until.get((claim.run_id, claim.epoch), 0.0)

    def end_in(self, seconds: float) -> None:
        """Begin to stop: what is in progress has so many seconds left, then every check fails."""
        self._ends = self._monotonic() + seconds

    def give_back(self) -> None:
        """Return what was not finished when the process stopped, so that others need not wait for its leases to end."""
        if not self._valid_until and not self._gave_up:
            return
        try:
            self._authority.expire_owner(self.owner)
        except Unavailable:
            return  # the leases run out by themselves

    def release(self, claim: Claim) -> None:
        """Forget a lease: it was given back with the run's last transition, or it runs out."""
        with self._lock:
            self._valid_until.pop((claim.run_id, claim.epoch), None)
