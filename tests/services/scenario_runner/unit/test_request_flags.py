"""A request that is made of flags: the document that they give, and errors that name the flag."""

from dataclasses import replace

import pytest

from scenario_runner.cli.request_flags import RequestFlags
from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.contracts.errors import UsageError

pytestmark = pytest.mark.unit

NEEDED = RequestFlags(
    run_equivalence_key="nightly-7",
    manifest_fingerprint="a" * 64,
    parameter_hash="b" * 64,
    seed="18446744073709551615",
    scenario_id="baseline_v1",
    window_start="2026-01-01T00:00:00Z",
    window_end="2026-01-02T00:00:00+01:00",
)
EVERYTHING = replace(
    NEEDED, scenario_id=None, scenario_set=["one", "two"], window_tz="Europe/London", engine_run_root="runs/x",
    output_id=["outlet_catalogue"], strategy="FORCE_REUSE", invoker="ci", notes="", request_id="r-1",
)  # fmt: skip


def test_flags_give_the_document_that_a_person_would_write() -> None:
    assert NEEDED.document() == {
        "run_equivalence_key": "nightly-7", "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64,
        "seed": 18446744073709551615, "scenario": {"scenario_id": "baseline_v1"},
        "window": {"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00+01:00",
                   "window_tz": "UTC"},
    }  # fmt: skip
    document = EVERYTHING.document()
    assert document["scenario"] == {"scenario_set": ["one", "two"]}
    assert document["window"]["window_tz"] == "Europe/London"
    assert (document["requested_strategy"], document["output_ids"]) == ("FORCE_REUSE", ["outlet_catalogue"])
    assert (document["invoker"], document["notes"], document["request_id"]) == ("ci", "", "r-1")
    for flags in (NEEDED, EVERYTHING):
        parse_run_request(flags.document())


def test_only_the_flags_that_were_given_are_named() -> None:
    assert RequestFlags().given() == []
    assert RequestFlags(seed="1", scenario_set=["a"]).given() == ["--seed", "--scenario-set"]
    assert len(EVERYTHING.given()) == 14


def test_missing_flags_are_named_all_at_once() -> None:
    with pytest.raises(UsageError, match="--manifest-fingerprint, --parameter-hash, --window-start, --window-end too"):
        RequestFlags(run_equivalence_key="k", seed="1").document()


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"run_equivalence_key": ""}, "--run-equivalence-key:"),
        ({"manifest_fingerprint": "A" * 64}, "--manifest-fingerprint:"),
        ({"parameter_hash": "b"}, "--parameter-hash:"),
        ({"seed": "-1"}, "--seed:"),
        ({"seed": "7.0"}, "--seed:"),
        ({"seed": "1_0"}, "--seed:"),
        ({"seed": "\u0667"}, "--seed:"),
        ({"seed": "18446744073709551616"}, "--seed:"),
        ({"seed": "9" * 5000}, "--seed:"),
        ({"scenario_id": "a/../b"}, "--scenario-id:"),
        ({"scenario_id": None}, "--scenario-id and --scenario-set:"),
        ({"scenario_set": ["a"]}, "--scenario-id and --scenario-set:"),
        ({"scenario_id": None, "scenario_set": ["a", "{b}"]}, "--scenario-set:"),
        ({"window_start": "2026-01-01T00:00:00"}, "--window-start:"),
        ({"window_end": "tomorrow"}, "--window-end:"),
        ({"window_start": "2026-02-01T00:00:00Z"}, "--window-start and --window-end:"),
        ({"window_tz": "Mars/Olympus"}, "--window-tz:"),
        ({"engine_run_root": "\n"}, "--engine-run-root:"),
        ({"output_id": [""]}, "--output-id:"),
        ({"strategy": "auto"}, "--strategy:"),
        ({"invoker": ""}, "--invoker:"),
        ({"request_id": ""}, "--request-id:"),
    ],
)
def test_an_error_names_the_flag_and_not_the_value(changes: dict[str, object], flag: str) -> None:
    with pytest.raises(UsageError) as raised:
        replace(NEEDED, **changes).document()  # type: ignore[arg-type]
    assert raised.value.detail.startswith(flag), raised.value.detail
