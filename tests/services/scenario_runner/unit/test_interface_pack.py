"""The interface pack: the committed one, hostile ones, path templates, and the closure of required gates."""

import copy
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_runner.contracts.errors import ConfigurationError, RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.types import NAME_PATTERN
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.loader import build_pack, load_pack, pack_from_document, parse_scope
from scenario_runner.interface_pack.model import InterfacePack, Law, Ordering, PathBase
from scenario_runner.interface_pack.templates import TOKENS, Shape, parse_template

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).resolve().parents[4] / "config/engine/interface_pack"
PARTITIONS = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
SEGMENTS = ["1A", "1B", "2A", "2B", "3A", "3B", "5A", "5B", "6A", "6B"]
Json = dict[str, Any]
many = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def committed() -> InterfacePack:
    return load_pack(str(FOLDER / "engine_outputs.catalogue.yaml"), str(FOLDER / "engine_gates.map.yaml"))


def output(output_id: str = "out", **changes: Any) -> Json:
    entry: Json = {
        "output_id": output_id,
        "path_template": f"data/{output_id}/seed={{seed}}/part-*.parquet",
        "partitions": ["seed"],
        "scope": "scope_seed",
        "read_requires_gates": [],
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def gate(gate_id: str = "gate.a", **changes: Any) -> Json:
    base = f"data/{gate_id}/manifest_fingerprint={{manifest_fingerprint}}"
    entry: Json = {
        "gate_id": gate_id,
        "scope": "fingerprint",
        "bundle_root_template": base + "/",
        "index_path_template": base + "/index.json",
        "passed_flag_path_template": base + "/_passed.flag",
        "verification_method": {
            "kind": "sha256_index_json_ascii_lex_raw_bytes",
            "digest_field": "sha256_hex",
            "ordering": "ascii_lex",
            "exclude_filenames": ["_passed.flag"],
        },
        "authorizes_outputs": ["out"],
        "upstream_gate_dependencies": [],
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def method(**changes: Any) -> Json:
    entry = gate()["verification_method"] | changes
    return {key: value for key, value in entry.items() if value is not ...}


def pack(outputs: list[Any] | None = None, gates: list[Any] | None = None) -> InterfacePack:
    return build_pack(
        {"outputs": [output()] if outputs is None else outputs}, {"gates": [gate()] if gates is None else gates}
    )


def refusal(outputs: list[Any] | None = None, gates: list[Any] | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        pack(outputs, gates)
    assert refused.value.reason is Reason.CONFIGURATION_INVALID
    assert refused.value.remedy
    return refused.value


# --- the committed pack -----------------------------------------------------------------------------------------------


def test_the_committed_pack_has_forty_outputs_or_more_and_the_ten_gates(committed: InterfacePack) -> None:
    assert len(committed.outputs) >= 40
    assert [gate_id.split(".")[2] for gate_id in committed.gates] == SEGMENTS


def test_each_committed_gate_depends_on_all_gates_before_it(committed: InterfacePack) -> None:
    ids = list(committed.gates)
    for number, spec in enumerate(committed.gates.values()):
        assert set(spec.upstream) == set(ids[:number])


def test_the_committed_gates_have_the_laws_of_the_contract(committed: InterfacePack) -> None:
    by_segment = {gate_id.split(".")[2]: spec for gate_id, spec in committed.gates.items()}
    laws = {segment: spec.law for segment, spec in by_segment.items()}
    assert laws == dict.fromkeys(SEGMENTS, Law.INDEX_RAW_BYTES) | {
        "1A": Law.BUNDLE,
        "1B": Law.BUNDLE,
        "3A": Law.MEMBER_DIGESTS,
    }
    assert set(laws.values()) == set(Law)
    assert {segment for segment, spec in by_segment.items() if spec.path_base is PathBase.RUN_ROOT} == {"2B"}
    assert {segment for segment, spec in by_segment.items() if spec.ordering is Ordering.AS_LISTED} == {"3A", "6A"}
    fields = {segment: spec.digest_field for segment, spec in by_segment.items()}
    assert fields == dict.fromkeys(SEGMENTS, "sha256_hex") | dict.fromkeys(("5A", "5B"), "bundle_digest_sha256")
    excluded = {segment: spec.exclude_filenames for segment, spec in by_segment.items()}
    assert excluded == dict.fromkeys(SEGMENTS, frozenset({"_passed.flag"})) | {
        "6B": frozenset({"_passed.flag", "index.json"})
    }
    assert all(spec.scope == ("manifest_fingerprint",) for spec in by_segment.values())


def test_the_committed_outputs_have_every_scope_there_can_be(committed: InterfacePack) -> None:
    every = {combination for size in range(6) for combination in itertools.combinations(PARTITIONS, size)}
    assert {spec.scope for spec in committed.outputs.values()} == every


def test_the_committed_outputs_have_every_shape_and_some_are_optional(committed: InterfacePack) -> None:
    assert {spec.template.shape for spec in committed.outputs.values()} == set(Shape)
    assert {spec.optional for spec in committed.outputs.values()} == {True, False}


def test_a_committed_output_is_refused_exactly_when_nothing_could_verify_it(committed: InterfacePack) -> None:
    authorised = {output_id for spec in committed.gates.values() for output_id in spec.authorizes_outputs}
    verdicts: dict[str, Reason | None] = {}
    for output_id in committed.outputs:
        try:
            assert required_gates(committed, [output_id])
            verdicts[output_id] = None
        except RequestRefused as refused:
            verdicts[output_id] = refused.reason
    for output_id, spec in committed.outputs.items():
        if not spec.template.tokens <= set(TOKENS):
            assert verdicts[output_id] is Reason.OUTPUT_NOT_ADDRESSABLE
        elif output_id not in authorised and not spec.read_requires_gates:
            assert verdicts[output_id] is Reason.NO_REQUIRED_GATES
        else:
            assert verdicts[output_id] is None
    assert list(verdicts.values()).count(None) >= 40


def test_the_default_traffic_outputs_need_all_ten_gates(committed: InterfacePack) -> None:
    traffic = ["arrival_events_5B", "s2_flow_anchor_baseline_6B", "s3_flow_anchor_with_fraud_6B"]
    assert required_gates(committed, traffic) == tuple(sorted(committed.gates))


@pytest.mark.parametrize("token", ["utc_day", "release_tag"])
def test_a_committed_output_that_needs_a_value_no_request_has_is_listed_and_cannot_be_planned(
    committed: InterfacePack, token: str
) -> None:
    found = [spec.output_id for spec in committed.outputs.values() if token in spec.template.tokens]
    assert found
    for output_id in found:
        with pytest.raises(RequestRefused, match=token) as refused:
            required_gates(committed, ["arrival_events_5B", output_id])
        assert refused.value.reason is Reason.OUTPUT_NOT_ADDRESSABLE


def test_the_committed_pack_survives_the_way_through_its_pinned_document(committed: InterfacePack) -> None:
    again = pack_from_document(json.loads(json.dumps(committed.document)))
    assert again == committed
    assert list(again.gates) == list(committed.gates)


# --- digest -----------------------------------------------------------------------------------------------------------


def test_unknown_keys_are_ignored_and_do_not_change_the_digest() -> None:
    plain = pack()
    extra = {"class": "surface", "primary_key": ["a"], "description": "x", "nested": {"a": 1.5}, "since": None}
    noted = build_pack(
        {"version": "1", "outputs": [output(**extra)]},
        {"version": 2, "compatibility_notes": ["x"], "gates": [gate(**extra, verification_method=method(note="x"))]},
    )
    assert noted.digest == plain.digest
    assert noted == plain


@pytest.mark.parametrize(
    "change",
    [
        lambda o, g: o.update(path_template="data/other/seed={seed}/part-*.parquet"),
        lambda o, g: o.update(scope="scope_seed_run_id", partitions=["seed", "run_id"]),
        lambda o, g: o.update(read_requires_gates=["gate.a"]),
        lambda o, g: o.update(availability="optional"),
        lambda o, g: o.update(schema_ref="x"),
        lambda o, g: o.update(dictionary_ref="x"),
        lambda o, g: g.update(scope="fingerprint_seed"),
        lambda o, g: g.update(passed_flag_path_template="data/x/_passed.flag"),
        lambda o, g: g.update(bundle_root_template="data/x/"),
        lambda o, g: g.update(index_path_template="data/x/index.json"),
        lambda o, g: g.update(authorizes_outputs=[]),
        lambda o, g: g.update(verification_method=method(kind="sha256_member_digest_concat", ordering="index_order")),
        lambda o, g: g.update(verification_method=method(ordering="index_order")),
        lambda o, g: g.update(verification_method=method(digest_field="other")),
        lambda o, g: g.update(verification_method=method(path_base="run_root")),
        lambda o, g: g.update(verification_method=method(exclude_filenames=[])),
    ],
)
def test_everything_that_could_change_a_verdict_changes_the_digest(change: Callable[[Json, Json], None]) -> None:
    changed_output, changed_gate = output(), gate()
    change(changed_output, changed_gate)
    assert pack([changed_output], [changed_gate]).digest != pack().digest


def test_a_pack_of_real_size_loads_and_closes(tmp_path: Path) -> None:
    gates = [gate(f"gate.{n:02d}", authorizes_outputs=[f"out_{m}" for m in range(n, 340, 10)],
                  upstream_gate_dependencies=[f"gate.{m:02d}" for m in range(n)]) for n in range(10)]  # fmt: skip
    outputs = [output(f"out_{n}", path_template=f"data/out_{n}/seed={{seed}}/part-*.parquet  \n") for n in range(340)]
    catalogue, gate_map = tmp_path / "catalogue.yaml", tmp_path / "gates.yaml"
    catalogue.write_text(yaml.safe_dump({"version": "1", "outputs": outputs}), "utf-8")
    gate_map.write_text(yaml.safe_dump({"version": "1", "gates": list(reversed(gates))}), "utf-8")
    loaded = load_pack(str(catalogue), str(gate_map))
    assert len(loaded.outputs) == 340
    assert list(loaded.gates) == [f"gate.{n:02d}" for n in range(10)], "upstream gates come first"
    assert required_gates(loaded, ["out_0"]) == ("gate.00",)
    assert required_gates(loaded, ["out_9"]) == tuple(f"gate.{n:02d}" for n in range(10))
    assert required_gates(loaded, loaded.outputs) == tuple(f"gate.{n:02d}" for n in range(10))
    assert loaded.outputs["out_5"].template.text == "data/out_5/seed={seed}/part-*.parquet"


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


# --- scopes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(6))
def test_a_scope_is_read_in_the_fixed_order_whatever_order_it_is_written_in(size: int) -> None:
    for words in itertools.permutations(PARTITIONS, size):
        text = "scope_" + ("_".join(words) or "global")
        assert parse_scope(text, "scope_") == tuple(key for key in PARTITIONS if key in words)


@pytest.mark.parametrize(
    ("text", "scope"),
    [("scope_seed_fingerprint_parameter", ("manifest_fingerprint", "parameter_hash", "seed")),
     ("scope_scenario_run_id", ("scenario_id", "run_id")), ("scope_seed_utc_day", ("seed",)),
     ("scope_release_tag", ()), ("scope_utc_day_manifest_fingerprint", ("manifest_fingerprint",))],
)  # fmt: skip
def test_short_names_and_partitions_without_identity_are_understood(text: str, scope: tuple[str, ...]) -> None:
    assert parse_scope(text, "scope_") == scope


@pytest.mark.parametrize("partition", ["seed", "scenario_id", "parameter_hash", "run_id"])
def test_an_output_of_one_instance_gets_a_receipt(partition: str) -> None:
    loaded = pack([output(partitions=[partition], scope=f"scope_{partition}")])
    assert loaded.outputs["out"].instance_scoped


@pytest.mark.parametrize("scope", ["scope_global", "scope_manifest_fingerprint"])
def test_an_output_that_is_not_of_one_instance_gets_none(scope: str) -> None:
    assert not pack([output(scope=scope)]).outputs["out"].instance_scoped


# --- templates --------------------------------------------------------------------------------------------------------

VALUES = {
    "manifest_fingerprint": "a" * 64,
    "parameter_hash": "b" * 64,
    "seed": "7",
    "scenario_id": "base",
    "run_id": "c" * 32,
}


def test_a_template_is_rendered_with_every_token() -> None:
    template = parse_template(
        " data/{manifest_fingerprint}/{parameter_hash}/s={seed}/{scenario_id}-{run_id}/part-*.parquet \n"
    )
    assert template.render(VALUES) == f"data/{'a' * 64}/{'b' * 64}/s=7/base-{'c' * 32}/part-*.parquet"
    assert template.shape is Shape.GLOB
    assert template.tokens == set(TOKENS)


@pytest.mark.parametrize(
    ("text", "shape", "rendered"),
    [("a/b/", Shape.DIRECTORY, "a/b"), ("a/b.json", Shape.FILE, "a/b.json"), ("b-*", Shape.GLOB, "b-*"),
     ("a/*.x", Shape.GLOB, "a/*.x"), ("a/{seed}/\n", Shape.DIRECTORY, "a/7"), ("{seed}", Shape.FILE, "7")],
)  # fmt: skip
def test_the_last_segment_tells_the_shape(text: str, shape: Shape, rendered: str) -> None:
    template = parse_template(text)
    assert (template.shape, template.render(VALUES)) == (shape, rendered)


@many
@given(
    st.lists(st.sampled_from([*(f"{{{name}}}" for name in TOKENS), "x", "{", "}", "{{", "}}"]), min_size=1, max_size=6)
)
def test_a_value_that_looks_like_a_token_is_never_expanded(pieces: list[str]) -> None:
    value = "".join(pieces)
    values = dict.fromkeys(TOKENS, value)
    template = parse_template("d/{scenario_id}/s={seed}/{run_id}-{parameter_hash}.json")
    assert template.render(values) == f"d/{value}/s={value}/{value}-{value}.json"


@pytest.mark.parametrize(
    "value", ["", ".", "..", "a/b", "/", "../x", "a/../../x", "*", "a*", "a\\b", "a\x00", "a\n", "a\x7f"], ids=repr
)
@pytest.mark.parametrize(
    "text", ["data/{scenario_id}/x.json", "{scenario_id}/x", "data/{scenario_id}", "data/{scenario_id}/part-*"]
)
def test_a_value_that_would_change_the_path_is_refused(text: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_template(text).render(VALUES | {"scenario_id": value})


@pytest.mark.parametrize("value", ["/", "a/b", "/../..", "*", "a\\", "\n", "\x00"], ids=repr)
def test_a_value_inside_a_segment_cannot_add_one(value: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_template("data/s={scenario_id}/x").render(VALUES | {"scenario_id": value})


@many
@given(st.text(max_size=6))
def test_a_rendered_path_has_the_segments_of_its_template_or_is_refused(value: str) -> None:
    template = parse_template("data/{scenario_id}/s={scenario_id}/part-*.json")
    try:
        rendered = template.render(VALUES | {"scenario_id": value})
    except ValueError:
        return
    assert rendered == f"data/{value}/s={value}/part-*.json"
    assert [segment in ("", ".", "..") for segment in rendered.split("/")] == [False] * 4


def test_a_token_without_a_value_cannot_be_rendered() -> None:
    with pytest.raises(KeyError):
        parse_template("a/{utc_day}").render(VALUES)


# --- required gates ---------------------------------------------------------------------------------------------------


def chain(count: int) -> list[Json]:
    """Gates 0..count-1, each depending on the one before; gate n authorises output n."""
    return [
        gate(f"g{n}", authorizes_outputs=[f"o{n}"], upstream_gate_dependencies=[f"g{n - 1}"] if n else [])
        for n in range(count)
    ]


def test_gates_that_authorise_and_gates_that_reading_requires_are_both_needed() -> None:
    loaded = pack([output("o0"), output("o1", read_requires_gates=["g2"]), output("o2")],
                  [gate(f"g{n}", authorizes_outputs=[f"o{n}"]) for n in range(3)])  # fmt: skip
    assert required_gates(loaded, ["o1"]) == ("g1", "g2")
    assert required_gates(loaded, ["o0", "o1"]) == ("g0", "g1", "g2")


def test_gates_upstream_are_needed_all_the_way() -> None:
    loaded = pack([output(f"o{n}") for n in range(6)], chain(6))
    assert required_gates(loaded, ["o3"]) == ("g0", "g1", "g2", "g3")


def test_order_and_repetition_of_outputs_do_not_matter() -> None:
    loaded = pack([output(f"o{n}") for n in range(4)], chain(4))
    assert required_gates(loaded, ["o2", "o0", "o2"]) == required_gates(loaded, iter(["o0", "o2"]))


@many
@given(st.data())
def test_the_required_gates_are_the_smallest_set_that_is_closed(data: st.DataObject) -> None:
    count, outputs = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    some = st.sets(st.integers(0, count - 1))
    upstream = {n: {m for m in data.draw(some) if m < n} for n in range(count)}
    authorises = {n: data.draw(st.sets(st.integers(0, outputs - 1))) for n in range(count)}
    requires = {n: data.draw(some) for n in range(outputs)}
    loaded = pack(
        [output(f"o{n}", read_requires_gates=[f"g{m}" for m in sorted(requires[n])]) for n in range(outputs)],
        [
            gate(
                f"g{n}",
                authorizes_outputs=[f"o{m}" for m in sorted(authorises[n])],
                upstream_gate_dependencies=[f"g{m}" for m in sorted(upstream[n])],
            )
            for n in data.draw(st.permutations(range(count)))
        ],
    )
    wanted = data.draw(st.sets(st.integers(0, outputs - 1), min_size=1))
    seeds = {n for n in range(count) if authorises[n] & wanted} | {m for n in wanted for m in requires[n]}
    candidates = (set(c) for size in range(count + 1) for c in itertools.combinations(range(count), size))
    smallest = next(c for c in candidates if seeds <= c and all(upstream[n] <= c for n in c))
    if not smallest:
        with pytest.raises(RequestRefused) as refused:
            required_gates(loaded, [f"o{n}" for n in wanted])
        assert refused.value.reason is Reason.NO_REQUIRED_GATES
    else:
        assert required_gates(loaded, [f"o{n}" for n in wanted]) == tuple(sorted(f"g{n}" for n in smallest))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([], Reason.NO_OUTPUTS),
        (["nothing"], Reason.UNKNOWN_OUTPUT_ID),
        (["guarded", "nothing"], Reason.UNKNOWN_OUTPUT_ID),
        (["Guarded"], Reason.UNKNOWN_OUTPUT_ID),
        (["daily"], Reason.OUTPUT_NOT_ADDRESSABLE),
        (["guarded", "daily"], Reason.OUTPUT_NOT_ADDRESSABLE),
        (["unguarded"], Reason.NO_REQUIRED_GATES),
    ],
)
def test_a_request_that_cannot_be_verified_is_refused(outputs: list[str], reason: Reason) -> None:
    loaded = pack(
        [
            output("guarded"),
            output("unguarded"),
            output("daily", path_template="d/{utc_day}/x", partitions=["utc_day"], scope="scope_utc_day"),
        ],
        [gate(authorizes_outputs=["guarded", "daily"])],
    )
    with pytest.raises(RequestRefused) as refused:
        required_gates(loaded, outputs)
    assert refused.value.reason is reason
    assert refused.value.detail


def test_an_unguarded_output_beside_a_guarded_one_needs_the_gates_of_the_guarded_one() -> None:
    loaded = pack([output("guarded"), output("unguarded")], [gate(authorizes_outputs=["guarded"])])
    assert required_gates(loaded, ["guarded", "unguarded"]) == ("gate.a",)


def test_a_gate_that_is_not_in_the_map_is_refused_even_if_such_a_pack_could_be_loaded() -> None:
    loaded = pack([output(read_requires_gates=["gate.a"])])
    broken = dataclasses.replace(
        loaded, gates={"gate.b": dataclasses.replace(loaded.gates["gate.a"], gate_id="gate.b")}
    )
    with pytest.raises(RequestRefused) as refused:
        required_gates(broken, ["out"])
    assert refused.value.reason is Reason.UNKNOWN_GATE_ID


def test_every_id_of_the_committed_pack_is_a_name_that_the_wire_models_take(committed: InterfacePack) -> None:
    import re

    for name in [*committed.outputs, *committed.gates]:
        assert re.fullmatch(NAME_PATTERN, name), name
