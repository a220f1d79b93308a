"""Supersession: a new run corrects one that has ended. What a request says of it, and what is published. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import RunState

#: The same bytes may keep their answer, so a request that is sent again has a request_id of its own.
_AGAIN: Final = "then redrive its dead letter, or send the request again with a new request_id"
#: Fields of :class:`~scenario_runner.contracts.documents.SupersessionAttributes`.
_ATTRIBUTES: Final = ("supersedes_run_id", "supersession_purpose", "supersession_reason_code")


@dataclass(frozen=True, slots=True)
class Supersession:
    """What a request says of the run that it corrects.

    Attributes:
        old_run_id: The run that is corrected.
        purpose: What the correction is for, in the sender's words.
        reason_code: The sender's own code; empty when there is none.
    """

    old_run_id: str
    purpose: str
    reason_code: str = ""

    def attributes(self) -> dict[str, str]:
        """Attributes of the envelope of a request."""
        found = {"supersedes_run_id": self.old_run_id, "supersession_purpose": self.purpose}
        return found | ({"supersession_reason_code": self.reason_code} if self.reason_code else {})

    def text(self) -> str:
        """The same as one text: two supersessions are equal when their texts are."""
        return canonical_bytes(self.attributes()).decode()

    def payload(self, new_run_id: str, old_state: RunState) -> Json:
        """Payload of RUN_SUPERSEDES, and the supersession object.

        It has all its fields, as the contract has it (section 6). The code is empty when the sender gives none, and so
        is the ref of a run that was not READY, which has no facts view.
        """
        return {
            "old_run_id": self.old_run_id, "new_run_id": new_run_id, "purpose": self.purpose,
            "reason_code": self.reason_code,
            "old_facts_view_ref": refs.facts_view_ref(self.old_run_id) if old_state is RunState.READY else "",
            "new_facts_view_ref": refs.facts_view_ref(new_run_id),
        }  # fmt: skip


def supersession_of(attributes: Mapping[str, Any]) -> Supersession | None:
    """The supersession that the attributes of an envelope ask for; None when they ask for none.

    Raises:
        RequestRefused: ``ENVELOPE_INVALID``: some of it is missing or malformed.
    """
    given = {name: attributes[name] for name in _ATTRIBUTES if name in attributes}
    if not given:
        return None
    # Slow to import: every look-up would wait for it.
    from pydantic import ValidationError  # noqa: PLC0415

    from scenario_runner.contracts.documents import SupersessionAttributes  # noqa: PLC0415
    from scenario_runner.contracts.validation import explain_validation  # noqa: PLC0415

    try:
        found = SupersessionAttributes.model_validate(given)
    except ValidationError as error:
        raise RequestRefused(f"envelope: attributes: {explain_validation(error)}", Reason.ENVELOPE_INVALID) from error
    return Supersession(found.supersedes_run_id, found.supersession_purpose, found.supersession_reason_code or "")


def supersession_from(text: str) -> Supersession | None:
    """From :meth:`Supersession.text`; None from an empty text."""
    return supersession_of(parse_json(text.encode())) if text else None


def refuse_itself(run_id: str, supersession: Supersession | None) -> None:
    """Refuse a run that would supersede itself.

    No longer circle is possible: a run that is superseded has ended, so it was admitted before the one that does it.

    Raises:
        RequestRefused: ``SUPERSESSION_CYCLE``.
    """
    if supersession is not None and supersession.old_run_id == run_id:
        raise RequestRefused(
            "the request supersedes its own run; a correction is a new run with a new run_equivalence_key",
            Reason.SUPERSESSION_CYCLE,
        )


def not_found(supersession: Supersession) -> tuple[Reason, str]:
    """Why a correction of a run that nobody knows is refused."""
    return Reason.SUPERSEDED_RUN_NOT_FOUND, (
        f"no run {supersession.old_run_id} is known, so none can be superseded; "
        f"if it was requested just now, wait for its READY or TERMINAL, {_AGAIN}"
    )


def not_ended(supersession: Supersession) -> tuple[Reason, str]:
    """Why a correction of a run that may still become READY is refused."""
    return Reason.SUPERSEDED_RUN_NOT_ENDED, (
        f"the run {supersession.old_run_id} has not ended; wait for its READY or TERMINAL, {_AGAIN}"
    )
