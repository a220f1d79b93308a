"""Observes a daemon: probes what it stands on, reads how much waits, and answers whether it is alive and ready.

One thread refreshes all of it every 15 seconds, more often until all probes pass, and only where something watches the
daemon. Requests are answered from what it found last: they cause no statement and no request to a store, however many
there are. Nothing of the daemon waits for this thread, and nothing that it finds is decided on.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from scenario_runner import __version__
from scenario_runner.authority.observed import MOST_COUNTED, Backlog
from scenario_runner.authority.scrubs import LAST_KEY, LastScrub, last_scrub
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.counters import OTHER
from scenario_runner.intake.base import IntakeLag
from scenario_runner.retry import RetryPolicy
from scenario_runner.service.compose import Daemon
from scenario_runner.service.heartbeats import Heartbeats, LoopState
from scenario_runner.service.metrics import MOST_SHARDS, Exposition

Json = dict[str, Any]
#: One read of the store, one question to the bus and one statement in this time cost nothing, and are recent enough for
#: a load balancer and for an alert.
_REFRESH_SECONDS: Final = 15.0
_UNTIL_READY: Final = RetryPolicy(first_seconds=1.0, most_seconds=5.0)
"""Until all probes pass: an orchestrator waits for READY. In a long outage 32 daemons ask six times a second; a stream
describes itself 20 times a second to a whole account."""
#: Three refreshes: a probe that is older hangs, so what it asked is not usable.
_MOST_AGE_SECONDS: Final = 3 * _REFRESH_SECONDS
_log = structlog.get_logger("service")


@dataclass(frozen=True, slots=True)
class Check:
    """What the last probe of one thing found.

    Attributes:
        problem: Why it is not usable; empty when it is.
        at: When the probe ended, in monotonic seconds.
        since: When a probe failed first, of those that have failed one after the other; ``at`` when this one passed.
    """

    problem: str
    at: float
    since: float

    def failing(self, now: float) -> tuple[str, float]:
        """Why the thing is not known to be usable, and for how many seconds; ``""`` when it is."""
        age = now - self.at
        if self.problem or age <= _MOST_AGE_SECONDS:
            return self.problem, now - self.since
        return f"the last probe is {age:.0f} s old", age


@dataclass(slots=True)
class _Found:
    """What the last refresh found."""

    checks: dict[str, Check] = field(default_factory=dict)
    backlog: dict[tuple[str, str], float] = field(default_factory=dict)
    lags: dict[tuple[str, str], float] = field(default_factory=dict)
    scrub: dict[tuple[str, str], float] = field(default_factory=dict)
    at: float | None = None


class Observer:
    """What is known of a running daemon.

    Args:
        daemon: The daemon.
        role: Its role, for the build information.
        heartbeats: Of its loops.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self, daemon: Daemon, role: str, heartbeats: Heartbeats, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._daemon, self._role, self._heartbeats, self._monotonic = daemon, role, heartbeats, monotonic
        self._found, self._store_identity = _Found(), ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="observer", daemon=True)
        self._exposition = Exposition({"version": __version__, "role": role}, heartbeats, self._gauges)

    def start(self) -> None:
        """Begin to refresh."""
        self._thread.start()

    def stop(self) -> None:
        """Refresh no more; a refresh in progress is not waited for."""
        self._stopped.set()

    # --- answers

    def health(self) -> tuple[bool, Json]:
        """Whether every loop makes progress, and the state of each."""
        loops = self._heartbeats.loops()
        stuck = [state.loop for state in loops if state.stuck]
        checks = {state.loop: _shown_loop(state) for state in loops}
        return not stuck, {"status": "stuck" if stuck else "ok", "stuck": stuck, "checks": checks}

    def readiness(self) -> tuple[bool, Json]:
        """Whether the daemon has started, is not draining, and store, authority and bus were usable a moment ago."""
        now, checks = self._monotonic(), self._found.checks
        shown = {name: _shown(checks.get(name), now) for name in self._probes()}
        draining, started = self._daemon.stopping.is_set(), self._daemon.started.is_set()
        ready = all(item["ok"] for item in shown.values()) and started and not draining
        # A start that fails ends the daemon: an answer that it is ready would have come too early.
        status = "draining" if draining else "ready" if ready else "not ready" if started else "starting"
        return ready, {"status": status, "draining": draining, "checks": shown}

    def is_alive(self) -> bool:
        """Whether every loop makes progress."""
        return self.health()[0]

    def is_ready(self) -> bool:
        """See :meth:`readiness`."""
        return self.readiness()[0]

    def is_stopping(self) -> bool:
        """Whether the daemon is draining."""
        return self._daemon.stopping.is_set()

    def status(self) -> str:
        """One line for a person."""
        stuck, readiness = self.health()[1]["stuck"], self.readiness()[1]
        missing = [name for name, check in readiness["checks"].items() if not check["ok"]]
        line = f"role {self._role}: {readiness['status']}" + (f" ({', '.join(missing)})" if missing else "")
        return f"{line}; stuck: {', '.join(stuck)}" if stuck else line

    def failing(self) -> dict[str, tuple[str, float]]:
        """What the daemon stands on and cannot use, by name: why, and for how many seconds. Nothing before a probe."""
        now = self._monotonic()
        states = {name: check.failing(now) for name, check in self._found.checks.items()}
        return {name: state for name, state in states.items() if state[0]}

    def gauges(self) -> Mapping[tuple[str, str], float]:
        """The values of all gauges."""
        return self._exposition.gauges()

    def metrics(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return self._exposition.text()

    def _gauges(self) -> Mapping[tuple[str, str], float]:
        found = self._found
        own = {("sr_ready", ""): float(self.readiness()[0])}
        if found.at is not None:
            own["sr_refresh_age_seconds", ""] = self._monotonic() - found.at
        return {**found.backlog, **found.lags, **found.scrub, **own}

    # --- refreshing

    def _probes(self) -> dict[str, Callable[[], object]]:
        return {"authority": self._read_backlog, "store": self._probe_store, "bus": self._daemon.relay.check_bus}

    def _refresh(self) -> None:
        failed = 0
        while not self._stopped.is_set():
            self.refresh()
            failed = failed + 1 if any(check.problem for check in self._found.checks.values()) else 0
            self._stopped.wait(_UNTIL_READY.pause_seconds(failed) if failed else _REFRESH_SECONDS)

    def refresh(self) -> None:
        """Probe and read everything once; whatever fails is what was found."""
        for name, probe in self._probes().items():
            problem = ""
            try:
                probe()
            except Unavailable as error:
                problem = error.detail
            except Exception as error:  # noqa: BLE001 - the daemon goes on, whatever a probe runs into
                problem = f"{type(error).__name__}: {error}"
            self._note(name, problem)
        try:
            self._found.scrub = self._scrub_gauges()
        except Exception as error:  # noqa: BLE001 - likewise
            self._found.scrub = {}
            _log.debug("how the last scrub ended is not known", detail=str(error))
        try:
            lags = self._daemon.intake.lags()
            self._found.lags = lag_gauges(lags)
            self._heartbeats.report_others(self._workers_of(lags))
        except Exception as error:  # noqa: BLE001 - likewise
            self._found.lags = {}
            self._heartbeats.report_others(())
            _log.debug("the lag of the intake is not known", detail=str(error))
        self._found.at = self._monotonic()

    def _scrub_gauges(self) -> dict[tuple[str, str], float]:
        return scrub_gauges(last_scrub(self._daemon.authority.acts([LAST_KEY]).get(LAST_KEY)))

    def _workers_of(self, lags: list[IntakeLag]) -> list[LoopState]:
        """The processes that read shards, as loops.

        One that is not at work has nothing to report while its stream does not answer: that is an outage and no defect.
        """
        outage = bool(self._found.checks["bus"].problem)
        return [
            LoopState(f"shard:{lag.shard}", 0.0 if outage and not lag.busy else lag.silent_seconds,
                      self._heartbeats.stuck_seconds)
            for lag in lags if lag.silent_seconds is not None
        ]  # fmt: skip

    def _note(self, name: str, problem: str) -> None:
        """Note what a probe found. Only its change is logged here; the minute log says each minute what lasts."""
        before, now = self._found.checks.get(name), self._monotonic()
        failed_since = before.since if before is not None and before.problem else None
        if problem and failed_since is None:
            _log.warning("a probe failed; the daemon is not ready", check=name, detail=problem, seconds=0)
        elif not problem and failed_since is not None:
            _log.info("a probe passes again", check=name, seconds=round(now - failed_since))
        since = failed_since if problem and failed_since is not None else now
        self._found.checks = {**self._found.checks, name: Check(problem, now, since)}

    def _probe_store(self) -> None:
        found = self._daemon.store.identity()
        # The store of the start was proven; what lies in its place later must be the same one.
        self._store_identity = self._store_identity or found
        if not found or found != self._store_identity:
            raise Unavailable(f"{self._daemon.store.where} is gone, or another store lies in its place")

    def _read_backlog(self) -> None:
        self._found.backlog = {}  # no value is better than an old one while the authority does not answer
        self._found.backlog = backlog_gauges(self._daemon.authority.backlog(MOST_COUNTED))


def _shown_loop(state: LoopState) -> Json:
    shown: Json = {
        "ok": not state.stuck, "seconds_since_progress": round(state.seconds, 1), "limit_seconds": state.limit_seconds,
    }  # fmt: skip
    return {**shown, "detail": state.detail} if state.detail else shown


def _shown(check: Check | None, now: float) -> Json:
    if check is None:
        return {"ok": False, "detail": "not probed yet"}
    detail, _ = check.failing(now)
    return {"ok": not detail, "age_seconds": round(now - check.at, 1), "detail": detail}


def backlog_gauges(backlog: Backlog) -> dict[tuple[str, str], float]:
    """The gauges that come from the authority."""

    def age(since_us: int | None) -> float:
        return 0.0 if since_us is None else max(0.0, (backlog.now_us - since_us) / MICROS)

    waiting = {("sr_runs_waiting_by_deadline", name): float(number) for name, number in backlog.waiting.items()}
    return {
        **waiting,
        ("sr_runs_waiting", ""): float(sum(backlog.waiting.values())),
        ("sr_quarantine_open", ""): float(backlog.quarantined),
        ("sr_dead_letters", ""): float(backlog.dead_letters),
        ("sr_oldest_due_run_age_seconds", ""): age(backlog.due_since_us),
        ("sr_outbox_depth", ""): float(backlog.unsent),
        ("sr_outbox_oldest_age_seconds", ""): age(backlog.unsent_since_us),
        ("sr_projections_owed", ""): float(backlog.unprojected),
        ("sr_projections_oldest_age_seconds", ""): age(backlog.unprojected_since_us),
        ("sr_daemons", ""): float(backlog.daemons),
    }


def scrub_gauges(last: LastScrub) -> dict[tuple[str, str], float]:
    """What the last scrub found, and when one ended that went over all READY runs."""
    return {
        ("sr_scrub_drifted_runs", ""): float(last.drifted),
        ("sr_scrub_last_end_timestamp_seconds", ""): last.ended_us / MICROS,
    }


def lag_gauges(lags: list[IntakeLag]) -> dict[tuple[str, str], float]:
    """The gauges of the intake, by shard; shards beyond the first ones are shown as the worst of them."""
    found: dict[tuple[str, str], float] = {}
    for number, lag in enumerate(sorted(lags, key=lambda lag: lag.shard)):
        shard = lag.shard if number < MOST_SHARDS else OTHER
        for name, seconds in (
            ("sr_intake_lag_seconds", lag.behind_seconds),
            ("sr_intake_oldest_record_age_seconds", lag.oldest_seconds),
            ("sr_intake_checkpoint_age_seconds", lag.checkpoint_seconds),
        ):
            found[name, shard] = max(found.get((name, shard), 0.0), seconds)
    return found
