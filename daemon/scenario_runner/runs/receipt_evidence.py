"""The engine's own ``run_receipt.json``: where it is there, it must be about the run that is asked for.

Its run id is the engine's and is not compared: many runs may refer to one engine run.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from scenario_runner.artifacts.base import MAX_FLAG_BYTES, Kind, RunRoot
from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.documents import RunReceipt, explain_validation
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.reasons import Reason

RUN_RECEIPT: Final = "run_receipt.json"
RECEIPT_IDENTITY: Final = ("manifest_fingerprint", "parameter_hash", "seed")


def check_run_receipt(root: RunRoot, tokens: Mapping[str, str]) -> None:
    """Check the run receipt at an engine run root, if there is one.

    Args:
        root: The engine run root, opened.
        tokens: Identity of the run.

    Raises:
        EvidenceRefused: ``ENGINE_RECEIPT_INVALID`` or ``ENGINE_RECEIPT_MISMATCH``; not a regular file; too large.
    """
    if root.kind(RUN_RECEIPT) is Kind.ABSENT:
        return
    try:
        receipt = RunReceipt.model_validate(parse_json(root.read(RUN_RECEIPT, MAX_FLAG_BYTES)))
    except ValidationError as error:
        raise _refused(f"the engine's run receipt is not valid: {explain_validation(error)}") from error
    except ValueError as error:
        raise _refused(f"the engine's run receipt is not well-formed JSON: {error}") from error
    for key in RECEIPT_IDENTITY:
        found = str(getattr(receipt, key))
        if found != tokens[key]:
            raise EvidenceRefused(
                f"the engine's run receipt names another {key} than the request",
                Reason.ENGINE_RECEIPT_MISMATCH,
                path=RUN_RECEIPT,
                expected=tokens[key],
                actual=found,
            )


def _refused(detail: str) -> EvidenceRefused:
    return EvidenceRefused(detail, Reason.ENGINE_RECEIPT_INVALID, path=RUN_RECEIPT)
