"""The object store and the engine roots on S3: two servers of different make, and everything that a network does.

What the store shares with the file system is in the object store's contract test; here is what is particular to S3.
Needs ``SR_TEST_S3_BUCKET``; half of it ``SR_TEST_S3_SIGNED_ENDPOINT_URL``, a server that checks signatures.
"""

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import (
    Answer,
    Fault,
    afterwards,
    cut_body,
    delay,
    ignoring,
    meanwhile,
    reset_after,
    reset_before,
    short_body,
    status,
    status_after,
)
from s3_support import PRIVATE, SERVERS, Spot, spot_on
from storage_support import objects_in
from support import World

from scenario_runner.artifacts import s3_tree
from scenario_runner.artifacts.base import FileDigest, Kind
from scenario_runner.artifacts.budget import ReadBudget, ReadBudgetExceeded, Share
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.artifacts.s3 import S3RunRoot
from scenario_runner.contracts.errors import (
    ConfigurationError,
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    LedgerDrift,
    Refusal,
    StoppingError,
    Unavailable,
)
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.contracts.reasons import Reason
from scenario_runner.ledger.projections import replace_older
from scenario_runner.ledger.write_once import WriteOnceObjects
from scenario_runner.retry import RetryPolicy
from scenario_runner.storage.base import ObjectTooLargeError
from scenario_runner.storage.s3 import S3Store
from scenario_runner.storage.s3_client import S3Bucket

pytestmark = pytest.mark.parity

MANY = 1 << 20
BODY = bytes(range(256)) * 8


@pytest.fixture(params=SERVERS)
def spot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place of the test's own on each server in turn."""
    with spot_on(request.param, monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place on the first server only."""
    with spot_on("first", monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place on the server that checks signatures."""
    with spot_on("signed", monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls give up after a fraction of a second."""
    monkeypatch.setattr("scenario_runner.storage.s3_client._RETRY", RetryPolicy(0.01, 0.05, deadline_seconds=0.1))
    monkeypatch.setattr("scenario_runner.storage.s3_client._REQUEST_SECONDS", "300ms")
    monkeypatch.setattr("scenario_runner.storage.s3_small._TIMEOUT_MS", 300)


@pytest.fixture
def writes_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just written counts as written long ago."""
    monkeypatch.setattr("scenario_runner.artifacts.reuse.RACY_NS", -60_000_000_000)


def opened(spot: Spot, root: str = "root", **options: Any) -> S3RunRoot:
    found: S3RunRoot = spot.artifacts(**options).open(spot.uri(root), ReadBudget())
    return found


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(root: S3RunRoot, *paths: str) -> Any:
    (found,) = root.digest([list(paths)])
    if isinstance(found, Refusal):
        raise found
    return found


# --- faults of every kind, at every call ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call of the store or of a run root: how it is made, which request it makes, and what it must give."""

    operation: str
    make: Callable[[Spot], Any]
    expected: Any


def _replace(spot: Spot) -> Any:
    found = spot.store().read("object", MANY)
    return spot.store().replace("object", b"new", found.version), spot.data("object")


def _range(spot: Spot) -> Any:
    etag = spot.client.head_object(Bucket=spot.bucket_name, Key=f"{spot.prefix}/object")["ETag"]
    return bytes(spot.bucket().get_range(f"{spot.prefix}/object", 100, 600, etag).data)


CALLS: dict[str, Call] = {
    "read": Call("GET", lambda spot: spot.store().read("object", MANY).data, BODY),
    "get_range": Call("GET", _range, BODY[100:600]),
    "head": Call("HEAD", lambda spot: spot.bucket().head(f"{spot.prefix}/object").size, len(BODY)),
    "list": Call("LIST", lambda spot: objects_in(spot.store()), ["object", "root/file"]),
    "digest": Call("GET", lambda spot: digest_of(opened(spot), "root/file".partition("/")[2]).sha256, sha(BODY)),
    "create": Call("PUT", lambda spot: (spot.store().create("new", b"new"), spot.data("new")), (True, b"new")),
    "replace": Call("PUT", _replace, (True, b"new")),
}
PASSING: dict[str, Callable[[], Fault]] = {
    "503 SlowDown": lambda: status(503),
    "500": lambda: status(500),
    "409": lambda: status(409),
    "reset before the server hears": reset_before,
    "reset mid-body": cut_body,
    "a short body": short_body,
    "slow": lambda: delay(0.1),
}
OF_BODIES = ("reset mid-body", "a short body")


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_overcome_and_changes_nothing(spot: Spot, fault: str) -> None:
    spot.put_all({"object": BODY, "root/file": BODY})
    for name, call in CALLS.items():
        rule = spot.proxy.add(PASSING[fault](), call.operation)
        assert call.make(spot) == call.expected, name
        assert rule.hits == 1, name


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.usefixtures("impatient")
def test_a_fault_that_stays_is_unavailable_and_named(first: Spot, fault: str, call: str) -> None:
    operation = CALLS[call].operation
    if fault in OF_BODIES and operation in ("HEAD", "PUT"):
        fault = "reset before the server hears"  # these answers have no body to break off
    first.put_all({"object": BODY, "root/file": BODY})
    stays = delay(0.6) if fault == "slow" else PASSING[fault]()
    rule = first.proxy.add(stays, operation, times=None)
    with pytest.raises(Unavailable) as told:
        CALLS[call].make(first)
    assert f"s3://{first.bucket_name}/{first.prefix}" in told.value.detail
    assert rule.hits >= 1
    first.proxy.clear()
    if fault != "slow":  # a slow write may have arrived in the end
        assert CALLS[call].make(first) == CALLS[call].expected


HINTS = {403: "check the credentials", 401: "credentials", 301: "set s3_region", 501: "does not implement"}


@pytest.mark.parametrize("code", HINTS)
def test_what_is_denied_is_unavailable_at_once_and_never_absent(first: Spot, code: int) -> None:
    first.put_all({"object": BODY, "root/file": BODY})
    for name, call in CALLS.items():
        first.proxy.clear()
        rule = first.proxy.add(status(code), call.operation, times=None)
        with pytest.raises(Unavailable) as told:
            call.make(first)
        # A small object is asked for by a client that takes nothing but the object, then by the one that knows errors.
        assert rule.hits == (2 if name == "digest" else 1), "asking again would not help"
        assert HINTS[code] in told.value.detail


@pytest.mark.parametrize("operation", ["GET", "HEAD", "LIST", ""])
@pytest.mark.parametrize("code", [403, 503])
@pytest.mark.usefixtures("impatient")
def test_evidence_behind_a_server_that_refuses_is_never_missing_nor_refused(
    spot: Spot, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    """In a root listed at once, and in one that is too large for that."""
    monkeypatch.setattr("scenario_runner.storage.s3_client._RETRY", RetryPolicy(0.002, 0.01, deadline_seconds=0.02))
    spot.put_all({"root/a/file": BODY, "root/a/empty": b"", "root/b/c/file": b"y"})
    for at_once in (2000, 1):
        monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
        spot.proxy.clear()
        looks: list[Callable[[S3RunRoot], Any]] = [
            lambda root: root.kind("a"), lambda root: root.kind("a/file"), lambda root: root.kind("a/empty"),
            lambda root: root.kind("absent"), lambda root: root.files_under("a"), lambda root: root.files_under("b"),
            lambda root: root.files_matching("a/*"), lambda root: root.read("a/file", MANY),
            lambda root: digest_of(root, "a/file"), lambda root: digest_of(root, "a/empty"),
        ]  # fmt: skip
        answers = []
        for look in looks:
            spot.proxy.clear()
            expected = look(opened(spot))
            spot.proxy.add(status(code), operation, times=None)
            try:
                assert look(opened(spot)) == expected
            except Unavailable:
                answers.append("unavailable")
        assert answers, "no look met the fault"


# --- a write whose answer was lost ------------------------------------------------------------------------------------


LOST: dict[str, Callable[[], Fault]] = {
    "the connection was reset": reset_after,
    "500 came": lambda: status_after(500),
    "503 came": lambda: status_after(503),
}


def write_once(store: S3Store, key: str, data: bytes) -> None:
    (failure,) = WriteOnceObjects(store, 0.0, lambda: 0.0).write([(key, data, Reason.PLAN_DRIFT)])
    if failure is not None:
        raise failure


@pytest.mark.parametrize("loss", LOST)
def test_a_create_that_succeeded_unheard_is_refused_by_itself_and_read_back_as_success(spot: Spot, loss: str) -> None:
    spot.proxy.add(LOST[loss](), "PUT")
    assert spot.store().create("object", b"mine") is False, "412 after its own success"
    assert spot.data("object") == b"mine"
    spot.proxy.add(LOST[loss](), "PUT")
    write_once(spot.store(), "document", b"mine")
    assert spot.data("document") == b"mine"
    with pytest.raises(LedgerDrift):
        write_once(spot.store(), "document", b"other")


@pytest.mark.parametrize("loss", LOST)
def test_a_replace_that_succeeded_unheard_is_refused_by_itself_and_read_back_as_success(spot: Spot, loss: str) -> None:
    spot.put("record", b"1")
    store = spot.store()
    rule = spot.proxy.add(LOST[loss](), "PUT")
    replace_older(store, "record", b"12", lambda stored, data: len(stored) < len(data))
    assert rule.hits == 1
    assert spot.data("record") == b"12"
    found = store.read("record", MANY)
    spot.proxy.add(LOST[loss](), "PUT")
    assert store.replace("record", b"123", found.version) is False
    assert spot.data("record") == b"123"


def test_of_writers_that_lose_answers_at_random_exactly_one_document_stays(spot: Spot) -> None:
    for fault in (reset_after(), reset_before(), status(503), status_after(500)):
        spot.proxy.add(fault, "PUT", times=None, chance=0.2)
    with ThreadPoolExecutor(8) as pool:

        def write(number: int) -> str:
            try:
                write_once(spot.store(), f"d/{number // 4}", str(number % 4).encode())
            except LedgerDrift:
                return "drift"
            return str(number % 4)

        outcomes = list(pool.map(write, range(40)))
    for document in range(10):
        (winner,) = {outcome for outcome in outcomes[document * 4 : document * 4 + 4] if outcome != "drift"}
        assert spot.data(f"d/{document}") == winner.encode()


def test_a_write_that_the_server_refuses_with_404_was_not_made(first: Spot) -> None:
    first.proxy.add(status(404), "PUT")
    with pytest.raises(Unavailable):
        first.store().create("object", b"x")
    assert first.store().replace("absent", b"x", '"etag"') is False


# --- what is not there, and what cannot be seen -----------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_never_an_absent_object(spot: Spot) -> None:
    name = f"sr-no-such-bucket-{secrets.token_hex(4)}"
    store = S3Store(spot.bucket(name), "prefix", PRIVATE)
    calls: list[Callable[[], Any]] = [
        lambda: store.read("object", MANY), lambda: store.create("object", b"x"), store.probe,
        lambda: spot.artifacts(root=f"s3://{name}").open(f"s3://{name}/run", ReadBudget()),
        lambda: store.replace("object", b"x", '"0"'),
        lambda: spot.bucket(name).get_range("object", 0, 1, '"0"'),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(Unavailable, match=f"there is no bucket {name}"):
            call()


def test_an_absent_object_is_absent(spot: Spot) -> None:
    spot.put("a/object")
    store, bucket = spot.store(), spot.bucket()
    assert store.read("a/other", MANY) is None
    assert store.read("a", MANY) is None
    assert bucket.head(f"{spot.prefix}/a/other") is None
    assert bucket.get_range(f"{spot.prefix}/a/other", 0, 1, '"0"') is None
    with pytest.raises(EvidenceMissing):
        opened(spot, "b")


def test_a_wrong_secret_is_unavailable_with_a_hint_and_never_absent(
    signed: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed.put_all({"object": BODY, "root/file": BODY})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-ours")
    absent: list[Callable[[], Any]] = [
        lambda: signed.store().read("absent", MANY), lambda: opened(signed, "absent"), signed.store().probe,
    ]  # fmt: skip
    for call in [*(lambda call=call: call.make(signed) for name, call in CALLS.items() if name != "get_range"),
                 *absent]:  # fmt: skip
        with pytest.raises(Unavailable, match="check the credentials") as told:
            call()
        assert "wrong-secret" not in told.value.detail


def test_an_unknown_key_id_is_unavailable_with_a_hint(signed: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    with pytest.raises(Unavailable, match="check the credentials"):
        signed.store().read("object", MANY)


def test_a_session_token_that_is_set_and_empty_is_none(signed: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    signed.store().probe()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SKIP_SIGNATURE", "true"), ("AWS_SKIP_SIGNATURE", "perhaps"), ("AWS_ENDPOINT", "http://localhost:1"),
        ("AWS_CONDITIONAL_PUT", "disabled"), ("AWS_CHECKSUM_ALGORITHM", "none"), ("AWS_S3_EXPRESS", "true"),
        ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true"), ("AWS_UNSIGNED_PAYLOAD", "true"), ("AWS_TIMEOUT", "soon"),
        ("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"), ("AWS_PROXY_URL", "http://localhost:1"),
    ],
)  # fmt: skip
def test_no_other_setting_of_the_environment_reaches_the_client(
    signed: Spot, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    signed.store().probe()


def test_a_credentials_file_that_is_rotated_is_read_again_while_the_store_is_open(
    signed: Spot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scenario_runner.storage.aws._ASK_EVERY", timedelta(seconds=0.1))
    path = tmp_path / "credentials"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    good = {name.lower(): os.environ[name] for name in names}
    for keys in ({**good, "aws_secret_access_key": "wrong-secret-of-ours"}, good):
        lines = "".join(f"{name} = {value}\n" for name, value in keys.items())
        path.with_suffix(".new").write_text(f"[default]\n{lines}", "utf-8")
        path.with_suffix(".new").replace(path)
        if keys is not good:
            for name in names:
                monkeypatch.delenv(name)
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
            store = signed.store()
            with pytest.raises(Unavailable, match="check the credentials"):
                store.probe()
    time.sleep(0.3)
    store.probe()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_does_not_listen_is_unavailable(first: Spot) -> None:
    first.proxy.close()
    for call in (lambda: first.store().read("object", MANY), lambda: first.store().create("object", b"x"),
                 lambda: opened(first)):  # fmt: skip
        with pytest.raises(Unavailable):
            call()


def test_an_object_over_the_limit_is_refused_without_reading_it(spot: Spot) -> None:
    spot.put("object", b"x" * 1001)
    with pytest.raises(ObjectTooLargeError, match="1001"):
        spot.store().read("object", 1000)
    assert spot.store().read("object", 1001).data == b"x" * 1001


def test_a_server_without_etags_cannot_be_pinned_and_is_unavailable(first: Spot) -> None:
    first.put("root/file")
    bare = Fault("no ETag", after=lambda answer: _body(answer, re.sub(rb"<ETag>[^<]*</ETag>", b"", answer.body)))
    first.proxy.add(bare, "LIST", times=None)
    with pytest.raises(Unavailable, match="ETag"):
        digest_of(opened(first), "file")


def _body(answer: Any, body: bytes) -> Any:
    return replace(answer, body=body, length=len(body))


# --- folders, as far as S3 has any ------------------------------------------------------------------------------------


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


def archived(storage_class: str) -> Fault:
    """What S3 answers when the bytes of an object are asked for that lies in an archive."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?><Error><Code>InvalidObjectState</Code><Message>not valid '
        f"for the storage class</Message><StorageClass>{storage_class}</StorageClass></Error>"
    ).encode()
    return Fault("archived", before=lambda _: Answer(403, [("Content-Type", "application/xml")], body, len(body)))


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


def test_a_denied_access_is_no_archive(first: Spot, impatient: None) -> None:
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


# --- objects that change while they are looked at ---------------------------------------------------------------------


CHANGES: dict[str, Callable[[Spot], object]] = {
    "replaced": lambda spot: spot.put("root/file", b"another" * 100),
    "replaced by one of the same size": lambda spot: spot.put("root/file", BODY[::-1]),
    "removed": lambda spot: spot.remove("root/file"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["digest", "read"])
def test_an_object_that_changes_between_listing_and_reading_is_noticed(spot: Spot, change: str, way: str) -> None:
    spot.put_all({"root/file": BODY, "root/other": b"x"})
    root = opened(spot)
    rule = spot.proxy.add(meanwhile(lambda: CHANGES[change](spot)), "GET", "root/file")
    with pytest.raises(EvidenceChanged):
        root.read("file", MANY) if way == "read" else digest_of(root, "file")
    assert rule.hits == 1


@pytest.mark.parametrize("change", CHANGES)
def test_an_object_that_changes_between_two_blocks_never_gives_a_digest(
    first: Spot, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("scenario_runner.artifacts.s3._BLOCK", 500)
    monkeypatch.setattr("scenario_runner.artifacts.s3._AHEAD_BYTES", 500)
    first.put_all({"root/file": BODY, "root/other": b"x"})
    root = opened(first)
    first.proxy.add(meanwhile(lambda: CHANGES[change](first)), "GET", "root/file", skip=2)
    with pytest.raises(EvidenceChanged):
        digest_of(root, "file")


@pytest.mark.parametrize("at_once", [2000, 1])
@pytest.mark.parametrize("change", [*CHANGES, "another one beside it"])
def test_an_object_that_changes_between_look_and_confirmation_is_noticed(
    spot: Spot, monkeypatch: pytest.MonkeyPatch, change: str, at_once: int
) -> None:
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
    spot.put_all({"root/file": BODY, "root/a/1": b"1", "root/b/1": b"1"})
    root = opened(spot)
    digest_of(root, "file", "a/1")
    root.files_under("a")
    snapshot = root.snapshot()
    root.confirm(snapshot)
    if change in CHANGES:
        CHANGES[change](spot)
    else:
        spot.put("root/a/2", b"2")
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)
    with pytest.raises(EvidenceChanged):
        opened(spot).confirm(snapshot)


@pytest.mark.parametrize("appears", ["root/late", "root/late/file"])
def test_what_was_absent_and_appears_before_the_confirmation_is_noticed(spot: Spot, appears: str) -> None:
    spot.put("root/file")
    root = opened(spot)
    assert root.kind("late") is Kind.ABSENT
    snapshot = root.snapshot()
    root.confirm(snapshot)
    spot.put(appears)
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)


def test_an_object_written_again_with_equal_bytes_is_looked_at_again_once_its_time_differs(spot: Spot) -> None:
    """Equal bytes have an equal ETag; the time, in whole seconds, tells. Within one second nothing of it matters."""
    spot.put("root/file", BODY)
    root = opened(spot)
    before = digest_of(root, "file")
    snapshot = root.snapshot()
    written = time.time()
    while int(time.time()) <= int(written) + 1:
        time.sleep(0.05)
    spot.put("root/file", BODY)
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)
    assert digest_of(opened(spot), "file") == before


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_version_that_was_read_is_pinned_and_reported(spot: Spot) -> None:
    name = f"sr-versions-{secrets.token_hex(4)}"
    spot.client.create_bucket(Bucket=name)
    versioned = replace(spot, place=replace(spot.place, bucket=name))
    try:
        spot.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        versions = [versioned.put("root/file", data) for data in (b"old", b"new")]
        other = versioned.put("root/other", b"other")
        assert len({*versions, other, ""}) == 4, "the server gives versions"
        root = opened(versioned)
        found = digest_of(root, "file", "other")
        assert found.files == (
            FileDigest("file", 3, sha(b"new"), versions[1]),
            FileDigest("other", 5, sha(b"other"), other),
        )
        root.confirm(root.snapshot())
        old = versioned.client.get_object(Bucket=name, Key=f"{spot.prefix}/root/file", VersionId=versions[0])
        assert old["Body"].read() == b"old"
        versioned.proxy.add(meanwhile(lambda: versioned.put("root/file", b"3rd")), "GET", "root/file")
        with pytest.raises(EvidenceChanged):
            digest_of(opened(versioned), "file")
    finally:
        for page in spot.client.get_paginator("list_object_versions").paginate(Bucket=name):
            for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                spot.client.delete_object(Bucket=name, Key=item["Key"], VersionId=item["VersionId"])
        spot.client.delete_bucket(Bucket=name)


def test_a_bucket_without_versions_reports_none(spot: Spot) -> None:
    spot.put("root/file", b"x")
    assert digest_of(opened(spot), "file").files[0].version == ""


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_sequence_is_that_of_its_concatenation(spot: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenario_runner.artifacts.s3._BLOCK", 700)
    parts = {f"m/{number}": BODY[number * 7 : number * 7 + size] for number, size in enumerate((0, 1, 699, 700, 1500))}
    spot.put_all({f"root/{path}": data for path, data in parts.items()})
    root = opened(spot)
    order = ["m/3", "m/0", "m/4", "m/1", "m/2", "m/3"]
    found, alone, nothing = root.digest([order, ["m/4"], ["m/0"]])
    assert found.sha256 == sha(b"".join(parts[path] for path in order))
    assert found.files == tuple(FileDigest(path, len(parts[path]), sha(parts[path])) for path in order)
    assert (alone.sha256, nothing.sha256) == (sha(parts["m/4"]), sha(b""))
    assert found.bytes == sum(len(parts[path]) for path in order)


def test_small_objects_do_not_need_the_native_client_and_large_ones_do(
    first: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get_range = S3Bucket.get_range

    def noting(bucket: S3Bucket, key: str, start: int, end: int, etag: str) -> Any:
        asked.append(key.rpartition("/")[2])
        return get_range(bucket, key, start, end, etag)

    monkeypatch.setattr(S3Bucket, "get_range", noting)
    first.put_all({"root/small": BODY, "root/empty": b"", "root/odd name+&=?": b"odd", "root/large": b"x" * (1 << 20)})
    root = opened(first)
    root.prefetch(["small", "absent"], MANY)
    assert root.read("small", MANY) == BODY
    assert [found.sha256 for found in root.digest([["empty"], ["odd name+&=?", "small"]])] == [
        sha(b""), sha(b"odd" + BODY)
    ]  # fmt: skip
    assert asked == []
    assert digest_of(root, "large").sha256 == sha(b"x" * (1 << 20))
    assert asked == ["large"]


def test_an_object_that_libcurl_is_denied_is_read_by_the_native_client(first: Spot) -> None:
    first.put_all({f"root/{number}": str(number).encode() for number in range(20)})
    # Each of these is denied once: first of all, whoever asks.
    rules = [first.proxy.add(status(403), "GET", f"root/{number}", times=1) for number in (10, 13, 16, 19)]
    sequences = [[str(number)] for number in range(20)]
    assert [found.sha256 for found in opened(first).digest(sequences)] == [sha(str(n).encode()) for n in range(20)]
    assert [rule.hits for rule in rules] == [1] * 4


def test_one_missing_member_does_not_take_other_sequences_along(spot: Spot) -> None:
    spot.put_all({"root/a": b"a", "root/b": b"b"})
    missing, fine = opened(spot).digest([["a", "absent"], ["b"]])
    assert isinstance(missing, EvidenceMissing)
    assert fine.sha256 == sha(b"b")


def test_a_large_object_is_digested_in_blocks_in_bounded_memory(first: Spot, tmp_path: Path) -> None:
    """In a process of its own, whose peak is measured: an object of 96 MiB, in blocks of 8 MiB."""
    size = 96 << 20
    data = secrets.token_bytes(1 << 20) * (size >> 20)
    first.put("root/large", data)
    script = tmp_path / "look.py"
    script.write_text(
        "import json, sys\n"
        "from scenario_runner.artifacts.budget import ReadBudget\n"
        "from scenario_runner.artifacts.s3 import S3Artifacts\n"
        "from scenario_runner.storage.s3_client import S3Settings\n"
        "def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) << 10\n"
        "uri, settings, small = sys.argv[1], S3Settings(sys.argv[2], sys.argv[3], True), sys.argv[4]\n"
        "artifacts = S3Artifacts([uri], settings, 2, None)\n"
        "read = []\n"
        "root = artifacts.open(uri, ReadBudget(read.append))\n"
        "root.digest([[small]])\n"
        "before = peak()\n"
        "(found,) = root.digest([['large']])\n"
        "print(json.dumps([found.sha256, found.bytes, peak() - before, max(read), sum(read)]))\n",
        "utf-8",
    )
    first.put("root/small", b"")
    with first.proxy.counting() as counts:
        done = subprocess.run(
            [sys.executable, str(script), first.uri("root"), first.proxy.url, first.place.region, "small"],
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    digest, seen, grown, block, read = json.loads(done.stdout)
    assert (digest, seen, read) == (sha(data), size, size)
    assert block == 4 << 20
    assert counts["GET"] == 1 + size // block
    assert grown < 64 << 20, f"{grown} bytes more than before, of an object of {size}"


@pytest.mark.parametrize("fault", ["503 SlowDown", "reset mid-body", "a short body", "500"])
def test_a_fault_in_any_block_leaves_the_digest_right(first: Spot, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr("scenario_runner.artifacts.s3._BLOCK", 100_000)
    data = secrets.token_bytes(1_050_000)
    first.put("root/file", data)
    rule = first.proxy.add(PASSING[fault](), "GET", times=None, chance=0.4)
    for _ in range(4):
        assert digest_of(opened(first), "file").sha256 == sha(data)
    assert rule.hits > 5


@pytest.mark.usefixtures("writes_are_old")
def test_a_second_look_at_unchanged_objects_lists_once_and_reads_nothing(spot: Spot) -> None:
    spot.put_all({f"root/a/{number}": b"%d" % number * 1000 for number in range(12)})
    artifacts = spot.artifacts(reuse=DigestReuse())
    paths = [f"a/{number}" for number in range(12)]

    def look() -> Any:
        root = artifacts.open(spot.uri("root"), ReadBudget())
        return root.files_under("a"), root.digest([paths, paths[:1]]), root.snapshot()

    with spot.proxy.counting() as counts:
        found = look()
    assert (counts["LIST"], counts["GET"], counts.total()) == (1, 13, 14)
    with spot.proxy.counting() as counts:
        again = look()
    assert dict(counts) == {"LIST": 1}
    assert again == found
    with spot.proxy.counting() as counts:
        artifacts.open(spot.uri("root"), ReadBudget()).confirm(found[2])
    assert dict(counts) == {"LIST": 1}, "opening and confirming an unchanged root is one listing"


@pytest.mark.usefixtures("writes_are_old")
@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_digest_is_not_believed_of_a_changed_object(spot: Spot, change: str) -> None:
    spot.put_all({"root/file": BODY, "root/other": b"x"})
    artifacts = spot.artifacts(reuse=DigestReuse())
    digest_of(artifacts.open(spot.uri("root"), ReadBudget()), "file")
    CHANGES[change](spot)
    root = artifacts.open(spot.uri("root"), ReadBudget())
    if change == "removed":
        with pytest.raises(EvidenceMissing):
            digest_of(root, "file")
    else:
        assert digest_of(root, "file").sha256 == sha(spot.data("root/file") or b"")


def test_the_digest_of_an_object_that_was_just_written_is_not_kept(spot: Spot) -> None:
    spot.put("root/file", BODY)
    artifacts = spot.artifacts(reuse=DigestReuse())
    for _ in range(2):
        with spot.proxy.counting() as counts:
            root = artifacts.open(spot.uri("root"), ReadBudget())
            assert digest_of(root, "file").sha256 == sha(BODY)
            assert not root.snapshot().stable
        assert counts["GET"] == 1


def test_small_files_that_will_be_read_are_fetched_once(spot: Spot) -> None:
    spot.put_all({f"root/{number}": b"%d" % number for number in range(6)})
    root = opened(spot)
    with spot.proxy.counting() as counts:
        root.prefetch([*map(str, range(6)), "absent"], 100)
        assert [root.read(str(number), 100) for number in range(6)] == [b"%d" % number for number in range(6)]
    assert counts["GET"] == 6


# --- a store that cannot keep write-once ------------------------------------------------------------------------------


IGNORED = {"creates": "If-None-Match", "replaces": "If-Match"}


@pytest.mark.parametrize("condition", IGNORED.values())
def test_a_store_that_ignores_conditions_fails_the_probe(first: Spot, condition: str) -> None:
    first.store().probe()
    first.proxy.add(ignoring(condition), "PUT", times=None)
    with pytest.raises(ConfigurationError) as refused:
        first.store().probe()
    assert refused.value.reason is Reason.STORE_UNSAFE


def test_probes_of_many_processes_at_once_all_pass(spot: Spot) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: spot.store().probe(), range(16)))
    assert objects_in(spot.store()) == [], "probes lie in the private folder"


@pytest.mark.parametrize("fault", ["503 SlowDown", "reset before the server hears", "500", "409"])
def test_a_passing_fault_does_not_make_a_store_unsafe(spot: Spot, fault: str) -> None:
    for skip in range(5):
        spot.proxy.add(PASSING[fault](), "PUT", skip=skip)
    spot.store().probe()


def test_a_lost_answer_does_not_make_a_store_unsafe(spot: Spot) -> None:
    for operation in ("PUT", "GET"):
        for skip in range(4):
            spot.proxy.clear()
            spot.proxy.add(reset_after(), operation, skip=skip)
            spot.store().probe()


def on_s3(spot: Spot, root: Path) -> World:
    """A world whose ledger is on S3, behind the proxy."""
    keys = {"object_store_root": spot.uri("").rstrip("/"), "s3_endpoint_url": spot.proxy.url,
            "s3_region": spot.place.region, "s3_path_style": True}  # fmt: skip
    return World(root, keys)


@pytest.mark.parametrize("condition", IGNORED.values())
def test_the_daemon_refuses_to_start_on_a_store_that_ignores_conditions_and_doctor_says_so(
    first: Spot, tmp_path: Path, condition: str
) -> None:
    world = on_s3(first, tmp_path / "world")
    first.proxy.add(ignoring(condition), "PUT", times=None)
    served = world.serve()
    assert served.returncode == 2
    assert b"STORE_UNSAFE" in served.stderr
    assert world.bus.exists() is False or not list(world.bus.glob("consumed/*"))
    examined = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    assert examined.returncode == 2
    (failed,) = [item for item in json.loads(examined.stdout)["checks"] if not item["ok"]]
    assert failed["check"] == "object store"
    assert "conditional writes" in failed["detail"]
    first.proxy.clear()
    assert world.serve().returncode == 0


def test_the_daemon_says_what_is_wrong_with_credentials(
    signed: Spot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = on_s3(signed, tmp_path / "world")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-ours")
    served = world.serve()
    assert served.returncode == 5
    assert b"check the credentials" in served.stderr
    assert b"wrong-secret" not in served.stderr


def test_each_write_carries_its_checksum_without_which_a_bucket_with_an_object_lock_refuses_it(first: Spot) -> None:
    bucket, key = first.bucket(), f"{first.prefix}/document.json"
    for data, replacing in ((b"first", False), (b"second", True)):
        etag = bucket.get(key, 100).etag if replacing else None
        assert bucket.put(key, data, replacing=etag)
        found = first.client.head_object(Bucket=first.bucket_name, Key=key, ChecksumMode="ENABLED")
        assert found["ChecksumSHA256"] == b64encode(hashlib.sha256(data).digest()).decode()


def test_nothing_is_written_outside_the_prefix(spot: Spot) -> None:
    store = spot.store()
    store.probe()
    store.create("a/b", b"x")
    found = spot.client.list_objects_v2(Bucket=spot.bucket_name, Prefix=spot.prefix)["Contents"]
    slots = [item["Key"] for item in found]
    assert all(key.startswith(f"{spot.prefix}/") for key in slots)
    assert sorted(key for key in slots if PRIVATE not in key) == [f"{spot.prefix}/a/b"]


def test_an_object_replaced_while_its_answer_travels_is_one_version_or_the_other(spot: Spot) -> None:
    spot.put("object", b"old" * 100)
    spot.proxy.add(afterwards(lambda: spot.put("object", b"new" * 100)), "GET")
    found = spot.store().read("object", MANY)
    assert found.data == b"old" * 100
    assert spot.store().replace("object", b"mine", found.version) is False
    assert spot.data("object") == b"new" * 100
