"""The engine's own ``run_receipt.json``: where it is there, it must be about the run that is asked for.

Its run id is the engine's and is not compared: many runs may refer to one engine run.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from scenario_runner.artifacts.base import MAX_FLAG_BYTES, Kind, RunRoot
from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.documents import RunReceipt, explain_validation
from scenario_runner.contracts.errors import EvidenceRefused, EvidenceSaysNo
from scenario_runner.contracts.reasons import Reason

RUN_RECEIPT: Final = "run_receipt.json"
RECEIPT_IDENTITY: Final = ("manifest_fingerprint", "parameter_hash", "seed")


def check_run_receipt(root: RunRoot, tokens: Mapping[str, str]) -> str:
    """Check the run receipt at an engine run root, if there is one.

    Args:
        root: The engine run root, opened.
        tokens: Identity of the run.

    Returns:
        The run id that the receipt names, the engine's own; empty when there is no receipt.

    Raises:
        EvidenceRefused: ``ENGINE_RECEIPT_INVALID`` or ``ENGINE_RECEIPT_MISMATCH``; not a regular file; too large.
    """
    if root.kind(RUN_RECEIPT) is Kind.ABSENT:
        return ""
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
    return receipt.run_id


def output_of_another_run(output_id: str, path: str, run_id: str, engine_run_id: str) -> EvidenceSaysNo:
    """The refusal of an output whose path needs the run id, where the engine's run has another one."""
    return EvidenceSaysNo(
        f"the path of the output {output_id} needs the run id {run_id}, and {RUN_RECEIPT} says that the engine run at "
        f"this root is {engine_run_id}: it cannot hold that output; name another root, or leave the output out",
        Reason.OUTPUT_OF_ANOTHER_RUN,
        path=path,
        expected=run_id,
        actual=engine_run_id,
    )


def _refused(detail: str) -> EvidenceRefused:
    return EvidenceRefused(detail, Reason.ENGINE_RECEIPT_INVALID, path=RUN_RECEIPT)
