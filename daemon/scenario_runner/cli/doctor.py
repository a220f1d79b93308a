"""``doctor``: try everything that a profile names, one check after the other, and say what to do about failures."""

import os
import time
from collections.abc import Callable
from typing import Final

import typer

from scenario_runner import posix
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import connect_views, prove_server, sqlite_path
from scenario_runner.bus.spool import SpoolPaths
from scenario_runner.bus.stream import Stream
from scenario_runner.cli.console import Exit, exit_on_error, print_json
from scenario_runner.cli.doctor_callers import Callers
from scenario_runner.cli.doctor_engine import examine_engine
from scenario_runner.cli.doctor_health import examine_health
from scenario_runner.cli.doctor_report import Report, print_finding
from scenario_runner.cli.outputs.acting import DOCTOR
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.intake import spool_check
from scenario_runner.intake.evidence_queue import call_queue
from scenario_runner.intake.spool_files import SpoolFiles
from scenario_runner.kcl.config import find_jars, find_java
from scenario_runner.kcl.stream_identity import check_leases
from scenario_runner.profiles.policy import Policy, load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.compose import (
    allowed_roots,
    check_profile,
    open_authority,
    open_pack,
    open_schemas,
    open_store,
    prove_checksums,
    s3_settings,
)
from scenario_runner.service.control_bus import open_lease_table, open_stream, spool_root, state_modes
from scenario_runner.service.engine import subprocess_settings
from scenario_runner.service.evidence_events import open_queue_client
from scenario_runner.service.first_start import require_makeable
from scenario_runner.service.identity import NamedStore, named_spool, require_known
from scenario_runner.service.permissions import (
    try_bucket,
    try_metrics,
    try_queue,
    try_stream,
    try_tables,
)
from scenario_runner.service.production import require_class, warnings_of
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.aws import Credentials, foreign_variables
from scenario_runner.storage.boto import client_of
from scenario_runner.storage.identity import MARKER, AnotherStoreError
from scenario_runner.storage.s3_client import S3Bucket, split_s3_uri

_CLOCK_TOLERANCE_SECONDS: Final = 5
"""Lease times are the authority's, deadlines hours: seconds do no harm, and NTP keeps machines within milliseconds."""
_CLASSES: Final = {
    "production": "production: every key fits",
    "smoke": "smoke, which refuses nothing that is unfit for production",
}
_EARLIEST_SANE_CLOCK: Final = 1_735_689_600
"""2025-01-01, before this code was written: a clock before that was never set."""


def run(wiring_path: str, policy_path: str | None, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        findings = examine(wiring_path, policy_path, _ignore if as_json else print_finding)
    if as_json:
        print_json({"ok": all(item["ok"] for item in findings), "checks": findings}, DOCTOR)
    raise typer.Exit(max((item.get("exit", 0) for item in findings if not item["ok"]), default=Exit.DONE))


def _ignore(_finding: Json) -> None: ...


def examine(wiring_path: str, policy_path: str | None, show: Callable[[Json], None]) -> list[Json]:
    """Try everything that a profile names.

    Args:
        wiring_path: The wiring profile.
        policy_path: The policy profile, where one was given.
        show: Called with each finding as soon as it is made.

    Returns:
        Every check as ``{check, ok, detail}``, with ``remedy`` and ``exit`` where it failed.
    """
    report = Report(show)
    policy = None
    if policy_path is not None:
        with report.examining("policy profile"):
            policy = load_policy(policy_path)
            report.add("policy profile", f"{policy.policy_id} revision {policy.revision} is valid")
    with report.examining("wiring profile"):
        wiring = load_wiring(wiring_path)
        check_profile(wiring)
        report.add("wiring profile", f"{wiring.profile_id} is valid")
        with report.examining("profile class"):
            require_class(wiring)
            report.add("profile class", _CLASSES[wiring.profile_class])
        os.umask(state_modes(wiring).umask)
        _examine_aws(report, wiring)
        _examine_pack(report, wiring, policy)
        _examine_state(report, wiring, policy, Callers.of(report, wiring))
        _examine_roots(report, wiring)
        _examine_queue(report, wiring)
        examine_engine(report, wiring, policy)
        examine_health(report, wiring)
    return report.findings


def _examine_aws(report: Report, wiring: Wiring) -> None:
    """Report endpoints and credentials that are in effect, where they come from, and variables that are ignored."""
    if not wiring.uses_aws:
        return
    with report.examining("AWS"):
        ignored = foreign_variables(os.environ)
        report.add("AWS", f"credentials come from {Credentials().source}")
        if wiring.on_s3:
            report.add("AWS", f"S3: {_in_effect(wiring, 's3_endpoint_url', 's3_region')}")
        if wiring.bus_kind == "kinesis":
            report.add("AWS", f"Kinesis: {_in_effect(wiring, 'control_bus_endpoint_url', 'control_bus_region')}")
            at = wiring.dynamodb_endpoint_url
            key = (
                "kinesis_dynamodb_endpoint_url"
                if at == wiring.kinesis_dynamodb_endpoint_url
                else "control_bus_endpoint_url"
            )
            report.add("AWS", f"DynamoDB: {_in_effect(wiring, key, 'control_bus_region')}")
        if wiring.evidence_events_queue_url:
            report.add("AWS", f"SQS: {wiring.evidence_events_queue_url} (key evidence_events_queue_url)")
        if wiring.engine_backend == "ecs":
            report.add("AWS", f"ECS: {_in_effect(wiring, 'engine_ecs_endpoint_url', 'engine_ecs_region')}")
        if ignored:
            report.add("AWS", f"variables that SR does not honour and ignores: {', '.join(ignored)}")


def _in_effect(wiring: Wiring, endpoint_key: str, region_key: str) -> str:
    endpoint, region = getattr(wiring, endpoint_key), getattr(wiring, region_key)
    where = f"{endpoint} ({wiring.origin(endpoint_key)})" if endpoint else "the service of AWS"
    return where + (f", region {region} ({wiring.origin(region_key)})" if region else "")


def _examine_pack(report: Report, wiring: Wiring, policy: Policy | None) -> None:
    with report.examining("schemas"):
        ours = open_schemas(wiring).from_package
        more = f"; of the package: {', '.join(ours)}" if ours else ""
        report.add("schemas", f"{wiring.schema_root} and {wiring.engine_contracts_root} are complete{more}")
    with report.examining("interface pack"):
        pack = open_pack(wiring)
        report.add("interface pack", f"{len(pack.outputs)} outputs, {len(pack.gates)} gates, digest {pack.digest}")
        for text in warnings_of(wiring, pack, policy):
            report.add("examples", f"warning: {text}")
        unknown = [item for item in policy.traffic_output_ids if item not in pack.outputs] if policy else []
        if unknown:
            report.add(
                "policy and pack agree", f"the policy's traffic outputs {', '.join(unknown)} are not in the catalogue",
                ok=False, remedy="correct traffic_output_ids, or deploy the pack that has them",
            )  # fmt: skip


def _examine_state(report: Report, wiring: Wiring, policy: Policy | None, callers: Callers) -> None:
    """Examine the authority first: it alone knows which stores are ours, and nothing is written to another one."""
    authority: Authority | None = None
    with report.examining("authority", callers.authority) as connecting:
        if not _is_left_to_the_first_start(report, wiring, callers):
            authority = open_authority(wiring)  # its schema is that of this release, so nothing is made
    try:
        if connecting.code is not None:
            _leave_stores_alone(report, wiring, connecting.code)
        else:
            _examine_stores(report, wiring, policy, authority, callers)
    finally:
        if authority is not None:
            authority.close()
    if posix.AVAILABLE:
        with report.examining("private state"):
            _examine_modes(report, wiring)


def _is_left_to_the_first_start(report: Report, wiring: Wiring, callers: Callers) -> bool:
    """True, and a finding, where opening the authority would make a file or a schema.

    Raises:
        Unavailable: the authority does not answer, or cannot be made.
    """
    path = sqlite_path(wiring.authority_store_dsn)
    if path is not None and not os.path.lexists(path):
        require_makeable(path)
        detail = "is not there yet: the first start makes it"
    else:
        place = f"profile {wiring.profile_id}"
        views = connect_views(wiring.authority_store_dsn, place)
        views.close()
        if not views.outdated:
            return False
        prove_server(wiring.authority_store_dsn, place)
        detail = "reachable; the next start makes its schema, or brings it up to date"
    report.add("authority", detail, asked=callers.authority)
    sane = time.time() > _EARLIEST_SANE_CLOCK
    report.add("clock", "the clock of this host was set", ok=sane, remedy="set the clock")
    return True


def _examine_stores(
    report: Report, wiring: Wiring, policy: Policy | None, authority: Authority | None, callers: Callers
) -> None:
    if authority is not None:
        with report.examining("authority", callers.authority):
            _examine_authority(report, authority, callers)
    _examine_store(report, wiring, policy, authority, callers)
    _examine_bus(report, wiring, authority, callers)


def _examine_authority(report: Report, authority: Authority, callers: Callers) -> None:
    skew = abs(authority.now_us() / MICROS - time.time())
    report.add("authority", "reachable, its schema is up to date", asked=callers.authority)
    sane = skew <= _CLOCK_TOLERANCE_SECONDS and time.time() > _EARLIEST_SANE_CLOCK
    report.add(
        "clock", f"the authority's clock differs by {skew:.3f} s", ok=sane, remedy="synchronise the clocks"
    )  # fmt: skip


def _leave_stores_alone(report: Report, wiring: Wiring, code: Exit) -> None:
    """Say why no store is tried: without the authority nobody knows whether a store is the right one.

    Args:
        report: Receives the findings.
        wiring: The profile.
        code: Exit code of what is wrong with the authority: that is to be mended, so it decides.
    """
    for name in ("object store", *(["control bus"] if open_stream(wiring) is None else [])):
        report.add(
            name, f"nothing is written to the {name}: the authority, which knows whether it is the right one, does not "
            "answer", ok=False, remedy="see what is said about the authority, then run doctor again", code=code,
        )  # fmt: skip


def _examine_store(
    report: Report, wiring: Wiring, policy: Policy | None, authority: Authority | None, callers: Callers
) -> None:
    with report.examining("object store", callers.store):
        store = open_store(wiring)
        try:
            known = _known(NamedStore("object_store", store.where, store), authority)
        except AnotherStoreError:
            raise
        except Unavailable:
            if _allowed_on_bucket(report, wiring):
                raise
            return  # a permission that is denied says more
        if not _allowed_on_bucket(report, wiring):
            return
        if os.path.isabs(store.where) and not os.path.isdir(store.where):
            require_makeable(store.where)
            detail = f"{wiring.store_root} is not there yet: the first start makes it"
        elif store.examine():
            detail = f"{wiring.store_root} honours conditional creates; {known}"
        else:
            detail = f"{wiring.store_root} is there; the first start tries conditional creates; {known}"
        report.add("object store", detail, asked=callers.store)
        if policy is not None and policy.output_digest_source is DigestSource.S3_CHECKSUM:
            _examine_checksums(report, wiring, policy, callers)


def _examine_checksums(report: Report, wiring: Wiring, policy: Policy, callers: Callers) -> None:
    """Prove as a start does that checksums of S3 are true. This writes objects, which are there for nothing else."""
    with report.examining("checksums", callers.store):
        proved = prove_checksums(wiring, policy) is not None
        detail = "the store refuses wrong ones and reports true ones" if proved else "no engine root lies on S3"
        report.add("checksums", f"output_digest_source is s3_checksum: {detail}", asked=callers.store)


def _allowed_on_bucket(report: Report, wiring: Wiring) -> bool:
    """Whether SR has all permissions on the bucket of its object store; True where the store is a folder."""
    if not wiring.store_root.startswith("s3://"):
        return True
    name, prefix = split_s3_uri(wiring.store_root)
    marker = "/".join(filter(None, (prefix, refs.PRIVATE, MARKER)))
    return report.all_allowed("the object store", try_bucket(S3Bucket(name, s3_settings(wiring)), prefix, marker))


def _known(item: NamedStore, authority: Authority | None) -> str:
    """Require a store to be the known one, and describe its identity.

    Raises:
        Unavailable: it is not the known one, or cannot be asked.
    """
    identity = require_known(item, authority) if authority is not None else item.store.identity()
    return f"its identity is {identity}" if identity else "the first start leaves its identity there"


def _examine_bus(report: Report, wiring: Wiring, authority: Authority | None, callers: Callers) -> None:
    report.add("authorisation", f"auth_mode is {wiring.auth_mode}")
    stream = open_stream(wiring)
    if stream is not None:
        _examine_stream(report, wiring, stream, callers)
        return
    with report.examining("control bus", callers.bus):
        root = AnchoredRoot(spool_root(wiring), state_modes(wiring))
        known = _known(named_spool(root), authority)
        spool = SpoolFiles(root)
        missing = [path for path in spool.paths.folders() if not os.path.isdir(path)]
        for path in missing:
            require_makeable(path)
        if missing:
            report.add("control bus", f"the first start makes {', '.join(missing)}; {known}", asked=callers.bus)
            return
        spool_check.probe(spool)
        report.add(
            "control bus",
            f"the spool {root.path} is writable, files can be renamed between its folders; {known}", asked=callers.bus,
        )  # fmt: skip
        for name, why in spool_check.files_not_taken(spool).items():
            report.add("requests that nobody takes", name, ok=False, remedy=why)


def _examine_modes(report: Report, wiring: Wiring) -> None:
    """Warn about state that other users may read. Modes are left as they are: an administrator may have meant them."""
    beyond = 0o777 & ~state_modes(wiring).folder
    wide = [path for path in _state_of(wiring) if os.path.exists(path) and os.stat(path).st_mode & beyond]
    if wide:
        report.add(
            "private state", f"warning: state_mode is {wiring.state_mode}, and others may use {', '.join(wide)}; "
            f"unless that is meant: chmod {'o-rwx' if wiring.state_mode == 'group' else 'go-rwx'}",
        )  # fmt: skip
    else:
        report.add("private state", f"state_mode is {wiring.state_mode}; nobody else may use what is there")


def _state_of(wiring: Wiring) -> list[str]:
    """Folders and files of the profile on this machine, except the folder in which producers drop requests."""
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
    if wiring.engine_backend == "subprocess":
        found.append(subprocess_settings(wiring).folder)
    database = sqlite_path(wiring.authority_store_dsn)
    return found if database is None else [*found, database, f"{database}-wal", f"{database}-shm"]


def _examine_stream(report: Report, wiring: Wiring, stream: Stream, callers: Callers) -> None:
    readable = False
    with report.examining("control bus", callers.bus):
        fan_out = wiring.kinesis_enhanced_fan_out
        trials = try_stream(stream.client, stream.name, wiring.kinesis_application, fan_out=fan_out)
        readable = report.all_allowed("the stream", trials)
        if readable:
            detail = f"the stream {stream.name} is {stream.check()}, {len(stream.shards())} shards"
            report.add("control bus", detail, asked=callers.bus)
    with report.examining("leases"):
        table = open_lease_table(wiring)
        if report.all_allowed("the lease tables", try_tables(table.client, table.application)) and readable:
            state = check_leases(stream, table)
            report.add("leases", f"DynamoDB answers; {len(state.leases)} leases in table {table.application}")
    if not (wiring.control_bus_endpoint_url or wiring.dynamodb_endpoint_url):  # an emulator is given no metrics
        with report.examining("metrics"):
            client = client_of("cloudwatch", wiring.control_bus_region, None)
            report.all_allowed("CloudWatch", try_metrics(client, wiring.kinesis_application))
    with report.examining("KCL"):
        java, jars = find_java(os.environ), find_jars()
        report.add("KCL", f"{java} runs the jars in {jars}")


def _examine_roots(report: Report, wiring: Wiring) -> None:
    with report.examining("engine roots"):
        if not wiring.engine_roots:
            report.add(
                "engine roots", "engine_roots is empty: every request that names an engine run root will be refused",
                ok=False, remedy="list the folders that engine runs may lie under",
            )  # fmt: skip
        roots = allowed_roots(wiring)
        for root in roots:
            if root.startswith("s3://"):
                _examine_s3_root(report, wiring, root)
            else:
                readable = os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK)
                report.add(
                    "engine roots", root if readable else f"{root} is not a readable folder", ok=readable,
                    remedy="create it, or correct engine_roots",
                )  # fmt: skip


def _examine_s3_root(report: Report, wiring: Wiring, root: str) -> None:
    with report.examining("engine roots"):
        name, prefix = split_s3_uri(root)
        if report.all_allowed(root, try_bucket(S3Bucket(name, s3_settings(wiring)), prefix, None)):
            report.add("engine roots", f"{root} can be listed")


def _examine_queue(report: Report, wiring: Wiring) -> None:
    url = wiring.evidence_events_queue_url
    if url is None:
        return
    with report.examining("evidence events"):
        client = open_queue_client(wiring)
        if report.all_allowed("the queue", try_queue(client, url)):
            found = call_queue(client, url, "get_queue_attributes", AttributeNames=["QueueArn"])
            report.add("evidence events", f"the queue {found['Attributes']['QueueArn']} can be read")
