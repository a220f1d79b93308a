"""Reading ``_passed.flag`` and index documents: two forms of the one, five of the other, nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import EvidenceRefused, EvidenceSaysNo
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates import index as index_module
from scenario_runner.gates.flags import parse_flag
from scenario_runner.gates.index import IndexEntry, parse_index

pytestmark = pytest.mark.unit

A, B = "a" * 64, "0123456789abcdef" * 4
FIELD = "sha256_hex"
many = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def flag(data: bytes | str, field: str = FIELD) -> str:
    return parse_flag(data if isinstance(data, bytes) else data.encode("utf-8"), field, "x/_passed.flag")


def flag_refusal(data: bytes | str, field: str = FIELD) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as refused:
        flag(data, field)
    assert refused.value.path == "x/_passed.flag"
    canonical_bytes([refused.value.detail, refused.value.expected, refused.value.actual])
    assert len(refused.value.detail) < 500
    return refused.value


def index(value: object, field: str = FIELD) -> tuple[IndexEntry, ...]:
    return parse_index(value if isinstance(value, bytes) else json.dumps(value).encode(), field, "x/index.json")


def index_refusal(value: object, field: str = FIELD) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as refused:
        index(value, field)
    assert "x/index.json" in refused.value.detail
    assert len(refused.value.detail) < 500
    canonical_bytes(refused.value.detail)
    return refused.value


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        f"sha256_hex = {A}",
        f"sha256_hex={A}",
        f"  sha256_hex  =  {A}  \n",
        f"sha256_hex = {A}\r\n",
        f"\nsha256_hex = {A}\n\n",
        f'{{"sha256_hex":"{A}"}}',
        f' \n{{"sha256_hex": "{A}", "other": 1.5, "nested": {{"a": null}}}}\n',
        f'{{"sha256_hex":"{A}","status":"PASS"}}',
        f'{{"sha256_hex":"{A}","passed":true}}',
    ],
)
def test_both_forms_of_a_flag_give_its_digest(data: str) -> None:
    assert flag(data) == A


def test_the_field_is_the_gates_own() -> None:
    assert flag(f"bundle_digest_sha256 = {A}", "bundle_digest_sha256") == A
    assert flag(f'{{"bundle_digest_sha256":"{A}","sha256_hex":"{A}"}}', "bundle_digest_sha256") == A
    for data in (f"sha256_hex = {A}", f'{{"sha256_hex":"{A}"}}'):
        assert flag_refusal(data, "bundle_digest_sha256").reason is Reason.EVIDENCE_MALFORMED


@pytest.mark.parametrize("field", ["sha256_hex", "bundle_digest_sha256"])
def test_a_flag_with_two_different_digests_contradicts_itself(field: str) -> None:
    flag_refusal(f'{{"bundle_digest_sha256":"{A}","sha256_hex":"{B}"}}', field)


@pytest.mark.parametrize("said", ["true", '"PASS"', '"PASSED"', '"pass"', '"passed"', '"true"'])
@pytest.mark.parametrize("key", ["status", "passed", "verdict", "outcome", "result", "decision"])
def test_a_flag_may_say_that_it_passed(key: str, said: str) -> None:
    assert flag(f'{{"sha256_hex":"{A}","{key}":{said}}}') == A


def test_what_else_a_flag_says_does_not_matter() -> None:
    more = {"bytes": 0, "note": "", "sealed_at": None, "files": [], "engine": {"version": "1.2"}, "count": 7.5}
    assert flag(json.dumps({"sha256_hex": A, **more})) == A


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n\t", id="white space"),
        pytest.param(b"\x00" * 64, id="zeros"),
        pytest.param(b"\xff\xfe\x00binary", id="binary"),
        pytest.param(b"\xef\xbb\xbfsha256_hex = " + A.encode(), id="a byte order mark"),
        pytest.param(f"sha256_hex = {A}".encode("utf-16"), id="UTF-16"),
        pytest.param(A.encode(), id="only the digest"),
        pytest.param(f"= {A}".encode(), id="no field"),
        pytest.param(b"sha256_hex =", id="no digest"),
        pytest.param(b"sha256_hex", id="only the field"),
        pytest.param(f"sha256_hex : {A}".encode(), id="a colon"),
        pytest.param(f"sha256_hex = {A} {B}".encode(), id="two digests"),
        pytest.param(f"sha256_hex = {A}\nsha256_hex = {B}".encode(), id="two lines"),
        pytest.param(f"sha256_hex = {A}\nstatus = FAIL".encode(), id="a second field"),
        pytest.param(f"sha256_hex == {A}".encode(), id="two equals signs"),
        pytest.param(f"SHA256_HEX = {A}".encode(), id="the field in upper case"),
        pytest.param(f"sha256-hex = {A}".encode(), id="another field"),
        pytest.param(f"sha256_hex = {A.upper()}".encode(), id="upper case"),
        pytest.param(f"sha256_hex = {A[:-1]}".encode(), id="63 digits"),
        pytest.param(f"sha256_hex = {A}a".encode(), id="65 digits"),
        pytest.param(f"sha256_hex = {A[:-1]}g".encode(), id="a letter that is no hex"),
        pytest.param(f"sha256_hex = {A[:-1]}٣".encode(), id="a digit of another script"),
        pytest.param(f"sha256_hex = 0x{A[2:]}".encode(), id="a prefix"),
        pytest.param(f'sha256_hex = "{A}"'.encode(), id="quotes"),
        pytest.param(f"sha256_hex = {A}\x00".encode(), id="a NUL"),
        pytest.param(f"sha256_hex\u00a0= {A}".encode(), id="a no-break space"),
        pytest.param(f"sha256_hex = {A}\u2028".encode(), id="a line separator"),
        pytest.param(f'["sha256_hex","{A}"]'.encode(), id="a JSON list"),
        pytest.param(f'"{A}"'.encode(), id="a JSON text"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b"{", id="half an object"),
        pytest.param(f'{{"sha256_hex":"{A}"'.encode(), id="an object that is cut off"),
        pytest.param(f'{{"sha256_hex":"{A}"}}x'.encode(), id="something after the object"),
        pytest.param(f'{{"sha256_hex":"{A}","sha256_hex":"{B}"}}'.encode(), id="the field twice"),
        pytest.param(f'{{"sha256_hex":"{A}","x":1,"x":2}}'.encode(), id="another key twice"),
        pytest.param(f'{{"sha256_hex":"{A}","x":NaN}}'.encode(), id="NaN"),
        pytest.param(b'{"sha256_hex":null}', id="null"),
        pytest.param(b'{"sha256_hex":7}', id="a number"),
        pytest.param(f'{{"sha256_hex":["{A}"]}}'.encode(), id="a list of one"),
        pytest.param(f'{{"sha256_hex":"{A}\\n"}}'.encode(), id="a line feed in the text"),
        pytest.param(f'{{"sha256_hex":" {A}"}}'.encode(), id="a space in the text"),
        pytest.param(f'{{"a":{{"sha256_hex":"{A}"}}}}'.encode(), id="the field one level down"),
        pytest.param(b'{"sha256_hex":"\\ud800"}', id="a lone surrogate"),
        pytest.param(b'{"a":' * 50_000, id="nested 50,000 deep"),
    ],
)  # fmt: skip
def test_a_flag_of_any_other_form_is_refused_as_malformed(data: bytes) -> None:
    assert flag_refusal(data).reason is Reason.EVIDENCE_MALFORMED


@pytest.mark.parametrize("key", ["status", "passed", "verdict", "outcome", "result", "decision"])
@pytest.mark.parametrize(
    "value",
    [
        '"FAIL"',
        '"FAILED"',
        "false",
        '"false"',
        "0",
        "null",
        '""',
        "[]",
        "{}",
        '"maybe"',
        '"not PASS"',
        '["PASS"]',
        "0.0",
        '"\\ud800"',
        '"' + "x" * 5000 + '"',
        "[[[[[[]]]]]]",
    ],
)
def test_a_flag_that_says_anything_but_pass_is_a_no(key: str, value: str) -> None:
    with pytest.raises(EvidenceSaysNo) as refused:
        flag(f'{{"sha256_hex":"{A}","{key}":{value}}}')
    assert refused.value.reason is Reason.GATE_FAIL
    assert refused.value.path == "x/_passed.flag"
    assert refused.value.expected == "PASS"


@pytest.mark.parametrize(
    "text",
    ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\u001b[31m", "x" * 5000],
    ids=["high", "low", "NUL", "escape", "long"],
)
def test_what_a_flag_says_can_be_written_into_the_record_of_its_refusal(text: str) -> None:
    """The report of a refusal is stored as canonical JSON; what an engine wrote must not make that impossible."""
    with pytest.raises(EvidenceSaysNo) as refused:
        flag(f'{{"sha256_hex":"{A}","status":"{text}"}}')
    error = refused.value
    assert canonical_bytes(
        {"detail": error.detail, "expected": error.expected, "actual": error.actual, "path": error.path}
    )
    assert len(error.actual) < 500


def test_a_no_is_heard_even_when_the_flag_has_no_digest() -> None:
    with pytest.raises(EvidenceSaysNo):
        flag('{"status":"FAIL"}')


@pytest.mark.parametrize("depth", range(200, 1200, 50))
def test_a_deep_value_beside_the_digest_is_read_or_refused_and_nothing_else(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    for text in (f'{{"sha256_hex":"{A}","x":{deep}}}', f'{{"sha256_hex":"{A}","status":{deep}}}'):
        try:
            answer: object = flag(text)
        except EvidenceRefused as refused:
            answer = refused.reason
        assert answer in (A, Reason.EVIDENCE_MALFORMED, Reason.GATE_FAIL)


@many
@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_never_a_flag(data: bytes) -> None:
    flag_refusal(data)


@many
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=5))
def test_only_white_space_may_stand_around_a_text_flag(before: str, after: str, middle: str) -> None:
    text = f"{before}sha256_hex{middle}={middle}{A}{after}"
    plain = all(char in " \t\n\r\f\v" for char in before + after + middle)
    if plain:
        assert flag(text) == A
    else:
        with pytest.raises(EvidenceRefused):
            flag(text)


@many
@given(st.integers(0, 63), st.sampled_from("ABCDEFGHgzZ .-_\n\u0661"))
def test_one_wrong_character_in_the_digest_is_enough(place: int, char: str) -> None:
    broken = B[:place] + char + B[place + 1 :]
    flag_refusal(f"sha256_hex = {broken}x")
    flag_refusal(json.dumps({"sha256_hex": broken}))


# --- indexes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "items", "members", "entries", "files"])
def test_every_form_of_an_index_gives_its_entries_in_order(key: str | None) -> None:
    listed = [
        {"path": "b.json", "sha256_hex": A},
        {"path": "a.json", "bytes": 7},
        {"path": "sub/c.json", "sha256_hex": B, "x": None},
    ]
    assert index(listed if key is None else {key: listed, "version": 1, "created": "today"}) == (
        IndexEntry("b.json", A, (A,)), IndexEntry("a.json", "", ()), IndexEntry("sub/c.json", B, (B,)),
    )  # fmt: skip


def test_a_digest_under_the_gates_field_comes_first_and_both_are_kept() -> None:
    both = {"path": "a", "sha256_hex": A, "bundle_digest_sha256": B}
    assert index([both], "bundle_digest_sha256") == (IndexEntry("a", B, (B, A)),)
    assert index([{"path": "a", "sha256_hex": A}], "bundle_digest_sha256") == (IndexEntry("a", "", (A,)),)
    assert index([{"path": "a", "sha256_hex": A, "bundle_digest_sha256": A}], "bundle_digest_sha256") == (
        IndexEntry("a", A, (A,)),
    )
    assert index([{"path": "a", "other": "not a digest"}]) == (IndexEntry("a", "", ()),)


def test_an_endless_path_is_refused_and_not_repeated() -> None:
    assert "entry 1" in index_refusal([{"path": "a/" * 50_000 + "b"}]).detail


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"items": []},
        {"members": []},
        {"entries": []},
        {"files": []},
        {},
        {"other": [{"path": "a"}]},
        {"items": None},
        {"items": {}},
        {"items": {"path": "a"}},
        {"items": "a"},
        None,
        7,
        "a",
        True,
        {"items": [{"path": "a"}], "files": [{"path": "b"}]},
        {"items": [{"path": "a"}], "members": []},
    ],
    ids=repr,
)
def test_an_index_that_lists_nothing_or_lists_twice_is_refused(document: object) -> None:
    assert index_refusal(document).reason is Reason.EVIDENCE_MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"not json",
        b'\xef\xbb\xbf[{"path":"a"}]',
        '[{"path":"a"}]'.encode("utf-16"),
        b'[{"path":"\xff"}]',
        b'[{"path":"a"}]x',
        b'[{"path":"a","path":"b"}]',
        b'{"items":[{"path":"a"}],"items":[{"path":"b"}]}',
        b'[{"path":"a","x":NaN}]',
        b"[" * 100_000,
        b'[{"path":"a"},]',
    ],
)
def test_an_index_that_is_not_well_formed_is_refused(data: bytes) -> None:
    assert index_refusal(data).reason is Reason.EVIDENCE_MALFORMED


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "..",
        ".",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "",
        "a\\b",
        "..\\x",
        "a\x00b",
        "a\nb",
        "\x7f",
        "//a",
        "a/\ud800",
    ],
    ids=repr,
)
def test_a_path_that_is_not_plain_and_relative_is_refused(path: str) -> None:
    for listed in ([{"path": path}], [{"path": "fine"}, {"path": path, "sha256_hex": A}]):
        assert f"entry {len(listed)}" in index_refusal(listed).detail


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "a.json",
        [],
        ["a.json"],
        {},
        {"file": "a"},
        {"path": None},
        {"path": 7},
        {"path": ["a"]},
        {"path": {"a": 1}},
        {"Path": "a"},
    ],
    ids=repr,
)
def test_an_entry_without_a_path_is_refused(entry: object) -> None:
    assert "entry 2" in index_refusal([{"path": "fine"}, entry]).detail


@pytest.mark.parametrize(
    "digest",
    ["", None, 7, [], A.upper(), A[:-1], A + "a", A + "\n", " " + A, "sha256:" + A, "g" * 64, "\ud800"],
    ids=repr,
)
@pytest.mark.parametrize("key", ["sha256_hex", "bundle_digest_sha256"])
def test_a_listed_digest_that_is_none_is_refused(key: str, digest: object) -> None:
    assert key in index_refusal([{"path": "a", key: digest}], "bundle_digest_sha256").detail


@pytest.mark.parametrize("listed", [["a", "a"], ["a", "b", "c", "a"], ["x/y", "x/y"]])
def test_a_file_listed_twice_is_refused(listed: list[str]) -> None:
    assert "twice" in index_refusal([{"path": path} for path in listed]).detail


def test_an_index_with_too_many_entries_is_refused_as_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_ENTRIES", 3)
    assert len(index([{"path": str(n)} for n in range(3)])) == 3
    assert index_refusal([{"path": str(n)} for n in range(4)]).reason is Reason.EVIDENCE_TOO_LARGE


def test_a_million_entries_are_refused_without_looking_at_them() -> None:
    assert index_refusal(b"[" + b"0," * 999_999 + b"0]").reason is Reason.EVIDENCE_TOO_LARGE


segments = st.text("ab.*é ", min_size=1, max_size=4)


@many
@given(st.lists(st.lists(segments, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6))
def test_an_index_is_taken_exactly_when_its_paths_are_normal_and_different(paths: list[str]) -> None:
    normal = all(segment not in ("", ".", "..") for path in paths for segment in path.split("/"))
    if normal and len(set(paths)) == len(paths):
        assert [entry.path for entry in index([{"path": path} for path in paths])] == paths
    else:
        index_refusal([{"path": path} for path in paths])


@many
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("ab/.", max_size=5) | st.just(A),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["path", "sha256_hex", "items", "files"]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_an_index_or_a_refusal(value: Any) -> None:
    try:
        entries = index(value)
    except EvidenceRefused:
        return
    assert entries
    assert len({entry.path for entry in entries}) == len(entries)


@pytest.mark.parametrize("key", ["gate_passed", "overall_status", "bundle_state", "FINAL_VERDICT", "run_valid"])
@pytest.mark.parametrize("said", [False, "FAIL", 1, None, "perhaps"])
def test_a_key_that_ends_like_a_verdict_must_affirm(key: str, said: object) -> None:
    assert flag(json.dumps({FIELD: A, key: "PASS"})) == A
    with pytest.raises(EvidenceSaysNo):
        flag(json.dumps({FIELD: A, key: said}))


@pytest.mark.parametrize("key", ["failed", "errors", "violations", "REJECTED"])
def test_a_flag_that_names_faults_says_no_and_one_that_names_none_may_pass(key: str) -> None:
    for none in (None, False, 0, "", [], {}, "none"):
        assert flag(json.dumps({FIELD: A, key: none})) == A
    for fault in (True, 3, "x", ["x"], {"x": 1}):
        with pytest.raises(EvidenceSaysNo):
            flag(json.dumps({FIELD: A, key: fault}))


def test_the_digest_field_itself_is_no_verdict_whatever_its_name_ends_in() -> None:
    assert flag(json.dumps({"bundle_status": A}), "bundle_status") == A


def test_a_flag_about_another_gate_or_identity_is_refused_and_one_that_names_none_is_not() -> None:
    ours = {"gate_id": "gate.1A", "seed": "7"}
    for fitting in ({}, {"gate_id": "gate.1A"}, {"seed": 7}, {"seed": "7", "gate_id": "gate.1A"}):
        assert parse_flag(json.dumps({FIELD: A, **fitting}).encode(), FIELD, "x/_passed.flag", ours) == A
    for other in ({"gate_id": "gate.1B"}, {"seed": 8}):
        with pytest.raises(EvidenceRefused) as refused:
            parse_flag(json.dumps({FIELD: A, **other}).encode(), FIELD, "x/_passed.flag", ours)
        assert refused.value.reason is Reason.EVIDENCE_CONFLICT


@pytest.mark.parametrize("text", [f"other = {A}", json.dumps({"other": A}), "{}"])
def test_a_flag_without_the_field_says_which_one_is_missing(text: str) -> None:
    assert f"does not carry the field {FIELD!r}" in flag_refusal(text).detail
