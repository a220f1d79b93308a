"""Reading a run_record back into the events that it was rendered from. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from scenario_runner.authority.values import StoredEvent
from scenario_runner.contracts.canonical import Json, parse_rendered, rendered_again
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.ids import event_id_of
from scenario_runner.contracts.states import FINAL_STATES, EventKind, RunState, require_path
from scenario_runner.contracts.times import canonical_micros

_STATES: Final = {state.value: state for state in RunState}
_ENDS_IN: Final[dict[str, RunState]] = {
    EventKind.RUN_READY: RunState.READY,
    EventKind.RUN_FAILED: RunState.FAILED,
    EventKind.RUN_QUARANTINED: RunState.QUARANTINED,
}
_KINDS: Final = {kind.value: kind.value for kind in EventKind}
_NAMES: Final = frozenset({"details", "event_id", "event_kind", "policy_rev", "run_id", "ts_utc"})
_FIRST: Final = (EventKind.RUN_ADMITTED, EventKind.PLAN_COMMITTED)


class DamagedRecordError(ValueError):
    """Bytes that are not a run_record of ours: cut off, with a gap, of another run, or impossible."""


class Record(NamedTuple):
    """What a run_record says.

    Attributes:
        details: Details of each event, as the record has them: canonical JSON.
        policy_rev: The policy revision that every line names.
    """

    events: tuple[StoredEvent, ...]
    details: tuple[bytes, ...]
    policy_rev: Json


def read_record(data: bytes, run_id: str) -> Record:
    """The events of a run_record.

    Every line is rendered again and must give the same bytes. So nothing of the record is left unread, and whatever
    is not as SR writes it is refused.

    Args:
        data: Its bytes.
        run_id: The run that it should be of.

    Raises:
        DamagedRecordError: says what is wrong with it.
    """
    if not data.endswith(b"\n"):
        raise DamagedRecordError("it is cut off: its last line has no end")
    events: list[StoredEvent] = []
    rendered: list[bytes] = []
    policy_rev: Json = {}
    for number, line in enumerate(data[:-1].split(b"\n"), 1):
        try:
            event, details, own_rev = _read_line(line, number, run_id)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise DamagedRecordError(f"line {number} is not an event of the run: {error}") from error
        if events and own_rev != policy_rev:
            raise DamagedRecordError(f"line {number} names another policy than the first one")
        policy_rev = own_rev
        events.append(event)
        rendered.append(details)
    found = tuple(events)
    _check_course(found)
    return Record(found, tuple(rendered), policy_rev)


def _read_line(data: bytes, number: int, run_id: str) -> tuple[StoredEvent, bytes, Json]:
    """An event whose line is that of :func:`~scenario_runner.ledger.documents.record_bytes`, byte for byte."""
    line: Any = parse_rendered(data)
    if line["run_id"] != run_id:
        raise ValueError(f"it is of run {line['run_id']!r}")
    details, at = line["details"], line["ts_utc"]
    if details["seq"] != number or type(details["seq"]) is not int:
        raise ValueError(f"its number is {details['seq']!r}: a line is missing, or was added")
    kind, policy_rev, event_id = _KINDS[line["event_kind"]], line["policy_rev"], event_id_of(run_id, number)
    if line.keys() != _NAMES or line["event_id"] != event_id or type(policy_rev) is not dict:
        raise ValueError("it holds more or less than an event, or the id of another one")
    ts_us, rendered = _micros_of(at), rendered_again(details)
    # Ids, kinds and times need no escapes: the line is put together from its parts, in the order of its names.
    rest = f'"event_id":"{event_id}","event_kind":"{kind}","policy_rev":'
    if b'{"details":%b,%b%b,"run_id":"%b","ts_utc":"%b"}' % (
        rendered, rest.encode(), rendered_again(policy_rev), run_id.encode(), at.encode(),
    ) != data:  # fmt: skip
        raise ValueError("its bytes are not those that SR writes for it")
    return StoredEvent(number, kind, ts_us, details), rendered, policy_rev


@lru_cache(maxsize=64)
def _micros_of(text: str) -> int:
    """A time as SR writes it; those of one transaction are equal."""
    return canonical_micros(text)


def _check_course(events: Sequence[StoredEvent]) -> None:
    """Require that a run can have gone this way: from its admission through legal states to at most one end."""
    if tuple(event.kind for event in events[: len(_FIRST)]) != _FIRST:
        raise DamagedRecordError("it does not begin with the admission of a run and its plan")
    times = [event.ts_us for event in events]
    if times != sorted(times):
        raise DamagedRecordError("its times go back")
    try:
        states = [_STATES[event.details["state"]] for event in events]
        require_path(states)
    except (KeyError, TypeError, ValueError, SequenceError) as error:
        raise DamagedRecordError(f"no run goes this way: {error}") from error
    endings = [_ENDS_IN[event.kind] for event in events if event.kind in _ENDS_IN]
    if endings != [states[-1]] * (states[-1] in FINAL_STATES):
        raise DamagedRecordError(f"its state is {states[-1]}, and it tells of these ends: {endings}")
