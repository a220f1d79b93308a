"""``serve``: wire the daemon, answer signals, run the loops of a role."""

import os
import signal
import sys
import threading
from types import FrameType

from scenario_runner.cli.output import note
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.control_bus import state_modes
from scenario_runner.service.loops import Role, Supervisor
from scenario_runner.service.telemetry import set_up_logging
from scenario_runner.service.wiring import Daemon, wire_daemon

_SWITCH_INTERVAL_SECONDS = 0.001


def run_daemon(wiring_path: str, policy_path: str, role: str, log_level: str, *, until_idle: bool) -> None:
    """Run until stopped, or until idle.

    Raises:
        ConfigurationError: a profile, schema or pack is not valid.
        Unavailable: infrastructure does not answer at start-up, or what is owed could not be delivered.
    """
    if role not in set(Role):
        raise UsageError(f"--role {role!r} is not one of {', '.join(Role)}")
    if log_level not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level {log_level!r} is not one of debug, info, warning, error")
    set_up_logging(log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    wiring = load_wiring(wiring_path)
    os.umask(state_modes(wiring).umask)
    daemon = wire_daemon(wiring, load_policy(policy_path))
    _answer_signals(daemon)
    idle = Supervisor(daemon, Role(role), until_idle=until_idle).run()
    if idle:
        _check_nothing_is_left(daemon, role)
    daemon.authority.close()


def _check_nothing_is_left(daemon: Daemon, role: str) -> None:
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
            os._exit(143)
        note("stopping: what is in flight will finish; signal again to stop at once")
        asked.set()
        daemon.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
