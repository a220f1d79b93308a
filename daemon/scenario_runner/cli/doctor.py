"""``doctor``: try everything that a profile names, one check after the other, and say what to do about failures."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Final, Self

import typer

from scenario_runner import posix
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import sqlite_path
from scenario_runner.bus.spool import SpoolPaths
from scenario_runner.bus.stream import Stream, client_of
from scenario_runner.cli.console import Exit, exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.acting import DOCTOR
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
    open_authority,
    open_pack,
    open_schemas,
    open_store,
    s3_settings,
)
from scenario_runner.service.control_bus import open_lease_table, open_stream, spool_root, state_modes
from scenario_runner.service.engine import ecs_settings, open_ecs, open_engine, root_template, subprocess_settings
from scenario_runner.service.engine_checks import Check, check_cluster, check_command
from scenario_runner.service.identity import NamedStore, named_spool, require_known
from scenario_runner.service.permissions import (
    Access,
    Trial,
    try_bucket,
    try_cluster,
    try_metrics,
    try_stream,
    try_tables,
)
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.aws import Credentials, foreign_variables
from scenario_runner.storage.identity import AnotherStoreError
from scenario_runner.storage.s3_client import S3Bucket, split_s3_uri

_CLOCK_TOLERANCE_SECONDS: Final = 5
"""Lease times are the authority's, deadlines hours: seconds do no harm, and NTP keeps machines within milliseconds."""
_EARLIEST_SANE_CLOCK: Final = 1_735_689_600
"""2025-01-01, before this code was written: a clock before that was never set."""


class _Report:
    """What was found, in order.

    Args:
        show: Called with each finding as soon as it is made: a command that is killed has shown what it knew.
    """

    def __init__(self, show: Callable[[Json], None]) -> None:
        self.findings: list[Json] = []
        self._show = show

    def add(self, check: str, detail: str, *, ok: bool = True, remedy: str = "", code: Exit = Exit.USAGE) -> None:
        """Add a finding; ``remedy`` and ``code`` are about one that is not ok."""
        finding: Json = {"check": check, "ok": ok, "detail": detail}
        if not ok:
            finding |= {"remedy": remedy, "exit": int(code)}
        self.findings.append(finding)
        self._show(finding)

    def fail(self, check: str, error: Exception) -> Exit:
        """Add an error as a finding; returns its exit code."""
        code, detail, remedy = Exit.USAGE, in_short(error), ""
        if isinstance(error, ConfigurationError):
            detail, remedy = f"{error.place}: {error.problem}", error.remedy
        elif isinstance(error, Unavailable):
            code, detail, remedy = Exit.UNAVAILABLE, error.detail, "make it reachable, then run doctor again"
        elif isinstance(error, ScenarioRunnerError):
            detail, remedy = error.detail, error.sentence()
        else:  # a library's own
            code, remedy = Exit.DEFECT, "report this as a defect of SR"
            detail = f"{type(error).__name__}: {detail}"
        self.add(check, detail, ok=False, remedy=remedy, code=code)
        return code

    def examining(self, check: str) -> "_Examining":
        """A context in which an error becomes a finding under this name, and the examination goes on after it."""
        return _Examining(self, check)


class _Examining:
    """See :meth:`_Report.examining`.

    Attributes:
        code: Exit code of the error; None when there was none.
    """

    def __init__(self, report: _Report, check: str) -> None:
        self._report, self._check = report, check
        self.code: Exit | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.code = self._report.fail(self._check, error)
        return True


def run(wiring_path: str, policy_path: str | None, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        findings = examine(wiring_path, policy_path, _ignore if as_json else _print_finding)
    if as_json:
        print_json({"ok": all(item["ok"] for item in findings), "checks": findings}, DOCTOR)
    raise typer.Exit(max((item.get("exit", 0) for item in findings if not item["ok"]), default=Exit.DONE))


def _ignore(_finding: Json) -> None: ...


def _print_finding(finding: Json) -> None:
    remedy = f"; {finding['remedy']}" if finding.get("remedy") else ""
    print_line(f"{'ok  ' if finding['ok'] else 'FAIL'}  {finding['check']}: {finding['detail']}{remedy}", flush=True)


def examine(wiring_path: str, policy_path: str | None, show: Callable[[Json], None]) -> list[Json]:
    """Try everything that a profile names.

    Args:
        wiring_path: The wiring profile.
        policy_path: The policy profile, where one was given.
        show: Called with each finding as soon as it is made.

    Returns:
        Every check as ``{check, ok, detail}``, with ``remedy`` and ``exit`` where it failed.
    """
    report = _Report(show)
    policy = None
    if policy_path is not None:
        with report.examining("policy profile"):
            policy = load_policy(policy_path)
            report.add("policy profile", f"{policy.policy_id} revision {policy.revision} is valid")
    with report.examining("wiring profile"):
        wiring = load_wiring(wiring_path)
        check_profile(wiring)
        report.add("wiring profile", f"{wiring.profile_id} is valid")
        os.umask(state_modes(wiring).umask)
        _examine_aws(report, wiring)
        _examine_pack(report, wiring, policy)
        _examine_state(report, wiring)
        _examine_roots(report, wiring)
        _examine_engine(report, wiring, policy)
    return report.findings


def _examine_aws(report: _Report, wiring: Wiring) -> None:
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
        if wiring.engine_backend == "ecs":
            report.add("AWS", f"ECS: {_in_effect(wiring, 'engine_ecs_endpoint_url', 'engine_ecs_region')}")
        if ignored:
            report.add("AWS", f"variables that SR does not honour and ignores: {', '.join(ignored)}")


def _in_effect(wiring: Wiring, endpoint_key: str, region_key: str) -> str:
    endpoint, region = getattr(wiring, endpoint_key), getattr(wiring, region_key)
    where = f"{endpoint} ({wiring.origin(endpoint_key)})" if endpoint else "the service of AWS"
    return where + (f", region {region} ({wiring.origin(region_key)})" if region else "")


def _examine_pack(report: _Report, wiring: Wiring, policy: Policy | None) -> None:
    with report.examining("schemas"):
        ours = open_schemas(wiring).from_package
        more = f"; of the package: {', '.join(ours)}" if ours else ""
        report.add("schemas", f"{wiring.schema_root} and {wiring.engine_contracts_root} are complete{more}")
    with report.examining("interface pack"):
        pack = open_pack(wiring)
        report.add("interface pack", f"{len(pack.outputs)} outputs, {len(pack.gates)} gates, digest {pack.digest}")
        unknown = [item for item in policy.traffic_output_ids if item not in pack.outputs] if policy else []
        if unknown:
            report.add(
                "policy and pack agree", f"the policy's traffic outputs {', '.join(unknown)} are not in the catalogue",
                ok=False, remedy="correct traffic_output_ids, or deploy the pack that has them",
            )  # fmt: skip


def _all_allowed(report: _Report, service: str, trials: Iterable[Trial]) -> bool:
    """Report trials; False when a permission is missing."""
    found = list(trials)
    denied = [trial for trial in found if trial.access is Access.DENIED]
    for trial in denied:
        report.add(
            f"permission {trial.permission}", f"denied on {trial.resource}: {trial.why}", ok=False, remedy=trial.remedy
        )
    allowed = sorted({trial.permission for trial in found if trial.access is Access.ALLOWED})
    untried = [f"{trial.permission} on {trial.resource} ({trial.why})" for trial in found
               if trial.access is Access.NOT_TRIED]  # fmt: skip
    detail = f"allowed: {', '.join(allowed) or 'none'}" + (f"; not tried: {'; '.join(untried)}" if untried else "")
    report.add(f"permissions of {service}", detail)
    return not denied


def _examine_state(report: _Report, wiring: Wiring) -> None:
    """Examine the authority first: it alone knows which stores are ours, and nothing is written to another one."""
    authority: Authority | None = None
    with report.examining("authority") as connecting:
        authority = open_authority(wiring)
    try:
        if authority is None:
            _leave_stores_alone(report, wiring, connecting.code or Exit.UNAVAILABLE)
        else:
            with report.examining("authority"):
                _examine_authority(report, authority)
            _examine_store(report, wiring, authority)
        _examine_bus(report, wiring, authority)
    finally:
        if authority is not None:
            authority.close()
    if posix.AVAILABLE:
        with report.examining("private state"):
            _examine_modes(report, wiring)


def _examine_authority(report: _Report, authority: Authority) -> None:
    skew = abs(authority.now_us() / MICROS - time.time())
    report.add("authority", "reachable, its schema is up to date")
    sane = skew <= _CLOCK_TOLERANCE_SECONDS and time.time() > _EARLIEST_SANE_CLOCK
    report.add(
        "clock", f"the authority's clock differs by {skew:.3f} s", ok=sane, remedy="synchronise the clocks"
    )  # fmt: skip


def _leave_stores_alone(report: _Report, wiring: Wiring, code: Exit) -> None:
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


def _examine_store(report: _Report, wiring: Wiring, authority: Authority) -> None:
    with report.examining("object store"):
        store = open_store(wiring)
        try:
            known = _known(NamedStore("object_store", store.where, store), authority)
        except AnotherStoreError:
            raise
        except Unavailable:
            if _allowed_on_bucket(report, wiring):
                raise
            return  # a permission that is denied says more
        if _allowed_on_bucket(report, wiring):
            store.probe()
            report.add("object store", f"{wiring.store_root} honours conditional creates; {known}")


def _allowed_on_bucket(report: _Report, wiring: Wiring) -> bool:
    """Whether SR has all permissions on the bucket of its object store; True where the store is a folder."""
    if not wiring.store_root.startswith("s3://"):
        return True
    name, prefix = split_s3_uri(wiring.store_root)
    probe = "/".join(filter(None, (prefix, refs.PRIVATE, "probe-000")))
    return _all_allowed(report, "the object store", try_bucket(S3Bucket(name, s3_settings(wiring)), prefix, probe))


def _known(item: NamedStore, authority: Authority) -> str:
    """Require a store to be the known one, and describe its identity.

    Raises:
        Unavailable: it is not the known one, or cannot be asked.
    """
    identity = require_known(item, authority)
    return f"its identity is {identity}" if identity else "the first start leaves its identity there"


def _examine_bus(report: _Report, wiring: Wiring, authority: Authority | None) -> None:
    report.add("authorisation", f"auth_mode is {wiring.auth_mode}")
    stream = open_stream(wiring)
    if stream is not None:
        _examine_stream(report, wiring, stream)
        return
    if authority is None:
        return
    with report.examining("control bus"):
        root = AnchoredRoot(spool_root(wiring), state_modes(wiring))
        known = _known(named_spool(root), authority)
        spool = SpoolFiles(root)
        spool.open()
        spool_check.probe(spool)
        report.add(
            "control bus",
            f"the spool {root.path} is writable, files can be renamed between its folders; {known}",
        )
        for name, why in spool_check.files_not_taken(spool).items():
            report.add("requests that nobody takes", name, ok=False, remedy=why)


def _examine_modes(report: _Report, wiring: Wiring) -> None:
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


def _examine_stream(report: _Report, wiring: Wiring, stream: Stream) -> None:
    readable = False
    with report.examining("control bus"):
        fan_out = wiring.kinesis_enhanced_fan_out
        trials = try_stream(stream.client, stream.name, wiring.kinesis_application, fan_out=fan_out)
        readable = _all_allowed(report, "the stream", trials)
        if readable:
            report.add("control bus", f"the stream {stream.name} is {stream.check()}, {len(stream.shards())} shards")
    with report.examining("leases"):
        table = open_lease_table(wiring)
        if _all_allowed(report, "the lease tables", try_tables(table.client, table.application)) and readable:
            state = check_leases(stream, table)
            report.add("leases", f"DynamoDB answers; {len(state.leases)} leases in table {table.application}")
    if not (wiring.control_bus_endpoint_url or wiring.dynamodb_endpoint_url):  # an emulator is given no metrics
        with report.examining("metrics"):
            client = client_of("cloudwatch", wiring.control_bus_region, None)
            _all_allowed(report, "CloudWatch", try_metrics(client, wiring.kinesis_application))
    with report.examining("KCL"):
        java, jars = find_java(os.environ), find_jars()
        report.add("KCL", f"{java} runs the jars in {jars}")


def _examine_roots(report: _Report, wiring: Wiring) -> None:
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


def _examine_s3_root(report: _Report, wiring: Wiring, root: str) -> None:
    with report.examining("engine roots"):
        name, prefix = split_s3_uri(root)
        if _all_allowed(report, root, try_bucket(S3Bucket(name, s3_settings(wiring)), prefix, None)):
            report.add("engine roots", f"{root} can be listed")


def _examine_engine(report: _Report, wiring: Wiring, policy: Policy | None) -> None:
    """Examine the engine without launching it."""
    if not wiring.engine_backend:
        report.add("engine", "none is configured: requests that need one are refused")
        return
    with report.examining("engine"):
        engine = open_engine(wiring)  # also makes the folder of attempts
        if engine is not None:
            engine.close()
        report.add("engine", _when_invoked(wiring, policy))
    with report.examining("engine"):
        if wiring.engine_backend == "subprocess":
            _add_all(report, check_command(wiring, os.environ))
            return
        client, settings = open_ecs(wiring), ecs_settings(wiring)
        if _all_allowed(report, "ECS", try_cluster(client, settings.cluster, settings.task_definition)):
            _add_all(report, check_cluster(wiring, client))


def _when_invoked(wiring: Wiring, policy: Policy | None) -> str:
    template = root_template(wiring, allowed_roots(wiring))
    when = (
        f"; AUTO invokes it {policy.auto_invoke.replace('_', ' ')}, {policy.attempt_limit} attempts" if policy else ""
    )
    found = f"{wiring.engine_backend}{when}; a launch that fails is tried again {wiring.engine_launch_retries} times; "
    if template is None:
        return found + "requests without a root are refused: there is no engine_run_root_template"
    shared = "" if template.is_of_one_run else ", which runs of the same values share"
    return f"{found}runs of requests without a root lie in {wiring.engine_run_root_template}{shared}"


def _add_all(report: _Report, checks: Iterable[Check]) -> None:
    for check in checks:
        report.add("engine", check.detail, ok=check.ok, remedy=check.remedy)
