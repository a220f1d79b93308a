"""``submit --policy``: what intake would refuse is not sent."""

from collections.abc import Callable

from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.intake.decode import Message
from scenario_runner.intake.validate import validate_message
from scenario_runner.profiles.wiring import Wiring

Check = Callable[[bytes], None]
"""Raises ``RequestRefused`` for an envelope that intake would refuse."""


def intake_check(wiring: Wiring, policy_path: str | None) -> Check:
    """The validation of intake, without the authority: it knows nothing of keys that are taken or of superseded runs.

    Args:
        wiring: The profile.
        policy_path: The policy profile of the daemon; None to check nothing.

    Raises:
        ConfigurationError: the policy profile or the interface pack is not valid.
    """
    if policy_path is None:
        return lambda _data: None
    from scenario_runner.profiles.policy import load_policy  # slow to import, and most submissions do without it
    from scenario_runner.service.compose import make_admission_policy, open_pack

    admission = make_admission_policy(wiring, load_policy(policy_path), open_pack(wiring))

    def check(data: bytes) -> None:
        found = validate_message(Message("submit", data, len(data)), admission)
        if found.run is None:
            raise RequestRefused(found.detail, Reason(found.reason_code or Reason.KIND_NOT_SERVED))

    return check
