"""Engine roots on S3: folders, as far as S3 has any, and listings of every size; on two servers of different make.

Needs ``SR_TEST_S3_BUCKET``; half of it ``SR_TEST_S3_SIGNED_ENDPOINT_URL``, a server that checks signatures.
"""

import secrets
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import cut_body, reset_after, short_body, status
from s3_support import Spot, archived, digest_of, opened, sha
from storage_support import objects_in

from scenario_runner.artifacts import s3_tree
from scenario_runner.artifacts.base import Kind
from scenario_runner.artifacts.budget import ReadBudget, ReadBudgetExceeded, Share
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.artifacts.s3 import S3RunRoot
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceMissing,
    EvidenceRefused,
    Refusal,
    StoppingError,
    Unavailable,
)
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.contracts.reasons import Reason

pytest_plugins = ("s3_fixtures",)
pytestmark = pytest.mark.parity


def test_a_prefix_never_takes_its_siblings_along(spot: Spot) -> None:
    spot.put_all({"root/run1/a": b"1", "root/run1/b/c": b"1", "root/run10/a": b"2", "root/run1.bak/a": b"3",
                  "root/run": b"4", "root/run1-a": b"5"})  # fmt: skip
    assert objects_in(spot.store(), "root/run1") == ["root/run1/a", "root/run1/b/c"]
    root = opened(spot)
    assert root.files_under("run1") == ["run1/a", "run1/b/c"]
    assert opened(spot, "root/run1").files_under("b") == ["b/c"]
    assert root.kind("run") is Kind.FILE
    with pytest.raises(EvidenceRefused, match="directory"):
        root.files_matching("run*")
    assert root.files_matching("run1-*") == ["run1-a"]
    with pytest.raises(EvidenceMissing):
        opened(spot, "root/ru")
    with pytest.raises(EvidenceMissing):
        opened(spot, "root/run1.b")


def test_what_an_examination_costs_is_charged_on_s3_too(spot: Spot) -> None:
    spot.put_all({f"root/many/{number}": b"" for number in range(30)} | {"root/large": b"x" * 1001})
    files = [f"many/{number}" for number in range(30)]
    share = Share(hash_bytes=1000, operations=70, document_bytes=1000, patient=False)
    for costly in (
        lambda root: root.files_under("many") and root.digest([files]),
        lambda root: root.size(files) or root.digest([files]),
        lambda root: root.read("large", 5000),
        lambda root: root.derive("large", 5000, "length", lambda data: str(len(data))),
        lambda root: root.digest([["large"]]),
    ):
        artifacts = spot.artifacts()
        with pytest.raises(ReadBudgetExceeded):
            costly(artifacts.open(spot.uri("root"), ReadBudget(share=share)))
        costly(opened(spot))


def test_a_long_listing_ends_when_its_examination_may_not_go_on(first: Spot) -> None:
    """Every page is a moment at which a lost lease or a stop is felt."""
    first.put_all({f"root/{number:04}": b"" for number in range(1001)})

    def stop(_hashed: int) -> None:
        raise StoppingError("the process stops")

    with first.proxy.counting() as counts, pytest.raises(StoppingError):
        first.artifacts().open(first.uri("root"), ReadBudget(stop))
    assert sum(counts.values()) <= 2


def test_bounds_of_the_policy_hold_for_listings_and_sizes(spot: Spot) -> None:
    spot.put_all({f"root/few/{number}": b"12" for number in range(5)})
    root = spot.artifacts().open(spot.uri("root"), ReadBudget(bounds=EvidenceBounds(max_output_files=4)))
    for look in (root.files_under, lambda folder: root.files_matching(f"{folder}/*")):
        with pytest.raises(EvidenceRefused, match=r"max_output_files allows 4") as refused:
            look("few")
        assert refused.value.reason is Reason.EVIDENCE_TOO_LARGE
    assert root.size([f"few/{number}" for number in range(7)]) == 10


def test_what_was_derived_is_kept_while_the_object_is_the_same(first: Spot, writes_are_old: None) -> None:
    first.put("root/a", b"one")
    artifacts = first.artifacts(DigestReuse())
    for text, answer in ((b"one", "first"), (b"one", "first"), (b"two", "third")):
        first.put("root/a", text) if answer == "third" else None
        root = artifacts.open(first.uri("root"), ReadBudget())
        assert root.derive("a", 10, "name", lambda _data, answer=answer: answer) == answer


def test_a_large_digest_on_s3_that_was_broken_off_goes_on_where_it_was(first: Spot, writes_are_old: None) -> None:
    data = secrets.token_bytes(1 << 20) * 20
    first.put("root/large", data)
    artifacts = first.artifacts(DigestReuse())
    read: list[int] = []

    def break_off(hashed: int) -> None:
        read.append(hashed)
        if sum(read) >= 12 << 20:
            raise ReadBudgetExceeded("the turn is over")

    with pytest.raises(ReadBudgetExceeded):
        artifacts.open(first.uri("root"), ReadBudget(break_off)).digest([["large"]])
    hashed: list[int] = []
    root = artifacts.open(first.uri("root"), ReadBudget(hashed.append))
    assert digest_of(root, "large").sha256 == sha(data)
    assert sum(hashed) == (20 - 12) << 20


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_object_in_an_archive_is_missing_until_it_is_restored_and_is_said_to_be_that(
    first: Spot, storage_class: str
) -> None:
    first.put("root/a", b"one")
    first.proxy.add(archived(storage_class), "GET", "/a$", times=None)
    root = opened(first)
    with pytest.raises(EvidenceArchived, match=f"a is archived in {storage_class}; restore it"):
        root.read("a", 10)
    with pytest.raises(EvidenceArchived, match=storage_class):
        digest_of(opened(first), "a")
    first.proxy.clear()
    assert digest_of(opened(first), "a").sha256 == sha(b"one")


def test_a_denied_access_is_no_archive(first: Spot, impatient_calls: None) -> None:
    first.put("root/a", b"one")
    first.proxy.add(status(403), "GET", "/a$", times=None)
    with pytest.raises(Unavailable, match="access is denied"):
        opened(first).read("a", 10)


def test_a_root_outside_the_allowed_ones_is_refused_before_anything_is_asked(spot: Spot) -> None:
    spot.put_all({"run10/a": b"1", "run1/a": b"1"})
    artifacts = spot.artifacts(root=spot.uri("run1"))
    with spot.proxy.counting() as counts:
        for place in (spot.uri("run10"), spot.uri("run"), f"s3://another-{spot.bucket_name}/run1", "/run1"):
            with pytest.raises(Unavailable, match="engine_roots"):
                artifacts.open(place, ReadBudget())
    assert not counts
    assert artifacts.open(spot.uri("run1"), ReadBudget()).kind("a") is Kind.FILE


@pytest.mark.parametrize("at_once", [2000, 1])
def test_folder_markers_are_folders_and_empty_files_are_files(
    spot: Spot, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
    spot.put_all({"root/": b"", "root/a/": b"", "root/a/file": b"x", "root/a/nothing": b"", "root/only/": b"",
                  "root/parts/": b"", "root/parts/part-0": b"x", "root/parts/sub/": b""})  # fmt: skip
    root = opened(spot)
    kinds = {path: root.kind(path) for path in ("a", "a/file", "a/nothing", "only", "b")}
    assert kinds == {"a": Kind.DIRECTORY, "a/file": Kind.FILE, "a/nothing": Kind.FILE, "only": Kind.DIRECTORY,
                     "b": Kind.ABSENT}  # fmt: skip
    assert root.files_under("a") == ["a/file", "a/nothing"]
    assert digest_of(root, "a/nothing").sha256 == sha(b"")
    assert root.read("a/nothing", 10) == b""
    assert root.files_under("only") == []
    with pytest.raises(EvidenceRefused, match="empty folder"):
        root.files_under("parts", parts=True)
    with pytest.raises(EvidenceRefused, match="directory"):
        root.read("only", 10)
    root.confirm(root.snapshot())


@pytest.mark.parametrize("at_once", [2000, 1])
@pytest.mark.parametrize("parts", [True, False])
def test_a_folder_that_holds_an_object_which_is_also_a_folder_is_refused_whole(
    spot: Spot, monkeypatch: pytest.MonkeyPatch, at_once: int, parts: bool
) -> None:
    """Bytes that a listing by folders would hide are bytes that nobody hashed."""
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
    spot.put_all({"root/d/evil": b"payload", "root/d/evil/part-0.txt": b"y", "root/d/part-0.txt": b"z"})
    with pytest.raises(EvidenceRefused, match="at the same time"):
        opened(spot).files_under("d", parts=parts)


def test_a_key_with_an_empty_segment_below_a_folder_that_is_too_large_to_list_is_refused(
    spot: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", 1)
    spot.put_all({"root/a": b"x", "root/b": b"x"})
    spot.client.put_object(Bucket=spot.bucket_name, Key=f"{spot.prefix}/root/d//x", Body=b"1")
    with pytest.raises(EvidenceRefused, match="normalised"):
        opened(spot).kind("d")


@pytest.mark.parametrize("at_once", [2000, 1])
def test_an_object_that_is_also_a_folder_is_refused(spot: Spot, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
    spot.put_all({"root/a": b"x", "root/a/b": b"y", "root/c": b"z"})
    root = opened(spot)
    for look in (lambda: root.kind("a"), lambda: root.read("a", 10), lambda: digest_of(root, "a")):
        with pytest.raises(EvidenceRefused, match="same time"):
            look()
    assert root.read("c", 10) == b"z"


BAD_KEYS = ("a//file", "a/../file", "a/./file", "a/../../../file")


@pytest.mark.parametrize("at_once", [2000, 1])
@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_no_path_is_refused_where_somebody_looks_and_ignored_elsewhere(
    first: Spot, monkeypatch: pytest.MonkeyPatch, key: str, at_once: int
) -> None:
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
    first.put_all({"root/a/good": b"x", "root/b/good": b"y", "root/b/sub/good": b"z"})
    first.client.put_object(Bucket=first.bucket_name, Key=f"{first.prefix}/root/{key}", Body=b"hidden")
    listed = {
        item["Key"] for item in first.client.list_objects_v2(Bucket=first.bucket_name, Prefix=first.prefix)["Contents"]
    }
    if f"{first.prefix}/root/{key}" not in listed:
        pytest.skip("this server does not keep such keys as they are")
    root = opened(first)
    assert root.files_under("b") == ["b/good", "b/sub/good"]
    assert digest_of(root, "b/good").sha256 == sha(b"y")
    with pytest.raises(EvidenceRefused):
        root.files_under("a")
    first.client.delete_object(Bucket=first.bucket_name, Key=f"{first.prefix}/root/{key}")


@pytest.mark.parametrize("name", ["tab\tname", "line\nname", "back\\slash", "del\x7f"])
def test_a_name_that_no_file_may_have_is_refused(first: Spot, name: str) -> None:
    first.put_all({f"root/a/{name}": b"x", "root/b/good": b"y"})
    root = opened(first)
    assert root.files_under("b") == ["b/good"]
    with pytest.raises(EvidenceRefused):
        root.files_under("a")


def test_names_of_every_script_are_kept_as_they_are(spot: Spot) -> None:
    names = ["ünïcode", "spa ce", "per%20cent", "plus+", "quo'te", "a&b", "<x>", "日本", "e\u0301", "#?=;,~"]
    spot.put_all({f"root/a/{name}": name.encode() for name in names})
    root = opened(spot)
    assert root.files_under("a") == sorted(f"a/{name}" for name in names)
    for name in names:
        assert digest_of(root, f"a/{name}").sha256 == sha(name.encode())


# --- a root that is too large to list at once -------------------------------------------------------------------------


def everything_about(root: S3RunRoot) -> dict[str, Any]:
    """Every answer about a root, refusals included."""
    found: dict[str, Any] = {}

    def note(name: str, look: Callable[[], Any]) -> None:
        try:
            found[name] = look()
        except Refusal as refusal:
            found[name] = (type(refusal).__name__, refusal.reason, refusal.detail)

    for path in ("a", "a/b", "a/b/1", "a/none", "a/mark", "both", "none", "none/none", "e", "z"):
        note(f"kind {path}", lambda path=path: root.kind(path))
        note(f"under {path}", lambda path=path: root.files_under(path))
        note(f"parts {path}", lambda path=path: root.files_under(path, parts=True))
        note(f"matching {path}", lambda path=path: root.files_matching(f"{path}/*"))
        note(f"read {path}", lambda path=path: root.read(path, 3))
        note(f"digest {path}", lambda path=path: digest_of(root, path))
    note("digest many", lambda: digest_of(root, "a/b/1", "a/b/2", "e", "a/b/3"))
    root.confirm(root.snapshot())
    return found


def test_a_root_too_large_to_list_at_once_gives_the_same_answers_and_digests(
    spot: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot.put_all({"root/a/b/1": b"one", "root/a/b/2": b"2" * 5000, "root/a/b/3": b"3", "root/a/mark/": b"",
                  "root/a/top": b"t", "root/both": b"x", "root/both/x": b"y", "root/e": b"", "root/a/b.json": b"{}",
                  "root0": b"sibling", "root/z/y/x/w": b"deep"})  # fmt: skip
    whole = everything_about(opened(spot))
    assert {name: answer[0] for name, answer in whole.items() if name == "kind both"} == {
        "kind both": "EvidenceRefused"
    }
    for at_once in (1, 2, 4, 9):
        monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
        assert everything_about(opened(spot)) == whole, at_once


def test_a_listing_of_several_pages_is_whole_or_unavailable(first: Spot) -> None:
    names = [f"root/d/{number:04d}" for number in range(1105)]
    first.put_all(dict.fromkeys(names, b"x"))
    for fault in (status(503), cut_body(), short_body(), reset_after(), status(500)):
        for page in (0, 1):
            first.proxy.clear()
            rule = first.proxy.add(fault, "LIST", skip=page)
            assert len(opened(first).files_under("d")) == 1105
            assert rule.hits == 1
    first.proxy.clear()
    first.proxy.add(status(403), "LIST", skip=1, times=None)
    with pytest.raises(Unavailable):
        opened(first)
