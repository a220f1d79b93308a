"""``doctor``: try everything that a profile names, one check after the other, and say what to do."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from scenario_runner import posix
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import connect_authority, sqlite_path
from scenario_runner.bus.spool import SpoolPaths
from scenario_runner.bus.stream import Stream, client_of
from scenario_runner.cli.console import Exit
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable, in_short
from scenario_runner.contracts.times import MICROS
from scenario_runner.intake import spool_check
from scenario_runner.intake.spool_files import SpoolFiles
from scenario_runner.kcl.config import find_jars, find_java
from scenario_runner.kcl.stream_identity import check_leases
from scenario_runner.profiles.policy import Policy, load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.compose import (
    allowed_roots,
    check_profile,
    open_pack,
    open_schemas,
    open_store,
    s3_settings,
)
from scenario_runner.service.control_bus import open_stream, open_tables, spool_root, state_modes
from scenario_runner.service.identity import NamedStore, named_spool, require_known
from scenario_runner.service.permissions import Outcome, Trial, try_bucket, try_metrics, try_stream, try_tables
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.aws import Credentials, foreign_variables
from scenario_runner.storage.identity import AnotherStoreError
from scenario_runner.storage.s3_client import S3Bucket, split_s3_uri

_CLOCK_TOLERANCE_SECONDS: Final = 5
_EARLIEST_SANE_CLOCK: Final = 1_735_689_600  # 2025-01-01


class _Examination:
    def __init__(self) -> None:
        self.findings: list[Json] = []

    def note(self, check: str, detail: str, *, ok: bool = True, remedy: str = "", code: Exit = Exit.USAGE) -> None:
        finding: Json = {"check": check, "ok": ok, "detail": detail}
        if not ok:
            finding |= {"remedy": remedy, "exit": int(code)}
        self.findings.append(finding)

    @contextmanager
    def trying(self, check: str) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            self.note(check, f"{error.place}: {error.problem}", ok=False, remedy=error.remedy)
        except Unavailable as error:
            self.note(
                check,
                error.detail,
                ok=False,
                remedy="make it reachable, then run doctor again",
                code=Exit.UNAVAILABLE,
            )
        except ScenarioRunnerError as error:
            self.note(check, error.detail, ok=False, remedy=error.sentence())
        except Exception as error:  # noqa: BLE001 - a library's own; the other checks are wanted all the same
            said = f"{type(error).__name__}: {in_short(error)}"
            self.note(check, said, ok=False, remedy="report this as a defect of SR", code=Exit.DEFECT)


def examine(wiring_path: str, policy_path: str | None) -> list[Json]:
    """Every check as ``{check, ok, detail}``, with ``remedy`` and ``exit`` where it failed."""
    exam = _Examination()
    policy = None
    if policy_path is not None:
        with exam.trying("policy profile"):
            policy = load_policy(policy_path)
            exam.note("policy profile", f"{policy.policy_id} revision {policy.revision} is valid")
    with exam.trying("wiring profile"):
        wiring = load_wiring(wiring_path)
        check_profile(wiring)
        exam.note("wiring profile", f"{wiring.profile_id} is valid")
        os.umask(state_modes(wiring).umask)
        _examine_aws(exam, wiring)
        _examine_pack(exam, wiring, policy)
        _examine_state(exam, wiring)
        _examine_roots(exam, wiring)
    return exam.findings


def _examine_aws(exam: _Examination, wiring: Wiring) -> None:
    """Which endpoints and credentials are in effect, where they come from, and what of the environment is ignored."""
    if not wiring.on_s3 and wiring.bus_kind != "kinesis":
        return
    with exam.trying("AWS"):
        ignored = foreign_variables(os.environ)
        exam.note("AWS", f"credentials come from {Credentials().source}")
        if wiring.on_s3:
            exam.note("AWS", f"S3: {_in_effect(wiring, 's3_endpoint_url', 's3_region')}")
        if wiring.bus_kind == "kinesis":
            exam.note("AWS", f"Kinesis: {_in_effect(wiring, 'control_bus_endpoint_url', 'control_bus_region')}")
            at = wiring.dynamodb_endpoint_url
            key = (
                "kinesis_dynamodb_endpoint_url"
                if at == wiring.kinesis_dynamodb_endpoint_url
                else "control_bus_endpoint_url"
            )
            exam.note("AWS", f"DynamoDB: {_in_effect(wiring, key, 'control_bus_region')}")
        if ignored:
            exam.note("AWS", f"variables that SR does not honour and ignores: {', '.join(ignored)}")


def _in_effect(wiring: Wiring, endpoint_key: str, region_key: str) -> str:
    endpoint, region = getattr(wiring, endpoint_key), getattr(wiring, region_key)
    where = f"{endpoint} ({wiring.origin(endpoint_key)})" if endpoint else "the service of AWS"
    return where + (f", region {region} ({wiring.origin(region_key)})" if region else "")


def _examine_pack(exam: _Examination, wiring: Wiring, policy: Policy | None) -> None:
    with exam.trying("schemas"):
        ours = open_schemas(wiring).from_package
        more = f"; of the package: {', '.join(ours)}" if ours else ""
        exam.note("schemas", f"{wiring.schema_root} and {wiring.engine_contracts_root} are complete{more}")
    with exam.trying("interface pack"):
        pack = open_pack(wiring)
        exam.note("interface pack", f"{len(pack.outputs)} outputs, {len(pack.gates)} gates, digest {pack.digest}")
        unknown = [item for item in policy.traffic_output_ids if item not in pack.outputs] if policy else []
        if unknown:
            exam.note(
                "policy and pack agree", f"the policy's traffic outputs {', '.join(unknown)} are not in the catalogue",
                ok=False, remedy="correct traffic_output_ids, or deploy the pack that has them",
            )  # fmt: skip


def _all_allowed(exam: _Examination, service: str, trials: Iterable[Trial]) -> bool:
    """Note the outcome of trials; false when a permission is missing."""
    found = list(trials)
    denied = [trial for trial in found if trial.outcome is Outcome.DENIED]
    for trial in denied:
        exam.note(
            f"permission {trial.permission}", f"denied on {trial.resource}: {trial.why}", ok=False, remedy=trial.remedy
        )
    allowed = sorted({trial.permission for trial in found if trial.outcome is Outcome.ALLOWED})
    untried = [f"{trial.permission} on {trial.resource} ({trial.why})" for trial in found
               if trial.outcome is Outcome.NOT_TRIED]  # fmt: skip
    detail = f"allowed: {', '.join(allowed) or 'none'}" + (f"; not tried: {'; '.join(untried)}" if untried else "")
    exam.note(f"permissions of {service}", detail)
    return not denied


def _examine_state(exam: _Examination, wiring: Wiring) -> None:
    """The authority first: it alone knows which stores are ours, and nothing is written to another one."""
    opened: list[Authority] = []
    with exam.trying("authority"):
        opened += [connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}", state_modes(wiring))]
    authority = opened[0] if opened else None
    try:
        if authority is None:
            _leave_stores_alone(exam, wiring)
        else:
            with exam.trying("authority"):
                _examine_authority(exam, authority)
            _examine_store(exam, wiring, authority)
        _examine_bus(exam, wiring, authority)
    finally:
        if authority is not None:
            authority.close()
    if posix.AVAILABLE:
        with exam.trying("private state"):
            _examine_modes(exam, wiring)


def _examine_authority(exam: _Examination, authority: Authority) -> None:
    skew = abs(authority.now_us() / MICROS - time.time())
    exam.note("authority", "reachable, its schema is up to date")
    sane = skew <= _CLOCK_TOLERANCE_SECONDS and time.time() > _EARLIEST_SANE_CLOCK
    exam.note(
        "clock", f"the authority's clock differs by {skew:.3f} s", ok=sane, remedy="synchronise the clocks"
    )  # fmt: skip


def _leave_stores_alone(exam: _Examination, wiring: Wiring) -> None:
    """Without the authority nobody knows whether a store is the right one: what was wrong with it decides the code."""
    code = Exit(exam.findings[-1]["exit"])
    for name in ("object store", *(["control bus"] if open_stream(wiring) is None else [])):
        exam.note(
            name, f"nothing is written to the {name}: the authority, which knows whether it is the right one, does not "
            "answer", ok=False, remedy="see what is said about the authority, then run doctor again", code=code,
        )  # fmt: skip


def _examine_store(exam: _Examination, wiring: Wiring, authority: Authority) -> None:
    with exam.trying("object store"):
        store = open_store(wiring)
        try:
            known = _known(NamedStore("object_store", store.where, store), authority)
        except AnotherStoreError:
            raise
        except Unavailable:
            if _allowed_on_bucket(exam, wiring):
                raise
            return  # a permission that is denied says more
        if _allowed_on_bucket(exam, wiring):
            store.probe()
            exam.note("object store", f"{wiring.store_root} honours conditional creates; {known}")


def _allowed_on_bucket(exam: _Examination, wiring: Wiring) -> bool:
    """Whether all that SR needs is allowed on its bucket; true also where the store is none."""
    if not wiring.store_root.startswith("s3://"):
        return True
    name, prefix = split_s3_uri(wiring.store_root)
    probe = "/".join(filter(None, (prefix, refs.PRIVATE, "probe-000")))
    return _all_allowed(exam, "the object store", try_bucket(S3Bucket(name, s3_settings(wiring)), prefix, probe))


def _known(item: NamedStore, authority: Authority) -> str:
    """What is known of a store, for a person.

    Raises:
        Unavailable: it is not the known one, or cannot be asked.
    """
    identity = require_known(item, authority)
    return f"its identity is {identity}" if identity else "the first start leaves its identity there"


def _examine_bus(exam: _Examination, wiring: Wiring, authority: Authority | None) -> None:
    exam.note("authorisation", f"auth_mode is {wiring.auth_mode}")
    stream = open_stream(wiring)
    if stream is not None:
        _examine_stream(exam, wiring, stream)
        return
    if authority is None:
        return
    with exam.trying("control bus"):
        root = AnchoredRoot(spool_root(wiring), state_modes(wiring))
        known = _known(named_spool(root), authority)
        spool = SpoolFiles(root)
        spool.open()
        spool_check.probe(spool)
        exam.note(
            "control bus",
            f"the spool {root.path} is writable, files can be renamed between its folders; {known}",
        )
        for name, why in spool_check.files_not_taken(spool).items():
            exam.note("requests that nobody takes", name, ok=False, remedy=why)


def _examine_modes(exam: _Examination, wiring: Wiring) -> None:
    """Whether others may look at the state of SR. What is there keeps its mode: an administrator may have meant it."""
    beyond = 0o777 & ~state_modes(wiring).folder
    wide = [path for path in _state_of(wiring) if os.path.exists(path) and os.stat(path).st_mode & beyond]
    if wide:
        exam.note(
            "private state", f"warning: state_mode is {wiring.state_mode}, and others may use {', '.join(wide)}; "
            f"unless that is meant: chmod {'o-rwx' if wiring.state_mode == 'group' else 'go-rwx'}",
        )  # fmt: skip
    else:
        exam.note("private state", f"state_mode is {wiring.state_mode}; nobody else may use what is there")


def _state_of(wiring: Wiring) -> list[str]:
    """Folders and files of the profile on this machine, but for the folder where producers drop requests."""
    found = []
    store = open_store(wiring)
    if os.path.isabs(store.where):
        found += [store.where, *(os.path.join(store.where, key) for key in (refs.PREFIX, refs.PRIVATE))]
    if open_stream(wiring) is None:
        paths = SpoolPaths(os.path.abspath(spool_root(wiring)))
        topic = os.path.join(paths.root, wiring.control_bus_topic)
        found += [paths.root, paths.consumed, paths.rejected, paths.private, topic]
    else:
        found.append(os.path.abspath(wiring.kinesis_state_dir))
    database = sqlite_path(wiring.authority_store_dsn)
    return found if database is None else [*found, database, f"{database}-wal", f"{database}-shm"]


def _examine_stream(exam: _Examination, wiring: Wiring, stream: Stream) -> None:
    with exam.trying("control bus"):
        fan_out = wiring.kinesis_enhanced_fan_out
        trials = try_stream(stream.client, stream.name, wiring.kinesis_application, fan_out=fan_out)
        readable = _all_allowed(exam, "the stream", trials)
        if readable:
            exam.note("control bus", f"the stream {stream.name} is {stream.check()}, {len(stream.shards())} shards")
    with exam.trying("leases"):
        tables = open_tables(wiring)
        if _all_allowed(exam, "the lease tables", try_tables(tables.client, tables.application)) and readable:
            state = check_leases(stream, tables)
            exam.note("leases", f"DynamoDB answers; {len(state.leases)} leases in table {tables.application}")
    if not (wiring.control_bus_endpoint_url or wiring.dynamodb_endpoint_url):  # an emulator is given no metrics
        with exam.trying("metrics"):
            client = client_of("cloudwatch", wiring.control_bus_region, None)
            _all_allowed(exam, "CloudWatch", try_metrics(client, wiring.kinesis_application))
    with exam.trying("KCL"):
        java, jars = find_java(os.environ), find_jars()
        exam.note("KCL", f"{java} runs the jars in {jars}")


def _examine_roots(exam: _Examination, wiring: Wiring) -> None:
    with exam.trying("engine roots"):
        if not wiring.engine_roots:
            exam.note(
                "engine roots", "engine_roots is empty: every request that names an engine run root will be refused",
                ok=False, remedy="list the folders that engine runs may lie under",
            )  # fmt: skip
        roots = allowed_roots(wiring)
        for root in roots:
            if root.startswith("s3://"):
                _examine_s3_root(exam, wiring, root)
            else:
                readable = os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK)
                exam.note(
                    "engine roots", root if readable else f"{root} is not a readable folder", ok=readable,
                    remedy="create it, or correct engine_roots",
                )  # fmt: skip


def _examine_s3_root(exam: _Examination, wiring: Wiring, root: str) -> None:
    with exam.trying("engine roots"):
        name, prefix = split_s3_uri(root)
        if _all_allowed(exam, root, try_bucket(S3Bucket(name, s3_settings(wiring)), prefix, None)):
            exam.note("engine roots", f"{root} can be listed")
