"""``serve``: compose the daemon, answer signals, run the loops of a role."""

import gc
import os
import sys
from typing import Final

import structlog

from scenario_runner import posix
from scenario_runner.cli.console import Exit, exit_on_error
from scenario_runner.cli.stopping import stop_on_signals
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable, UsageError, needs_posix
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import Daemon, compose_daemon
from scenario_runner.service.control_bus import state_modes
from scenario_runner.service.loops import Role
from scenario_runner.service.notify import Notifier
from scenario_runner.service.owner import can_tell_dead_owners
from scenario_runner.service.production import warnings_of
from scenario_runner.service.span_export import traced
from scenario_runner.service.supervisor import Supervisor
from scenario_runner.service.telemetry import end_process, set_up_logging
from scenario_runner.service.watch import watched

_SWITCH_INTERVAL_SECONDS: Final = 0.001
"""How long a thread keeps the interpreter while others want it.

Most threads of the daemon wait for a disk, a database or a network and then need the interpreter for microseconds; with
the default of 5 ms each such wait is lengthened by what a busy thread keeps.
"""
_log = structlog.get_logger("service")


def run(wiring_path: str, policy_path: str, role: str, log_level: str, log_format: str, *, until_idle: bool) -> None:
    """The command."""
    with exit_on_error(as_json=False):
        run_daemon(wiring_path, policy_path, role, log_level, log_format, until_idle=until_idle)


def run_daemon(
    wiring_path: str, policy_path: str, role: str, log_level: str, log_format: str, *, until_idle: bool
) -> None:
    """Run until stopped, or until idle. A defect of SR ends the process here (70).

    Raises:
        ConfigurationError: a profile, schema or pack is not valid.
        Unavailable: infrastructure does not answer at start-up, or what is owed could not be delivered.
        UsageError: no such role or log level.
    """
    if not posix.AVAILABLE:
        raise needs_posix("serve", "the daemon")
    if role not in set(Role):
        raise UsageError(f"--role {role!r} is not one of {', '.join(Role)}")
    set_up_logging(log_level, log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    notifier = Notifier.taken_from(os.environ)  # before anything is started that would inherit it
    wiring = load_wiring(wiring_path)
    os.umask(state_modes(wiring).umask)
    try:
        with notifier.composing():
            daemon = compose_daemon(wiring, load_policy(policy_path))
        _serve(daemon, Role(role), notifier, until_idle=until_idle)
    except ScenarioRunnerError:
        raise
    except BaseException as error:  # noqa: BLE001 - a defect: threads may still run, and none may decide anything more
        end_process(Exit.DEFECT, error)


def _serve(daemon: Daemon, role: Role, notifier: Notifier, *, until_idle: bool) -> None:
    if not can_tell_dead_owners():
        _log.warning("killed processes of this host cannot be recognised; their leases run out by themselves",
                     lease_seconds=daemon.wiring.lease_seconds)  # fmt: skip
    for text in warnings_of(daemon.wiring, daemon.admission.pack, daemon.admission.policy):
        _log.warning("the profile is of the class production, and not all of it is", detail=text)
    supervisor = Supervisor(daemon, role, until_idle=until_idle)
    stop_on_signals(daemon, supervisor)
    gc.freeze()  # what was composed lives as long as the process; going through it takes 5 % of the CPU of small runs
    with traced(role.value, os.environ), watched(daemon, role.value, supervisor.heartbeats, notifier):
        became_idle = supervisor.run()
    if became_idle:
        _require_nothing_postponed(daemon, role)
    daemon.authority.close()


def _require_nothing_postponed(daemon: Daemon, role: Role) -> None:
    """Refuse to call an idle daemon done when infrastructure failures left work for the next start.

    Raises:
        Unavailable: runs, documents or signals are left that this role is to drive or deliver.
    """
    pending = daemon.authority.pending()
    if role in (Role.ALL, Role.RELAY) and pending.undelivered:
        raise Unavailable("documents or signals are still owed and could not be delivered; see the log, then run again")
    if role in (Role.ALL, Role.RUNNER) and pending.postponed:
        raise Unavailable("runs could not be driven to an end and are put off; see the log, then run again")
