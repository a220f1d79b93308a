"""AWS Signature Version 4 of a GET, for requests that are made by the hundred.

The SDK's signer takes longer than everything else of a small read. This one signs a single kind of request: a GET with
an ETag, without a query and without a body. A test compares its signatures with the SDK's.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from scenario_runner.storage.aws import Keys

_NO_BODY: Final = hashlib.sha256(b"").hexdigest()
#: Paths that S3 signs as they are; to encode one takes as long as its signature.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~/-]+", re.ASCII)
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
#: For how long keys are used before they are asked for again, as by the native client. To ask costs 30 microseconds.
_KEYS_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class SignedGet:
    """A request: ``scheme://host:port``, the whole URL, and header fields as lines."""

    origin: str
    url: str
    fields: list[str]


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the signatures of one second and one access key have in common."""

    stamp: str
    keys: Keys
    scope: str
    key: bytes


class Signer:
    """Signs GETs of objects below one address.

    Args:
        keys: The access key to use now.
        region: Of the bucket.
        address: URL of the bucket, to which a key is appended.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, keys: Callable[[], Keys], region: str, address: str, clock: Callable[[], float] = time.time
    ) -> None:
        parts = urlsplit(address)
        self._origin, self._host, self._path = f"{parts.scheme}://{parts.netloc}", parts.netloc, parts.path.rstrip("/")
        self._keys, self._region, self._clock = keys, region, clock
        self._kept, self._kept_until = keys(), clock() + _KEYS_SECONDS
        self._moment: _Moment | None = None

    def get(self, key: str, etag: str) -> SignedGet:
        """The request for an object, if it has this ETag.

        Args:
            key: Of the object.
            etag: With its quotes.
        """
        moment = self._now()
        path = f"{self._path}/{key}"
        if _PLAIN.fullmatch(path) is None:
            path = quote(path, safe="/~")
        token = moment.keys.token
        signed = [("host", self._host), ("if-match", etag), ("x-amz-content-sha256", _NO_BODY),
                  ("x-amz-date", moment.stamp), *([("x-amz-security-token", token)] if token else [])]  # fmt: skip
        names = ";".join([name for name, _ in signed])
        lines = "".join([f"{name}:{value}\n" for name, value in signed])
        request = f"GET\n{path}\n\n{lines}\n{names}\n{_NO_BODY}"
        text = f"{_ALGORITHM}\n{moment.stamp}\n{moment.scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(moment.key, text.encode(), "sha256").hex()
        credential = f"Credential={moment.keys.access_key}/{moment.scope}"
        fields = [f"{name}: {value}" for name, value in signed]
        fields.append(f"authorization: {_ALGORITHM} {credential}, SignedHeaders={names}, Signature={signature}")
        return SignedGet(self._origin, self._origin + path, fields)

    def _now(self) -> _Moment:
        now = self._clock()
        if now >= self._kept_until:
            self._kept, self._kept_until = self._keys(), now + _KEYS_SECONDS
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        moment = self._moment
        if moment is None or moment.stamp != stamp or moment.keys is not self._kept:
            moment = self._moment = self._made(stamp, self._kept)
        return moment

    def _made(self, stamp: str, keys: Keys) -> _Moment:
        date = stamp[:8]
        key = f"AWS4{keys.secret_key}".encode()
        for part in (date, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return _Moment(stamp, keys, f"{date}/{self._region}/s3/aws4_request", key)
