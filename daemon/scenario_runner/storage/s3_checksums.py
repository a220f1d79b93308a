"""SHA-256 digests that S3 itself keeps of whole objects, and the proof that a server may be trusted with them.

S3 computes an object's checksum when the object is written and refuses a write that names another one. Nobody can set
it afterwards without writing the object. It is over the whole object (``FULL_OBJECT``) of one that was put or copied at
once; of one that was uploaded in parts it is over the checksums of the parts (``COMPOSITE``), which is no SHA-256 of
the bytes. Older objects, and those of clients that asked for another algorithm, have none.

The native client shows no checksums, so these requests go through boto3.
"""

import base64
import binascii
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

from scenario_runner.contracts.errors import ConfigurationError, Unavailable, install_extra
from scenario_runner.contracts.reasons import Reason
from scenario_runner.counters import count
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.aws import Credentials, sdk_client
from scenario_runner.storage.boto import failure_of
from scenario_runner.storage.s3_client import ChangedError, Listed, S3Settings

T = TypeVar("T")
#: Storage classes whose objects can be read at once. Of any other one, also of one that S3 adds later, the object is
#: read: then the reader finds out what it is.
_READ_AT_ONCE: Final = frozenset(
    {
        "STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY",
        "EXPRESS_ONEZONE",
    }
)  # fmt: skip
_FULL_OBJECT: Final = "FULL_OBJECT"
_RETRY: Final = RetryPolicy(first_seconds=0.05, most_seconds=2.0, jitter=True, deadline_seconds=8.0)
"""That of all requests to S3; see s3_client."""
#: Where nothing names a region: servers other than AWS ignore it.
_DEFAULT_REGION: Final = "us-east-1"
#: Requests of the process at one time: as many as its threads that wait for S3.
_CONNECTIONS: Final = 32
#: As that of the native client (s3_client): a server that is up accepts at once.
_CONNECT_SECONDS: Final = 5.0
#: A HEAD and a put of a few bytes are answered in milliseconds, or the server is in trouble.
_READ_SECONDS: Final = 20.0
#: Probes before a server is called unsafe: one fails when another process probes the same object at the same time.
_PROBES: Final = 5
#: Objects that probes use: few, because they are never deleted; enough that two processes seldom take the same one.
_PROBE_OBJECTS: Final = 256


@dataclass(frozen=True, slots=True)
class StoredChecksum:
    """The SHA-256 that S3 keeps of a whole object, in hex, and the object's version where its bucket keeps versions."""

    sha256: str
    version: str


class S3Checksums:
    """Asks S3 for checksums. Every call is retried within a budget and may be made from any thread.

    Args:
        settings: How to reach S3.
        sleep: Waits some seconds between tries.
    """

    def __init__(self, settings: S3Settings, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client, self._sleep = _client(settings), sleep

    def stored(self, bucket: str, entry: Listed) -> StoredChecksum | None:
        """The SHA-256 that S3 keeps of an object.

        Args:
            bucket: The bucket.
            entry: The object as it was listed; its ETag is a condition of the request.

        Returns:
            None when S3 keeps none of the whole object, or when its bytes could not be read at once.

        Raises:
            ChangedError: there is another object by now, or none.
            Unavailable: S3 does not answer, or denies access.
        """
        answer = self._head(bucket, entry.key, entry.etag)
        if (answer.get("ETag"), answer.get("ContentLength")) != (entry.etag, entry.size):
            raise ChangedError
        at_once = answer.get("StorageClass", "STANDARD") in _READ_AT_ONCE and not answer.get("ArchiveStatus")
        if answer.get("ChecksumType") != _FULL_OBJECT or not at_once:
            return None
        sha256 = _hex_of(answer.get("ChecksumSHA256", ""))
        return StoredChecksum(sha256, answer.get("VersionId") or "") if sha256 else None

    def _head(self, bucket: str, key: str, etag: str) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            count("s3.head")
            answer: dict[str, Any] = self._client.head_object(
                Bucket=bucket, Key=key, IfMatch=etag, ChecksumMode="ENABLED"
            )
            return answer

        try:
            return self._call(attempt)
        except Exception as error:
            if _status(error) in (HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED):
                raise ChangedError from error
            raise _unavailable("inspect", bucket, key, error) from error

    def _call(self, function: Callable[[], T]) -> T:
        return with_retries(function, _RETRY, _may_pass, wait=self._sleep)

    # --- the proof

    def prove(self, bucket: str, key: str) -> None:
        """Prove with objects of SR's own that the server computes checksums itself and refuses wrong ones.

        Args:
            bucket: A bucket that SR writes to.
            key: Begin of the names of the objects, which are written again and again: so no permission to delete is
                needed, and their number does not grow.

        Raises:
            ConfigurationError: ``STORE_CHECKSUMS_UNSAFE``.
            Unavailable: the server does not answer, or denies access.
        """
        problem = ""
        for _ in range(_PROBES):
            try:
                self._probe(bucket, f"{key}-{secrets.randbelow(_PROBE_OBJECTS):03d}")
            except _LostRaceError as lost:
                problem = str(lost)
                continue
            except _UnsafeError as unsafe:
                problem = str(unsafe)
                break
            return
        raise checksums_unsafe(f"s3://{bucket}/{key}", problem)

    def _probe(self, bucket: str, key: str) -> None:
        """Write an object rightly, wrongly and without a SHA-256, and ask what the server keeps of it.

        Raises:
            _UnsafeError: what is wrong with the server, whoever else writes the object meanwhile.
            _LostRaceError: another object is there by now.
        """
        data, other = (f"probe {secrets.token_hex(8)}".encode() for _ in range(2))
        try:
            etag = self._put(bucket, key, data, _sha256_of(data))
            with suppress(_RefusedError):
                self._put(bucket, key, other, _sha256_of(data))
                raise _UnsafeError("accepts an object whose x-amz-checksum-sha256 is wrong")
            if self._reported(bucket, key, data, etag) != hashlib.sha256(data).hexdigest():
                raise _UnsafeError("does not report the SHA-256 of an object that was written with one")
            etag = self._put(bucket, key, other, {"ChecksumAlgorithm": "CRC32"})
            if self._reported(bucket, key, other, etag) not in ("", hashlib.sha256(other).hexdigest()):
                raise _UnsafeError("reports the SHA-256 of an object that was replaced")
        except _RefusedError as refused:
            raise _UnsafeError(f"refuses an object whose checksum is right: {refused}") from refused
        except ChangedError as changed:
            raise _LostRaceError("shows another object than the one that was written") from changed

    def _reported(self, bucket: str, key: str, data: bytes, etag: str) -> str:
        found = self.stored(bucket, Listed(key, etag, len(data), 0))
        return "" if found is None else found.sha256

    def _put(self, bucket: str, key: str, data: bytes, checksum: Mapping[str, str]) -> str:
        """Write an object; returns its ETag.

        Raises:
            _RefusedError: the server calls the request a bad one.
        """

        def attempt() -> str:
            count("s3.put")
            return str(self._client.put_object(Bucket=bucket, Key=key, Body=data, **checksum).get("ETag", ""))

        try:
            return self._call(attempt)
        except Exception as error:
            if _status(error) == HTTPStatus.BAD_REQUEST:
                raise _RefusedError(failure_of(error)[1]) from error
            raise _unavailable("write", bucket, key, error) from error


def _sha256_of(data: bytes) -> dict[str, str]:
    return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}


class _RefusedError(Exception):
    """The server refused a write as a bad request."""


class _UnsafeError(Exception):
    """The server cannot be trusted with checksums."""


class _LostRaceError(Exception):
    """A probe met an object that another process wrote, or else the server shows old objects; the next probe tells."""


def checksums_unsafe(place: str, problem: str) -> ConfigurationError:
    """The refusal of a store that cannot prove its checksums."""
    return ConfigurationError(
        place, f"output_digest_source is s3_checksum, and the store {problem}",
        "use output_digest_source: read, or a bucket of AWS S3", Reason.STORE_CHECKSUMS_UNSAFE,
    )  # fmt: skip


def _client(settings: S3Settings) -> Any:  # noqa: ANN401 - boto3 has no types
    try:
        from botocore.config import Config  # noqa: PLC0415 - slow to import, and an extra
    except ImportError as error:
        raise ConfigurationError(
            "output_digest_source", "s3_checksum needs boto3, which is not installed", install_extra("s3")
        ) from error
    path_style = bool(settings.endpoint_url) if settings.path_style is None else settings.path_style
    config = Config(
        connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries={"total_max_attempts": 1},
        max_pool_connections=_CONNECTIONS, s3={"addressing_style": "path" if path_style else "virtual"},
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    region = settings.region or Credentials().region() or _DEFAULT_REGION
    return sdk_client("s3", region, settings.endpoint_url or None, config)


def _hex_of(text: str) -> str:
    """A SHA-256 in base64 as hex; empty when it is none, as that of an upload in parts, which ends in ``-N``."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == hashlib.sha256().digest_size else ""


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and failure_of(error)[2]


def _status(error: Exception) -> int:
    response: Any = getattr(error, "response", None)
    return int(response["ResponseMetadata"].get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def _unavailable(action: str, bucket: str, key: str, error: Exception) -> Unavailable:
    return Unavailable(f"cannot {action} s3://{bucket}/{key}: {failure_of(error)[1]}")
