"""The trace context of a request is kept in its run's record, over every backend: whoever claims the run has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from authority_support import START, WAIT, Clock, asking, claim_one, commit, hex32, waiting

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Admission

pytestmark = pytest.mark.integration

CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"


def traced(name: str, context: str, record: str = "") -> Admission:
    asked = asking(name, record)
    assert asked.run is not None
    return replace(asked, run=replace(asked.run, traceparent=context))


def test_each_claim_of_a_run_has_the_context_of_the_request_that_it_was_admitted_from(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([traced("traced", CONTEXT), traced("traced", f"00-{'c' * 32}-{'d' * 16}-00", "second")])
    first = claim_one(authority)
    assert first.traceparent == CONTEXT
    commit(authority, waiting(first, START + 1))
    clock.pass_seconds(1)
    assert claim_one(authority).traceparent == CONTEXT
    (admitted, *_) = authority.events(hex32("traced"))
    assert admitted.details["traceparent"] == CONTEXT


def test_a_run_whose_request_has_no_context_has_none_and_its_record_says_nothing_of_it(
    authority: Authority,
) -> None:
    authority.admit([asking("plain"), traced("traced", CONTEXT)])
    claims = authority.claim("w1", 10, WAIT)
    assert {claim.run_id: claim.traceparent for claim in claims} == {hex32("plain"): "", hex32("traced"): CONTEXT}
    (admitted, *_) = authority.events(hex32("plain"))
    assert "traceparent" not in admitted.details


@pytest.mark.parametrize("text", ["no context", f"00-{'0' * 32}-{'b' * 16}-01", 'x", "traceparent": "y'])
def test_what_is_no_context_in_a_record_that_was_brought_back_is_not_published(authority: Authority, text: str) -> None:
    authority.admit([traced("forged", text)])
    assert claim_one(authority).traceparent == ""
