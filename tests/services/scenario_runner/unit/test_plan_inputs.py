"""What is pinned with a run at its admission."""

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.plan import DEFAULT_BOUNDS
from scenario_runner.contracts.states import Strategy
from scenario_runner.intake import admission_policy
from scenario_runner.intake.admission_policy import AdmissionPolicy

pytestmark = pytest.mark.unit


def test_of_the_outputs_of_a_run_those_are_traffic_that_the_policy_calls_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_policy, "required_gates", lambda _pack, _outputs: ("g",))
    monkeypatch.setattr(admission_policy, "_strategy", lambda requested, _policy: requested)
    policy = SimpleNamespace(
        traffic_output_ids=["b", "c"], rev=lambda: SimpleNamespace(wire=dict), evidence_wait_seconds=1, attempt_limit=1,
        bounds=lambda: DEFAULT_BOUNDS, auto_invoke="", output_digest_source=DigestSource.READ,
    )  # fmt: skip
    pinning: Any = SimpleNamespace(policy=policy, pack=SimpleNamespace(digest="d"), engine=None)
    named = AdmissionPolicy._plan_inputs(pinning, ("a", "b"), Strategy.AUTO)
    assert (named.outputs, named.traffic) == (("a", "b"), ("b",))
    default = AdmissionPolicy._plan_inputs(pinning, (), Strategy.AUTO)
    assert default.outputs == default.traffic == ("b", "c")
