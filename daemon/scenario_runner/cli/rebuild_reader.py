"""The objects of a rebuild, from a profile: what reads and verifies runs, in this process and in others."""

import time
from dataclasses import dataclass
from typing import Final

from scenario_runner.audit.findings import Findings
from scenario_runner.audit.required import Named, Unknown
from scenario_runner.audit.verify import Verifier
from scenario_runner.bus.envelope import signal_file_name
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_sha256
from scenario_runner.contracts.ids import attempt_id_of
from scenario_runner.contracts.times import MICROS
from scenario_runner.interface_pack.loader import pack_from_document
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.rebuild.bus import BusWitness, ReadFirst, Witness
from scenario_runner.rebuild.documents import read_document
from scenario_runner.rebuild.reading import RunReader
from scenario_runner.rebuild.ready import ReadyProver, not_asked
from scenario_runner.rebuild.requirements import PlanAgain, Requirements
from scenario_runner.rebuild.restore import Restorer
from scenario_runner.service.compose import (
    allowed_roots,
    make_admission_policy,
    open_artifacts,
    open_pack,
    open_schemas,
    open_store,
)
from scenario_runner.service.control_bus import open_spool, spool_root
from scenario_runner.service.identity import named_stores
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

#: How far the clock of the lost database may have been ahead of this host's.
_CLOCKS_DIFFER_US: Final = 300 * MICROS


@dataclass(frozen=True)
class Terms:
    """By what runs are restored.

    Attributes:
        policy: What runs on their way must be pinned to; None for anything that the pack allows.
        witness: Who must agree that a run is READY.
        packs: Documents of interface packs that the operator names in addition to the profile's. They go to other
            processes, so they are not read from files twice.
    """

    policy: Policy | None
    witness: Witness
    packs: tuple[Json, ...] = ()

    def named_packs(self) -> list[InterfacePack]:
        """The packs that the operator names."""
        return [pack_from_document(document) for document in self.packs]

    def text(self, ledger: str, wiring: Wiring) -> str:
        """As they are kept while a rebuild has not ended, and in the act: all that decides which runs are restored.

        Args:
            ledger: Where the ledger is.
            wiring: The profile, whose pack, control bus, roots and allow-list count too.
        """
        named = self.policy.content_digest if self.policy is not None else "none"
        digests = sorted({pack.digest for pack in (open_pack(wiring), *self.named_packs())})
        packs = ", ".join(f"pack {digest}" for digest in digests)
        bus = f"spool {spool_root(wiring)}" if wiring.bus_kind == "spool" else f"stream {wiring.control_bus_stream}"
        allowed = canonical_sha256([sorted(allowed_roots(wiring)), sorted(_invokers(wiring) or ()), wiring.auth_mode])
        return (
            f"ledger {ledger}, witness {self.witness.value}, policy {named}, {packs}, "
            f"{bus}, topic {wiring.control_bus_topic}, roots and allow-list {allowed}"
        )


def _invokers(wiring: Wiring) -> frozenset[str] | None:
    """Who may request runs; None for everybody."""
    return frozenset(wiring.auth_allowlist) if wiring.auth_mode == "allowlist" else None


def make_reader(wiring: Wiring, terms: Terms) -> RunReader:
    """What reads and verifies runs, in this process or in another one, with stores of its own."""
    stores = named_stores(open_store(wiring), open_spool(wiring))
    store, spool = stores[0].store, next((item.store for item in stores if item.kind == "spool"), None)
    restorer = _Parts(wiring, terms, store, spool).restorer()
    return RunReader(store, restorer, spool, {item.name: item.store for item in stores})


@dataclass(frozen=True)
class _Parts:
    """The objects of a rebuild."""

    wiring: Wiring
    terms: Terms
    store: ObjectStore
    spool: ObjectStore | None

    def restorer(self) -> Restorer:
        wiring, ledger = self.wiring, Ledger(self.store, open_schemas(self.wiring))
        packs = PinnedPacks(open_pack(wiring), ledger, self.terms.named_packs())
        requirements = Requirements(
            packs.vouched, allowed_roots(wiring), _invokers(wiring), self._plan_again(packs), self.store.locate,
        )  # fmt: skip
        topic, locate = wiring.control_bus_topic, self.store.locate
        bus = BusWitness(locate, topic, self.terms.witness, self._spool_reader())
        prover = ReadyProver(self.store, packs, bus, self._examiner(packs))
        latest_us = time.time_ns() // 1000 + _CLOCKS_DIFFER_US
        return Restorer(locate, bus, prover.prove, requirements.check, self._launched, latest_us)

    def _plan_again(self, packs: PinnedPacks) -> PlanAgain | None:
        policy = self.terms.policy
        if policy is None:
            return None
        policies = {digest: make_admission_policy(self.wiring, policy, pack) for digest, pack in packs.vouched.items()}
        return lambda digest, outputs, strategy: policies[digest].plan_inputs(outputs, strategy)

    def _spool_reader(self) -> ReadFirst | None:
        spool, topic = self.spool, self.wiring.control_bus_topic
        if spool is None:
            return None

        def read(message_id: str, emissions: tuple[int, ...]) -> tuple[bytes, int] | None:
            for emission in emissions:
                try:
                    stored = spool.read(f"{topic}/{signal_file_name(message_id, emission)}", MAX_RECORD_BYTES)
                except UnreadableObjectError:
                    return b"", emission
                if stored is not None:
                    return stored.data, emission
            return None

        return read

    def _examiner(self, packs: PinnedPacks) -> "Examiner":
        policy = self.terms.policy
        named = Named(policy_rev=policy.rev().wire() if policy is not None else None)
        artifacts = open_artifacts(self.wiring, None)
        unknown = Unknown("the authority is being rebuilt")
        verifier = Verifier(
            self.store, packs, artifacts, self.wiring.control_bus_topic, not_asked, lambda _done, _total: None,
            lambda _: unknown, named,
        )  # fmt: skip
        return Examiner(verifier)

    def _launched(self, run_id: str, number: int) -> bool:
        """Whether the invocation document of an attempt is there: engines on ECS read it from the object store."""
        return read_document(self.store, refs.engine_invocation_ref(attempt_id_of(run_id, number))) is not None


class Examiner:
    """Verifies facts views against the engine's files.

    Args:
        verifier: Without the authority, and without the control bus.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def __call__(self, data: bytes) -> Findings:
        """The checks of a facts view."""
        return self._verifier.verify(data)[1]
