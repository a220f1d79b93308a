"""``status``: the state of a run, of a refused request, or of a request that no daemon has taken yet."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import typer

from scenario_runner.audit.explain import REJECTED, status_of
from scenario_runner.authority.base import RunReader
from scenario_runner.cli.clock import Clock
from scenario_runner.cli.console import (
    exit_for_state,
    exit_on_error,
    log_to_stderr,
    print_fields,
    print_json,
    print_line,
)
from scenario_runner.cli.outputs.looking import STATUS
from scenario_runner.cli.outputs.shapes import Shape
from scenario_runner.cli.read_only import KeptAuthority
from scenario_runner.cli.run_ids import checked_name, named_run
from scenario_runner.cli.waiting import check_timeout, wait_for_verdict
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import FINAL_STATES
from scenario_runner.contracts.times import format_micros
from scenario_runner.profiles.wiring import Wiring, load_wiring

if TYPE_CHECKING:
    from scenario_runner.intake.submitted import Search

SUBMITTED: Final = "SUBMITTED"
"""State shown for a run id whose request lies on the control bus; no run exists yet."""
NOT_SEEN: Final = "NOT_SEEN"
"""State shown for a run id that the authority does not know, where the control bus cannot be searched."""

#: Keys that are quoted when none is what was given.
_SIMILAR: Final = 5

Describe = Callable[[RunReader, str], Json | None]
"""What an authority knows of a run id, with its ``state``; None when it knows nothing."""


_FIELDS: Final = (
    "run_id", "state", "reason_code", "sentence", "detail", "updated", "deadline", "due", "next_action",
    "infrastructure_retries", "last_infrastructure_error", "documents_owed", "reemits",
)  # fmt: skip


def run(wiring_path: str, run_id: str, *, wait: bool, timeout: float | None, local: bool, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json, logs=False):
        check_timeout(wait=wait, timeout=timeout)
        document = wait_for_run(wiring_path, run_id, timeout) if wait else find_run(wiring_path, run_id, status_of)
        print_status(document, STATUS, as_json=as_json, local=local)
    raise typer.Exit(exit_for_state(document["state"]))


def print_status(document: Json, shape: Shape, *, as_json: bool, local: bool = False) -> None:
    """Print where a run stands."""
    if as_json:
        print_json(document, shape)
        return
    clock = Clock(local=local)
    shown = clock.readable(document)
    if document["state"] in FINAL_STATES:
        shown.pop("deadline", None)  # it decides nothing any more
    for key in ("documents_owed", "reemits"):
        shown[key] = "; ".join(lines_of_owed({key: document.get(key)}, clock))
    print_fields(shown, _FIELDS)
    for line in lines_of_corrections(document):
        print_line(line)


def lines_of_corrections(document: Json) -> list[str]:
    """What a run corrects, and what corrects it."""
    lines = []
    if old := document.get("supersedes"):
        lines.append(
            f"supersedes {old['run_id']}: {old['purpose']}" + ("" if old["in_force"] else " (once it is READY)")
        )
    lines += [f"superseded by {new['run_id']}: {new['purpose']}" for new in document.get("superseded_by", [])]
    return lines


def lines_of_owed(document: Json, clock: Clock) -> list[str]:
    """What a run still owes: documents that could not be written, and signals that are to be published again."""
    lines = []
    if owed := document.get("documents_owed"):
        since = f" since {clock.moment(owed['since_utc'])}" if "since_utc" in owed else ""
        again = f"tried {owed['tries']} times{since}, again {clock.moment(owed['next_try'])}"
        lines.append(f"documents: {owed['error']} ({again}); {owed['next_action']}")
    if signals := document.get("reemits"):
        last = f", the last {clock.moment(signals['last_sent_at_utc'])}" if "last_sent_at_utc" in signals else ""
        lines.append(f"signal published again {signals['sent']} times{last}; {signals['owed']} still to be sent")
    return lines


def find_run(wiring_path: str, run_id: str, describe: Describe) -> Json:
    """What is known of a run, or that a request for it lies, or may lie, on the control bus.

    Args:
        wiring_path: The profile.
        run_id: The run, as a person names it; see :mod:`scenario_runner.cli.run_ids`.
        describe: Asks the authority.

    Raises:
        UsageError: no name of a run, the beginning of more than one id, or ``RUN_NOT_FOUND``.
    """
    wiring = load_wiring(wiring_path)
    with KeptAuthority(wiring) as authority:
        return RunSearch(wiring, authority, run_id, describe).find()


def wait_for_run(wiring_path: str, run_id: str, timeout: float | None) -> Json:
    """The status of a run once it has a verdict, or when the time is over; see :func:`wait_for_verdict`.

    Raises:
        UsageError: no name of a run, the beginning of more than one id, or ``RUN_NOT_FOUND``.
    """
    wiring = load_wiring(wiring_path)
    _search_of_spool()  # before it waits: a signal then comes after the first answer
    with KeptAuthority(wiring) as authority:
        return wait_for_verdict(RunSearch(wiring, authority, run_id, status_of, waits=True).find, timeout)


class RunSearch:
    """What is known of one run, for a command that asks once or again and again.

    The control bus is searched only when the authority answers something new: a search may read thousands of files.
    """

    def __init__(
        self, wiring: Wiring, authority: KeptAuthority, name: str, describe: Describe, *, waits: bool = False
    ) -> None:
        self._wiring, self._authority, self._describe, self._waits = wiring, authority, describe, waits
        self._name, self._run_id = checked_name(name), ""
        self._found: tuple[Json | None, Json] | None = None

    def find(self) -> Json:
        """What is known now; see :func:`find_run`."""
        # Once: a run that is admitted later does not change what was meant.
        self._run_id = self._run_id or named_run(self._authority.ask, self._name, waits=self._waits)
        known = self._known()
        if known is not None and known["state"] != REJECTED:
            return known
        if self._found is None or self._found[0] != known:
            self._found = (known, self._search(known))
        return self._found[1]

    def _known(self) -> Json | None:
        """What the authority knows of the run or its refused requests."""
        return self._authority.ask(lambda authority: self._describe(authority, self._run_id))

    def _search(self, known: Json | None) -> Json:
        on_bus = _on_bus(self._wiring, self._run_id, refused=known is not None)
        if on_bus is not None and on_bus["state"] == SUBMITTED:
            return on_bus
        # The daemon may have taken the request after the authority was asked and before the bus was searched.
        document = self._known() or on_bus
        if document is None:
            raise UsageError(
                f"no run and no refused request is known as {self._name!r}, and no request for it lies in the spool"
                f"{self._similar()}",
                Reason.RUN_NOT_FOUND,
            )
        return document

    def _similar(self) -> str:
        """Keys that begin with what was given, for a message."""
        found = self._authority.ask(lambda views: views.runs_with_key(self._name, _SIMILAR)) or []
        return f"; keys that begin so: {', '.join(item.run_equivalence_key for item in found)}" if found else ""


def _search_of_spool() -> tuple[Callable[[str, str, str], "Search"], Callable[[Wiring], str]]:
    """How a spool is found and searched. Slow to import, and most runs that are asked for are in the authority."""
    log_to_stderr()
    from scenario_runner.intake.submitted import find_submitted
    from scenario_runner.service.control_bus import spool_root

    return find_submitted, spool_root


def _on_bus(wiring: Wiring, run_id: str, *, refused: bool) -> Json | None:
    """A request that waits on the control bus; None when there is none, or when nobody can say and one was refused."""
    if wiring.bus_kind != "spool":
        return None if refused else _not_seen(run_id, "a stream cannot be searched for it; ask again in a while")
    find_submitted, spool_root = _search_of_spool()
    found = find_submitted(spool_root(wiring), wiring.control_bus_topic, run_id)
    if found.name:
        return {
            "run_id": run_id,
            "state": SUBMITTED,
            "detail": f"its request lies in the spool: {found.name}",
            "updated_at_utc": format_micros(found.dropped_us),
            "next_action": "wait: the daemon has not taken it yet; when it stays so, check that the daemon runs",
        }
    return None if found.complete or refused else _not_seen(run_id, found.detail)


def _not_seen(run_id: str, detail: str) -> Json:
    return {
        "run_id": run_id,
        "state": NOT_SEEN,
        "reason_code": Reason.RUN_NOT_SEEN.value,
        "sentence": SENTENCES[Reason.RUN_NOT_SEEN],
        "detail": detail,
    }
