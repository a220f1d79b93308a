"""One bucket of an S3-compatible store: plain calls, plain errors.

Absent (404) is distinguished from everything else: a bucket that is not there, a denied access or a failing server is
``Unavailable``, never "absent". What is worth another try (throttling, 5xx, broken connections, conflicting writes) is
tried again within a budget of seconds.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scenario_runner.contracts.errors import ConfigurationError, Unavailable, install_extra, one_line
from scenario_runner.counters import count
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.aws import Credentials, drop_foreign_variables, native_options
from scenario_runner.storage.s3_signing import Signer
from scenario_runner.storage.s3_small import Asked

if TYPE_CHECKING:
    from obstore import Bytes as Buffer
    from obstore.store import S3Store as Bucket

T = TypeVar("T")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z]+)</Code>")
_STORAGE_CLASS: Final = re.compile(r"<StorageClass>([A-Z_]+)</StorageClass>")
_NO_BUCKET: Final = "NoSuchBucket"
_ARCHIVED: Final = "InvalidObjectState"
_REDIRECTED: Final = "redirect without LOCATION"
"""The client's text for S3's 301 and 307 for a bucket of another region; it leaves the status out."""

#: Timeouts of the native client: a block of 4 MiB arrives in 60 s at 70 kB/s; a server that is up accepts at once.
_REQUEST_SECONDS: Final = "60s"
_CONNECT_SECONDS: Final = "5s"
_RETRY: Final = RetryPolicy(first_seconds=0.05, most_seconds=2.0, jitter=True, deadline_seconds=8.0)
"""S3 answers 503 for seconds while it spreads load; the caller waits for longer outages, with its lease renewed."""

#: Objects of one page: the most that S3 gives.
_PAGE: Final = 1000
#: Where nothing names a region: servers other than AWS ignore it.
_DEFAULT_REGION: Final = "us-east-1"
#: HTTP statuses after which the same request may succeed.
_RETRIED_STATUSES: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach S3.

    Attributes:
        endpoint_url: Of an S3-compatible server; empty for AWS.
        region: Empty to take it from the AWS configuration file.
        path_style: ``endpoint/bucket/key`` rather than ``bucket.endpoint/key``; None: whenever an endpoint is given.
    """

    endpoint_url: str = ""
    region: str = ""
    path_style: bool | None = None

    @property
    def is_path_style(self) -> bool:
        """Whether the bucket is part of the path."""
        return bool(self.endpoint_url) if self.path_style is None else self.path_style


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object, or a part of one, as one request returned it.

    Attributes:
        data: Its bytes, in a buffer of the client's.
        size: Of the whole object, in bytes.
        modified_us: When it was last written, on the server's clock, in whole seconds as microseconds.
        version: Where the bucket keeps versions, else empty.
    """

    data: "Buffer"
    etag: str
    size: int
    modified_us: int
    version: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it; see :class:`Fetched`."""

    key: str
    etag: str
    size: int
    modified_us: int


class TooLargeError(Exception):
    """The object is larger than the read allows; carries its size."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(size)


class ChangedError(Exception):
    """The object is not (any more) the one with the expected ETag."""


class ArchivedError(Exception):
    """The object is in an archive storage class and cannot be read before it is restored; carries the class."""


class BadKeyError(Exception):
    """A listing holds a key that is not a normalised relative path."""


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key prefix (without slashes at its ends) of ``s3://bucket/prefix``.

    Raises:
        ValueError: not such a URI, or a prefix that is not a normalised relative path.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or _BUCKET.fullmatch(bucket) is None:
        raise ValueError("needs the form s3://bucket/prefix with a valid bucket name")
    prefix = prefix.strip("/")
    segments = prefix.split("/") if prefix else []
    if any(segment in ("", ".", "..") for segment in segments) or not prefix.isprintable() or "\\" in prefix:
        raise ValueError("its prefix is not a normalised path")
    return bucket, prefix


class S3Bucket:
    """Calls on one bucket. Every call is retried within a budget and may be made from any thread.

    Args:
        name: The bucket.
        settings: How to reach it.
        sleep: Waits some seconds between tries.
    """

    def __init__(self, name: str, settings: S3Settings, sleep: Callable[[float], None] = time.sleep) -> None:
        try:
            import obstore  # noqa: PLC0415 - an extra
            from obstore import store as backends  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(f"s3://{name}", "the S3 client is not installed", install_extra("s3")) from error
        self.name = name
        self._obstore = obstore
        drop_foreign_variables()
        credentials = Credentials()
        options = _options(settings, credentials)
        try:
            self._bucket: Bucket = translating_panics(lambda: backends.S3Store(name, **options))
        except (obstore.exceptions.BaseError, _PanicError) as error:
            raise ConfigurationError(
                f"s3://{name}", f"the S3 client refuses its settings: {_reason(error)}",
                "check the bucket's name, s3_endpoint_url and s3_region",
            ) from error  # fmt: skip
        self._sleep = sleep
        self._signer = Signer(credentials.current, options["region"], _address(name, settings, options["region"]))

    def _call(self, action: str, key: str, function: Callable[[], T]) -> T | None:
        """The result of a call, with retries; None when there is no such object."""
        try:
            return with_retries(lambda: translating_panics(function), _RETRY, _worth_another_try, wait=self._sleep)
        except (FileNotFoundError, self._obstore.exceptions.BaseError) as error:
            if _code(error) == _NO_BUCKET:
                raise Unavailable(f"cannot {action} {self.uri(key)}: there is no bucket {self.name}") from error
            if isinstance(error, FileNotFoundError):
                return None
            raise Unavailable(f"cannot {action} {self.uri(key)}: {_reason(error)}") from error
        except (_ShortError, _PanicError) as error:
            raise Unavailable(f"cannot {action} {self.uri(key)}: {error}") from error

    def uri(self, key: str) -> str:
        """Where an object is, for a person."""
        return f"s3://{self.name}/{key}"

    def put(self, key: str, data: bytes, *, replacing: str | None = None) -> bool:
        """Write an object unless one is there, or (with ``replacing``) only over the one with that ETag.

        Returns:
            False when the condition did not hold. After a lost answer that may be this call's own doing: read back.
        """
        mode: Any = "create" if replacing is None else {"e_tag": replacing}

        def attempt() -> bool:
            count("s3.put")
            try:
                self._obstore.put(self._bucket, key, data, mode=mode, use_multipart=False)
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError) as error:
                if _status(error) == HTTPStatus.CONFLICT or _code(error) == _NO_BUCKET:
                    raise  # another conditional write is under way; or nothing was there to have a condition
                return False
            return True

        done = self._call("write", key, attempt)
        if done is None and replacing is None:
            raise Unavailable(f"cannot write {self.uri(key)}: the server answers 404")
        return bool(done)

    def get(self, key: str, limit: int) -> Fetched | None:
        """An object; None when there is none.

        Raises:
            TooLargeError: larger than ``limit`` bytes.
        """
        return self._call("read", key, lambda: self._fetch(key, {}, limit))

    def get_range(self, key: str, start: int, end: int, etag: str) -> Fetched | None:
        """Bytes ``start`` to ``end`` (exclusive) of the object with this ETag; None when there is none.

        Raises:
            ChangedError: it has another ETag by now.
            ArchivedError: its bytes are in an archive.
        """
        options: dict[str, Any] = {"if_match": etag}
        if end > start:
            options["range"] = (start, end)

        def attempt() -> Fetched:
            try:
                found = self._fetch(key, options, max(end - start, 0))
            except (self._obstore.exceptions.PreconditionError, TooLargeError) as error:
                raise ChangedError from error
            except self._obstore.exceptions.BaseError as error:
                if _code(error) == _ARCHIVED:
                    raise ArchivedError(_storage_class(error)) from error
                raise
            if found.etag != etag:
                raise ChangedError
            if len(found.data) != end - start:
                raise _ShortError(f"{len(found.data)} bytes came, {end - start} were asked for")
            return found

        return self._call("read", key, attempt)

    def small(self, wanted: Listed) -> Asked:
        """A small object with this ETag and size, to be asked for whole; see :class:`SmallReads`."""
        try:
            request = self._signer.get(wanted.key, wanted.etag)
        except Exception:  # noqa: BLE001 - whatever keeps it from being signed: the native client says why
            request = None
        return Asked(request, wanted.etag, wanted.size)

    def _fetch(self, key: str, options: Any, limit: int) -> Fetched:  # noqa: ANN401 - the client's own type
        count("s3.get")
        result = self._obstore.get(self._bucket, key, options=options)
        meta: Any = result.meta
        first, last = result.range
        if last - first > limit:
            raise TooLargeError(meta["size"])
        data = result.bytes()
        if len(data) != last - first:
            raise _ShortError(f"{len(data)} bytes came, {last - first} were announced")
        return Fetched(data, meta["e_tag"] or "", meta["size"], _micros(meta), meta["version"] or "")

    def head(self, key: str) -> Listed | None:
        """What an object is, without its bytes; None when there is none.

        The answer to HEAD has no body, so a missing bucket looks like a missing object: call this after a listing only.
        """

        def attempt() -> object:
            count("s3.head")
            return self._obstore.head(self._bucket, key)

        meta: Any = self._call("inspect", key, attempt)
        return None if meta is None else Listed(key, meta["e_tag"] or "", meta["size"], _micros(meta))

    def listing(
        self, prefix: str, limit: int, on_page: Callable[[int], None] = lambda _objects: None
    ) -> list[Listed] | None:
        """Every object below a folder, sorted by key; None when there are more than ``limit``.

        Args:
            prefix: A folder without its trailing slash: its siblings (``run1``/``run10``) are not part of it. Empty
                for the whole bucket.
            limit: Most objects to list.
            on_page: Called with the number of objects of every page; may raise to end the listing.

        Raises:
            BadKeyError: a key there is not a normalised relative path.
        """
        found = self._call("list", prefix, lambda: self._pages(prefix, limit, on_page))
        if found is None:
            raise Unavailable(f"cannot list {self.uri(prefix)}: the server answers 404")
        return found if len(found) <= limit else None

    def pages(self, prefix: str) -> Iterator[Listed]:
        """Every object below a folder, sorted by key, a page at a time; a page that fails is asked for again.

        Args:
            prefix: See :meth:`listing`.
        """
        after = ""
        while True:
            page = self._call("list", prefix, lambda after=after: self._page(prefix, after))  # type: ignore[misc]
            if page is None:
                raise Unavailable(f"cannot list {self.uri(prefix)}: the server answers 404")
            yield from page
            if not page:
                return
            after = page[-1].key

    def keys_after(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """Keys below a folder that follow another key, sorted: one page, and whether it is the last.

        Args:
            prefix: See :meth:`listing`.
            after: The other key.

        Raises:
            BadKeyError: a key there is not a normalised relative path.
        """
        page = self._call("list", prefix, lambda: self._keys(prefix, after))
        if page is None:
            raise Unavailable(f"cannot list {self.uri(prefix)}: the server answers 404")
        return page, len(page) < _PAGE

    def _keys(self, prefix: str, after: str) -> list[str]:
        count("s3.list")
        folder = f"{prefix}/" if prefix else None
        try:
            page: Any = next(iter(self._obstore.list(self._bucket, folder, offset=after, chunk_size=_PAGE)), [])
        except self._obstore.exceptions.InvalidPathError as error:
            raise BadKeyError(one_line(str(error).partition("\n")[0])) from error
        return sorted(item["path"] for item in page)

    def _page(self, prefix: str, after: str) -> list[Listed]:
        count("s3.list")
        listed = self._obstore.list(self._bucket, f"{prefix}/", offset=after or None, chunk_size=_PAGE)
        page: Any = next(iter(listed), [])
        return [Listed(item["path"], item["e_tag"] or "", item["size"], _micros(item)) for item in page]

    def _pages(self, prefix: str, limit: int, on_page: Callable[[int], None]) -> list[Listed]:
        found: list[Listed] = []
        try:
            for page in self._objects(prefix):
                count("s3.list")
                on_page(len(page))
                found.extend(Listed(item["path"], item["e_tag"] or "", item["size"], _micros(item)) for item in page)
                if len(found) > limit:
                    break
        except self._obstore.exceptions.InvalidPathError as error:
            raise BadKeyError(one_line(str(error).partition("\n")[0])) from error
        return sorted(found, key=lambda item: item.key)

    def _objects(self, prefix: str) -> Iterator[Any]:
        yield from self._obstore.list(self._bucket, f"{prefix}/" if prefix else None, chunk_size=_PAGE)


class _ShortError(OSError):
    """Fewer bytes came than were announced."""


class _PanicError(Exception):
    """The native client panicked: a defect of its own, or of its arguments."""


def translating_panics(function: Callable[[], T]) -> T:
    """Call the native client; raise its panics as an error, which as BaseException would end the process."""
    try:
        return function()
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise _PanicError(f"the S3 client broke off: {one_line(str(error))}") from error
        raise


def _options(settings: S3Settings, credentials: Credentials) -> dict[str, Any]:
    """All options of the native client; the variables that it would read itself are passed here, or dropped."""
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 0},
        "client_options": {"timeout": _REQUEST_SECONDS, "connect_timeout": _CONNECT_SECONDS},
        "virtual_hosted_style_request": not settings.is_path_style,
        "checksum_algorithm": "sha256",  # a bucket with an Object Lock refuses writes without one
        **native_options(credentials),
        "region": settings.region or credentials.region() or _DEFAULT_REGION,
    }
    if settings.endpoint_url:
        options["endpoint"] = settings.endpoint_url
        options["client_options"]["allow_http"] = settings.endpoint_url.startswith("http://")
    return options


def _address(name: str, settings: S3Settings, region: str) -> str:
    """URL of the bucket, as the native client makes it: an endpoint without path style is the bucket's own."""
    endpoint = settings.endpoint_url.rstrip("/")
    if settings.is_path_style:
        return f"{endpoint or f'https://s3.{region}.amazonaws.com'}/{name}"
    return endpoint or f"https://{name}.s3.{region}.amazonaws.com"


def _micros(meta: Any) -> int:  # noqa: ANN401
    return int(meta["last_modified"].astimezone(UTC).timestamp()) * 1_000_000


def _status(error: BaseException) -> int:
    """The HTTP status behind an error of the client; 0 when the server did not answer."""
    found = _STATUS.search(str(error))
    if found is None and _REDIRECTED in str(error):
        return int(HTTPStatus.MOVED_PERMANENTLY)
    return int(found.group(1)) if found else 0


def _code(error: BaseException) -> str:
    found = _CODE.search(str(error))
    return found.group(1) if found else ""


def _storage_class(error: BaseException) -> str:
    found = _STORAGE_CLASS.search(str(error))
    return found.group(1) if found else "an archive storage class"


def _worth_another_try(error: BaseException) -> bool:
    if isinstance(error, TooLargeError | ChangedError | BadKeyError | FileNotFoundError):
        return False
    if isinstance(error, _ShortError):
        return True
    status = _status(error)
    return type(error).__module__.startswith("obstore") and (
        status in _RETRIED_STATUSES or (status == 0 and type(error).__name__ == "GenericError")
    )


_HINTS: Final = {
    401: "the credentials are not accepted",
    403: "access is denied; check the credentials and the bucket policy",
    301: "the bucket is in another region; set s3_region",
    501: "the server does not implement this request",
}


_CODE_HINTS: Final = {_ARCHIVED: "the object is in an archive storage class; restore it"}


def _reason(error: BaseException) -> str:
    status, code = _status(error), _code(error)
    text = " ".join(str(error).partition("Debug source")[0].split())
    text = _CODE_HINTS.get(code) or _HINTS.get(status) or text.partition("<?xml")[0].strip()[:300]
    return one_line(f"{text} ({' '.join(filter(None, (str(status or ''), code))) or type(error).__name__})")
