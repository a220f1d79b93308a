"""Whoever watches a daemon: its listener for health and metrics, systemd, and the minute log."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog

from scenario_runner.profiles.values import listen_address
from scenario_runner.service.compose import Daemon
from scenario_runner.service.heartbeats import Heartbeats
from scenario_runner.service.listener import HealthListener, health_page, metrics_page
from scenario_runner.service.minute_log import MinuteLog
from scenario_runner.service.notify import Notifier
from scenario_runner.service.observer import Observer

_log = structlog.get_logger("service")


@contextmanager
def watched(daemon: Daemon, role: str, heartbeats: Heartbeats, notifier: Notifier) -> Iterator[None]:
    """Let a daemon be watched, where its profile or systemd asks for it, until its last loop has ended.

    Args:
        daemon: The daemon.
        role: Its role.
        heartbeats: Of its loops.
        notifier: Tells systemd.

    Raises:
        ConfigurationError: ``health_listen`` cannot be bound.
    """
    address = daemon.wiring.health_listen
    if address is None and not notifier.wanted:
        yield
        return
    observer = Observer(daemon, role, heartbeats)
    with ExitStack() as ending:
        if address is not None:
            listener = _listener(address, observer, f"profile {daemon.wiring.profile_id}")
            listener.start()
            ending.callback(listener.stop)
        observer.start()
        ending.callback(observer.stop)
        minute_log = MinuteLog(observer)
        minute_log.start()
        ending.callback(minute_log.stop)
        notifier.start(observer)
        ending.callback(notifier.end)
        yield


def _listener(address: str, observer: Observer, place: str) -> HealthListener:
    host, port = listen_address(address)
    pages = {
        "/healthz": health_page(observer.health),
        "/readyz": health_page(observer.readiness),
        "/metrics": metrics_page(observer.metrics),
    }
    listener = HealthListener(host, port, pages, place)
    observer.metrics()  # imports what makes the text: the first scrape must not wait for it
    _log.info("listening for health and metrics", host=host, port=listener.port)
    return listener
