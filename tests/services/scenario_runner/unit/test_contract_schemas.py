"""The wire models and the JSON Schema files on disk accept and refuse the same documents.

Two independent validators read the committed files: ``jsonschema`` and ``jsonschema_rs``. A document that the model
accepts must satisfy both. What a schema accepts and the model refuses must be one of ``DIFFERENCES``, the closed
list of what JSON Schema, or one validator, cannot say.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from schema_documents import (
    CONFIG,
    DIFFERENCES,
    FOLDERS,
    MISSING,
    MODELS,
    STAMP,
    Difference,
    accepted_by_model,
    alternatives,
    at,
    changed,
    committed,
    disagreements,
    documents,
    full_example,
    json_values,
    places,
    quick,
    validators,
)

from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.schema_export import all_schemas

pytestmark = pytest.mark.unit


NAMES = sorted(MODELS)


# --- tests ------------------------------------------------------------------------------------------------------------


def test_the_schema_files_on_disk_are_what_the_models_export() -> None:
    exported = all_schemas()
    on_disk = {str(path.relative_to(CONFIG)): yaml.safe_load(path.read_text("utf-8"))
               for folder in set(FOLDERS.values()) for path in (CONFIG / folder).glob("*.schema.yaml")}  # fmt: skip
    assert on_disk == exported


def test_the_second_opinion_checks_times_in_earnest() -> None:
    """Without rfc3339-validator (``jsonschema[format]``) the format would be ignored and the tests below be blind."""
    assert "date-time" in FormatChecker().checkers
    assert not validators("run_ready_signal")["jsonschema"](
        full_example("run_ready_signal") | {"emitted_at_utc": "2026-02-30T00:00:00Z"}
    )


# contracts.md section 2 and 3, by hand: (required, optional) fields of each document.
CONTRACT: dict[str, tuple[str, str]] = {
    "run_request": (
        "run_equivalence_key manifest_fingerprint parameter_hash seed scenario window",
        "request_id requested_strategy output_ids engine_run_root notes invoker",
    ),
    "run_plan": (
        (
            "run_id plan_hash policy_rev strategy intended_outputs required_gates attempt_limit created_at_utc "
            "evidence_deadline_utc"
        ),
        "",
    ),
    "run_record": ("event_id event_kind run_id ts_utc details", "policy_rev"),
    "run_status": ("run_id state updated_at_utc record_ref", "reason_code facts_view_ref"),
    "run_facts_view": (
        "run_id pins locators gate_receipts policy_rev bundle_hash plan_ref record_ref status_ref",
        "output_roles intended_outputs instance_receipts evidence_notes",
    ),
    "run_ready_signal": ("run_id facts_view_ref bundle_hash", "emitted_at_utc"),
    "run_terminal_signal": ("run_id status_state status_ref record_ref reemit_key", "reason_code emitted_at_utc"),
    "reemit_request": ("run_id reemit_kind", "reason requested_by dry_run requested_at_utc"),
    "evidence_arrived": ("engine_run_root", "run_id"),
    "engine_attempt": (
        "run_id attempt_id attempt_no outcome started_at_utc ended_at_utc invocation",
        "invoker reason_code engine_run_root run_receipt_ref duration_ms logs_ref",
    ),
    "control_bus_envelope": ("topic message_id published_at_utc attributes partition_key payload", ""),
    "engine_output_locator": (
        "output_id path",
        (
            "manifest_fingerprint parameter_hash seed scenario_id run_id content_digest "
            "schema_ref dictionary_ref produced_at_utc notes"
        ),
    ),
    "gate_receipt": ("gate_id status scope", "receipt_kind digest artifacts produced_at_utc notes"),
    "instance_proof_receipt": (
        "output_id status scope target_ref target_digest",
        "bundle_manifest_ref receipt_kind artifacts produced_at_utc notes",
    ),
    "engine_invocation": (
        "manifest_fingerprint parameter_hash seed run_id scenario_binding",
        "request_id invoker notes engine_run_root",
    ),
    "run_receipt": ("run_id manifest_fingerprint parameter_hash seed", ""),
}


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_the_fields_of_each_document_are_those_of_the_contract(name: str) -> None:
    required, optional = (set(words.split()) for words in CONTRACT[name])
    assert set(committed(name)["required"]) == required
    assert set(committed(name)["properties"]) == required | optional


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_a_draft_2020_12_schema(name: str) -> None:
    schema = committed(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def closed_objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            yield schema
        for value in schema.values():
            yield from closed_objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from closed_objects(value)


@pytest.mark.parametrize("name", NAMES)
def test_every_object_with_named_fields_is_closed_unless_the_contract_says_otherwise(name: str) -> None:
    found = [item.get("additionalProperties") for item in closed_objects(committed(name))]
    assert found == ([True] if name == "run_receipt" else [False] * len(found))


@pytest.mark.parametrize("name", NAMES)
def test_a_document_with_every_field_is_accepted_by_all_three(name: str) -> None:
    document = full_example(name)
    assert accepted_by_model(name, document)
    assert all(is_valid(document) for is_valid in validators(name).values())


@pytest.mark.parametrize("name", NAMES)
def test_no_single_change_of_a_full_document_divides_model_and_schemas(name: str) -> None:
    document = full_example(name)
    found: list[str] = []
    for place in places(document):
        for value in alternatives(at(document, place)):
            wrong = disagreements(name, changed(document, place, value))
            found += [
                f"{item} when {list(place)} is {'left out' if value is MISSING else ascii(value)[:80]}"
                for item in wrong
            ]
    assert found == [], "\n".join(found[:40])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("top", [None, True, 0, 7.0, "x", [], [{}], {}], ids=repr)
def test_a_top_level_that_is_not_the_document_is_refused_by_all_three(name: str, top: object) -> None:
    assert not accepted_by_model(name, top)
    assert not any(is_valid(top) for is_valid in validators(name).values())


@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_what_the_schema_allows_the_model_accepts(name: str, data: st.DataObject) -> None:
    document = data.draw(documents(name))
    assert all(is_valid(document) for is_valid in validators(name).values())
    MODELS[name].model_validate(document)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_what_the_model_writes_the_schema_allows_and_the_model_reads_again(name: str, data: st.DataObject) -> None:
    model = MODELS[name].model_validate(data.draw(documents(name)))
    written = parse_json(json.dumps(model.wire()).encode())
    assert all(is_valid(written) for is_valid in validators(name).values())
    assert MODELS[name].model_validate(written) == model


@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_any_changes_to_any_document_get_one_verdict(name: str, data: st.DataObject) -> None:
    document = data.draw(documents(name))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(places(document))))
        value = data.draw(st.sampled_from(alternatives(at(document, place))) | json_values)
        document = changed(document, place, value)
    assert disagreements(name, document) == []


@pytest.mark.parametrize("moment", ["1000-01-01T00:00:00+23:59", "2999-12-31T23:59:59-23:59"])
def test_an_instant_at_the_edge_of_the_calendar_is_refused_or_can_be_written_again(moment: str) -> None:
    document = full_example("run_ready_signal") | {"emitted_at_utc": moment}
    if accepted_by_model("run_ready_signal", document):
        written = MODELS["run_ready_signal"].model_validate(document).wire()
        assert all(is_valid(written) for is_valid in validators("run_ready_signal").values()), written["emitted_at_utc"]
        assert accepted_by_model("run_ready_signal", written)


@pytest.mark.parametrize("key", ["a b", "", "x\n", "é", ".a", "a..b"])
def test_output_roles_are_keyed_by_output_ids_and_nothing_else(key: str) -> None:
    document = full_example("run_facts_view") | {"output_roles": {key: "non_traffic"}}
    verdicts = {which: is_valid(document) for which, is_valid in validators("run_facts_view").items()}
    assert not accepted_by_model("run_facts_view", document)
    assert verdicts["jsonschema_rs"] is False
    assert verdicts["jsonschema"] is key.endswith("\n")  # '$' in Python, see DIFFERENCES


@pytest.mark.parametrize("extra", [None, 1.5, [None], {"a": None}, "\n"], ids=repr)
def test_an_engine_may_write_anything_beside_the_fields_of_its_run_receipt(extra: object) -> None:
    document = full_example("run_receipt") | {"engine_version": extra}
    assert all(is_valid(document) for is_valid in validators("run_receipt").values())
    assert accepted_by_model("run_receipt", document)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda item: item.why[:40])
def test_every_listed_difference_is_still_one(difference: Difference) -> None:
    """A difference that has gone must leave the list, or it could hide another."""
    request = full_example("run_request")
    examples = [
        request | {"seed": 7.0},
        request | {"window": request["window"] | {"window_end_utc": STAMP}},
        request | {"window": request["window"] | {"window_start_utc": "1000-01-01T00:00:00+00:01"}},
        request | {"request_id": "x\n"},
        request | {"notes": "\ud800"},
    ]
    (document,) = [item for item in examples if difference.holds(item)]
    assert not accepted_by_model("run_request", document)
    assert all(validators("run_request")[which](document) for which in difference.validators)


@pytest.mark.parametrize(
    ("characters", "taken"),
    [
        ("\x00\x1f\x7f\x80\x85\x9b\x9f\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069", False),
        (" ~\xa0\xad\xe9\u061b\u200d\u2010\u2027\u202f\u2065\u206a\U0001f600", True),
    ],
)
def test_what_a_terminal_would_obey_is_no_text_for_the_model_and_for_every_schema(characters: str, taken: bool) -> None:
    for char in characters:
        document = full_example("run_request") | {"run_equivalence_key": f"a{char}b"}
        said = {name: is_valid(document) for name, is_valid in validators("run_request").items()}
        assert {**said, "model": accepted_by_model("run_request", document)} == dict.fromkeys(
            [*said, "model"], taken
        ), f"{ord(char):04x}"
