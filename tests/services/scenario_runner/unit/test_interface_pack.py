"""The interface pack: the committed one, hostile ones, path templates, and the closure of required gates."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pack_support import Json, gate, many, method, output, pack

from scenario_runner.contracts.errors import RequestRefused
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


@pytest.fixture(scope="module")
def committed() -> InterfacePack:
    return load_pack(str(FOLDER / "engine_outputs.catalogue.yaml"), str(FOLDER / "engine_gates.map.yaml"))


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
