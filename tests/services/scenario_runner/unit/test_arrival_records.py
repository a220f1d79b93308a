"""EVIDENCE_ARRIVED as intake validates it: the root in its normal form, a refusal that is told to nobody."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.authority.acts import Arrival
from scenario_runner.authority.arrivals import root_of, told_first
from scenario_runner.authority.values import Admission
from scenario_runner.bus.envelope import arrival_envelope
from scenario_runner.contracts.states import Disposition
from scenario_runner.intake.decode import Message
from scenario_runner.intake.roots import normalise_root
from scenario_runner.intake.validate import validate_message

pytestmark = pytest.mark.unit

RULES: Any = SimpleNamespace(
    topic="t",
    record_limit=1 << 20,
    engine_roots=["/srv/runs", "s3://engine/runs"],
    cwd="/srv",
    allowlist=frozenset(["a"]),
)
RUN = "0" * 32


def validated(**payload: Any) -> Admission:
    raw = arrival_envelope("t", "m", 0, "p", payload)
    return validate_message(Message("spool/f", raw, len(raw)), RULES)


@pytest.mark.parametrize(
    "root",
    ["runs/a", "/srv/runs/a", "//srv/./runs//a/", "file:///srv/runs/a", "s3://engine/runs/a/", "s3://engine/runs"],
)
def test_a_root_is_brought_into_the_form_that_a_request_is_brought_into(root: str) -> None:
    found = validated(engine_run_root=root, run_id=RUN)
    assert found.arrival == Arrival(normalise_root(root, RULES.engine_roots, RULES.cwd), RUN)
    assert (found.disposition, found.run, found.run_id) == (Disposition.ACCEPTED, None, "")
    assert (found.kind, found.message_id, found.record_key) == ("EVIDENCE_ARRIVED", "m", "spool/f")
    assert validated(engine_run_root=root).arrival == Arrival(normalise_root(root, RULES.engine_roots, RULES.cwd))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"engine_run_root": "/etc"}, "ENGINE_ROOT_NOT_ALLOWED"),
        ({"engine_run_root": "s3://engine/runs10"}, "ENGINE_ROOT_NOT_ALLOWED"),
        ({"run_id": RUN}, "REQUEST_SCHEMA_INVALID"),
        ({"engine_run_root": "runs/a", "run_id": "A" * 32}, "REQUEST_SCHEMA_INVALID"),
        ({"engine_run_root": "runs/a", "run_equivalence_key": "k"}, "REQUEST_SCHEMA_INVALID"),
    ],
)
def test_a_refused_one_is_a_dead_letter_and_no_signal(payload: dict[str, Any], reason: str) -> None:
    found = validated(**payload)
    assert (found.disposition, found.reason_code) == (Disposition.REJECTED, reason)
    assert (found.arrival, found.refusal, found.run_id) == (None, None, "")
    assert found.raw


def test_a_working_directory_that_is_no_utf8_refuses_relative_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No authority can look for such a root: the whole batch would fail, for ever."""
    monkeypatch.setattr(RULES, "cwd", "/srv/\udcff")
    monkeypatch.setattr(RULES, "engine_roots", ["/srv/\udcff/runs", "/srv/runs"])
    found = validated(engine_run_root="runs/a")
    assert (found.disposition, found.reason_code) == (Disposition.REJECTED, "ENGINE_ROOT_NOT_ALLOWED")
    assert "not UTF-8" in found.detail
    assert validated(engine_run_root="/srv/runs/a").arrival == Arrival("/srv/runs/a")


def test_without_an_envelope_it_is_no_arrival() -> None:
    raw = json.dumps({"engine_run_root": "/srv/runs/a"}).encode()
    found = validate_message(Message("spool/f", raw, len(raw)), RULES)
    assert (found.disposition, found.kind, found.arrival) == (Disposition.REJECTED, "RUN_REQUEST", None)


def test_records_without_an_arrival_tell_nobody() -> None:
    def fails(_arrivals: object) -> list[int]:
        raise AssertionError

    records = [Admission(record_key="r", raw=b"", raw_size=0, disposition=Disposition.IGNORED)]
    assert told_first(fails, records) == records


@pytest.mark.parametrize(
    ("intent", "inputs", "root"),
    [
        ({"engine_run_root": "/a"}, {}, "/a"),
        ({"engine_run_root": "/a"}, {"engine_run_root": "/b"}, "/a"),
        ({"engine_run_root": ""}, {"engine_run_root": "/b"}, "/b"),
        ({"engine_run_root": ""}, {}, ""),
        ({}, {}, ""),
    ],
)
def test_a_run_waits_where_its_request_says_or_where_was_pinned(intent: Any, inputs: Any, root: str) -> None:
    assert root_of(intent, inputs) == root
