"""The findings of ``doctor``: each is shown as soon as it is made, with its remedy, and who asked what where."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from scenario_runner.cli.console import Exit, print_line
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable, in_short
from scenario_runner.service.permissions import Access, Trial


@dataclass(frozen=True, slots=True)
class Asked:
    """Where a check asked, and as whom.

    Attributes:
        endpoint: A path, a server, or the name of a service of AWS; empty for a check of the profile alone.
        identity: The user or role whose permissions count there; empty where nobody can say.
    """

    endpoint: str = ""
    identity: str = ""


_NOWHERE = Asked()


class Report:
    """What was found, in order.

    Args:
        show: Called with each finding as soon as it is made: a command that is killed has shown what it knew.
    """

    def __init__(self, show: Callable[[Json], None]) -> None:
        self.findings: list[Json] = []
        self._show = show

    def add(
        self, check: str, detail: str, *, ok: bool = True, remedy: str = "", code: Exit = Exit.USAGE,
        asked: Asked = _NOWHERE,
    ) -> None:  # fmt: skip
        """Add a finding; ``remedy`` and ``code`` are about one that is not ok."""
        finding: Json = {"check": check, "ok": ok, "detail": detail}
        if not ok:
            finding |= {"remedy": remedy, "exit": int(code)}
        finding |= {"endpoint": asked.endpoint or None, "identity": asked.identity or None}
        self.findings.append(finding)
        self._show(finding)

    def fail(self, check: str, error: Exception, asked: Asked = _NOWHERE) -> Exit:
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
        self.add(check, detail, ok=False, remedy=remedy, code=code, asked=asked)
        return code

    def all_allowed(self, service: str, trials: Iterable[Trial]) -> bool:
        """Add what came of trials of permissions; false when one is missing."""
        found = list(trials)
        denied = [trial for trial in found if trial.access is Access.DENIED]
        for trial in denied:
            self.add(
                f"permission {trial.permission}",
                f"denied on {trial.resource}: {trial.why}",
                ok=False,
                remedy=trial.remedy,
            )
        allowed = sorted({trial.permission for trial in found if trial.access is Access.ALLOWED})
        untried = [f"{trial.permission} on {trial.resource} ({trial.why})" for trial in found
                   if trial.access is Access.NOT_TRIED]  # fmt: skip
        detail = f"allowed: {', '.join(allowed) or 'none'}" + (f"; not tried: {'; '.join(untried)}" if untried else "")
        self.add(f"permissions of {service}", detail)
        return not denied

    def examining(self, check: str, asked: Asked = _NOWHERE) -> "Examining":
        """A context in which an error becomes a finding under this name, and the examination goes on after it."""
        return Examining(self, check, asked)


class Examining:
    """See :meth:`Report.examining`.

    Attributes:
        code: Exit code of the error; None when there was none.
    """

    def __init__(self, report: Report, check: str, asked: Asked) -> None:
        self._report, self._check, self._asked = report, check, asked
        self.code: Exit | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.code = self._report.fail(self._check, error, self._asked)
        return True


def print_finding(finding: Json) -> None:
    """Print a finding on one line: mark, check, who asked where, what was found, its remedy."""
    remedy = f"; {finding['remedy']}" if finding.get("remedy") else ""
    asked = " at ".join(filter(None, (finding["identity"], finding["endpoint"])))
    place = f"[{asked}] " if asked else ""
    mark = "ok  " if finding["ok"] else "FAIL"
    print_line(f"{mark}  {finding['check']}: {place}{finding['detail']}{remedy}", flush=True)
