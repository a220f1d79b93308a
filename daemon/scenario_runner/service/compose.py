"""The composition root: from profiles to the objects of a daemon. No loop knows which backend serves a seam."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from scenario_runner import posix
from scenario_runner.artifacts.base import Artifacts
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.artifacts.s3 import S3Artifacts
from scenario_runner.artifacts.schemes import ArtifactsByScheme
from scenario_runner.authority.acts import ReemitLimit
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import check_dsn, connect_authority
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts import refs
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import ConfigurationError, needs_posix
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import MICROS, format_micros
from scenario_runner.evidence.cache import EvidenceCache
from scenario_runner.evidence.examiner import Examiner
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.intake.base import Intake
from scenario_runner.intake.evidence_queue import EvidenceQueue
from scenario_runner.intake.folder_watch import FolderWatch
from scenario_runner.intake.reemit import ReemitPolicy
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.ledger.schemas import Schemas
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.relay.relay import Relay
from scenario_runner.runs.absent_roots import AbsentRoots
from scenario_runner.runs.batch import RunDriver
from scenario_runner.runs.engine_effects import EngineEffects
from scenario_runner.runs.leases import Leases
from scenario_runner.service.control_bus import open_intake, open_publisher, open_spool, state_modes
from scenario_runner.service.engine import engine_terms, open_engine, open_invocations
from scenario_runner.service.evidence_events import open_evidence_queue, open_folder_watch
from scenario_runner.service.identity import establish_identities, named_stores
from scenario_runner.service.owner import make_owner
from scenario_runner.service.production import require_class
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.aws import keys_of
from scenario_runner.storage.base import ObjectStore
from scenario_runner.storage.filesystem import FilesystemStore
from scenario_runner.storage.s3 import S3Store
from scenario_runner.storage.s3_checksums import S3Checksums, checksums_unsafe
from scenario_runner.storage.s3_client import S3Bucket, S3Settings, split_s3_uri

_IO_THREADS: Final = 8
"""Threads that write to folders. They wait for fsyncs, which file systems make together; more threads gain nothing."""
_S3_IO_THREADS: Final = 128
"""Requests to S3 at a time: those of a batch of the runner and of one of the relay, 64 each; two batches of the runner
seldom write at the same moment. At 25 ms they are 5,120 a second; S3 gives a prefix 3,500 PUTs a second."""
_S3_READERS: Final = 4
"""Least number of threads that read one run's evidence on S3, whatever the machine's cores: they wait for a network."""
_S3_EXAMINATIONS: Final = 8
"""Examinations of a batch at a time where the evidence lies on S3. A small one takes 10 ms of CPU and waits for five
round trips, so that at 25 ms eight keep a core busy."""
_S3_BATCHES: Final = 2
"""Batches that a runner drives at a time where the evidence lies on S3: while one waits for its writes and its commit,
the other one is examined. With 25 ms on S3 and new evidence for each run that is 1.4 times the rate of one batch; a
third gains nothing (docs/benchmarks.md)."""
_WRITTEN_CACHE_SECONDS: Final = 60.0
"""How long a write-once object on S3 that this process wrote or compared is not read again: a read costs a round trip,
and whoever changes the object meanwhile is found by ``verify`` and by the next process."""

_CHECKSUM_PROBE: Final = "probe-checksum"
"""Begin of the names of the objects that the proof of checksums writes."""


def allowed_roots(wiring: Wiring) -> list[str]:
    """The allowed engine roots: folders as absolute paths, as written and with links resolved; ``s3://`` prefixes."""
    roots: dict[str, None] = {}
    for root in wiring.engine_roots:
        path = root.removeprefix("file://")
        if path.startswith("s3://"):
            roots["s3://" + "/".join(filter(None, _bucket_and_prefix(wiring, "engine_roots", path)))] = None
        elif "://" in path:
            raise ConfigurationError(
                f"profile {wiring.profile_id}, key 'engine_roots'",
                f"{root!r} is neither a folder nor s3://bucket/prefix",
                "name a folder, or s3://bucket/prefix",
            )
        else:
            roots[os.path.abspath(path)] = None
            roots[os.path.realpath(path)] = None
    return list(roots)


def _bucket_and_prefix(wiring: Wiring, key: str, uri: str) -> tuple[str, str]:
    try:
        return split_s3_uri(uri)
    except ValueError as error:
        raise ConfigurationError(
            f"profile {wiring.profile_id}, key {key!r}", f"{uri!r} {error}", "write s3://bucket/prefix"
        ) from error


def s3_settings(wiring: Wiring) -> S3Settings:
    """How a profile reaches S3."""
    return S3Settings(wiring.s3_endpoint_url or "", wiring.s3_region or "", wiring.s3_path_style)


def check_profile(wiring: Wiring) -> None:
    """Check what a profile's schema does not: locations, DSN, engine and credentials. Nothing is made, opened or asked.

    Raises:
        ConfigurationError: a location or DSN that is not served, an engine that could never be launched, or credentials
            that cannot be right.
    """
    engine_terms(wiring, allowed_roots(wiring))
    check_dsn(wiring.authority_store_dsn, f"profile {wiring.profile_id}")
    _store_location(wiring)
    if wiring.uses_aws:
        keys_of(os.environ)


def _store_location(wiring: Wiring) -> tuple[str, str]:
    """The object store's bucket and prefix; an empty bucket and a folder when it is on this machine."""
    root = wiring.store_root.removeprefix("file://")
    if root.startswith("s3://"):
        return _bucket_and_prefix(wiring, "object_store_root", root)
    if "://" in root:
        raise ConfigurationError(
            f"profile {wiring.profile_id}, key 'object_store_root'",
            f"the scheme of {wiring.store_root!r} is not served by this release",
            "name a folder, or s3://bucket/prefix",
        )
    return "", root


def open_store(wiring: Wiring, pool: ThreadPoolExecutor | None = None) -> ObjectStore:
    """The object store of a profile."""
    bucket, path = _store_location(wiring)
    if bucket:
        return S3Store(S3Bucket(bucket, s3_settings(wiring)), path, refs.PRIVATE, pool)
    if not posix.AVAILABLE:
        raise needs_posix(f"profile {wiring.profile_id}, key 'object_store_root'", "a folder as object store")
    return FilesystemStore(AnchoredRoot(path, state_modes(wiring)), refs.PRIVATE, pool)


def open_authority(wiring: Wiring) -> Authority:
    """The authority of a profile, connected; an embedded one is made where there is none.

    Raises:
        ConfigurationError: the DSN is not valid, or the database is not one for SR.
        Unavailable: it does not answer.
    """
    return connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}", state_modes(wiring))


def require_rebuilt(authority: Authority, wiring: Wiring) -> None:
    """Refuse an authority whose rebuild has not ended: runs that it does not know yet would be admitted anew.

    Raises:
        ConfigurationError: ``REBUILD_UNFINISHED``.
    """
    rebuild = authority.unfinished_rebuild()
    if rebuild is not None:
        raise ConfigurationError(
            f"profile {wiring.profile_id}, key 'authority_store_dsn'",
            f"the rebuild of it that {rebuild.actor} began at {format_micros(rebuild.began_us)} has not ended",
            "run scenario-runner authority rebuild again",
            Reason.REBUILD_UNFINISHED,
        )


def open_pack(wiring: Wiring) -> InterfacePack:
    """The deployed interface pack."""
    return load_pack(wiring.engine_catalogue_path, wiring.gate_map_path)


def open_schemas(wiring: Wiring) -> Schemas:
    """The JSON Schemas of a profile."""
    return Schemas(wiring.schema_root, wiring.engine_contracts_root)


def prove_checksums(wiring: Wiring, policy: Policy) -> S3Checksums | None:
    """What asks S3 for the checksums that it keeps, after the proof that they are true.

    The proof needs a bucket that SR may write to, its object store. What it proves is a property of the server, which
    also serves the engine roots.

    Returns:
        None when the policy has everything read, or nothing lies on S3: then nothing is taken from S3's word.

    Raises:
        ConfigurationError: ``STORE_CHECKSUMS_UNSAFE``: the server accepts wrong checksums, or the object store is no
            bucket, so that nothing can be proved.
        Unavailable: it does not answer.
    """
    on_s3 = any(root.startswith("s3://") for root in allowed_roots(wiring))
    if policy.output_digest_source is not DigestSource.S3_CHECKSUM or not on_s3:
        return None
    bucket, prefix = _store_location(wiring)
    if not bucket:
        raise checksums_unsafe(
            f"profile {wiring.profile_id}, key 'object_store_root'",
            "is a folder, so that nothing can be proved of the server of the engine roots",
        )
    checksums = S3Checksums(s3_settings(wiring))
    checksums.prove(bucket, "/".join(filter(None, (prefix, refs.PRIVATE, _CHECKSUM_PROBE))))
    return checksums


def open_artifacts(wiring: Wiring, reuse: DigestReuse | None, checksums: S3Checksums | None = None) -> Artifacts:
    """Reader of engine run roots; with :func:`prove_checksums` it takes S3's word where a run's policy allows it."""
    roots = allowed_roots(wiring)
    folders = [root for root in roots if not root.startswith("s3://")]
    prefixes = [root for root in roots if root.startswith("s3://")]
    readers: dict[str, Artifacts] = {}
    if posix.AVAILABLE:
        readers[""] = LocalArtifacts(folders, wiring.hash_threads, reuse)
    if prefixes:
        threads = max(wiring.hash_threads, _S3_READERS)
        readers["s3"] = S3Artifacts(prefixes, s3_settings(wiring), threads, reuse, checksums)
    return ArtifactsByScheme(readers)


def make_admission_policy(wiring: Wiring, policy: Policy, pack: InterfacePack) -> AdmissionPolicy:
    """What messages are validated against.

    Raises:
        ConfigurationError: a location, or a key of the engine, has no valid value.
    """
    roots = allowed_roots(wiring)
    return AdmissionPolicy(
        topic=wiring.control_bus_topic,
        record_limit=MAX_RECORD_BYTES,
        allowlist=frozenset(wiring.auth_allowlist) if wiring.auth_mode == "allowlist" else None,
        engine_roots=roots,
        cwd=os.getcwd(),
        policy=policy,
        pack=pack,
        reemit=reemit_policy(wiring),
        engine=engine_terms(wiring, roots),
    )


def reemit_policy(wiring: Wiring) -> ReemitPolicy:
    """Who may have signals published again, and how often."""
    limit = ReemitLimit(wiring.reemit_rate_limit_max, wiring.reemit_rate_limit_window_seconds * MICROS)
    return ReemitPolicy(wiring.reemit_callers, limit)


@dataclass(frozen=True)
class Daemon:
    """Everything that the loops need.

    Attributes:
        stopping: Set when the daemon is to stop.
        open_engine: Opens the profile's engine, for a role that drives runs; None when none is configured.
        batches: How many batches a runner drives at a time.
        open_folder_watch: Opens a watch of the folders of engine runs, for the same role; None where there is none.
        open_evidence_queue: Opens the profile's queue of S3 events, for the same role; None when it names none.
        started: Set once every loop runs. Until then a start may still fail, so the daemon is not ready.
    """

    wiring: Wiring
    owner: str
    authority: Authority
    store: ObjectStore
    admission: AdmissionPolicy
    intake: Intake
    leases: Leases
    driver: RunDriver
    absent_roots: AbsentRoots
    relay: Relay
    stopping: threading.Event
    open_engine: Callable[[], EngineEffects | None] = lambda: None
    batches: int = 1
    open_folder_watch: Callable[[], FolderWatch | None] = lambda: None
    open_evidence_queue: Callable[[], EvidenceQueue | None] = lambda: None
    started: threading.Event = field(default_factory=threading.Event)


def compose_daemon(wiring: Wiring, policy: Policy, only: str = "") -> Daemon:
    """Compose a daemon.

    Args:
        wiring: The wiring profile.
        policy: The policy profile.
        only: The only run that it drives and delivers; empty for every run.

    Raises:
        ConfigurationError: a profile, schema or pack is not valid, or none for production; or the store is unsafe.
        Unavailable: the authority or store cannot be reached.
    """
    require_class(wiring)
    check_profile(wiring)
    pack, schemas = open_pack(wiring), open_schemas(wiring)
    rules = make_admission_policy(wiring, policy, pack)
    on_s3 = wiring.store_root.startswith("s3://")
    io_pool = ThreadPoolExecutor(_S3_IO_THREADS if on_s3 else _IO_THREADS, thread_name_prefix="io")
    store = open_store(wiring, io_pool)
    spool = open_spool(wiring)
    authority = open_authority(wiring)
    require_rebuilt(authority, wiring)
    # Before anything is written: a bare mount point in the place of a store must stay empty.
    establish_identities(named_stores(store, spool), authority)
    store.probe()
    ledger = Ledger(store, schemas, _WRITTEN_CACHE_SECONDS if on_s3 else 0.0, time.monotonic, io_pool)
    packs = PinnedPacks(pack, ledger)
    packs.pin()
    leases = Leases(authority, make_owner(), wiring.lease_seconds, time.monotonic, only)
    reuse = DigestReuse(authority) if wiring.digest_reuse == "version" else None
    artifacts = open_artifacts(wiring, reuse, prove_checksums(wiring, policy))
    return Daemon(
        wiring=wiring,
        owner=leases.owner,
        authority=authority,
        store=store,
        admission=rules,
        intake=open_intake(wiring, policy, authority, rules, spool),
        leases=leases,
        driver=_open_driver(wiring, authority, ledger, packs, leases, artifacts),
        absent_roots=AbsentRoots(authority, artifacts, time.monotonic, only),
        relay=Relay(authority, ledger, open_publisher(wiring, spool, io_pool), make_owner(), only),
        stopping=threading.Event(),
        open_engine=partial(_open_engine_effects, wiring, store, ledger, leases, artifacts),
        batches=_S3_BATCHES if artifacts.remote else 1,
        open_folder_watch=partial(open_folder_watch, wiring, authority, rules.engine_roots),
        open_evidence_queue=partial(open_evidence_queue, wiring, authority, rules.engine_roots),
    )


def _open_driver(
    wiring: Wiring, authority: Authority, ledger: Ledger, packs: PinnedPacks, leases: Leases, artifacts: Artifacts
) -> RunDriver:
    reuse = wiring.digest_reuse == "version"
    examiner = Examiner(artifacts, packs, EvidenceCache() if reuse else None, time.sleep)
    examination_pool = (
        ThreadPoolExecutor(_S3_EXAMINATIONS, thread_name_prefix="examination") if artifacts.remote else None
    )
    return RunDriver(authority, ledger, examiner, leases, examination_pool, wiring.engine_launch_retries)


def _open_engine_effects(
    wiring: Wiring, store: ObjectStore, ledger: Ledger, leases: Leases, artifacts: Artifacts
) -> EngineEffects | None:
    """What performs the effects of the profile's engine; None when none is configured."""
    invoker, invocations = open_engine(wiring), open_invocations(wiring, store)
    if invoker is None or invocations is None:
        return None
    timeout_seconds = float(wiring.engine_command_timeout_seconds)
    return EngineEffects(invoker, invocations, artifacts, ledger, leases, timeout_seconds)
