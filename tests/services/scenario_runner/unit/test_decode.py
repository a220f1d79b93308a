"""Messages that are no JSON: what is said about them, and which run they were about."""

import base64
import json

import pytest

from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.types import KEY_MAX_LENGTH
from scenario_runner.intake.decode import Message, decode, run_id_hint

pytestmark = pytest.mark.unit

REQUEST = b'{"run_equivalence_key":"key"}'


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the record is empty"),
        (b" \r\n", "the record is empty"),
        (REQUEST.decode().encode("utf-16-le"), "looks like UTF-16 or UTF-32 without a byte order mark"),
        (REQUEST.decode().encode("utf-32-be"), "looks like UTF-16 or UTF-32 without a byte order mark"),
        (b"\xff\xfe" + REQUEST.decode().encode("utf-16-le"), "starts with a UTF-16 byte order mark"),
        (b"\x1f\x8b\x08\x00", "is compressed with gzip"),
        (base64.b64encode(REQUEST), "looks like base64 of JSON"),
        (b'"' + base64.urlsafe_b64encode(REQUEST).rstrip(b"="), "looks like base64 of JSON"),
    ],
)
def test_what_looks_like_something_else_is_named_with_what_to_send(raw: bytes, said: str) -> None:
    with pytest.raises(RequestRefused, match=said) as refused:
        decode(Message("1", raw, len(raw)), "topic", 1000)
    assert refused.value.reason is Reason.RECORD_NOT_JSON
    assert refused.value.detail.startswith(said)


@pytest.mark.parametrize("raw", [b"\0\0\0\0", b"{\x01", b"abc", b"YWJj", b"{" + b" " * 4 + b"\0"])
def test_what_looks_like_nothing_known_is_told_by_the_parser_alone(raw: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        decode(Message("1", raw, len(raw)), "topic", 1000)
    assert refused.value.detail.startswith("not well-formed JSON")


@pytest.mark.parametrize(
    ("document", "run_id"),
    [
        ({"run_equivalence_key": "key"}, run_id_of("key")),
        ({"payload": {"run_equivalence_key": "key"}}, run_id_of("key")),
        ({"run_equivalence_key": "k" * KEY_MAX_LENGTH}, run_id_of("k" * KEY_MAX_LENGTH)),
        ({"run_equivalence_key": "k" * (KEY_MAX_LENGTH + 1)}, ""),
        ({"run_equivalence_key": ""}, ""),
        ({"run_equivalence_key": 7}, ""),
        ({"run_equivalence_key": "\ud800"}, ""),
        ({"payload": ["run_equivalence_key"]}, ""),
        ({"attributes": {"kind": "EVIDENCE_ARRIVED"}, "payload": {"run_equivalence_key": "key"}}, ""),
        ({}, ""),
    ],
)
def test_a_refused_message_is_about_the_run_whose_key_it_names(document: object, run_id: str) -> None:
    raw = json.dumps(document).encode()
    assert run_id_hint(Message("1", raw, len(raw))) == run_id


def test_a_message_that_is_no_json_is_about_no_run() -> None:
    assert run_id_hint(Message("1", b"{", 1)) == ""
