"""Which engine a profile means: a command of this host, tasks of ECS, or none."""

import os
import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import ConfigurationError, RequestRefused
from scenario_runner.engine.command import (
    EngineCommand,
    check_allow_list,
    own_variables,
    parse_command,
    placeholder_values,
)
from scenario_runner.engine.ecs_calls import EcsCalls
from scenario_runner.engine.ecs_invoker import EcsInvoker, EcsSettings, overrides_of
from scenario_runner.engine.invocations import FileInvocations, Invocations
from scenario_runner.engine.invoker import EngineInvoker, Launch
from scenario_runner.engine.root_template import RootTemplate, parse_root_template
from scenario_runner.engine.subprocess_invoker import SubprocessInvoker, SubprocessSettings
from scenario_runner.intake.admission_policy import EngineTerms
from scenario_runner.intake.roots import normalise_root
from scenario_runner.ledger.invocations import ObjectInvocations
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.storage.base import ObjectStore
from scenario_runner.storage.boto import client_of

#: Leases are renewed three times in their length, so an engine outlives one renewal that fails, and begins to be ended
#: before the lease of its run has expired.
_RENEWED_SHARE: Final = 2 / 3
#: Ten seconds are enough to finish a file; half of a stop leaves the other half to those that have to be killed.
_MOST_GRACE_SECONDS: Final = 10.0
_SAMPLE_ID: Final = "0" * 32
_SAMPLE: Final = {
    "manifest_fingerprint": "0" * 64, "parameter_hash": "0" * 64, "seed": str(2**64 - 1), "scenario_id": "scenario",
    "run_id": _SAMPLE_ID,
}  # fmt: skip
"""Values to try a template with. Whatever real ones are, they hold no separator either."""


def _place(wiring: Wiring, key: str) -> str:
    return f"profile {wiring.profile_id}, key {key!r}"


def engine_terms(wiring: Wiring, roots: Sequence[str]) -> EngineTerms | None:
    """What admission needs to know of a profile's engine; None when none is configured.

    Args:
        wiring: The profile.
        roots: The allowed engine roots in their normal form.

    Raises:
        ConfigurationError: A key of the engine has no valid value.
    """
    if not wiring.engine_backend:
        return None
    ecs = wiring.engine_backend == "ecs"
    return EngineTerms(
        root_template=root_template(wiring, roots),
        check=partial(overrides_of, ecs_settings(wiring)) if ecs else _check_of(subprocess_settings(wiring).command),
        invocation_path=_invocation_path(wiring),
        timeout_seconds=wiring.engine_command_timeout_seconds,
    )


def _check_of(command: EngineCommand) -> Callable[[Launch], object]:
    return lambda launch: (command.render(placeholder_values(launch)), own_variables(launch))


def _invocation_path(wiring: Wiring) -> str:
    """Where an invocation document might lie: as long as the places that :func:`open_invocations` finds."""
    if wiring.engine_backend == "subprocess":
        return os.path.join(_attempts_folder(wiring), f"{_SAMPLE_ID}.json")
    root = wiring.store_root.removeprefix("file://")
    return posixpath.join(root if "://" in root else os.path.abspath(root), refs.engine_invocation_ref(_SAMPLE_ID))


def root_template(wiring: Wiring, roots: Sequence[str]) -> RootTemplate | None:
    """Where the runs of requests lie that name no root; None when they must name one.

    Raises:
        ConfigurationError: A placeholder is not known, or the root would not be allowed.
    """
    if wiring.engine_run_root_template is None:
        return None
    place = _place(wiring, "engine_run_root_template")
    template = parse_root_template(wiring.engine_run_root_template, place)
    try:
        normalise_root(template.render(_SAMPLE), roots, os.getcwd())
    except RequestRefused as refused:
        raise ConfigurationError(
            place, f"for a sample: {refused.detail}", "write a folder or prefix under one of engine_roots"
        ) from refused
    return template


def _command(wiring: Wiring) -> EngineCommand:
    return parse_command(
        wiring.engine_command, _place(wiring, "engine_command"), by_path_only=wiring.engine_backend == "ecs"
    )


def _attempts_folder(wiring: Wiring) -> str:
    return _folder(wiring, "engine_attempts_dir", wiring.engine_attempts_dir)


def _folder(wiring: Wiring, key: str, value: str) -> str:
    """The absolute path of a folder that a key names.

    Raises:
        ConfigurationError: It names something else.
    """
    path = value.removeprefix("file://")
    if "://" in path:
        raise ConfigurationError(_place(wiring, key), f"{path!r} is no folder of this machine", "name a folder")
    return os.path.abspath(path)


def subprocess_settings(wiring: Wiring) -> SubprocessSettings:
    """How engines are started on this host.

    Raises:
        ConfigurationError: A key has no valid value.
    """
    return SubprocessSettings(
        folder=_attempts_folder(wiring),
        command=_command(wiring),
        cwd=None
        if wiring.engine_command_cwd is None
        else _folder(wiring, "engine_command_cwd", wiring.engine_command_cwd),
        allow_list=check_allow_list(wiring.engine_env_allowlist, _place(wiring, "engine_env_allowlist")),
        grace_seconds=min(_MOST_GRACE_SECONDS, wiring.shutdown_seconds / 2),
        renew_seconds=wiring.lease_seconds * _RENEWED_SHARE,
    )


def ecs_settings(wiring: Wiring) -> EcsSettings:
    """How engines are run as tasks.

    Raises:
        ConfigurationError: A key has no valid value.
    """
    arguments: dict[str, Any] = {}
    if wiring.engine_ecs_launch_type is not None:
        arguments["launchType"] = wiring.engine_ecs_launch_type
    if wiring.engine_ecs_subnets:
        network: dict[str, Any] = {"subnets": wiring.engine_ecs_subnets}
        if wiring.engine_ecs_security_groups:
            network["securityGroups"] = wiring.engine_ecs_security_groups
        # Without it ECS decides by its own default, which is not the same for every launch type.
        network["assignPublicIp"] = "ENABLED" if wiring.engine_ecs_assign_public_ip else "DISABLED"
        arguments["networkConfiguration"] = {"awsvpcConfiguration": network}
    return EcsSettings(
        cluster=wiring.engine_ecs_cluster or "",
        task_definition=wiring.engine_ecs_task_definition or "",
        container=wiring.engine_ecs_container or "",
        command=_command(wiring),
        arguments=arguments,
    )


def open_ecs(wiring: Wiring) -> Any:  # noqa: ANN401 - boto3 has no types
    """A client of the ECS that a profile names.

    Raises:
        ConfigurationError: Boto3 is not installed.
        Unavailable: Nothing names credentials.
    """
    return client_of("ecs", wiring.engine_ecs_region, wiring.engine_ecs_endpoint_url, "engine_invoker 'ecs'")


def open_engine(wiring: Wiring) -> EngineInvoker | None:
    """The engine of a profile; None when none is configured.

    Raises:
        ConfigurationError: A key has no valid value, the folder of attempts cannot be used, this host cannot watch
            processes, or boto3 is not installed.
        Unavailable: Nothing names credentials.
    """
    if wiring.engine_backend == "ecs":
        settings = ecs_settings(wiring)
        return EcsInvoker(settings, EcsCalls(open_ecs(wiring), settings.cluster, settings.container))
    return SubprocessInvoker(subprocess_settings(wiring)) if wiring.engine_backend else None


def open_invocations(wiring: Wiring, store: ObjectStore) -> Invocations | None:
    """Where invocation documents are put for the engine of a profile; None when none is configured.

    Args:
        wiring: The profile.
        store: Its object store.
    """
    if wiring.engine_backend == "ecs":
        return ObjectInvocations(store)
    return FileInvocations(_attempts_folder(wiring)) if wiring.engine_backend else None
