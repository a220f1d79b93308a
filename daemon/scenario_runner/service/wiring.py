"""The composition root: from profiles to wired objects. Nothing else knows which backend serves a seam."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import check_dsn, connect_authority
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.intake.base import Intake
from scenario_runner.intake.judge import Rules
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.schemas import Schemas
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.relay.relay import Relay
from scenario_runner.runs.driver import RunDriver
from scenario_runner.runs.evaluation import EvaluationMemory
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.packs import Packs
from scenario_runner.service.control_bus import open_intake, open_publisher
from scenario_runner.service.owner import make_owner
from scenario_runner.storage.filesystem import FilesystemStore

_IO_THREADS = 4


def allowed_roots(wiring: Wiring) -> list[str]:
    """The allowed engine roots as absolute paths, as written and with links resolved."""
    roots: dict[str, None] = {}
    for root in wiring.engine_roots:
        path = root.removeprefix("file://")
        if "://" in path:
            raise ConfigurationError(
                f"profile {wiring.profile_id}, key 'engine_roots'",
                f"{root!r} is not a folder",
                "name a folder",
            )
        roots[os.path.abspath(path)] = None
        roots[os.path.realpath(path)] = None
    return list(roots)


def open_store(wiring: Wiring, pool: ThreadPoolExecutor | None = None) -> FilesystemStore:
    """The object store of a profile."""
    if "://" in wiring.store_root.removeprefix("file://"):
        raise ConfigurationError(
            f"profile {wiring.profile_id}, key 'object_store_root'",
            f"the scheme of {wiring.store_root!r} is not served by this release",
            "name a folder",
        )
    return FilesystemStore(wiring.store_root.removeprefix("file://"), refs.PRIVATE, pool)


def open_pack(wiring: Wiring) -> InterfacePack:
    """The deployed interface pack."""
    return load_pack(wiring.engine_catalogue_path, wiring.gate_map_path)


def open_schemas(wiring: Wiring) -> Schemas:
    """The JSON Schemas of a profile."""
    return Schemas(wiring.schema_root, wiring.engine_contracts_root)


def open_artifacts(wiring: Wiring, reuse: DigestReuse | None) -> LocalArtifacts:
    """Reader of engine run roots."""
    return LocalArtifacts(allowed_roots(wiring), wiring.hash_threads, reuse)


def make_rules(wiring: Wiring, policy: Policy, pack: InterfacePack) -> Rules:
    """What records are judged by."""
    return Rules(
        topic=wiring.control_bus_topic,
        record_limit=MAX_RECORD_BYTES,
        allowlist=frozenset(wiring.auth_allowlist) if wiring.auth_mode == "allowlist" else None,
        engine_roots=allowed_roots(wiring),
        cwd=os.getcwd(),
        policy=policy,
        pack=pack,
    )


@dataclass(frozen=True)
class Daemon:
    """Everything that the loops need."""

    wiring: Wiring
    owner: str
    authority: Authority
    artifacts: Artifacts
    store: FilesystemStore
    intake: Intake
    leases: Leases
    driver: RunDriver
    relay: Relay
    stopping: threading.Event


def wire_daemon(wiring: Wiring, policy: Policy) -> Daemon:
    """Build a daemon.

    Raises:
        ConfigurationError: a profile, schema or pack is not valid, or the store is unsafe.
        Unavailable: the authority or store cannot be reached.
    """
    pack, schemas = open_pack(wiring), open_schemas(wiring)
    check_dsn(wiring.authority_store_dsn, f"profile {wiring.profile_id}")
    rules = make_rules(wiring, policy, pack)
    pool = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="io")
    store = open_store(wiring, pool)
    store.probe()
    authority = connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}")
    ledger = Ledger(store, schemas)
    packs = Packs(pack, ledger)
    packs.pin()
    owner = make_owner()
    stopping = threading.Event()
    leases = Leases(authority, owner, wiring.lease_seconds, time.monotonic)
    reuse = wiring.digest_reuse == "version"
    artifacts = open_artifacts(wiring, DigestReuse(authority) if reuse else None)
    memory = EvaluationMemory() if reuse else None
    return Daemon(
        wiring=wiring,
        owner=owner,
        authority=authority,
        artifacts=artifacts,
        store=store,
        intake=open_intake(wiring, policy, authority, rules),
        leases=leases,
        driver=RunDriver(authority, ledger, artifacts, packs, leases, memory, time.sleep),
        relay=Relay(authority, ledger, open_publisher(wiring, pool), owner),
        stopping=stopping,
    )
