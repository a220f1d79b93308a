"""``verify`` where the control bus is a stream: found, missing, or not possible to tell."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.audit.findings import Findings
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.cli.verify import stream_reader
from scenario_runner.contracts.times import parse_instant, to_micros

pytestmark = pytest.mark.unit

READY_AT = "2026-01-01T00:00:00.000000Z"


class Ledger:
    def __init__(self, status: Any) -> None:
        self.status = status

    def read(self, *_: Any) -> Any:
        return None if self.status is None else SimpleNamespace(data=json.dumps(self.status).encode())


def read(status: Any, answer: Any = b"found") -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def find(*arguments: Any) -> Any:
        asked.append(arguments)
        return answer

    stream: Any = SimpleNamespace(find=find)
    ledger: Any = Ledger(status)
    return stream_reader(stream, ledger)("message", "run"), asked


def test_the_stream_is_read_from_when_the_run_became_ready() -> None:
    found, asked = read({"state": "READY", "updated_at_utc": READY_AT})
    assert found == b"found"
    assert asked == [("message", "run", to_micros(parse_instant(READY_AT)))]


@pytest.mark.parametrize("status", [None, {}, {"updated_at_utc": "yesterday"}, []])
def test_without_that_moment_the_check_is_not_possible(status: Any) -> None:
    found, asked = read(status)
    assert isinstance(found, SearchInconclusive)
    assert asked == []


RECEIPT = {"stream": "bus", "shard_id": "shard-0", "sequence_number": "49"}


@pytest.mark.parametrize(
    ("receipts", "at_its_place", "found", "searched"),
    [
        ([RECEIPT], b"there", b"there", False),
        ([RECEIPT], None, b"searched", True),
        ([{**RECEIPT, "stream": "another"}], b"there", b"searched", True),
        ([], b"there", b"searched", True),
    ],
)
def test_a_message_is_read_where_its_receipt_says_or_else_searched_for(
    receipts: list[Any], at_its_place: Any, found: bytes, searched: bool
) -> None:
    asked: list[str] = []

    def find(*_: Any) -> bytes:
        asked.append("find")
        return b"searched"

    def read_at(message_id: str, shard_id: str, sequence_number: str) -> Any:
        assert (message_id, shard_id, sequence_number) == ("message", "shard-0", "49")
        return at_its_place

    stream: Any = SimpleNamespace(name="bus", find=find, read_at=read_at)
    ledger: Any = Ledger({"state": "READY", "updated_at_utc": READY_AT})
    assert stream_reader(stream, ledger, lambda *_: receipts)("message", "run") == found
    assert bool(asked) is searched


def test_a_check_that_was_not_possible_is_no_failure_and_is_not_the_only_proof() -> None:
    findings = Findings()
    findings.not_possible("READY is on the control bus", "trimmed")
    assert findings.checks[0]["not_possible"] is True
    assert findings.ok is False
    findings.expect("something that was checked", ok=True)
    assert findings.ok is True
    findings.expect("something else", ok=False)
    assert findings.ok is False


def test_a_detail_says_why_a_check_failed_and_is_there_only_then() -> None:
    findings = Findings()
    findings.expect("held", ok=True, detail="why not")
    findings.expect("failed without a word", ok=False)
    findings.expect("failed", ok=False, detail="why")
    assert findings.checks == [
        {"check": "held", "ok": True},
        {"check": "failed without a word", "ok": False},
        {"check": "failed", "ok": False, "detail": "why"},
    ]
