"""``submit --supersedes``: the run that a request corrects, as a person names it.

The module is imported for ``--help`` too: it loads little.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.ids import HEX32
from scenario_runner.contracts.supersession import Supersession

if TYPE_CHECKING:
    from scenario_runner.profiles.wiring import Wiring

_FLAGS: Final = {
    "supersedes_run_id": "--supersedes",
    "supersession_purpose": "--purpose",
    "supersession_reason_code": "--reason-code",
}


@dataclass(frozen=True, slots=True)
class CorrectionFlags:
    """The values of the flags, as they were typed; None for a flag that was not given."""

    supersedes: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="The run that this one corrects: an ended one; or its key.")
    ] = None
    purpose: Annotated[str | None, typer.Option(help="What the correction is for.")] = None
    reason_code: Annotated[str | None, typer.Option(help="The sender's own code for the correction.")] = None

    def check(self) -> None:
        """Refuse a part of a correction.

        Raises:
            UsageError: --supersedes and --purpose are not both given, or --reason-code is given alone.
        """
        if (self.supersedes is None) is not (self.purpose is None):
            raise UsageError("a correction needs both --supersedes and --purpose")
        if self.reason_code is not None and self.supersedes is None:
            raise UsageError("--reason-code is about a correction; give --supersedes and --purpose too")

    def supersession(self, wiring: "Wiring") -> Supersession | None:
        """What the flags ask for; None when none was given.

        Raises:
            UsageError: a value is not valid, or names more than one run.
            Unavailable: the authority does not answer, and the run is not named by its whole id.
        """
        if self.supersedes is None or self.purpose is None:
            return None
        from pydantic import ValidationError

        from scenario_runner.contracts.documents import SupersessionAttributes
        from scenario_runner.contracts.validation import explain_validation

        values = {"supersedes_run_id": _run_id(wiring, self.supersedes), "supersession_purpose": self.purpose}
        if self.reason_code is not None:
            values["supersession_reason_code"] = self.reason_code
        try:
            SupersessionAttributes.model_validate(values)
        except ValidationError as error:
            raise UsageError(explain_validation(error, names=_FLAGS)) from error
        return Supersession(values["supersedes_run_id"], self.purpose, self.reason_code or "")


def _run_id(wiring: "Wiring", text: str) -> str:
    """The id of a run. A producer may have no access to the authority: a whole id does without it."""
    if HEX32.fullmatch(text):
        return text
    from scenario_runner.cli.read_only import KeptAuthority
    from scenario_runner.cli.run_ids import checked_name, named_run

    with KeptAuthority(wiring) as authority:
        return named_run(authority.ask, checked_name(text))
