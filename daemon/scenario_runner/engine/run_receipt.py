"""The engine's own ``run_receipt.json``: parsed in one place, for a run that was reused and for one that was invoked.

On reuse the receipt's run id is the engine's and is not compared: many runs may refer to one engine run. An engine that
was invoked knows the run id, and must have written it.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import ValidationError

from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.documents import RunReceipt
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.validation import explain_validation

RUN_RECEIPT: Final = "run_receipt.json"
"""Its path, relative to the engine run root."""

RECEIPT_IDENTITY: Final = ("manifest_fingerprint", "parameter_hash", "seed")
"""What it must name of the run in every case."""


def parse_run_receipt(data: bytes) -> RunReceipt:
    """Parse a run receipt.

    Raises:
        EvidenceRefused: ``ENGINE_RECEIPT_INVALID``.
    """
    try:
        return RunReceipt.model_validate(parse_json(data))
    except ValidationError as error:
        raise _refused(f"the engine's run receipt is not valid: {explain_validation(error)}") from error
    except ValueError as error:
        raise _refused(f"the engine's run receipt is not well-formed JSON: {error}") from error


def require_identity(receipt: RunReceipt, identity: Mapping[str, str], keys: Iterable[str]) -> None:
    """Require that a receipt names this run.

    Args:
        receipt: The receipt.
        identity: The run's own values, as text.
        keys: Which of them to compare.

    Raises:
        EvidenceRefused: ``ENGINE_RECEIPT_MISMATCH``.
    """
    for key in keys:
        found = str(getattr(receipt, key))
        if found != identity[key]:
            raise EvidenceRefused(
                f"the engine's run receipt names another {key} than the request",
                Reason.ENGINE_RECEIPT_MISMATCH,
                path=RUN_RECEIPT,
                expected=identity[key],
                actual=found,
            )


def check_invoked_run(data: bytes | None, identity: Mapping[str, str]) -> None:
    """Check the receipt that an engine left which was invoked for this run and ended with exit status 0.

    Args:
        data: The bytes of the receipt; None when there is none.
        identity: ``run_id``, ``manifest_fingerprint``, ``parameter_hash`` and ``seed`` of the run, as text.

    Raises:
        EvidenceRefused: ``ENGINE_RECEIPT_MISSING``, ``ENGINE_RECEIPT_INVALID`` or ``ENGINE_RECEIPT_MISMATCH``.
    """
    if data is None:
        raise EvidenceRefused(
            f"the engine ended with exit status 0 and left no {RUN_RECEIPT}",
            Reason.ENGINE_RECEIPT_MISSING,
            path=RUN_RECEIPT,
        )
    require_identity(parse_run_receipt(data), identity, ("run_id", *RECEIPT_IDENTITY))


def _refused(detail: str) -> EvidenceRefused:
    return EvidenceRefused(detail, Reason.ENGINE_RECEIPT_INVALID, path=RUN_RECEIPT)
