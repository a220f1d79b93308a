"""The hashing law over listed digests (``sha256_member_digest_concat``), against plain hashlib."""

import hashlib
import itertools

import pytest
from hashing_support import (
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

from scenario_runner.gates.laws import CANONICAL, DIRECTORY, RAW

pytestmark = pytest.mark.unit


def member_engine() -> Engine:
    return Engine(
        {
            f"{ROOT}/raw.bin": b"\x00raw",
            f"{ROOT}/doc.json": b'{ "b": 1,\n  "a": [2.5] }',
            f"{ROOT}/parts/1": b"one",
            f"{ROOT}/parts/2": b"two",
        },
        [
            {"path": "raw.bin", "sha256_hex": sha(b"\x00raw")},
            {"path": "doc.json", "sha256_hex": sha(b'{"a":[2.5],"b":1}')},
            {"path": "parts", "sha256_hex": sha(b"one", b"two")},
        ],
        {f"{ROOT}/parts": [f"{ROOT}/parts/1", f"{ROOT}/parts/2"]},
    )


def test_the_member_law_is_over_the_listed_digests_and_tells_the_form_that_matched() -> None:
    engine = member_engine()
    assert engine.verify(gate(MEMBERS, "members_array_order"), engine.flag(concatenated(engine.entries))) == {
        f"{ROOT}/raw.bin": RAW, f"{ROOT}/doc.json": CANONICAL, f"{ROOT}/parts": DIRECTORY,
    }  # fmt: skip


@pytest.mark.parametrize("ordering", ["members_array_order", "index_order", "listed_order"])
def test_the_member_law_keeps_the_listed_order_under_each_of_its_names(ordering: str) -> None:
    for entries in itertools.permutations(member_engine().entries):
        engine = member_engine()
        engine.entries = list(entries)
        spec = gate(MEMBERS, ordering)
        assert len(engine.verify(spec, engine.flag(concatenated(engine.entries)))) == 3
        conflict(
            engine,
            spec,
            engine.flag(
                concatenated(sorted(engine.entries, key=lambda e: str(e["sha256_hex"]))[::-1] + engine.entries)
            ),
        )


def test_a_raw_match_is_named_before_a_canonical_one() -> None:
    engine = Engine({f"{ROOT}/doc.json": b'{"a":1}'}, [{"path": "doc.json", "sha256_hex": sha(b'{"a":1}')}])
    assert engine.verify(gate(MEMBERS, "index_order"), engine.flag(concatenated(engine.entries))) == {
        f"{ROOT}/doc.json": RAW
    }


@pytest.mark.parametrize("path", ["raw.bin", "doc.json", "parts/1", "parts/2"])
def test_a_member_that_matches_in_no_form_is_a_contradiction(path: str) -> None:
    engine = member_engine()
    flag = engine.flag(concatenated(engine.entries))
    engine.files[f"{ROOT}/{path}"] = b'{"tampered": true}'
    refused = conflict(engine, gate(MEMBERS, "index_order"), flag)
    assert refused.path == f"{ROOT}/{path.partition('/')[0]}"


def test_forms_of_different_listed_digests_are_not_mixed() -> None:
    """One listed digest matching raw and the other canonical is a contradiction, not two matches."""
    engine = member_engine()
    engine.entries = [
        {"path": "doc.json", "other": sha(b'{"a":[2.5],"b":1}'), "sha256_hex": sha(engine.files[f"{ROOT}/doc.json"])}
    ]
    conflict(
        engine,
        gate(MEMBERS, "index_order", digest_field="other"),
        engine.flag(concatenated(engine.entries, "other"), "other"),
    )


def test_a_flag_over_other_digests_is_a_conflict() -> None:
    engine = member_engine()
    refused = conflict(engine, gate(MEMBERS, "index_order"), engine.flag(concatenated(engine.entries[:2])))
    assert refused.path == PATHS.flag
    assert refused.expected == concatenated(engine.entries[:2])
    assert refused.actual == concatenated(engine.entries)


def test_a_flag_over_the_members_bytes_is_a_conflict() -> None:
    engine = member_engine()
    conflict(engine, gate(MEMBERS, "index_order"), engine.flag(sha(*engine.files.values())))


def test_a_member_without_a_digest_of_its_own_is_refused() -> None:
    engine = member_engine()
    engine.entries.append({"path": "more", "bundle_digest_sha256": sha(b"x")})
    assert "entry 4" in malformed(engine, gate(MEMBERS, "index_order"), engine.flag(NOTHING)).detail


def test_a_member_law_with_another_field_takes_that_field_only() -> None:
    engine = Engine({f"{ROOT}/a": b"a"}, [{"path": "a", "sha256_hex": sha(b"a")}])
    malformed(engine, gate(MEMBERS, "index_order", digest_field="bundle_digest_sha256"),
              engine.flag(concatenated(engine.entries), "bundle_digest_sha256"))  # fmt: skip


def test_every_member_is_named_and_so_must_exist() -> None:
    engine = member_engine()
    members = members_of(gate(MEMBERS, "index_order"), PATHS, engine.flag(NOTHING), engine.index(), None)
    assert members.named == {f"{ROOT}/raw.bin", f"{ROOT}/doc.json", f"{ROOT}/parts"}
    assert members.ordered == ()


@many
@given(trees, st.data())
def test_the_member_law_follows_the_wording_of_the_contract(tree: dict[str, bytes], data: st.DataObject) -> None:
    engine = Engine({f"{ROOT}/{path}": content for path, content in tree.items()})
    engine.entries = [
        {"path": path, "sha256_hex": sha(tree[path])} for path in data.draw(st.permutations(sorted(tree)))
    ]
    wanted = hashlib.sha256("".join(sha(tree[entry["path"]]) for entry in engine.entries).encode("ascii")).hexdigest()
    spec = gate(MEMBERS, "index_order")
    assert set(engine.verify(spec, engine.flag(wanted)).values()) == {RAW}
    place = data.draw(st.integers(0, len(wanted) - 1))
    bent = wanted[:place] + ("0" if wanted[place] != "0" else "1") + wanted[place + 1 :]
    conflict(engine, spec, engine.flag(bent))
