"""Re-emits from the command line: acts are carried out in the authority, and delivered by a relay of this process.

A daemon may be running or not: any number of relays work on one authority, and what this process does not deliver any
of them will. Nothing here needs POSIX, so re-emits work on Windows where store, authority and control bus do.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from scenario_runner.authority.acts import ActionRow, ReemitAct
from scenario_runner.authority.base import Authority
from scenario_runner.authority.reemits import ACCEPTED
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.intake.reemit import ReemitPolicy
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.relay.relay import Relay
from scenario_runner.service.compose import open_authority, open_schemas, open_store, reemit_policy, require_rebuilt
from scenario_runner.service.control_bus import open_publisher, open_spool, state_modes
from scenario_runner.service.identity import named_stores, require_known
from scenario_runner.service.owner import make_owner
from scenario_runner.service.span_export import traced

#: Threads that read facts views and publish: on S3 each waits 25 ms for an answer, and 128 are read together.
_IO_THREADS: Final = 16
#: A little longer than a relay's lease: a signal that a killed relay holds is then published by this one.
_DELIVERY_SECONDS: Final = 35.0
#: While another relay is publishing the signal: it takes milliseconds.
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Reemitter:
    """What acts are carried out with.

    Attributes:
        relay: Delivers for this command.
    """

    authority: Authority
    ledger: Ledger
    relay: Relay
    policy: ReemitPolicy
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic

    def predicted(self, act: ReemitAct) -> ReemitAct:
        """A dry run with what its delivery would find: nothing is written or published.

        Raises:
            Unavailable: the authority or the store does not answer.
        """
        run = self.authority.run(act.run_id)
        if act.denied or run is None or not run.facts_view_digest:
            return act
        (failure,) = self.ledger.compare_facts_views([(act.run_id, run.facts_view_digest)])
        if isinstance(failure, Unavailable):
            raise failure
        return act if failure is None else replace(act, predicted=refusal_of(failure))

    def deliver(self, keys: Sequence[str], step: Callable[[], int]) -> dict[str, ActionRow]:
        """Deliver what accepted acts owe, and wait for what another relay is delivering.

        Args:
            keys: The acts.
            step: What delivers a batch; returns how many were delivered.

        Returns:
            The acts as they are afterwards. One that is still ACCEPTED is owed: infrastructure does not answer.
        """
        deadline = self.monotonic() + _DELIVERY_SECONDS
        while True:
            delivered = step()
            acts = self.authority.acts(keys)
            owed = [act.subject for act in acts.values() if act.outcome == ACCEPTED]
            if not owed or (not delivered and not self._is_coming(owed[0], deadline)):
                return acts
            if not delivered:
                self.sleep(_POLL_SECONDS)

    def _is_coming(self, run_id: str, deadline: float) -> bool:
        return self.monotonic() < deadline and self.authority.pending(only=run_id).signals


def refusal_of(failure: LedgerDrift) -> tuple[Reason, str]:
    """Why the READY of a facts view is not published again."""
    return failure.reason, failure.detail


@contextmanager
def open_reemitter(wiring: Wiring, only: str = "") -> Iterator[Reemitter]:
    """Open what re-emits need.

    Args:
        wiring: The profile.
        only: The only run that is delivered for; empty for every run.

    Raises:
        ConfigurationError: the profile is not valid, or names what this platform does not have.
        Unavailable: the authority or a store cannot be reached, or another store is there.
    """
    os.umask(state_modes(wiring).umask)
    with traced("reemit", os.environ), ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="io") as pool:
        store, spool = open_store(wiring, pool), open_spool(wiring)
        schemas, publisher = open_schemas(wiring), open_publisher(wiring, spool, pool)
        authority = open_authority(wiring)
        try:
            require_rebuilt(authority, wiring)
            for item in named_stores(store, spool):
                require_known(item, authority)
            ledger = Ledger(store, schemas, pool=pool)
            relay = Relay(authority, ledger, publisher, make_owner(), only)
            yield Reemitter(authority, ledger, relay, reemit_policy(wiring))
        finally:
            authority.close()
