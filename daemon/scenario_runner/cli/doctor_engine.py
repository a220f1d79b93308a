"""The engine of a profile, for ``doctor``: found and described, and never launched."""

import os
from collections.abc import Iterable

from scenario_runner.cli.doctor_report import Report
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.compose import allowed_roots
from scenario_runner.service.engine import ecs_settings, open_ecs, open_engine, root_template, subprocess_settings
from scenario_runner.service.engine_checks import Check, check_cluster, check_command
from scenario_runner.service.first_start import require_makeable
from scenario_runner.service.permissions import try_cluster


def examine_engine(report: Report, wiring: Wiring, policy: Policy | None) -> None:
    """Examine the engine without launching it."""
    if not wiring.engine_backend:
        report.add("engine", "none is configured: requests that need one are refused")
        return
    with report.examining("engine"):
        left = _attempts_left_to_the_first_start(wiring)
        engine = None if left else open_engine(wiring)
        if engine is not None:
            engine.close()
        report.add("engine", _when_invoked(wiring, policy) + (f"; the first start makes {left}" if left else ""))
    with report.examining("engine"):
        if wiring.engine_backend == "subprocess":
            _add_all(report, check_command(wiring, os.environ))
            return
        client, settings = open_ecs(wiring), ecs_settings(wiring)
        if report.all_allowed("ECS", try_cluster(client, settings.cluster, settings.task_definition)):
            _add_all(report, check_cluster(wiring, client))


def _attempts_left_to_the_first_start(wiring: Wiring) -> str:
    """The folder of attempts where opening the engine would make it; empty when it is there, or cannot be made."""
    if wiring.engine_backend != "subprocess":
        return ""
    folder = subprocess_settings(wiring).folder
    if os.path.lexists(folder):
        return ""
    try:
        require_makeable(folder)
    except Unavailable:
        return ""  # opening the engine then says why, and makes nothing
    return folder


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


def _add_all(report: Report, checks: Iterable[Check]) -> None:
    for check in checks:
        report.add("engine", check.detail, ok=check.ok, remedy=check.remedy)
