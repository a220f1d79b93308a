"""The hashing laws, each recomputed here with hashlib alone from the wording of contracts.md section 4."""

import json
from typing import Any

import pytest
from hashing_support import (
    BUNDLE,
    INDEX,
    MEMBERS,
    NOTHING,
    PATHS,
    ROOT,
    Engine,
    concatenated,
    conflict,
    gate,
    malformed,
    many,
    members_of,
    sha,
    trees,
)
from hypothesis import given
from hypothesis import strategies as st

from scenario_runner.contracts.errors import EvidenceRefused, EvidenceSaysNo, SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates.laws import RAW, GatePaths, Measurement, gate_paths, verify_digests
from scenario_runner.interface_pack.loader import build_pack

pytestmark = pytest.mark.unit


@many
@given(trees, st.sampled_from([(), ("_passed.flag",), ("_passed.flag", "index.json")]))
def test_the_bundle_law_is_over_all_files_but_the_excluded_ones_at_the_top_in_byte_order(
    tree: dict[str, bytes], exclude: tuple[str, ...]
) -> None:
    engine = Engine({f"{ROOT}/{path}": data for path, data in tree.items()} | {"elsewhere/x": b"never read"})
    wanted = [tree[path] for path in sorted(tree, key=str.encode) if path not in exclude]
    spec = gate(BUNDLE, exclude=exclude)
    if wanted:
        assert engine.verify(spec, engine.flag(sha(*wanted))) == {}
        conflict(engine, spec, engine.flag(sha(b"other", *wanted)))
    else:
        malformed(engine, spec, engine.flag(NOTHING))


def test_an_excluded_name_below_the_top_is_hashed() -> None:
    engine = Engine({f"{ROOT}/_passed.flag": b"flag", f"{ROOT}/sub/_passed.flag": b"payload", f"{ROOT}/a": b"a"})
    assert engine.verify(gate(BUNDLE), engine.flag(sha(b"a", b"payload"))) == {}
    conflict(engine, gate(BUNDLE), engine.flag(sha(b"a")))


def test_a_file_named_like_the_root_and_an_excluded_name_elsewhere_is_hashed() -> None:
    engine = Engine(
        {f"{ROOT}/{ROOT}/_passed.flag": b"x", f"{ROOT}/_passed.flag.bak": b"y", f"{ROOT}/x_passed.flag": b"z"}
    )
    data = [engine.files[path] for path in engine.listing()]
    assert engine.verify(gate(BUNDLE), engine.flag(sha(*data))) == {}


@pytest.mark.parametrize("files", [{}, {f"{ROOT}/_passed.flag": b"x"}, {"data/v2/a": b"a"}])
def test_a_bundle_without_files_is_no_pass_even_with_the_digest_of_nothing(files: dict[str, bytes]) -> None:
    assert malformed(Engine(files), gate(BUNDLE), Engine().flag(NOTHING)).path == ROOT


def test_a_listing_that_was_not_taken_is_no_pass() -> None:
    with pytest.raises(EvidenceRefused):
        members_of(gate(BUNDLE), PATHS, Engine().flag(NOTHING), None, None)


def test_an_index_inside_a_bundle_is_checked_too() -> None:
    engine = Engine({f"{ROOT}/a": b"a", f"{ROOT}/b": b"b"}, [{"path": "a", "sha256_hex": sha(b"a")}])
    whole = engine.flag(sha(b"a", b"b"))
    assert engine.verify(gate(BUNDLE), whole) == {f"{ROOT}/a": RAW}
    engine.entries = [{"path": "a", "sha256_hex": sha(b"b")}]
    refused = conflict(engine, gate(BUNDLE), whole)
    assert (refused.path, refused.expected, refused.actual) == (f"{ROOT}/a", sha(b"b"), sha(b"a"))


def test_what_a_bundles_index_names_is_required_to_exist() -> None:
    engine = Engine({f"{ROOT}/a": b"a"}, [{"path": "gone"}, {"path": "a"}, {"path": "_passed.flag"}])
    members = members_of(gate(BUNDLE), PATHS, engine.flag(sha(b"a")), engine.index(), engine.listing())
    assert members.named == {f"{ROOT}/gone", f"{ROOT}/a"}


# --- sha256_index_json_ascii_lex_raw_bytes ----------------------------------------------------------------------------


@many
@given(
    trees,
    st.data(),
    st.sampled_from(["ascii_lex", "index_order"]),
    st.sampled_from(["bundle_root", "run_root"]),
    st.booleans(),
)
def test_the_index_law_is_over_the_files_named_by_the_index(
    tree: dict[str, bytes], data: st.DataObject, ordering: str, base: str, with_digests: bool
) -> None:
    prefix = ROOT + "/" if base == "bundle_root" else ""
    engine = Engine({prefix + path: content for path, content in tree.items()})
    engine.files[f"{ROOT}/not-named"] = b"never hashed"
    listed = data.draw(st.permutations(sorted(tree)))
    engine.entries = [{"path": path, **({"sha256_hex": sha(tree[path])} if with_digests else {})} for path in listed]
    exclude = ("_passed.flag", "index.json")
    skipped = {f"{ROOT}/{name}" for name in exclude}
    kept = [path for path in listed if prefix + path not in skipped]
    ordered = sorted(kept, key=str.encode) if ordering == "ascii_lex" else kept
    spec = gate(INDEX, ordering, base, exclude)
    if not ordered:
        malformed(engine, spec, engine.flag(NOTHING))
        return
    wanted = sha(*(tree[path] for path in ordered))
    assert engine.verify(spec, engine.flag(wanted)) == ({prefix + path: RAW for path in kept} if with_digests else {})
    conflict(engine, spec, engine.flag(sha(b"x", wanted.encode())))


def test_the_two_orderings_are_told_apart() -> None:
    files = {f"{ROOT}/b": b"1", f"{ROOT}/a": b"2", f"{ROOT}/B": b"3", f"{ROOT}/10": b"4", f"{ROOT}/9": b"5"}
    engine = Engine(files, [{"path": path} for path in ("b", "a", "B", "10", "9")])
    engine.verify(gate(INDEX, "index_order"), engine.flag(sha(b"1", b"2", b"3", b"4", b"5")))
    engine.verify(gate(INDEX, "ascii_lex"), engine.flag(sha(b"4", b"5", b"3", b"2", b"1")))
    conflict(engine, gate(INDEX, "index_order"), engine.flag(sha(b"4", b"5", b"3", b"2", b"1")))
    conflict(engine, gate(INDEX, "ascii_lex"), engine.flag(sha(b"1", b"2", b"3", b"4", b"5")))


def test_paths_relative_to_the_run_root_are_not_looked_for_in_the_bundle() -> None:
    engine = Engine({"logs/x": b"right", f"{ROOT}/logs/x": b"wrong"}, [{"path": "logs/x"}])
    members = members_of(gate(INDEX, base="run_root"), PATHS, engine.flag(sha(b"right")), engine.index(), None)
    assert members.ordered == ("logs/x",)
    assert members_of(gate(INDEX), PATHS, engine.flag(sha(b"right")), engine.index(), None).ordered == (
        f"{ROOT}/logs/x",
    )


@pytest.mark.parametrize("base", ["bundle_root", "run_root"])
def test_an_excluded_name_in_the_index_is_skipped_at_the_top_of_the_bundle_only(base: str) -> None:
    prefix = "" if base == "bundle_root" else ROOT + "/"
    elsewhere = "sub/_passed.flag" if base == "bundle_root" else "_passed.flag"
    engine = Engine(
        {f"{ROOT}/_passed.flag": b"flag", f"{ROOT}/sub/_passed.flag": b"in", "_passed.flag": b"top", f"{ROOT}/a": b"a"}
    )
    engine.entries = [{"path": prefix + "_passed.flag"}, {"path": elsewhere}, {"path": prefix + "a"}]
    members = members_of(gate(INDEX, "index_order", base), PATHS, engine.flag(NOTHING), engine.index(), None)
    assert members.ordered == (elsewhere if prefix else f"{ROOT}/{elsewhere}", f"{ROOT}/a")


def test_the_digest_of_an_excluded_file_is_not_asked_for() -> None:
    engine = Engine({f"{ROOT}/_passed.flag": b"flag", f"{ROOT}/a": b"a"},
                    [{"path": "_passed.flag", "sha256_hex": sha(b"another flag")}, {"path": "a"}])  # fmt: skip
    assert engine.verify(gate(INDEX), engine.flag(sha(b"a"))) == {}


@pytest.mark.parametrize("entries", [[], [{"path": "_passed.flag"}]])
def test_an_index_that_leaves_nothing_to_hash_is_no_pass(entries: list[dict[str, Any]]) -> None:
    engine = Engine({f"{ROOT}/_passed.flag": b"x", f"{ROOT}/a": b"a"})
    index = json.dumps(entries).encode()
    with pytest.raises(EvidenceRefused) as refused:
        members_of(gate(INDEX), PATHS, engine.flag(NOTHING), index, engine.listing())
    assert refused.value.reason is Reason.EVIDENCE_MALFORMED


def test_tampered_bytes_are_found_when_the_listed_digests_still_agree_with_the_flag() -> None:
    engine = Engine({f"{ROOT}/a": b"a", f"{ROOT}/b": b"b"},
                    [{"path": "a", "sha256_hex": sha(b"a")}, {"path": "b", "sha256_hex": sha(b"b")}])  # fmt: skip
    flag = engine.flag(sha(b"a", b"b"))
    assert engine.verify(gate(INDEX), flag) == {f"{ROOT}/a": RAW, f"{ROOT}/b": RAW}
    engine.files[f"{ROOT}/b"] = b"B"
    refused = conflict(engine, gate(INDEX), flag)
    assert (refused.path, refused.expected, refused.actual) == (f"{ROOT}/b", sha(b"b"), sha(b"B"))


def test_bytes_moved_from_one_file_to_the_next_are_found_by_the_listed_digests() -> None:
    entries = [{"path": "a", "sha256_hex": sha(b"xy")}, {"path": "b", "sha256_hex": sha(b"z")}]
    engine = Engine({f"{ROOT}/a": b"x", f"{ROOT}/b": b"yz"}, entries)
    assert conflict(engine, gate(INDEX), engine.flag(sha(b"xyz"))).path == f"{ROOT}/a"


def test_every_digest_that_an_index_gives_must_agree() -> None:
    engine = Engine({f"{ROOT}/a": b"a"}, [{"path": "a", "bundle_digest_sha256": sha(b"a"), "sha256_hex": sha(b"b")}])
    spec = gate(INDEX, digest_field="bundle_digest_sha256")
    conflict(engine, spec, engine.flag(sha(b"a"), "bundle_digest_sha256"))
    engine.entries[0]["sha256_hex"] = sha(b"a")
    assert engine.verify(spec, engine.flag(sha(b"a"), "bundle_digest_sha256")) == {f"{ROOT}/a": RAW}


@many
@given(trees, st.data())
def test_one_changed_byte_anywhere_is_a_conflict(tree: dict[str, bytes], data: st.DataObject) -> None:
    engine = Engine(
        {f"{ROOT}/{path}": content for path, content in tree.items()}, [{"path": path} for path in sorted(tree)]
    )
    flag = engine.flag(sha(*(tree[path] for path in sorted(tree, key=str.encode))))
    spec = gate(INDEX, exclude=())
    assert engine.verify(spec, flag) == {}
    path = data.draw(st.sampled_from(sorted(engine.files)))
    engine.files[path] += b"\x00"
    conflict(engine, spec, flag)


# --- every law --------------------------------------------------------------------------------------------------------

LAWS = [(BUNDLE, "ascii_lex"), (INDEX, "ascii_lex"), (INDEX, "index_order"), (MEMBERS, "index_order")]


@pytest.mark.parametrize(("kind", "ordering"), [law for law in LAWS if law[0] != BUNDLE])
@pytest.mark.parametrize("flag", [NOTHING, sha(b"x")])
def test_a_law_that_reads_an_index_never_passes_without_one(kind: str, ordering: str, flag: str) -> None:
    spec = gate(kind, ordering)
    with pytest.raises((EvidenceRefused, SequenceError)):
        verify_digests(spec, PATHS, members_of(spec, PATHS, Engine().flag(flag), None, None), Measurement("", {}, 0, 0))


@pytest.mark.parametrize(("kind", "ordering"), LAWS)
@pytest.mark.parametrize("flag", [b"", b"\x00", b"sha256_hex = x", b"other = " + NOTHING.encode(), b"x" * 100_000])
def test_a_malformed_flag_is_refused_before_anything_else(kind: str, ordering: str, flag: bytes) -> None:
    with pytest.raises(EvidenceRefused) as refused:
        members_of(gate(kind, ordering), PATHS, flag, b"not an index", [])
    assert refused.value.path == PATHS.flag


@pytest.mark.parametrize(("kind", "ordering"), LAWS)
def test_a_flag_that_says_no_is_a_no_under_every_law(kind: str, ordering: str) -> None:
    with pytest.raises(EvidenceSaysNo):
        members_of(gate(kind, ordering), PATHS, b'{"sha256_hex":"x","status":"FAIL"}', None, [])


@pytest.mark.parametrize(("kind", "ordering"), LAWS)
@pytest.mark.parametrize("base", ["bundle_root", "run_root"])
@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a//b"])
def test_an_index_path_that_climbs_out_is_refused_under_every_law_and_base(
    kind: str, ordering: str, base: str, path: str
) -> None:
    index = json.dumps([{"path": path, "sha256_hex": NOTHING}]).encode()
    with pytest.raises(EvidenceRefused):
        members_of(gate(kind, ordering, base), PATHS, Engine().flag(NOTHING), index, [f"{ROOT}/a"])


@pytest.mark.parametrize(("kind", "ordering"), LAWS)
def test_a_listed_member_that_was_not_read_is_our_defect_and_no_verdict(kind: str, ordering: str) -> None:
    engine = Engine({f"{ROOT}/a": b"a"}, [{"path": "a", "sha256_hex": sha(b"a")}])
    spec = gate(kind, ordering)
    digest = concatenated(engine.entries) if kind == MEMBERS else sha(b"a")
    members = members_of(spec, PATHS, engine.flag(digest), engine.index(), engine.listing())
    for forms in ({}, {f"{ROOT}/a": ()}, {f"{ROOT}/b": ((RAW, sha(b"a")),)}):
        with pytest.raises(SequenceError):
            verify_digests(spec, PATHS, members, Measurement(sha(b"a"), forms, 1, 1))


@pytest.mark.parametrize(("kind", "ordering"), LAWS)
@pytest.mark.parametrize("measured", ["", NOTHING, sha(b"b")])
def test_a_wrong_or_missing_measurement_is_never_a_pass(kind: str, ordering: str, measured: str) -> None:
    engine = Engine({f"{ROOT}/a": b"a"}, [{"path": "a", "sha256_hex": sha(b"a")}])
    spec = gate(kind, ordering)
    members = members_of(spec, PATHS, engine.flag(sha(b"a")), engine.index(), engine.listing())
    with pytest.raises(EvidenceRefused) as refused:
        verify_digests(spec, PATHS, members, Measurement(measured, {f"{ROOT}/a": ((RAW, sha(b"a")),)}, 1, 1))
    assert refused.value.reason is Reason.EVIDENCE_CONFLICT


@pytest.mark.parametrize("value", ["..", "a/b", "*", "", "a\x00"], ids=repr)
def test_a_token_value_that_would_leave_the_run_root_is_refused(value: str) -> None:
    base = "data/{manifest_fingerprint}"
    document = {
        "outputs": [{"output_id": "out", "path_template": "out/x.json", "scope": "scope_global"}],
        "gates": [
            {
                "gate_id": "g",
                "scope": "fingerprint",
                "passed_flag_path_template": base + "/f",
                "bundle_root_template": base + "/",
                "index_path_template": base + "/i",
                "authorizes_outputs": ["out"],
                "verification_method": {"kind": INDEX, "digest_field": "x", "ordering": "ascii_lex"},
            }
        ],
    }
    spec = build_pack(document, document).gates["g"]
    assert gate_paths(spec, {"manifest_fingerprint": "abc"}) == GatePaths("data/abc/f", "data/abc", "data/abc/i")
    with pytest.raises(EvidenceRefused):
        gate_paths(spec, {"manifest_fingerprint": value})
