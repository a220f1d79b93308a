"""The report of an examination says of a refusal what is known of it, and nothing else."""

import pytest

from scenario_runner.contracts.errors import EvidenceMissing, EvidenceRefused
from scenario_runner.evidence.findings import Report

pytestmark = pytest.mark.unit


def test_a_refusal_is_reported_without_what_it_does_not_tell() -> None:
    told = {"outcome": "CONFLICT", "reason_code": "EVIDENCE_MALFORMED", "detail": "no"}
    assert Report().classify(EvidenceRefused("no")) == told
    assert Report().classify(EvidenceRefused("no", path="a/b")) == told | {"path": "a/b"}
    whole = {"path": "a/b", "expected": "one", "actual": "two"}
    assert Report().classify(EvidenceRefused("no", **whole)) == told | whole
    missing = Report().classify(EvidenceMissing("not there", path="a/b"))
    assert (missing["outcome"], missing["missing"]) == ("MISSING", "a/b")
