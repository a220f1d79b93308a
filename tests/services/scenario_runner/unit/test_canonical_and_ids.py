"""Canonical JSON, strict parsing, identities and the intent fingerprint, against hashlib and json by hand."""

import copy
import hashlib
import json
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_runner.contracts import ids
from scenario_runner.contracts.canonical import canonical_bytes, canonical_sha256, parse_json, parse_object, sha256_hex
from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.contracts.errors import RequestRefused, SequenceError, UsageError
from scenario_runner.contracts.intent import Intent, intent_from_document, intent_of
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import format_instant, format_micros, from_micros, parse_instant, to_micros

pytestmark = pytest.mark.unit
many = settings(max_examples=200, deadline=None, database=None, derandomize=True)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)
names = st.text("abcXYZ019_-", min_size=1, max_size=8)


def by_hand(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


@many
@given(values)
def test_canonical_json_is_sorted_compact_utf8_json(value: Any) -> None:
    assert canonical_bytes(value) == by_hand(value)


@many
@given(values)
def test_canonical_json_reads_back_as_the_same_value(value: Any) -> None:
    assert parse_json(canonical_bytes(value)) == value


@many
@given(st.dictionaries(texts, values, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], random: Any) -> None:
    keys = list(value)
    random.shuffle(keys)
    assert canonical_bytes({key: value[key] for key in keys}) == canonical_bytes(value)


@many
@given(values)
def test_the_digest_is_the_sha256_of_the_bytes(value: Any) -> None:
    assert canonical_sha256(value) == hashlib.sha256(by_hand(value)).hexdigest()
    assert sha256_hex(by_hand(value)) == canonical_sha256(value)


def test_tuples_are_written_as_lists() -> None:
    assert canonical_bytes({"a": (1, ("x",))}) == b'{"a":[1,["x"]]}'


def test_keys_are_sorted_by_code_point_also_beyond_the_basic_plane() -> None:
    assert canonical_bytes({"\U0001f600": 1, "\uffee": 2, "z": 3}) == '{"z":3,"\uffee":2,"\U0001f600":1}'.encode()


@pytest.mark.parametrize("number", [2**64 - 1, 2**63, 2**53 + 1, -(2**63), 0])
def test_integers_are_exact_up_to_uint64(number: int) -> None:
    assert canonical_bytes([number]) == f"[{number}]".encode()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(1.0, id="a whole float"),
        pytest.param(0.5, id="a float"),
        pytest.param(math.nan, id="NaN"),
        pytest.param(math.inf, id="infinity"),
        pytest.param(2**64, id="2^64"),
        pytest.param(-(2**63) - 1, id="below -2^63"),
        pytest.param(10**5000, id="an integer of 5000 digits"),
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param(b"x", id="bytes"),
        pytest.param({1, 2}, id="a set"),
        pytest.param(datetime(2026, 1, 1, tzinfo=timezone.utc), id="a datetime"),  # noqa: UP017
        pytest.param(object(), id="an object"),
    ],
)
def test_what_has_no_single_form_is_our_defect(value: object) -> None:
    for document in (value, [value], {"a": {"b": [1, value]}}):
        with pytest.raises(SequenceError):
            canonical_bytes(document)


@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",), "\ud800"], ids=repr)
def test_a_key_that_is_not_text_is_our_defect(key: object) -> None:
    with pytest.raises(SequenceError):
        canonical_bytes({"a": {key: 1}})


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"a":1,"a":1}', id="a key twice"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="a key twice, once escaped"),
        pytest.param(b'[[{"x":{"a":1,"b":2,"a":3}}]]', id="a key twice, deep inside"),
        pytest.param(b'{"a":[{"b":1,"b":1}]}', id="a key twice, in a list"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b'{"a":Infinity}', id="Infinity"),
        pytest.param(b'{"a":-Infinity}', id="minus Infinity"),
        pytest.param(b'{"a":1e999}', id="a number that overflows to Infinity"),
        pytest.param(b'{"a":-1e999}', id="a number that overflows to minus Infinity"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', id="a byte order mark"),
        pytest.param('{"a":1}'.encode("utf-16"), id="UTF-16 with a mark"),
        pytest.param('{"a":1}'.encode("utf-16-le"), id="UTF-16"),
        pytest.param('{"a":1}'.encode("utf-32"), id="UTF-32"),
        pytest.param(b'{"a":"\xff"}', id="a byte that is not UTF-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="an encoded surrogate"),
        pytest.param(b'{"a":"\xc0\xaf"}', id="an overlong form"),
        pytest.param(b"[" * 100_000, id="100,000 open lists"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="100,000 nested lists"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="100,000 nested objects"),
        pytest.param(b"", id="nothing"),
        pytest.param(b" \n", id="white space"),
        pytest.param(b'{"a":1}{"a":1}', id="two texts"),
        pytest.param(b'{"a":1}x', id="something after it"),
        pytest.param(b'{"a":1,}', id="a trailing comma"),
        pytest.param(b"{'a':1}", id="single quotes"),
        pytest.param(b"{a:1}", id="a bare key"),
        pytest.param(b'{"a":01}', id="a leading zero"),
        pytest.param(b'{"a":+1}', id="a plus sign"),
        pytest.param(b'{"a":"x\ny"}', id="a line feed in a string"),
        pytest.param(b'{"a":"\x00"}', id="a NUL in a string"),
        pytest.param(b'{"a":1}\x00', id="a NUL after it"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", id="an integer of 5000 digits"),
        pytest.param(b'{"a":"\\x41"}', id="an unknown escape"),
        pytest.param(b"{1:2}", id="a key that is no string"),
    ],
)
def test_what_parsers_might_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(data)
    with pytest.raises(RequestRefused) as refused:
        parse_object(data)
    assert refused.value.reason is Reason.RECORD_NOT_JSON
    assert len(refused.value.detail) < 400


@pytest.mark.parametrize("data", [b"[]", b'[{"a":1}]', b"1", b'"x"', b"null", b"true", b"1.5"])
def test_a_top_level_that_is_no_object_is_refused_as_one(data: bytes) -> None:
    parse_json(data)
    with pytest.raises(RequestRefused) as refused:
        parse_object(data)
    assert refused.value.reason is Reason.RECORD_NOT_JSON


def test_integers_keep_every_digit_and_whole_floats_stay_floats() -> None:
    value = parse_object(b'{"big":18446744073709551615,"float":7.0,"bool":true}')
    assert value == {"big": 2**64 - 1, "float": 7.0, "bool": True}
    assert isinstance(value["float"], float)


def test_a_refusal_never_repeats_the_text_it_refuses() -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_object(b'{"secret-value-0123456789' + b"x" * 1000 + b'":1 bad}')
    assert "secret-value" not in refused.value.detail
    with pytest.raises(RequestRefused) as twice:
        parse_object(b'{"' + b"k" * 9000 + b'":1,"' + b"k" * 9000 + b'":2}')
    assert len(twice.value.detail) < 400


@many
@given(st.dictionaries(texts, values, min_size=1, max_size=4), st.integers(0, 2))
def test_a_key_written_twice_is_refused_wherever_it_stands(value: dict[str, Any], depth: int) -> None:
    key = next(iter(value))
    body = "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in value.items())
    text = body + f",{json.dumps(key)}:1}}"
    for _ in range(depth):
        text = f'{{"outer":[{text}]}}'
    with pytest.raises(ValueError, match="twice"):
        parse_json(text.encode())


# --- times ------------------------------------------------------------------------------------------------------------


@many
@given(st.datetimes(datetime(1970, 1, 1), datetime(2900, 1, 1)), st.integers(-23 * 60, 23 * 60))  # noqa: DTZ001
def test_an_instant_is_the_same_in_every_offset(moment: datetime, minutes: int) -> None:
    here = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    parsed = parse_instant(here.isoformat())
    assert parsed == here
    assert parsed.utcoffset() == timedelta(0)
    assert parse_instant(format_instant(parsed)) == here
    assert from_micros(to_micros(parsed)) == here
    assert format_micros(to_micros(parsed)) == format_instant(parsed)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T00:00:00",
        "2026-02-30T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
        "",
        "now",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00.0000000001Z",
        "٢٠٢٦-01-01T00:00:00Z",
    ],
)
def test_a_time_that_is_not_exactly_one_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_instant(text)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("2026-01-01T00:00:00.1234567Z", "2026-01-01T00:00:00.123456Z"),  # .NET
        ("2026-01-01T01:00:00.123456789+01:00", "2026-01-01T00:00:00.123456Z"),  # Java
        ("2025-12-31T23:59:59.999999999Z", "2025-12-31T23:59:59.999999Z"),
        ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.500000Z"),
    ],
)
def test_what_is_finer_than_a_microsecond_is_cut_off(text: str, cut: str) -> None:
    assert format_instant(parse_instant(text)) == cut


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-01-01T00:00:00.0000000001Z", "10 digits"),
        ("2016-12-31T23:59:60Z", "leap second"),
        ("2026-01-01T00:00:00", "offset"),
    ],
)
def test_a_time_that_is_refused_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_instant(text)


# --- identities -------------------------------------------------------------------------------------------------------


@many
@given(texts, st.integers(1, 99))
def test_ids_are_derived_as_the_contract_says(key: str, number: int) -> None:
    run_id = ids.run_id_of(key)
    assert run_id == sha("sr_run|" + key)[:32]
    assert ids.attempt_id_of(run_id, number) == sha(f"sr_attempt|{run_id}|{number}")[:32]
    bundle = sha("bundle" + key)
    assert ids.ready_message_id(run_id, bundle) == sha("ready|" + run_id + "|" + bundle)
    status = {"run_id": run_id, "state": "FAILED", "reason_code": "GATE_FAIL", "record_ref": key}
    digest = hashlib.sha256(by_hand(status)).hexdigest()
    assert ids.terminal_message_id(run_id, "FAILED", status) == sha(f"terminal|{run_id}|FAILED|{digest}")


def test_ids_of_one_known_key_never_change() -> None:
    """Written down once: other systems hold these values."""
    assert ids.run_id_of("key-1") == hashlib.sha256(b"sr_run|key-1").hexdigest()[:32]
    assert ids.scenario_set_id(["b", "a"]) == "scnset_" + hashlib.sha256(b'["a","b"]').hexdigest()[:16]


@many
@given(st.lists(names, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_id_of_a_scenario_set_ignores_order_and_repetition(scenarios: list[str], random: Any) -> None:
    mixed = scenarios * 2
    random.shuffle(mixed)
    wanted = "scnset_" + hashlib.sha256(by_hand(sorted(set(scenarios)))).hexdigest()[:16]
    assert ids.scenario_set_id(scenarios) == ids.scenario_set_id(mixed) == wanted
    assert ids.scenario_set_id([*scenarios, "another_one"]) != wanted


def test_the_different_kinds_of_ids_never_share_a_value() -> None:
    run_id, other = ids.run_id_of("k"), sha("x")
    found = [
        ids.ready_message_id(run_id, other),
        ids.rejected_message_id(run_id),
        ids.event_id_of(run_id, 1),
        ids.event_id_of(run_id, 2),
        ids.submission_message_id(run_id, "1"),
        ids.submission_message_id(run_id, "2"),
        ids.terminal_message_id(run_id, "FAILED", {}),
        ids.terminal_message_id(run_id, "QUARANTINED", {}),
    ]
    assert len(set(found)) == len(found)
    assert all(ids.HEX64.fullmatch(item) for item in found)


@pytest.mark.parametrize(
    "text", ["", "../x", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "a" * 31 + "٣", "a" * 64, "g" * 32]
)
def test_a_run_id_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        ids.checked_run_id(text)


def test_a_run_id_comes_back_unchanged() -> None:
    assert ids.checked_run_id("0123456789abcdef" * 2) == "0123456789abcdef" * 2


# --- intent -----------------------------------------------------------------------------------------------------------

REQUEST: dict[str, Any] = {
    "request_id": "r-1",
    "run_equivalence_key": "key-1",
    "manifest_fingerprint": "a" * 64,
    "parameter_hash": "b" * 64,
    "seed": 7,
    "scenario": {"scenario_id": "baseline_v1"},
    "window": {
        "window_start_utc": "2026-01-01T00:00:00Z",
        "window_end_utc": "2026-02-01T00:00:00Z",
        "window_tz": "UTC",
    },
    "requested_strategy": "AUTO",
    "output_ids": ["alpha", "beta"],
    "notes": "one",
    "invoker": "somebody",
}


def intent(changes: dict[str, Any] | None = None, root: str = "/runs/1") -> Intent:
    document = copy.deepcopy(REQUEST) | (changes or {})
    return intent_of(parse_run_request({key: value for key, value in document.items() if value is not None}), root)


SAME: dict[str, dict[str, Any]] = {
    "another request id": {"request_id": "r-2"},
    "no request id": {"request_id": None},
    "other notes": {"notes": "two"},
    "another invoker": {"invoker": "somebody else"},
    "outputs in another order": {"output_ids": ["beta", "alpha"]},
    "an output named twice": {"output_ids": ["beta", "alpha", "beta"]},
    "the window in another offset": {
        "window": {
            "window_start_utc": "2026-01-01T02:30:00+02:30",
            "window_end_utc": "2026-01-31T19:00:00-05:00",
            "window_tz": "UTC",
        }
    },
    "the window with fractions of zero": {
        "window": {
            "window_start_utc": "2026-01-01T00:00:00.000Z",
            "window_end_utc": "2026-02-01T00:00:00.0+00:00",
            "window_tz": "UTC",
        }
    },
    "the window shown in another zone": {"window": REQUEST["window"] | {"window_tz": "Europe/Athens"}},
    "the strategy left to its default": {"requested_strategy": None},
}
OTHER: dict[str, dict[str, Any]] = {
    "another output": {"output_ids": ["alpha", "gamma"]},
    "one output less": {"output_ids": ["alpha"]},
    "the policy's outputs": {"output_ids": None},
    "another strategy": {"requested_strategy": "FORCE_REUSE"},
    "the third strategy": {"requested_strategy": "FORCE_INVOKE"},
    "another seed": {"seed": 8},
    "another manifest": {"manifest_fingerprint": "c" * 64},
    "another parameter hash": {"parameter_hash": "c" * 64},
    "another scenario": {"scenario": {"scenario_id": "baseline_v2"}},
    "the same scenario as a set": {"scenario": {"scenario_set": ["baseline_v1"]}},
    "a set": {"scenario": {"scenario_set": ["baseline_v1", "baseline_v2"]}},
    "another start": {"window": REQUEST["window"] | {"window_start_utc": "2026-01-01T00:00:00.000001Z"}},
    "another end": {"window": REQUEST["window"] | {"window_end_utc": "2026-02-01T00:00:01Z"}},
}


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_shape_the_run_leaves_the_fingerprint_alone(change: str) -> None:
    assert intent(SAME[change]).fingerprint() == intent().fingerprint()
    assert intent(SAME[change]) == intent()


@pytest.mark.parametrize("change", OTHER)
def test_what_shapes_the_run_changes_the_fingerprint(change: str) -> None:
    assert intent(OTHER[change]).fingerprint() != intent().fingerprint()


def test_all_different_intents_have_different_fingerprints() -> None:
    found = [intent().fingerprint(), intent(root="/runs/2").fingerprint(), intent(root="").fingerprint(),
             *(intent(change).fingerprint() for change in OTHER.values())]  # fmt: skip
    assert len(set(found)) == len(found)


def test_a_scenario_named_like_the_id_of_a_set_is_not_that_set() -> None:
    name = ids.scenario_set_id(["x", "y"])
    as_set = intent({"scenario": {"scenario_set": ["y", "x", "y"]}})
    as_name = intent({"scenario": {"scenario_id": name}})
    assert as_set.scenario_id == as_name.scenario_id == name
    assert as_set.fingerprint() != as_name.fingerprint()


def test_the_key_names_the_run_and_is_no_part_of_the_fingerprint() -> None:
    other = intent({"run_equivalence_key": "key-2"})
    assert other.run_id == sha("sr_run|key-2")[:32] != intent().run_id
    assert other.fingerprint() == intent().fingerprint()


def test_the_fingerprint_is_the_sha256_of_the_canonical_document() -> None:
    assert intent().fingerprint() == hashlib.sha256(by_hand(intent().document())).hexdigest()


@pytest.mark.parametrize("change", [{}, *OTHER.values()], ids=["as it is", *OTHER])
def test_an_intent_survives_the_way_through_a_row(change: dict[str, Any]) -> None:
    before = intent(change)
    stored = json.loads(canonical_bytes(before.document()))
    after = intent_from_document(before.run_id, before.run_equivalence_key, stored)
    assert after == before
    assert after.fingerprint() == before.fingerprint()


def test_tokens_are_texts_and_the_identity_keeps_the_seed_a_number() -> None:
    tokens, identity = intent({"seed": 2**64 - 1}).tokens(), intent({"seed": 2**64 - 1}).identity()
    assert tokens["seed"] == "18446744073709551615"
    assert identity["seed"] == 2**64 - 1
    assert set(tokens) == set(identity) == {"manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id"}
    assert tokens["run_id"] == ids.run_id_of("key-1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "7"),
        ("seed", 7.0),
        ("seed", True),
        ("seed", -1),
        ("seed", 2**64),
        ("manifest_fingerprint", "A" * 64),
        ("parameter_hash", "b" * 63),
        ("output_ids", []),
        ("unknown", 1),
        (
            "window",
            {"window_start_utc": "2026-01-01T00:00:00", "window_end_utc": "2026-02-01T00:00:00Z", "window_tz": "UTC"},
        ),
        (
            "window",
            {
                "window_start_utc": "2026-01-01T00:00:00Z",
                "window_end_utc": "2026-01-01T01:00:00+01:00",
                "window_tz": "UTC",
            },
        ),
        ("scenario", {"scenario_id": "a/b"}),
        ("scenario", {"scenario_id": ".."}),
        ("scenario", {"scenario_id": "a\x01"}),
        ("scenario", {"scenario_id": "{run_id}"}),
        ("scenario", {"scenario_set": []}),
        ("scenario", {}),
        ("scenario", {"scenario_id": "a", "scenario_set": ["a"]}),
    ],
)
def test_a_hostile_field_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_run_request(REQUEST | {field: value})
    assert refused.value.reason is Reason.REQUEST_SCHEMA_INVALID
    assert field in refused.value.detail


@pytest.mark.parametrize("key", ["\ud800", "a\nb", "\x1b[31m"], ids=["surrogate", "lines", "escape"])
@pytest.mark.parametrize("value", [1, None], ids=["unknown", "null"])
def test_an_unknown_field_is_named_in_one_line_that_can_be_stored_and_shown(key: str, value: object) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_run_request(REQUEST | {key: value})
    detail = refused.value.detail
    detail.encode("utf-8")
    assert detail.isprintable()
