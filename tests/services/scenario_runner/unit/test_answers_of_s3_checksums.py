"""Checksums that S3 keeps: which answers are taken, and which servers are not believed at all."""

import base64
import hashlib
from typing import Any

import pytest

from scenario_runner.contracts.depth import DigestSource, least, reported_depth
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage import s3_checksums
from scenario_runner.storage.s3_checksums import S3Checksums, StoredChecksum
from scenario_runner.storage.s3_client import ChangedError, Listed, S3Settings

pytestmark = pytest.mark.unit

DATA = b"bytes"
ENTRY = Listed("key", '"e1"', len(DATA), 0)


def sha(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


class RefusalError(Exception):
    """An error of boto3."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class FakeS3:
    """A server that computes checksums; ``lie`` names what it does wrong."""

    def __init__(self, lie: str = "", **answer: Any) -> None:
        self.lie, self.answer = lie, answer
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []

    def head_object(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        if "raises" in self.answer:
            raise self.answer["raises"]
        true = {"ETag": '"e1"', "ContentLength": len(DATA), "ChecksumSHA256": sha(DATA), "ChecksumType": "FULL_OBJECT"}
        found = self.objects.get(asked["Key"], true) | self.answer
        return {name: value for name, value in found.items() if value is not None}

    def put_object(self, Bucket: str, Key: str, Body: bytes, **more: str) -> dict[str, Any]:  # noqa: N803
        given = more.get("ChecksumSHA256")
        if self.lie == "refuses all" or (given not in (None, sha(Body)) and self.lie != "accepts"):
            raise RefusalError(400, "BadDigest")
        before = self.objects.get(Key, {}).get("ChecksumSHA256")
        kept = given or (before if self.lie == "keeps" else None)
        if self.lie == "reports nothing":
            kept = None
        if self.lie == "reports another":
            kept = sha(b"another")
        self.objects[Key] = {
            "ETag": f'"{hashlib.md5(Body).hexdigest()}"', "ContentLength": len(Body),
            "ChecksumSHA256": kept, "ChecksumType": "FULL_OBJECT",
        }  # fmt: skip
        return {"ETag": self.objects[Key]["ETag"]}


def checksums(server: FakeS3, monkeypatch: pytest.MonkeyPatch) -> S3Checksums:
    monkeypatch.setattr(s3_checksums, "_client", lambda _settings: server)
    return S3Checksums(S3Settings(), sleep=lambda _seconds: None)


# --- which answers are taken


def test_the_checksum_of_a_whole_object_is_taken_with_the_version_that_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeS3(VersionId="v1")
    found = checksums(server, monkeypatch).stored("bucket", ENTRY)
    assert found == StoredChecksum(hashlib.sha256(DATA).hexdigest(), "v1")
    assert server.asked == [{"Bucket": "bucket", "Key": "key", "IfMatch": '"e1"', "ChecksumMode": "ENABLED"}]


@pytest.mark.parametrize(
    "answer",
    [
        {"ChecksumSHA256": None},
        {"ChecksumType": None},
        {"ChecksumType": "COMPOSITE"},
        {"ChecksumType": "full_object"},
        {"ChecksumSHA256": f"{sha(DATA)}-2"},
        {"ChecksumSHA256": base64.b64encode(b"x" * 31).decode()},
        {"ChecksumSHA256": hashlib.sha256(DATA).hexdigest()},
        {"ChecksumSHA256": ""},
        {"StorageClass": "GLACIER"},
        {"StorageClass": "DEEP_ARCHIVE"},
        {"StorageClass": "A_CLASS_OF_TOMORROW"},
        {"StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "ARCHIVE_ACCESS"},
    ],
    ids=lambda answer: ",".join(f"{key}={str(value)[:12]}" for key, value in answer.items()),
)
def test_what_is_not_surely_the_sha256_of_bytes_that_can_be_read_is_not_taken(
    answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checksums(FakeS3(**answer), monkeypatch).stored("bucket", ENTRY) is None


@pytest.mark.parametrize("found", ["STANDARD_IA", "GLACIER_IR", "INTELLIGENT_TIERING"])
def test_an_object_of_a_class_that_is_read_at_once_has_its_checksum_taken(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checksums(FakeS3(StorageClass=found), monkeypatch).stored("bucket", ENTRY) is not None


@pytest.mark.parametrize(
    "answer",
    [
        {"ETag": '"e2"'}, {"ContentLength": len(DATA) + 1},
        {"raises": RefusalError(412)}, {"raises": RefusalError(404)},
    ],
    ids=["another ETag", "another size", "412", "404"],
)  # fmt: skip
def test_another_object_than_the_listed_one_has_changed(
    answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ChangedError):
        checksums(FakeS3(**answer), monkeypatch).stored("bucket", ENTRY)


@pytest.mark.parametrize("status", [403, 400])
def test_a_refused_question_is_an_outage_and_no_finding(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="s3://bucket/key"):
        checksums(FakeS3(raises=RefusalError(status, "AccessDenied")), monkeypatch).stored("bucket", ENTRY)


# --- which servers are believed


def test_a_server_that_computes_checksums_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeS3()
    checksums(server, monkeypatch).prove("bucket", "private/probe")
    assert all(key.startswith("private/probe-") for key in server.objects)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("accepts", "accepts an object whose x-amz-checksum-sha256 is wrong"),
        ("reports nothing", "does not report the SHA-256"),
        ("reports another", "does not report the SHA-256"),
        ("keeps", "reports the SHA-256 of an object that was replaced"),
        ("refuses all", "refuses an object whose checksum is right"),
    ],
)
def test_a_server_that_does_not_compute_them_is_refused(lie: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        checksums(FakeS3(lie), monkeypatch).prove("bucket", "private/probe")
    assert refused.value.reason is Reason.STORE_CHECKSUMS_UNSAFE


def test_a_composite_checksum_of_a_put_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="does not report"):
        checksums(FakeS3(ChecksumType="COMPOSITE"), monkeypatch).prove("bucket", "private/probe")


@pytest.mark.parametrize("lie", ["accepts", "reports nothing", "reports another", "keeps", "refuses all"])
def test_a_server_that_lies_in_four_of_five_answers_is_refused(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeS3(lie)
    asked = checksums(server, monkeypatch)
    probe, probes = asked._probe, list[str]()

    def counted(bucket: str, key: str) -> None:
        probes.append(key)
        server.lie = lie if len(probes) < 5 else ""
        probe(bucket, key)

    monkeypatch.setattr(asked, "_probe", counted)
    with pytest.raises(ConfigurationError):
        asked.prove("bucket", "private/probe")
    assert len(probes) == 1


@pytest.mark.parametrize(("lost", "safe"), [(4, True), (5, False)])
def test_a_race_with_another_prober_is_run_again(*, lost: int, safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeS3()
    write, writes = server.put_object, list[str]()

    def put_object(Key: str, **more: Any) -> dict[str, Any]:  # noqa: N803
        answer = write(Key=Key, **more)
        writes.append(Key)
        if len(writes) <= lost:
            write(Key=Key, Bucket="bucket", Body=b"of another prober")
        return answer

    monkeypatch.setattr(server, "put_object", put_object)
    if safe:
        checksums(server, monkeypatch).prove("bucket", "private/probe")
        return
    with pytest.raises(ConfigurationError, match="shows another object"):
        checksums(server, monkeypatch).prove("bucket", "private/probe")


# --- depths


def test_the_depth_of_many_is_that_of_the_least_deep() -> None:
    read, stored = DigestSource.READ, DigestSource.S3_CHECKSUM
    assert [least(found) for found in ([], [read], [read, stored], [stored])] == [read, read, stored, stored]


def test_ready_has_the_attribute_only_where_an_output_says_its_depth() -> None:
    assert reported_depth([{"output_id": "a"}]) == {}
    assert reported_depth([{"output_id": "a"}, {"verification_depth": "read"}]) == {"verification_depth": "read"}
    mixed = [{"verification_depth": "s3_checksum"}, {"verification_depth": "read"}]
    assert reported_depth(mixed) == {"verification_depth": "s3_checksum"}
    with pytest.raises(ValueError, match="hearsay"):
        reported_depth([{"verification_depth": "hearsay"}])
