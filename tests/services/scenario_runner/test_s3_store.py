"""The object store on S3: two servers of different make, and everything that a network does.

What the store shares with the file system is in the object store's contract test; here is what is particular to S3.
Needs ``SR_TEST_S3_BUCKET``; half of it ``SR_TEST_S3_SIGNED_ENDPOINT_URL``, a server that checks signatures.
"""

import hashlib
import json
import os
import re
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fault_proxy import Fault, afterwards, delay, ignoring, reset_after, reset_before, status, status_after
from s3_support import BODY, MANY, PASSING, PRIVATE, Spot, digest_of, opened, sha, spot_on
from storage_support import objects_in
from support import World

from scenario_runner.artifacts import s3_tree
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import ConfigurationError, EvidenceMissing, LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.ledger.projections import replace_older
from scenario_runner.ledger.write_once import WriteOnceObjects
from scenario_runner.retry import RetryPolicy
from scenario_runner.storage.base import ObjectTooLargeError
from scenario_runner.storage.s3 import S3Store

if TYPE_CHECKING:
    from scenario_runner.artifacts.s3 import S3RunRoot

pytest_plugins = ("s3_fixtures",)
pytestmark = pytest.mark.parity


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place on the server that checks signatures."""
    with spot_on("signed", monkeypatch.setenv) as made:
        yield made


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
@pytest.mark.usefixtures("impatient_calls")
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
@pytest.mark.usefixtures("impatient_calls")
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


@pytest.mark.usefixtures("impatient_calls")
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
