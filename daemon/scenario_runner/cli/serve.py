"""``serve``: wire the daemon, answer signals, run the loops of a role."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Final

import structlog

from scenario_runner import posix
from scenario_runner.cli.console import Exit, exit_for_error, note
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable, UsageError, needs_posix
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import Daemon, wire_daemon
from scenario_runner.service.control_bus import state_modes
from scenario_runner.service.loops import Role, Supervisor
from scenario_runner.service.owner import recognises_the_dead
from scenario_runner.service.telemetry import end_process, set_up_logging

_SWITCH_INTERVAL_SECONDS = 0.001
_LAST_RESORT_SECONDS: Final = 30.0
"""How long after ``shutdown_seconds`` the process ends whatever still hangs: an orderly stop takes less."""
_log = structlog.get_logger("service")


def run_daemon(wiring_path: str, policy_path: str, role: str, log_level: str, *, until_idle: bool) -> None:
    """Run until stopped, or until idle. A defect of SR ends the process here (70).

    Raises:
        ConfigurationError: a profile, schema or pack is not valid.
        Unavailable: infrastructure does not answer at start-up, or what is owed could not be delivered.
    """
    if not posix.AVAILABLE:
        raise needs_posix("serve", "the daemon")
    if role not in set(Role):
        raise UsageError(f"--role {role!r} is not one of {', '.join(Role)}")
    if log_level not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level {log_level!r} is not one of debug, info, warning, error")
    set_up_logging(log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    wiring = load_wiring(wiring_path)
    os.umask(state_modes(wiring).umask)
    try:
        _serve(wire_daemon(wiring, load_policy(policy_path)), Role(role), until_idle=until_idle)
    except ScenarioRunnerError:
        raise
    except BaseException as error:  # noqa: BLE001 - threads may still run: nothing is left to chance
        end_process(Exit.DEFECT, error)


def _serve(daemon: Daemon, role: Role, *, until_idle: bool) -> None:
    if not recognises_the_dead():
        _log.warning("killed processes of this host cannot be recognised; their leases run out by themselves",
                     lease_seconds=daemon.wiring.lease_seconds)  # fmt: skip
    supervisor = Supervisor(daemon, role, until_idle=until_idle)
    threading.Thread(target=_end_what_hangs, args=(daemon, supervisor), name="last-resort", daemon=True).start()
    _answer_signals(daemon)
    if supervisor.run():
        _check_nothing_is_left(daemon, role)
    daemon.authority.close()


def _end_what_hangs(daemon: Daemon, supervisor: Supervisor) -> None:
    """End the process when a stop takes too long: leases of threads that hang are given up by the next start."""
    daemon.stopping.wait()
    time.sleep(daemon.wiring.shutdown_seconds + _LAST_RESORT_SECONDS)
    threads = sorted(thread.name for thread in threading.enumerate() if not thread.daemon)
    _log.critical("the stop takes too long; the process ends without what still hangs", threads=threads)
    end_process(exit_for_error(supervisor.failure) if supervisor.failure is not None else Exit.UNAVAILABLE)


def _check_nothing_is_left(daemon: Daemon, role: Role) -> None:
    """Idle is not done: what infrastructure kept from being done is left to the next start."""
    pending = daemon.authority.pending()
    if role in (Role.ALL, Role.RELAY) and pending.undelivered:
        raise Unavailable("documents or signals are still owed and could not be delivered; see the log, then run again")
    if role in (Role.ALL, Role.RUNNER) and pending.postponed:
        raise Unavailable("runs could not be driven to an end and are put off; see the log, then run again")


def _answer_signals(daemon: Daemon) -> None:
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            note("second signal: stopping at once; leases will be given up by the next start")
            end_process(128 + signal.SIGTERM)
        asked.set()
        daemon.stopping.set()
        note("stopping: what is in flight will finish; signal again to stop at once")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
