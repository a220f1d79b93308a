"""What can be found out about the engine of a profile without launching it."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.engine import ecs_settings, subprocess_settings
from scenario_runner.service.permissions import Access, attempt

_AWSVPC: Final = "awsvpc"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``remedy`` is about one that is not ok."""

    detail: str
    ok: bool = True
    remedy: str = ""


def check_command(wiring: Wiring, env: Mapping[str, str]) -> Iterator[Check]:
    """Look for what a command of this host needs.

    Args:
        wiring: A profile whose engine is a subprocess.
        env: Environment of the daemon.
    """
    settings = subprocess_settings(wiring)
    cwd_is_there = settings.cwd is None or (os.path.isdir(settings.cwd) and os.access(settings.cwd, os.X_OK))
    if not cwd_is_there:
        yield Check(
            f"engine_command_cwd: {settings.cwd} is no folder that the daemon can enter", ok=False,
            remedy="make it, or correct engine_command_cwd",
        )  # fmt: skip
    # The engine's own PATH counts, as its keeper looks for the program; without one the system's default does.
    path = env.get("PATH", os.defpath) if "PATH" in settings.allow_list else os.defpath
    program = wiring.engine_command[0]
    found = shutil.which(os.path.join(settings.cwd or "", program) if "/" in program else program, path=path)
    if found is None and (cwd_is_there or "/" not in program):
        where = "" if "/" in program else f" in {path}"
        yield Check(
            f"engine_command: {program} is no program that the daemon can execute{where}", ok=False,
            remedy="write its whole path, or have engine_env_allowlist name PATH, or correct its mode",
        )  # fmt: skip
    elif found is not None:
        yield Check(f"engine_command runs {found}, for {wiring.engine_command_timeout_seconds} s at most")
    unset = [name for name in settings.allow_list if name not in env]
    if unset:
        yield Check(f"warning: variables of engine_env_allowlist that are not set: {', '.join(unset)}")


def check_cluster(wiring: Wiring, client: Any) -> Iterator[Check]:  # noqa: ANN401 - boto3 has no types
    """Look at the cluster and the task definition. The daemon itself asks for neither, so a denial is no failure.

    Args:
        wiring: A profile whose engine is a task of ECS.
        client: boto3's client of ECS.
    """
    settings = ecs_settings(wiring)
    cluster, definition = settings.cluster, settings.task_definition
    answer = _ask("ecs:DescribeClusters", f"the cluster {cluster}", client.describe_clusters, clusters=[cluster])
    if isinstance(answer, Check):
        yield answer
    else:
        states = [str(item.get("status")) for item in answer.get("clusters", ())]
        yield Check(
            f"the cluster {cluster} is {states[0] if states else 'not there'}", ok=states == ["ACTIVE"],
            remedy="correct engine_ecs_cluster, engine_ecs_region or the endpoint",
        )  # fmt: skip
    answer = _ask(
        "ecs:DescribeTaskDefinition", f"the task definition {definition}", client.describe_task_definition,
        taskDefinition=definition,
    )  # fmt: skip
    if isinstance(answer, Check):
        yield answer
    else:
        yield from _check_definition(wiring, answer.get("taskDefinition", {}))


def _ask(permission: str, what: str, call: Callable[..., Any], **arguments: Any) -> Any:  # noqa: ANN401 - boto3
    """The answer of ECS, or a finding that says why there is none.

    Raises:
        Unavailable: ECS does not answer at all.
    """
    answers: list[Any] = []
    trial = attempt(permission, what, lambda: answers.append(call(**arguments)))
    if trial.access is Access.DENIED:
        return Check(f"{what} is not looked at: {permission} is denied, which the daemon does not need")
    if trial.access is Access.NOT_TRIED:
        return Check(f"{what}: {trial.why}", ok=False, remedy="correct the keys engine_ecs_* of the profile")
    return answers[0]


def _check_definition(wiring: Wiring, definition: Mapping[str, Any]) -> Iterator[Check]:
    name = f"the task definition {wiring.engine_ecs_task_definition}"
    status = str(definition.get("status"))
    containers = [str(item.get("name")) for item in definition.get("containerDefinitions", ())]
    has_network, needs_network = bool(wiring.engine_ecs_subnets), definition.get("networkMode") == _AWSVPC
    yield Check(f"{name} is {status}", ok=status == "ACTIVE", remedy="name a revision that is in use")
    if wiring.engine_ecs_container not in containers:
        yield Check(
            f"{name} has no container {wiring.engine_ecs_container}, it has {', '.join(containers) or 'none'}",
            ok=False, remedy="correct engine_ecs_container",
        )  # fmt: skip
    if has_network != needs_network:
        yield Check(
            f"{name} has the network mode {definition.get('networkMode')}, and engine_ecs_subnets is "
            f"{'set' if has_network else 'not set'}", ok=False,
            remedy=f"set engine_ecs_subnets exactly where the network mode is {_AWSVPC}",
        )  # fmt: skip
