"""The engine's own ``run_receipt.json``: where it is there, it must be about the run that is asked for.

Its run id is the engine's and is not compared: many runs may refer to one engine run.
"""

from collections.abc import Mapping

from scenario_runner.artifacts.base import MAX_FLAG_BYTES, Kind, RunRoot
from scenario_runner.contracts.errors import EvidenceSaysNo
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.run_receipt import RECEIPT_IDENTITY, RUN_RECEIPT, parse_run_receipt, require_identity


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
    receipt = parse_run_receipt(root.read(RUN_RECEIPT, MAX_FLAG_BYTES))
    require_identity(receipt, tokens, RECEIPT_IDENTITY)
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
