"""The documents of an attempt, and the engine's run receipt after a success."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.documents import EngineAttempt, EngineInvocation
from scenario_runner.contracts.errors import EngineRefusal, EvidenceRefused, SequenceError
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Strategy
from scenario_runner.engine.attempt import Attempt, attempt_document, invocation_document, launch_of
from scenario_runner.engine.invoker import JobEnd
from scenario_runner.engine.run_receipt import check_invoked_run

pytestmark = pytest.mark.unit

INTENT = Intent(
    "1" * 32, "key", "a" * 64, "b" * 64, 2**64 - 1, "base", (), "2026-01-01", "2026-01-02", (), Strategy.AUTO, ""
)
OF_A_SET = replace(INTENT, scenario_id="scnset_1", scenario_set=("a", "b"))
ATTEMPT = Attempt(INTENT, 2, "/runs/r1")
DONE = JobEnd(succeeded=True, reason_code=None, exit_code=0, stop_code="", detail="", duration_ms=1500)
FAILED = JobEnd(succeeded=False, reason_code=Reason.ENGINE_TIMEOUT, exit_code=-9, stop_code="TIMEOUT", detail="")
TIMES = {"started_us": 1_000_000, "ended_us": 2_500_000}


def test_an_attempt_is_named_by_its_run_and_its_number() -> None:
    assert ATTEMPT.attempt_id == hashlib.sha256(b"sr_attempt|" + b"1" * 32 + b"|2").hexdigest()[:32]


def test_the_invocation_asks_for_the_run_under_the_attempts_id() -> None:
    document = invocation_document(ATTEMPT)
    assert document == {
        "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64, "seed": 2**64 - 1, "run_id": "1" * 32,
        "scenario_binding": {"scenario_id": "base"}, "request_id": ATTEMPT.attempt_id, "engine_run_root": "/runs/r1",
    }  # fmt: skip
    assert EngineInvocation.model_validate(document)


def test_the_invocation_of_a_set_names_its_scenarios_and_who_asked() -> None:
    document = invocation_document(replace(ATTEMPT, intent=OF_A_SET, invoker="me"))
    assert document["scenario_binding"] == {"scenario_set": ["a", "b"]}
    assert document["invoker"] == "me"


def test_an_invocation_that_is_not_valid_is_refused() -> None:
    with pytest.raises(EngineRefusal, match="engine_run_root") as refused:
        invocation_document(replace(ATTEMPT, engine_run_root="/a\nb"))
    assert refused.value.reason is Reason.ENGINE_INVOCATION_INVALID


def test_a_launch_carries_the_canonical_bytes_of_the_invocation() -> None:
    launch = launch_of(replace(ATTEMPT, intent=OF_A_SET), "s3://bucket/key", 60.0, "00-1-2-01")
    assert launch.invocation == canonical_bytes(invocation_document(replace(ATTEMPT, intent=OF_A_SET)))
    assert launch.tokens["scenario_set"] == "a,b"
    assert launch.tokens["seed"] == str(2**64 - 1)
    assert launch_of(ATTEMPT, "x", 1.0).tokens["scenario_set"] == "base"


def test_a_success_names_its_receipt_and_no_reason() -> None:
    document = attempt_document(ATTEMPT, DONE, "ecs", **TIMES, run_receipt_ref="/runs/r1/run_receipt.json",
                                logs_ref={"stdout_ref": "o", "stderr_ref": "e"})  # fmt: skip
    assert EngineAttempt.model_validate(document)
    assert (document["outcome"], document["invoker"], document["duration_ms"]) == ("SUCCEEDED", "ecs", 1500)
    assert "reason_code" not in document
    assert document["run_receipt_ref"] == "/runs/r1/run_receipt.json"
    assert document["logs_ref"] == {"stdout_ref": "o", "stderr_ref": "e"}
    assert (document["started_at_utc"], document["ended_at_utc"]) == (
        "1970-01-01T00:00:01.000000Z",
        "1970-01-01T00:00:02.500000Z",
    )


def test_a_timeout_is_a_failure_with_its_code() -> None:
    document = attempt_document(ATTEMPT, FAILED, "subprocess", **TIMES)
    assert (document["outcome"], document["reason_code"]) == ("FAILED", "ENGINE_TIMEOUT")
    assert "run_receipt_ref" not in document


def test_an_engine_that_succeeded_fails_with_its_receipt() -> None:
    document = attempt_document(
        ATTEMPT, DONE, "subprocess", **TIMES, receipt_reason=Reason.ENGINE_RECEIPT_MISMATCH, run_receipt_ref="/r"
    )
    assert (document["outcome"], document["reason_code"]) == ("FAILED", "ENGINE_RECEIPT_MISMATCH")
    assert "run_receipt_ref" not in document


def test_an_engine_that_failed_fails_with_its_own_reason_whatever_receipt_there_is() -> None:
    document = attempt_document(
        ATTEMPT, FAILED, "subprocess", **TIMES, receipt_reason=Reason.ENGINE_RECEIPT_MISSING, run_receipt_ref="/r"
    )
    assert document["reason_code"] == "ENGINE_TIMEOUT"


def test_no_attempt_succeeds_without_an_accepted_receipt() -> None:
    with pytest.raises(SequenceError):
        attempt_document(ATTEMPT, DONE, "subprocess", **TIMES)


def test_an_attempt_never_ends_before_it_began() -> None:
    document = attempt_document(ATTEMPT, FAILED, "subprocess", started_us=5, ended_us=1)
    assert document["started_at_utc"] == document["ended_at_utc"]


# --- the run receipt

RECEIPT: dict[str, Any] = {"run_id": "1" * 32, "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64,
                           "seed": 2**64 - 1, "anything": {"else": 1}}  # fmt: skip


def refusal(data: bytes | None) -> Reason | None:
    try:
        check_invoked_run(data, INTENT.tokens())
    except EvidenceRefused as refused:
        return refused.reason if refused.path == "run_receipt.json" else None
    return None


def test_a_receipt_that_names_the_run_is_accepted() -> None:
    assert refusal(json.dumps(RECEIPT).encode()) is None


def test_no_receipt_is_a_reason_of_its_own() -> None:
    assert refusal(None) is Reason.ENGINE_RECEIPT_MISSING


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"run_id": 1}', json.dumps({**RECEIPT, "seed": "7"}).encode(),
     json.dumps({**RECEIPT, "seed": True}).encode(), json.dumps({**RECEIPT, "run_id": "1" * 32 + "\n"}).encode(),
     json.dumps(RECEIPT).encode()[:-1] + b', "seed": 3}'],
)  # fmt: skip
def test_a_receipt_that_is_not_one_is_invalid(data: bytes) -> None:
    assert refusal(data) is Reason.ENGINE_RECEIPT_INVALID


@pytest.mark.parametrize(
    ("key", "value"),
    [("run_id", "2" * 32), ("manifest_fingerprint", "c" * 64), ("parameter_hash", "c" * 64), ("seed", 2**64 - 2)],
)
def test_a_receipt_of_another_run_is_a_mismatch(key: str, value: object) -> None:
    assert refusal(json.dumps({**RECEIPT, key: value}).encode()) is Reason.ENGINE_RECEIPT_MISMATCH
