"""Who may have a signal published again, and how often: from a request to the act that the authority does. Pure."""

from dataclasses import dataclass

from scenario_runner.authority.acts import ReemitAct, ReemitLimit
from scenario_runner.contracts.documents import ReemitRequest
from scenario_runner.contracts.states import ReemitKind

UNNAMED = "unnamed"
"""Actor of a request that names nobody."""


@dataclass(frozen=True, slots=True)
class ReemitPolicy:
    """What re-emits are checked against.

    Attributes:
        allowlist: Who may ask for them; None when everybody may.
        limit: How often one run's signal may be published again.
    """

    allowlist: frozenset[str] | None
    limit: ReemitLimit

    def denial(self, requested_by: str | None) -> str:
        """Why a caller may not do this; empty when it may."""
        if self.allowlist is None or requested_by in self.allowlist:
            return ""
        if not requested_by:
            return "the request names nobody in requested_by"
        return "requested_by is not on the profile's reemit_allowlist, or auth_allowlist where it has none"


def reemit_act(request: ReemitRequest, policy: ReemitPolicy, key: str, via: str) -> ReemitAct:
    """The act that a request asks for.

    Args:
        request: The request.
        policy: Who may, and how often.
        key: Identity of the act: of a record of the control bus its key.
        via: ``cli`` or ``bus``.
    """
    return ReemitAct(
        key=key, run_id=request.run_id, kind=ReemitKind(request.reemit_kind), actor=request.requested_by or UNNAMED,
        via=via, reason=request.reason or "", limit=policy.limit, dry_run=bool(request.dry_run),
        denied=policy.denial(request.requested_by),
    )  # fmt: skip
