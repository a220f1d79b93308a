"""How deep a READY run was verified: its record, its plan and READY say the same.

A verification reads every file, whatever the depth was at which the run became READY. So what is checked here is only
whether a reader of READY who refuses a depth is told the true one.
"""

from collections.abc import Mapping

from scenario_runner.audit.documents import PublishedDocuments
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.required import Unknown
from scenario_runner.authority.values import RunRow
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.depth import DEPTH, READ_FILES, DigestSource, reported_depth
from scenario_runner.contracts.plan import plan_inputs_from_document
from scenario_runner.contracts.states import EventKind


def check_depth(
    row: RunRow | Unknown,
    run_id: str,
    documents: PublishedDocuments,
    attributes: Mapping[str, object] | None,
    found: Findings,
) -> None:
    """Compare the depth that READY names with those of the record; no check is made where nothing but ``read`` is.

    Args:
        row: What the authority knows of the run.
        run_id: The run.
        documents: The ledger's documents.
        attributes: Of READY on the control bus; None where it could not be found.
        found: Receives the checks and the depth.
    """
    outputs = _recorded_outputs(documents.read_bytes(refs.record_ref(run_id)))
    try:
        recorded = reported_depth(outputs).get(DEPTH)
    except ValueError:
        found.expect("the record names depths that there are", ok=False)
        return
    published = None if attributes is None else attributes.get(DEPTH)
    allowed = None if isinstance(row, Unknown) else plan_inputs_from_document(row.inputs).output_digest_source
    if recorded is None and published is None and allowed is not DigestSource.S3_CHECKSUM:
        return
    found.depth = {DEPTH: recorded, "depths": [_depth_of(item) for item in outputs if DEPTH in item]}
    if allowed is not None:
        found.expect_equal(
            "depths are on record exactly where the pinned policy allows others than read",
            expected=allowed is DigestSource.S3_CHECKSUM, actual=recorded is not None,
        )  # fmt: skip
    if attributes is not None:
        found.expect_equal(f"READY's {DEPTH} is the record's", expected=recorded, actual=published)


def _depth_of(output: Json) -> Json:
    return {key: output[key] for key in ("output_id", DEPTH, READ_FILES) if key in output}


def _recorded_outputs(record: bytes | None) -> list[Json]:
    """What a run_record tells of the outputs of a READY run; empty where it tells nothing that can be understood."""
    for line in (record or b"").splitlines():
        try:
            event = parse_json(line)
            if event["event_kind"] == EventKind.RECEIPTS_COMMITTED:
                return [item for item in event["details"]["outputs"] if isinstance(item, dict)]
        except (ValueError, TypeError, KeyError):
            continue
    return []
