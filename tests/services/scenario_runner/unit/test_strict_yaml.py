"""YAML as configuration may use it: everything that could be read two ways is refused, naming its line."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_runner.contracts import strict_yaml
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.strict_yaml import load_yaml, read_yaml

pytestmark = pytest.mark.unit


def load(text: str, env: dict[str, str] | None = None) -> Any:
    return load_yaml(textwrap.dedent(text).encode("utf-8"), "profile.yaml", env=env)


def refusal(data: str | bytes, env: dict[str, str] | None = None) -> ConfigurationError:
    raw = data if isinstance(data, bytes) else textwrap.dedent(data).encode("utf-8")
    with pytest.raises(ConfigurationError) as refused:
        load_yaml(raw, "profile.yaml", env=env)
    assert refused.value.reason is Reason.CONFIGURATION_INVALID
    assert refused.value.place.startswith("profile.yaml")
    assert refused.value.remedy
    assert len(str(refused.value)) < 1000
    return refused.value


# --- what is read -----------------------------------------------------------------------------------------------------


def test_plain_documents_are_read_as_plain_values() -> None:
    assert load(
        """
        text: abc
        quoted: "7"
        number: 7
        negative: -3
        float: 0.5
        flag: true
        none: null
        empty:
        list: [1, two, 3.0]
        nested: {a: {b: [c]}}
        folded: >
          one
          two
        """
    ) == {
        "text": "abc",
        "quoted": "7",
        "number": 7,
        "negative": -3,
        "float": 0.5,
        "flag": True,
        "none": None,
        "empty": None,
        "list": [1, "two", 3.0],
        "nested": {"a": {"b": ["c"]}},
        "folded": "one two\n",
    }


def test_dates_stay_text() -> None:
    assert load("a: 2026-01-01\nb: 2026-01-01T00:00:00Z") == {"a": "2026-01-01", "b": "2026-01-01T00:00:00Z"}


def test_aliases_are_followed() -> None:
    assert load("a: &ids [1, 2]\nb: *ids\nc: {d: *ids}") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_values_behind_aliases_are_copies() -> None:
    loaded = load("a: &ids [1]\nb: *ids")
    loaded["a"].append(2)
    assert loaded["b"] == [1]


def test_a_merge_key_is_refused_because_it_lets_one_mapping_override_another_unseen() -> None:
    assert refusal("a: &x {auth: on}\nb:\n  <<: *x\n").place == "profile.yaml, line 3"
    assert load("a: {'<<': text}") == {"a": {"<<": "text"}}


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text("abc xyz:#-?!&*'\"%@`{}[],|>\n\té0123.", max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(json_like)
def test_whatever_the_dumper_writes_is_read_back(value: Any) -> None:
    assert load_yaml(yaml.safe_dump(value, allow_unicode=True).encode(), "x") == value


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 1\n", 2),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5),
        ("a: 1\nb: 2\n'a': 3\n", 3),
        ("a:\n- {x: 1, x: 2}\n", 2),
        ('a: 1\n"\\x61": 2\n', 2),
    ],
)
def test_a_key_given_twice_is_refused_naming_its_line(text: str, line: int) -> None:
    error = refusal(text)
    assert "given twice" in error.problem
    assert error.place == f"profile.yaml, line {line}"


@pytest.mark.parametrize(
    "key", ["1", "true", "null", "1.5", "[a]", "{a: 1}", "? [a, b]\n", "yes", "? 0x" + "f" * 5000 + "\n"]
)
def test_a_key_that_is_not_text_is_refused(key: str) -> None:
    error = refusal(f"a: 1\n{key}: 1\n")
    assert error.place == "profile.yaml, line 2"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system x",
        "!!python/tuple [1]",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!binary aGk=",
        "!mine x",
        "!mine {a: 1}",
        "!mine [a]",
        "!!unknown x",
        "!<tag:example.org,2026:x> y",
    ],
)
def test_object_tags_are_refused_naming_their_line(value: str) -> None:
    error = refusal(f"a: 1\nb: {value}\n")
    assert "tag" in error.problem
    assert error.place == "profile.yaml, line 2"


@pytest.mark.parametrize(
    "value",
    [
        '!!int "abc"',
        '!!float "abc"',
        '!!bool "maybe"',
        '!!int ""',
        '!!float ""',
        '!!int "_"',
        "0b_",
        "1" + ":00" * 300 + ".0",
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused_naming_its_line(value: str) -> None:
    assert refusal(f"a: 1\nb: {value}\n").place == "profile.yaml, line 2"


def test_an_alias_bomb_is_refused() -> None:
    lines = ['a0: &a0 ["x", "x", "x", "x", "x", "x", "x", "x", "x"]']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "values" in refusal("\n".join(lines)).problem


@pytest.mark.parametrize("text", ["&a [*a]", "&a {b: *a}", "a: &a\n  b: [*a]"])
def test_a_document_that_holds_itself_is_refused(text: str) -> None:
    assert "levels" in refusal(text).problem


@pytest.mark.parametrize("depth", [66, 500, 5000])
@pytest.mark.parametrize("piece", ["[", "{a: ", "- "], ids=["lists", "mappings", "blocks"])
def test_deep_nesting_is_refused(piece: str, depth: int) -> None:
    close = {"[": "]", "{a: ": "}", "- ": ""}[piece]
    refusal(piece * depth + "x" + close * depth)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "[" * 100_000 + "]" * 100_000])
def test_nesting_that_is_a_hundred_thousand_deep_is_refused_and_does_not_end_the_process(text: str) -> None:
    """In a process of its own: a parser that recurses in C ends it by a signal."""
    script = (
        "import sys\n"
        "from scenario_runner.contracts.errors import ConfigurationError\n"
        "from scenario_runner.contracts.strict_yaml import load_yaml\n"
        "try:\n"
        "    load_yaml(sys.stdin.buffer.read(), 'profile.yaml')\n"
        "except ConfigurationError as error:\n"
        "    print('refused', error.place)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=text.encode(), capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()[:1]) == (0, [b"refused"]), done.stderr[-300:]


def test_a_document_over_the_limit_is_refused_without_being_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "MAX_BYTES", 100)
    assert load("a: 1") == {"a": 1}
    assert "larger" in refusal("a: " + "x" * 100).problem


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "MAX_NODES", 50)
    assert len(load("[" + "1, " * 40 + "]")) == 40
    refusal("[" + "1, " * 60 + "]")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_document_is_refused_or_read_as_nothing(text: str) -> None:
    if text == "---\n":
        assert load(text) is None
    else:
        assert "empty" in refusal(text).problem


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", None),
        (b"a: 1\nb: 'x\n", None),
        (b"a: 1\n\tb: 2\n", 2),
        (b"a: 1\nb: *nothing\n", 2),
        (b"a: 1\n---\nb: 2\n", 2),
        (b"a: 1\nb: 2: 3\n", 2),
        (b"a: 1\nb: @x\n", 2),
        (b"a: 1\nb: %x\n", 2),
        (b"a: 1\nb: \xff\n", 2),
        (b"a: 1\nb: \x00\n", 2),
        (b"a: 1\nb: \x07\n", 2),
    ],
)
def test_malformed_yaml_is_refused_naming_its_line(data: bytes, line: int | None) -> None:
    place = refusal(data).place
    assert "line " in place
    if line is not None:
        assert place == f"profile.yaml, line {line}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_document_in_another_encoding_is_refused(encoding: str) -> None:
    refusal("a: 1\nb: 2\n".encode(encoding))


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "env", "value"),
    [
        ("${PORT}", {"PORT": "8080"}, 8080),
        ("${PORT}", {"PORT": "-1"}, -1),
        ("${PORT}", {"PORT": "0.5"}, 0.5),
        ("${PORT}", {"PORT": "true"}, True),
        ("${PORT}", {"PORT": "null"}, None),
        ("${PORT}", {"PORT": ""}, None),
        ("${PORT}", {"PORT": "abc"}, "abc"),
        ("${PORT}", {"PORT": "2026-01-01"}, "2026-01-01"),
        ("'${PORT}'", {"PORT": "8080"}, "8080"),
        ('"${PORT}"', {"PORT": "true"}, "true"),
        ("|-\n  ${PORT}", {"PORT": "8080"}, "8080"),
        ("${PORT:-7}", {}, 7),
        ("${PORT:-7}", {"PORT": ""}, 7),
        ("${PORT:-7}", {"PORT": "8"}, 8),
        ("${PORT:-}", {}, None),
        ("'${PORT:-}'", {}, ""),
        ("'${PORT:-7}'", {}, "7"),
        ("x${A}y${B}z", {"A": "1", "B": "2"}, "x1y2z"),
        ("${A}${B}", {"A": "1", "B": "2"}, 12),
        ("${A:-a b}/c", {}, "a b/c"),
    ],
)
def test_variables_expand_typed_when_plain_and_as_text_when_quoted(
    text: str, env: dict[str, str], value: object
) -> None:
    loaded = load_yaml(f"a: {text}\n".encode(), "x", env=env)["a"]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    "hostile",
    [
        "{a: 1}",
        "[1, 2]",
        "a: b",
        "*alias",
        "&a b",
        "# c",
        "${OTHER}",
        "!!set {a}",
        "'a'b",
    ],
)
def test_a_variable_brings_in_a_value_and_never_structure(hostile: str) -> None:
    loaded = load_yaml(b"a: ${X}\nb: 2\n", "x", env={"X": hostile, "OTHER": "other"})
    assert loaded == {"a": hostile, "b": 2}


@pytest.mark.parametrize(
    "hostile", ["x\nauth_mode: disabled", "http://localhost:9000\r", "a\tb", "'sr-local'", '"sr-local"', "a\u202eb"]
)
def test_a_variable_that_was_read_wrongly_from_a_file_is_refused_by_its_name(hostile: str) -> None:
    error = refusal("a: 1\nb: ${GIVEN}/x\n", {"GIVEN": hostile})
    assert error.place == "profile.yaml, line 2"
    assert "GIVEN" in error.problem
    assert hostile not in str(error)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: ${NOT_SET}\n", "a: 1\nb: 'x${NOT_SET}y'\n", "a: ${SET}\nb: [1, '${NOT_SET}']\n"]
)
def test_an_unset_variable_without_a_default_is_refused_naming_its_line_and_its_name(text: str) -> None:
    error = refusal(text, {"SET": "1"})
    assert error.place == "profile.yaml, line 2"
    assert "NOT_SET" in error.problem
    assert "NOT_SET" in error.remedy


def test_variables_are_left_alone_where_no_environment_is_given() -> None:
    assert load("a: ${NOT_SET}\nb: '${X:-y}'") == {"a": "${NOT_SET}", "b": "${X:-y}"}


@pytest.mark.parametrize("text", ["$NAME", "${}", "${1A}", "${A-B}", "$ {A}", "{A}", "$$"])
def test_what_only_looks_like_a_variable_stays_text(text: str) -> None:
    assert load_yaml(f"a: '{text}'".encode(), "x", env={"NAME": "x", "A": "x", "B": "y"}) == {"a": text}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: ${X:-1}\n", "utf-8")
    assert read_yaml(str(path), env={}) == {"a": 1}
    path.write_text("a: 1\na: 2\n", "utf-8")
    with pytest.raises(ConfigurationError) as refused:
        read_yaml(str(path))
    assert refused.value.place == f"{path}, line 2"


@pytest.mark.parametrize("what", ["missing", "a folder", "under a file", "a name too long", "a NUL in the name"])
def test_a_file_that_cannot_be_read_is_a_configuration_error_with_its_path(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    path = {"missing": "none.yaml", "a folder": ".", "under a file": "file/x", "a name too long": "x" * 300,
            "a NUL in the name": "a\x00b"}[what]  # fmt: skip
    with pytest.raises(ConfigurationError) as refused:
        read_yaml(str(tmp_path / path))
    assert "cannot be read" in refused.value.problem


def test_a_file_over_the_limit_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "MAX_BYTES", 64)
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a: 1\n" + b"#" * 10_000)
    with pytest.raises(ConfigurationError, match="larger than 64"):
        read_yaml(str(path))
