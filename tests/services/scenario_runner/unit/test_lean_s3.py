"""The bench's own S3 keeps the rules that SR and the bench rely on, answers late, and ends with its user."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("obstore", reason="the s3 extra is not installed")
pytest.importorskip("botocore", reason="the AWS SDK is not installed")

import obstore
from obstore.store import S3Store as Plain

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.retry import RetryPolicy
from scenario_runner.storage.s3_client import ChangedError, S3Bucket, S3Settings
from sr_tools.bench.lean_s3 import lean_s3

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def server() -> Iterator[tuple[str, str]]:
    with lean_s3(50, 0) as (at_once, late):
        plain(at_once)
        yield at_once, late


def plain(url: str, *, made: bool = False) -> Plain:
    """A client that can delete; makes the bucket, as a PUT of a key without a name."""
    if not made:
        request = urllib.request.Request(f"{url}/bench", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
    return Plain("bench", endpoint=url, region="us-east-1", virtual_hosted_style_request=False,
                 client_options={"allow_http": True})  # fmt: skip


def bucket(url: str) -> S3Bucket:
    return S3Bucket("bench", S3Settings(url, "us-east-1", path_style=True))


def test_objects_are_kept_under_their_conditions(server: tuple[str, str]) -> None:
    ours = bucket(server[0])
    assert ours.put("a/one", b"first")
    assert not ours.put("a/one", b"other")
    found = ours.get("a/one", 100)
    assert found is not None
    assert (bytes(found.data), found.size) == (b"first", 5)
    assert not ours.put("a/one", b"other", replacing='"0"')
    assert ours.put("a/one", b"second", replacing=found.etag)
    with pytest.raises(ChangedError):
        ours.get_range("a/one", 0, 3, found.etag)
    (listed,) = ours.listing("a", 10) or []
    part = ours.get_range("a/one", 1, 4, listed.etag)
    assert part is not None
    assert (bytes(part.data), part.size) == (b"eco", 6)
    assert ours.head("a/one") == listed
    assert ours.get("a/two", 10) is None


def test_keys_are_listed_in_order_page_by_page_and_deleted(server: tuple[str, str]) -> None:
    ours, names = bucket(server[0]), [f"many/{number:04}" for number in range(1203)]
    store = plain(server[0], made=True)
    for name in reversed(names):
        obstore.put(store, name, b"x")
    obstore.put(store, "many-more", b"x")
    assert [item.key for item in ours.listing("many", 2000) or []] == names
    assert [item.key for item in ours.pages("many")] == names
    obstore.delete(store, names[:1000])
    assert [item.key for item in ours.listing("many", 2000) or []] == names[1000:]


def test_one_address_answers_late(server: tuple[str, str]) -> None:
    late = bucket(server[1])
    started = time.perf_counter()
    assert late.put("late", b"x")
    assert time.perf_counter() - started >= 0.05


def test_it_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenario_runner.storage.s3_client._RETRY", RetryPolicy(0.01, 0.05, deadline_seconds=0.1))
    with lean_s3(0, 5) as (at_once, _late):
        plain(at_once)
    with pytest.raises(Unavailable):
        bucket(at_once).get("a", 1)
