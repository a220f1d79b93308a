"""What an interface pack may not hold: each fault is refused, naming its place."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pack_support import Json, gate, many, method, output, pack

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.interface_pack.loader import build_pack, load_pack, pack_from_document

pytestmark = pytest.mark.unit


def refusal(outputs: list[Any] | None = None, gates: list[Any] | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        pack(outputs, gates)
    assert refused.value.reason is Reason.CONFIGURATION_INVALID
    assert refused.value.remedy
    return refused.value


# --- what a pack may not hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [7, True, False, [], {}], ids=repr)
def test_an_availability_that_is_no_text_is_refused_naming_the_output(value: object) -> None:
    error = refusal([output("fine"), output("broken", availability=value)], [gate(authorizes_outputs=["fine"])])
    assert "broken" in error.place
    assert "availability" in error.place


@pytest.mark.parametrize("value", [None, "required", "", "Optional", "conditional"], ids=repr)
def test_whatever_is_not_said_to_be_optional_is_required(value: object) -> None:
    found = pack([output("one", availability=value)], [gate(authorizes_outputs=["one"])])
    assert not found.outputs["one"].optional


@pytest.mark.parametrize("value", [..., None], ids=["missing", "null"])
def test_a_gate_says_what_it_authorises_even_if_that_is_nothing(value: object) -> None:
    error = refusal(gates=[gate(), gate("gate.broken", authorizes_outputs=value)])
    assert "gate.broken" in error.place
    assert "authorizes_outputs" in error.place


@pytest.mark.parametrize(
    ("where", "given", "meant"),
    [
        ("output", "read_required_gates", "read_requires_gates"),
        ("output", "availabilty", "availability"),
        ("gate", "index_path_templates", "index_path_template"),
        ("gate", "upstream_gate_dependancies", "upstream_gate_dependencies"),
        ("method", "path_bases", "path_base"),
        ("method", "exclude_filename", "exclude_filenames"),
    ],
)
def test_a_key_that_is_all_but_the_name_of_an_absent_one_is_refused(where: str, given: str, meant: str) -> None:
    an_output, a_gate = output("one"), gate(authorizes_outputs=["one"])
    target = {"output": an_output, "gate": a_gate, "method": a_gate["verification_method"]}[where]
    target.pop(meant, None)
    target[given] = []
    error = refusal([an_output], [a_gate])
    assert given in error.place
    assert meant in error.problem


@pytest.mark.parametrize(
    "value",
    [None, 7, [], {}, "", "seed", "scope_", "scope_galaxy", "scope_seed_galaxy", "scope_seeds", "scope_seed__run_id",
     "scope_global_seed", "SCOPE_SEED", "scope_ seed", "scope-seed", "scope_seed_"],
    ids=repr,
)  # fmt: skip
def test_a_scope_that_is_not_known_is_refused_naming_the_output(value: object) -> None:
    error = refusal([output("broken", scope=value)], [gate(authorizes_outputs=[])])
    assert "broken" in error.place
    assert "scope" in error.place


METHODS: dict[str, list[Any]] = {
    "kind": [
        None,
        7,
        [],
        "",
        "sha256",
        "sha256_bundle",
        "SHA256_BUNDLE_DIGEST",
        "md5_bundle_digest",
        "sha512_bundle_digest",
        "none",
        ...,
    ],
    "ordering": [
        None,
        7,
        [],
        "",
        "ascii",
        "ASCII_LEX",
        "as_listed",
        "random",
        "members_array_order",
        ...,
    ],
    "path_base": [7, [], "", "root", "RUN_ROOT", "run root", "engine_root", "/"],
    "digest_field": [None, 7, [], "", "  ", ...],
    "exclude_filenames": [7, "x", {"a": 1}, [1], [None], ["a/b"], ["/"], [""]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, found in METHODS.items() for value in found], ids=repr
)
def test_a_verification_method_with_an_unknown_value_is_refused_naming_the_gate_and_the_key(
    key: str, value: object
) -> None:
    broken = gate("gate.broken", verification_method=method(**{key: value}), authorizes_outputs=[])
    error = refusal(gates=[gate(), broken])
    assert "gate.broken" in error.place
    assert key in error.place


@pytest.mark.parametrize(
    ("kind", "ordering"),
    [("sha256_bundle_digest", "index_order"), ("sha256_bundle_digest", "members_array_order"),
     ("sha256_member_digest_concat", "ascii_lex"), ("sha256_index_json_ascii_lex_raw_bytes", "listed_order")],
)  # fmt: skip
def test_an_ordering_that_the_law_does_not_have_is_refused(kind: str, ordering: str) -> None:
    assert "ordering" in refusal(gates=[gate(verification_method=method(kind=kind, ordering=ordering))]).place


@pytest.mark.parametrize("value", [None, [], "x", 7, ...], ids=repr)
def test_a_gate_without_a_verification_method_is_refused(value: object) -> None:
    assert "verification_method" in refusal(gates=[gate(verification_method=value)]).place


@pytest.mark.parametrize("value", [None, 7, "", "planet", "fingerprint_planet", "scope_fingerprint", [], ...], ids=repr)
def test_a_gate_scope_that_is_not_known_is_refused(value: object) -> None:
    error = refusal(gates=[gate(scope=value)])
    assert "gate.a" in error.place
    assert "scope" in error.place


@pytest.mark.parametrize("kind", ["sha256_index_json_ascii_lex_raw_bytes", "sha256_member_digest_concat"])
@pytest.mark.parametrize("value", [..., None, ""], ids=repr)
def test_a_law_that_reads_an_index_needs_its_path(kind: str, value: object) -> None:
    ordering = "ascii_lex" if "lex" in kind else "index_order"
    broken = gate(verification_method=method(kind=kind, ordering=ordering), index_path_template=value)
    assert "index_path_template" in refusal(gates=[broken]).place


@pytest.mark.parametrize("value", [False, 0, 0.0, [], {}], ids=repr)
def test_an_index_path_that_is_no_text_is_refused_whatever_the_law(value: object) -> None:
    bundle = method(kind="sha256_bundle_digest")
    assert "index_path_template" in refusal(gates=[gate(verification_method=bundle, index_path_template=value)]).place


def test_the_bundle_law_does_without_an_index() -> None:
    loaded = pack(gates=[gate(verification_method=method(kind="sha256_bundle_digest"), index_path_template=...)])
    assert loaded.gates["gate.a"].index is None


BAD_TEMPLATES = [
    "",
    "  \n",
    "/abs/x",
    "../x",
    "a/../x",
    "a/./x",
    "a//x",
    ".",
    "..",
    "a\\b",
    "a\x00b",
    "a\nb/c",
    "a/{seed",
    "a/seed}",
    "a/{}",
    "a/{{seed}}",
    "a/{x/y}",
    "*/x.json",
    "a*/b/part-1",
    "a/*/b/",
    "a/b*/",
    "/",
    "//",
    7,
    None,
    [],
    ...,
]


@pytest.mark.parametrize("value", BAD_TEMPLATES, ids=repr)
def test_a_bad_path_template_is_refused_naming_the_output(value: object) -> None:
    error = refusal([output("broken", path_template=value)], [gate(authorizes_outputs=[])])
    assert "broken" in error.place
    assert "path_template" in error.place


@pytest.mark.parametrize("key", ["passed_flag_path_template", "bundle_root_template", "index_path_template"])
@pytest.mark.parametrize(
    "value",
    ["/abs/x", "../x", "a/../x", "a//x", "a/{seed", "a/{utc_day}/x", "a/{release_tag}", "a/part-*", 7],
    ids=repr,
)
def test_a_bad_gate_template_is_refused_naming_the_gate(key: str, value: object) -> None:
    error = refusal(gates=[gate("gate.broken", **{key: value})])
    assert "gate.broken" in error.place
    assert key in error.place


@pytest.mark.parametrize("key", ["passed_flag_path_template", "index_path_template"])
def test_a_flag_or_index_that_is_a_directory_is_refused(key: str) -> None:
    assert key in refusal(gates=[gate(**{key: "data/x/"})]).place


@pytest.mark.parametrize(
    "value",
    ["", " ", 7, None, [], "a/b", "..", ".a", "a..b", "a b", "a\x00", "é", "x" * 129, "a*", "{seed}", ...],
    ids=repr,
)
def test_an_id_that_is_not_a_name_is_refused_naming_its_place(value: object) -> None:
    assert "output 2" in refusal([output(), output(output_id=value, path_template="data/x")]).place  # type: ignore[arg-type]
    assert "gate 2" in refusal(gates=[gate(), gate(gate_id=value, bundle_root_template="a/", index_path_template="a/i",
                                                   passed_flag_path_template="a/f")]).place  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("key", ["partitions", "read_requires_gates"])
@pytest.mark.parametrize("value", ["x", 7, {"a": 1}, [1], [None], [["a"]]], ids=repr)
def test_a_list_of_an_output_that_is_none_is_refused(key: str, value: object) -> None:
    assert key in refusal([output(**{key: value})]).place


@pytest.mark.parametrize("key", ["authorizes_outputs", "upstream_gate_dependencies"])
@pytest.mark.parametrize("value", ["x", 7, {"a": 1}, [1], [None], [["a"]]], ids=repr)
def test_a_list_of_a_gate_that_is_none_is_refused(key: str, value: object) -> None:
    assert key in refusal(gates=[gate(**{key: value})]).place


@pytest.mark.parametrize("entry", [None, "x", 7, [], [output()]], ids=repr)
def test_an_entry_that_is_not_an_object_is_refused_naming_its_number(entry: object) -> None:
    assert "output 2" in refusal([output(), entry]).place
    assert "gate 2" in refusal(gates=[gate(), entry]).place


def test_an_id_listed_twice_is_refused() -> None:
    assert "out" in refusal([output(), output()]).place
    assert "gate.a" in refusal(gates=[gate(), gate()]).place


def test_an_output_that_requires_an_unknown_gate_is_refused_naming_both() -> None:
    error = refusal([output(read_requires_gates=["gate.none"])])
    assert "out" in error.place
    assert "gate.none" in error.problem


def test_a_gate_that_authorises_an_unknown_output_is_refused_naming_both() -> None:
    error = refusal(gates=[gate(authorizes_outputs=["out", "nothing"])])
    assert "gate.a" in error.place
    assert "nothing" in error.problem


def test_a_gate_that_depends_on_an_unknown_gate_is_refused_naming_both() -> None:
    error = refusal(gates=[gate(upstream_gate_dependencies=["gate.none"])])
    assert "gate.a" in error.place
    assert "gate.none" in error.problem


@pytest.mark.parametrize(
    "circle",
    [{"gate.a": ["gate.a"]}, {"gate.a": ["gate.b"], "gate.b": ["gate.a"]},
     {"gate.a": [], "gate.b": ["gate.a", "gate.d"], "gate.c": ["gate.b"], "gate.d": ["gate.c"]}],
    ids=["itself", "two", "three and one outside"],
)  # fmt: skip
def test_gates_that_depend_on_each_other_in_a_circle_are_refused(circle: dict[str, list[str]]) -> None:
    error = refusal(gates=[gate(gate_id, upstream_gate_dependencies=upstream) for gate_id, upstream in circle.items()])
    inside = [gate_id for gate_id, upstream in circle.items() if upstream]
    assert all(gate_id in error.problem for gate_id in inside)


@pytest.mark.parametrize("document", [None, [], "x", {}, {"outputs": None}, {"outputs": {}}, {"outputs": []}], ids=repr)
def test_a_catalogue_without_outputs_is_refused(document: object) -> None:
    with pytest.raises(ConfigurationError, match="the catalogue"):
        build_pack(document, {"gates": [gate()]}, ("the catalogue", "the map"))


@pytest.mark.parametrize("document", [None, [], "x", {}, {"gates": None}, {"gates": {}}, {"gates": []}], ids=repr)
def test_a_gate_map_without_gates_is_refused(document: object) -> None:
    with pytest.raises(ConfigurationError, match="the map"):
        build_pack({"outputs": [output()]}, document, ("the catalogue", "the map"))


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    catalogue, gate_map = tmp_path / "catalogue.yaml", tmp_path / "gates.yaml"
    catalogue.write_text(yaml.safe_dump({"outputs": [output(scope="maybe")]}), "utf-8")
    gate_map.write_text(yaml.safe_dump({"gates": [gate()]}), "utf-8")
    with pytest.raises(ConfigurationError) as refused:
        load_pack(str(catalogue), str(gate_map))
    assert str(catalogue) in refused.value.place
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_pack(str(catalogue), str(tmp_path / "none.yaml"))


JUNK = [None, True, 7, 1.5, "x", "", [], {}, [None], {"a": None}]


@many
@given(st.data())
def test_no_single_change_of_a_pack_is_answered_with_anything_but_a_pack_or_a_configuration_error(
    data: st.DataObject,
) -> None:
    documents: Json = {"outputs": [output("one"), output("two")], "gates": [gate(authorizes_outputs=["one", "two"])]}
    target = copy.deepcopy(documents)
    node: Any = target
    while True:
        step = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        inner = node[step]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            node = inner
            continue
        node[step] = data.draw(st.sampled_from(JUNK))
        break
    try:
        built = build_pack(target, target)
    except ConfigurationError:
        return
    assert pack_from_document(built.document) == built
