"""Whether anything stands at run roots on S3, beside what an examination says when it opens them; on two servers.

Needs ``SR_TEST_S3_BUCKET``; half of it ``SR_TEST_S3_SIGNED_ENDPOINT_URL``, a server that checks signatures.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from fault_proxy import status
from s3_support import Spot

from scenario_runner.artifacts.base import RootsSeen
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.s3 import S3Artifacts
from scenario_runner.contracts.errors import ConfigurationError, EvidenceMissing
from scenario_runner.retry import RetryPolicy
from scenario_runner.storage import s3_client

pytest_plugins = ("s3_fixtures",)
pytestmark = pytest.mark.parity


def look(spot: Spot, roots: Sequence[str], artifacts: Any = None) -> RootsSeen:
    seen: RootsSeen = (artifacts or spot.artifacts()).look([spot.uri(root) for root in roots])
    return seen


def named(spot: Spot, roots: frozenset[str]) -> list[str]:
    return sorted(root.removeprefix(spot.uri("")) for root in roots)


def absent_to_an_examination(spot: Spot, root: str) -> bool:
    try:
        spot.artifacts().open(spot.uri(root), ReadBudget()).close()
    except EvidenceMissing:
        return True
    return False


#: Names in the order of their folders' keys, which is not that of the names.
NAMES = ["a", "a!", "a-b", "a.b", "a0", "aé", "b", "c", "z"]


@pytest.mark.parametrize("there", [[], ["a"], ["a-b"], ["a!", "a0"], ["aé"], ["z"], NAMES])
def test_one_request_says_absent_exactly_where_an_examination_does(spot: Spot, there: list[str]) -> None:
    spot.put_all({f"runs/{name}/x/y": b"x" for name in there})
    spot.put("runs/zz/x")
    spot.put("another/one/x")
    with spot.proxy.counting() as counts:
        seen = look(spot, [f"runs/{name}" for name in NAMES])
    assert dict(counts) == {"LIST": 1}
    assert named(spot, seen.absent) == sorted(f"runs/{name}" for name in NAMES if name not in there)
    assert named(spot, seen.there) == sorted(f"runs/{name}" for name in there)
    assert seen.unknown == {}
    for name in NAMES:
        assert absent_to_an_examination(spot, f"runs/{name}") is (name not in there)


def test_the_marker_of_a_folder_stands_there_as_for_an_examination(spot: Spot) -> None:
    spot.put("runs/a/", b"")
    assert look(spot, ["runs/a", "runs/b"]) == RootsSeen(
        frozenset({spot.uri("runs/a")}), frozenset({spot.uri("runs/b")})
    )
    assert not absent_to_an_examination(spot, "runs/a")


def test_a_page_answers_for_the_roots_whose_keys_begin_in_it_and_the_next_look_goes_on(
    first: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "_PAGE", 5)
    first.put_all({f"runs/{name}/{number}": b"x" for name in "bd" for number in range(4)})
    artifacts, left, pages = first.artifacts(), [f"runs/{name}" for name in "abcdef"], []
    while left:
        seen = look(first, left, artifacts)
        pages.append((named(first, seen.there), named(first, seen.absent)))
        left = [name for name in left if first.uri(name) not in seen.there | seen.absent]
    assert pages == [
        (["runs/b", "runs/d"], ["runs/a", "runs/c"]),
        ([], ["runs/e", "runs/f"]),
    ]


@pytest.mark.parametrize("beside", ["a-b", "a.b"])
def test_a_look_answers_however_many_keys_come_just_before_its_root(
    first: Spot, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    monkeypatch.setattr(s3_client, "_PAGE", 5)
    first.put_all({f"runs/{beside}/{number}": b"x" for number in range(6)})
    assert look(first, ["runs/a"]).absent == {first.uri("runs/a")}
    first.put("runs/a/x")
    assert look(first, ["runs/a"]).there == {first.uri("runs/a")}


def test_one_request_answers_for_roots_in_folders_of_their_own(first: Spot) -> None:
    first.put_all({"day/two/x/y": b"x", "day-3/x": b"x", "other/one/x": b"x", "top/x": b"x"})
    asked = ["day-3/a", "day/one", "day/two", "day/two/x", "other/one", "other/two", "top", "zero"]
    with first.proxy.counting() as counts:
        seen = look(first, asked)
    assert dict(counts) == {"LIST": 1}
    assert named(first, seen.there) == ["day/two", "day/two/x", "other/one", "top"]
    assert named(first, seen.absent) == ["day-3/a", "day/one", "other/two", "zero"]
    assert [name for name in asked if absent_to_an_examination(first, name)] == named(first, seen.absent)


def test_a_page_of_several_folders_answers_for_the_roots_in_its_range_only(
    first: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "_PAGE", 4)
    first.put_all({f"{day}/run/{number}": b"x" for day in "bd" for number in range(3)})
    seen = look(first, ["a/run", "b/run", "c/run", "d/run", "e/run"])
    assert (named(first, seen.there), named(first, seen.absent)) == (["b/run", "d/run"], ["a/run", "c/run"])


def test_nothing_beside_the_allowed_root_is_listed_for_roots_of_several(first: Spot) -> None:
    artifacts = S3Artifacts([first.uri("a"), first.uri("c")], first.settings(), 1, None)
    asked = [first.uri(name) for name in ("a/1/x", "a/2/x", "c/1/x")]
    assert artifacts.look([*asked, first.uri("a")]) == RootsSeen(absent=frozenset(asked[:2]))
    assert artifacts.look(asked[2:]) == RootsSeen(absent=frozenset(asked[2:]))
    assert {key for _, key, _ in first.proxy.log} == {f"{first.prefix}/a/", f"{first.prefix}/c/1/"}


def test_a_key_that_cannot_be_listed_leaves_the_folder_of_the_first_root_to_be_listed(first: Spot) -> None:
    first.put("other//bad")
    assert named(first, look(first, ["day/one", "day/two", "other/one"]).absent) == ["day/one", "day/two"]


def test_a_key_that_cannot_be_listed_leaves_the_roots_to_be_asked_for_alone(first: Spot) -> None:
    first.put("runs/b//bad")
    first.put("runs/c/x")
    artifacts = first.artifacts()
    assert look(first, ["runs/a", "runs/b", "runs/c"], artifacts).absent == {first.uri("runs/a")}
    assert look(first, ["runs/b", "runs/c"], artifacts).there == {first.uri("runs/b")}
    assert look(first, ["runs/c"], artifacts).there == {first.uri("runs/c")}


def test_a_server_that_does_not_answer_makes_no_root_absent(first: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenario_runner.storage.s3_client._RETRY", RetryPolicy(0.01, 0.05, deadline_seconds=0.1))
    first.proxy.add(status(403), "LIST", times=None)
    seen = look(first, ["runs/a", "runs/b", "other/c"])
    assert sorted(seen.unknown) == [first.uri("other/c"), first.uri("runs/a"), first.uri("runs/b")]
    assert (seen.there, seen.absent) == (frozenset(), frozenset())
    first.proxy.clear()
    assert len(look(first, ["runs/a", "runs/b"]).absent) == 2


def test_a_server_that_ceases_to_answer_makes_no_root_absent(first: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenario_runner.storage.s3_client._RETRY", RetryPolicy(0.01, 0.05, deadline_seconds=0.1))
    first.put("runs/b//bad")
    first.proxy.add(status(403), "LIST", skip=1, times=None)
    assert list(look(first, ["runs/a", "runs/c"]).unknown) == [first.uri("runs/a")]


def test_a_root_that_is_not_allowed_is_not_asked_for(first: Spot) -> None:
    artifacts = first.artifacts(root=first.uri("runs/ours"))
    with first.proxy.counting() as counts:
        seen = look(first, ["runs/theirs", "runs/ours", "runs/theirs-too"], artifacts)
    assert counts.total() == 0
    assert sorted(seen.unknown) == [first.uri("runs/theirs"), first.uri("runs/theirs-too")], "one step for all of them"
    assert (seen.there, seen.absent) == (frozenset(), frozenset())
    assert look(first, ["runs/ours", "runs/theirs"], artifacts) == RootsSeen(absent=frozenset({first.uri("runs/ours")}))


def test_a_bucket_answers_for_its_own_roots_only(first: Spot) -> None:
    other = f"s3://another-bucket/{first.prefix}/runs/b"
    artifacts = S3Artifacts([first.uri(""), "s3://another-bucket"], first.settings(), 1, None)
    assert artifacts.look([first.uri("runs/a"), other]) == RootsSeen(absent=frozenset({first.uri("runs/a")}))


def test_an_allowed_root_that_is_a_run_root_is_looked_at_without_what_lies_beside_it(first: Spot) -> None:
    whole, folder = f"s3://{first.bucket_name}", first.uri("runs")
    artifacts = S3Artifacts([whole, folder], first.settings(), 1, None)
    assert artifacts.look([folder]) == RootsSeen(absent=frozenset({folder}))
    first.put("runs/a/x")
    assert artifacts.look([folder]) == RootsSeen(there=frozenset({folder}))
    assert {key for _, key, _ in first.proxy.log} == {f"{first.prefix}/runs/"}
    assert artifacts.look([whole]) == RootsSeen(there=frozenset({whole}))


def test_a_client_that_is_not_configured_rightly_makes_no_root_absent(
    first: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigurationError("s3://bucket", "no credentials", "give some")

    artifacts, asked = first.artifacts(), [first.uri("runs/a"), first.uri("other/b")]
    monkeypatch.setattr(s3_client.S3Bucket, "keys_after", refuse)
    seen = artifacts.look([*asked, "s3://another-bucket/x"])
    assert sorted(seen.unknown) == sorted(asked)
    assert "no credentials" in seen.unknown[asked[0]]
