"""A place of its own on an S3 server for each test, behind a proxy that fails when asked to."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
from fault_proxy import Answer, Fault, FaultProxy, cut_body, delay, reset_before, short_body, status
from support import S3Place, s3_place

from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.s3 import S3RunRoot
from scenario_runner.contracts.errors import Refusal

PRIVATE = "fraud-platform/sr/.private"
SERVERS = ("first", "signed")


def place_of(server: str) -> S3Place:
    """``first`` is the server of the variables SR_TEST_S3_*, ``signed`` the second one, which checks signatures."""
    place = s3_place()
    if server == "first":
        return place
    endpoint = os.environ.get("SR_TEST_S3_SIGNED_ENDPOINT_URL")
    if not endpoint:
        pytest.skip("SR_TEST_S3_SIGNED_ENDPOINT_URL is not set: no second S3 server to test against")
    return replace(place, endpoint=endpoint, path_style=True)


def credentials_of(server: str) -> dict[str, str]:
    """Environment variables with the credentials of a server; none to change for the first one."""
    names = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY") if server == "signed" else ()
    return {f"AWS_{name}": os.environ[f"SR_TEST_S3_SIGNED_{name}"] for name in names}


@dataclass
class Spot:
    """A prefix of a test's own; what the code under test asks for goes through the proxy, what the test does not."""

    place: S3Place
    proxy: FaultProxy
    prefix: str
    client: Any

    @property
    def bucket_name(self) -> str:
        return self.place.bucket

    def settings(self) -> Any:
        from scenario_runner.storage.s3_client import S3Settings

        return S3Settings(self.proxy.url, self.place.region, path_style=True)

    def bucket(self, name: str = "") -> Any:
        """The bucket, spoken to by the code under test."""
        from scenario_runner.storage.s3_client import S3Bucket

        return S3Bucket(name or self.place.bucket, self.settings())

    def store(self, pool: ThreadPoolExecutor | None = None) -> Any:
        """A store whose keys are those of :meth:`put`."""
        from scenario_runner.storage.s3 import S3Store

        return S3Store(self.bucket(), self.prefix, PRIVATE, pool)

    def uri(self, key: str) -> str:
        return f"s3://{self.place.bucket}/{self.prefix}/{key}"

    def artifacts(self, reuse: Any = None, threads: int = 2, root: str = "", checksums: Any = None) -> Any:
        """A reader of run roots below the prefix."""
        from scenario_runner.artifacts.s3 import S3Artifacts

        return S3Artifacts([root or self.uri("").rstrip("/")], self.settings(), threads, reuse, checksums)

    def checksums(self) -> Any:
        """What asks the server for the checksums that it keeps; nothing is proved of it."""
        from scenario_runner.storage.s3_checksums import S3Checksums

        return S3Checksums(self.settings())

    # --- what the test does itself, with another client and past the proxy

    def put(self, key: str, data: bytes = b"x", **more: str) -> str:
        """Write an object; returns its version, where the bucket keeps versions."""
        done = self.client.put_object(Bucket=self.place.bucket, Key=f"{self.prefix}/{key}", Body=data, **more)
        return str(done.get("VersionId") or "")

    def put_all(self, objects: Mapping[str, bytes], **more: str) -> None:
        """Write many objects."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: self.put(*item, **more), objects.items()))

    def data(self, key: str) -> bytes | None:
        """What an object holds."""
        try:
            found = self.client.get_object(Bucket=self.place.bucket, Key=f"{self.prefix}/{key}")
        except self.client.exceptions.NoSuchKey:
            return None
        return bytes(found["Body"].read())

    def remove(self, key: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=self.place.bucket, Key=f"{self.prefix}/{key}")

    def empty(self) -> None:
        """Delete everything below the prefix."""
        keys = list(keys_below(self.client, self.place.bucket, self.prefix + "/"))
        for start in range(0, len(keys), 1000):
            chunk = [{"Key": key} for key in keys[start : start + 1000]]
            self.client.delete_objects(Bucket=self.place.bucket, Delete={"Objects": chunk, "Quiet": True})


@lru_cache(maxsize=8)
def client_of(place: S3Place, server: str) -> Any:
    """The other client; making one takes a fifth of a second."""
    return place.client(**{name.lower(): value for name, value in credentials_of(server).items()})


def keys_below(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    """Keys that start with a prefix, by the other client."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from (item["Key"] for item in page.get("Contents", []))


@contextmanager
def spot_on(server: str, set_variable: Callable[[str, str], object]) -> Iterator[Spot]:
    """A spot on a server, removed at the end; credentials are put into the environment."""
    place = place_of(server)
    if not place.endpoint.startswith("http://"):
        pytest.skip("SR_TEST_S3_ENDPOINT_URL is not plain http: faults cannot be put between")
    for name, value in credentials_of(server).items():
        set_variable(name, value)
    with FaultProxy(place.endpoint) as proxy:
        prefix = f"{place.prefix}/{secrets.token_hex(6)}".strip("/")
        spot = Spot(place, proxy, prefix, client_of(place, server))
        try:
            yield spot
        finally:
            spot.empty()


#: More bytes than any object or listing of the tests.
MANY = 1 << 20
BODY = bytes(range(256)) * 8


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


PASSING: dict[str, Callable[[], Fault]] = {
    "503 SlowDown": lambda: status(503),
    "500": lambda: status(500),
    "409": lambda: status(409),
    "reset before the server hears": reset_before,
    "reset mid-body": cut_body,
    "a short body": short_body,
    "slow": lambda: delay(0.1),
}
"""Faults that pass: a call that is made again succeeds."""


def archived(storage_class: str) -> Fault:
    """What S3 answers when the bytes of an object are asked for that lies in an archive."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?><Error><Code>InvalidObjectState</Code><Message>not valid '
        f"for the storage class</Message><StorageClass>{storage_class}</StorageClass></Error>"
    ).encode()
    return Fault("archived", before=lambda _: Answer(403, [("Content-Type", "application/xml")], body, len(body)))
