"""Which run a person means: its id, the beginning of its id, its run equivalence key, or a message that is about it.

A key is taken whole, never by its beginning: a request that was just submitted may not be admitted yet, and another
run whose key only begins so must not answer for it.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.values import Candidate
from scenario_runner.contracts.errors import AmbiguousRunError, UsageError
from scenario_runner.contracts.ids import HEX32, HEX64, run_id_of
from scenario_runner.contracts.types import KEY_MAX_LENGTH, TEXT_PATTERN

T = TypeVar("T")
#: Runs that are listed when more than one is meant.
MOST_CANDIDATES: Final = 10
#: Characters of an id that a command takes which waits: its run may not be there yet, and its key may be of hex
#: characters too. Of a million runs one in four thousand texts of this length is the beginning of another run's id.
_LEAST_TO_WAIT_FOR: Final = 8
#: Characters of a name that a message quotes: a line of a terminal. A key may have 512.
_LONGEST_SHOWN: Final = 80
_BEGINNING: Final = re.compile(r"[0-9a-f]{1,31}")
_KEY: Final = re.compile(TEXT_PATTERN)


class Ask(Protocol):
    """Asks the views something; None when there is no authority yet."""

    def __call__(self, question: Callable[[Views], T], /) -> T | None:
        """The answer."""
        ...


def checked_name(text: str) -> str:
    """What may be the name of a run.

    Raises:
        UsageError: it is no id and no key.
    """
    if not text.strip() or len(text) > KEY_MAX_LENGTH or _KEY.fullmatch(text) is None:
        raise UsageError(
            f"{text[:_LONGEST_SHOWN]!r} names no run; give a run id (32 lowercase hex characters) or its beginning, a "
            "run equivalence key, or a message id"
        )
    return text


def named_run(ask: Ask, text: str, *, waits: bool = False) -> str:
    """The id of the run that a text names.

    Args:
        ask: Asks the views.
        text: See :func:`checked_name`.
        waits: The command waits for a run that may not be there yet: a short text is no beginning of an id.

    Returns:
        The id. Nothing is found for it when there is no such run: then it is that of the text as a key.

    Raises:
        AmbiguousRunError: more than one run id begins so.
        UsageError: it is no name of a run.
    """
    checked_name(text)
    if HEX32.fullmatch(text):
        return text
    run_id = run_id_of(text)
    if ask(lambda views: views.known(run_id)):
        return run_id
    if HEX64.fullmatch(text):
        return ask(lambda views: views.run_of_message(text)) or run_id
    if _BEGINNING.fullmatch(text) and not (waits and len(text) < _LEAST_TO_WAIT_FOR):
        return _begun(text, ask(lambda views: views.runs_with_id(text, MOST_CANDIDATES + 1)) or []) or run_id
    return run_id


def _begun(text: str, found: list[Candidate]) -> str:
    """The only candidate; empty when there is none."""
    if len(found) <= 1:
        return found[0].run_id if found else ""
    many = f"{MOST_CANDIDATES} or more" if len(found) > MOST_CANDIDATES else str(len(found))
    candidates = [
        {"run_id": item.run_id, "run_equivalence_key": item.run_equivalence_key[:_LONGEST_SHOWN]}
        for item in found[:MOST_CANDIDATES]
    ]
    raise AmbiguousRunError(f"{many} run ids begin with {text!r}; give more of it", candidates)
