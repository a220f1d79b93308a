"""``doctor`` on ``health_listen``: whether a daemon answers there and what, or whether the address can be bound."""

from typing import Final

from scenario_runner.cli.console import Exit
from scenario_runner.cli.doctor_report import Asked, Report
from scenario_runner.cli.healthcheck import NO_ANSWER, ask, asked_at, in_words
from scenario_runner.profiles.values import listen_address
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.listener import require_bindable

_CHECK: Final = "health listener"


def examine_health(report: Report, wiring: Wiring) -> None:
    """Ask whoever listens at the profile's address; where nobody does, bind to it for a moment."""
    if wiring.health_listen is None:
        return
    host, port = listen_address(wiring.health_listen)
    asked = Asked(wiring.health_listen)
    with report.examining(_CHECK, asked):
        alive, health = ask(asked_at(host), port, "/healthz") if port else (False, NO_ANSWER)
        if health["status"] == NO_ANSWER["status"]:
            require_bindable(host, port, f"profile {wiring.profile_id}")
            report.add(_CHECK, "no daemon listens there now, and the address can be bound", asked=asked)
            return
        _, readiness = ask(asked_at(host), port, "/readyz")
        report.add(
            _CHECK, f"a daemon listens there: /healthz says {in_words(health)}; /readyz says {in_words(readiness)}",
            ok=alive, remedy="its log and `explain` of the run that is named say what it waits for; restart it",
            code=Exit.NEGATIVE, asked=asked,
        )  # fmt: skip
