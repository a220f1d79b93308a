"""S3 of the environment: where documents and engine runs of a bench go, and how daemons and references reach it.

Everything is made under names of its own and taken away again: a key prefix, and a bucket for engine runs where the
server is an emulator, because those list a whole bucket to list a prefix.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.store import S3Store

from sr_tools.bench.references import in_threads
from sr_tools.bench.report import note

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

#: Threads of plain clients: they keep a server without latency busy. Of a distant one SR asks more at a time.
THREADS: Final = 16
_REMEDY: Final = """\
To start both on this machine, without Docker, and set all variables:
  scripts/parity_stack.sh up
  eval "$(scripts/parity_stack.sh env)"
"""


class UnsetError(Exception):
    """A variable is missing; the message says what to do."""


@dataclass(frozen=True)
class Place:
    """S3 and Postgres of the environment.

    What is measured (daemons and references) reaches S3 through ``measured_endpoint``, which may be a proxy that delays
    answers; what only prepares, checks and cleans up uses ``endpoint``.
    """

    bucket: str
    prefix: str
    endpoint: str
    region: str
    path_style: bool
    dsn: str
    measured_endpoint: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Place":
        """The place that SR_TEST_S3_* and SR_TEST_PG_DSN name, with a key prefix of its own.

        Raises:
            UnsetError: One of them is missing.
        """
        missing = [name for name in ("SR_TEST_S3_BUCKET", "SR_TEST_PG_DSN") if not env.get(name)]
        if missing:
            raise UnsetError(f"not set: {', '.join(missing)}\n{_REMEDY}")
        endpoint, style = env.get("SR_TEST_S3_ENDPOINT_URL", ""), env.get("SR_TEST_S3_PATH_STYLE", "")
        prefix = "/".join(filter(None, (env.get("SR_TEST_S3_PREFIX", "").strip("/"), f"bench-{secrets.token_hex(6)}")))
        return cls(
            bucket=env["SR_TEST_S3_BUCKET"],
            prefix=prefix,
            endpoint=endpoint,
            region=env.get("SR_TEST_S3_REGION", ""),
            path_style=style.lower() in ("1", "true", "yes") if style else bool(endpoint),
            dsn=env["SR_TEST_PG_DSN"],
            measured_endpoint=endpoint,
        )

    def folder(self, bucket: str, prefix: str) -> "Folder":
        """A prefix of a bucket, with both clients."""
        return Folder(bucket, prefix, self._store(bucket, self.endpoint), self._store(bucket, self.measured_endpoint))

    def _store(self, bucket: str, endpoint: str) -> S3Store:
        """A plain client of a bucket, with credentials of the environment."""
        config: S3Config = {"region": self.region or "us-east-1", "virtual_hosted_style_request": not self.path_style}
        if endpoint:
            config["endpoint"] = endpoint
        client: ClientConfig = {"allow_http": endpoint.startswith("http://"), "timeout": "120s"}
        return S3Store(bucket, config=config, client_options=client)

    def wiring(self) -> dict[str, object]:
        """How a profile reaches this S3."""
        return {
            "s3_endpoint_url": self.measured_endpoint,
            "s3_region": self.region,
            "s3_path_style": self.path_style,
        }

    def bucket_client(self) -> Any:  # noqa: ANN401 - an untyped library
        """A client for what the plain one cannot do: making and deleting buckets."""
        import boto3  # noqa: PLC0415 - slow to import
        from botocore.config import Config  # noqa: PLC0415

        config = Config(s3={"addressing_style": "path" if self.path_style else "virtual"})
        region = self.region or "us-east-1"
        return boto3.client("s3", endpoint_url=self.endpoint or None, region_name=region, config=config)


@dataclass(frozen=True)
class Folder:
    """A prefix of a bucket; ``measured`` is the client of references, which sees the delay that daemons see."""

    bucket: str
    prefix: str
    store: S3Store
    measured: S3Store

    def key(self, *parts: str) -> str:
        """A key in it."""
        return "/".join(filter(None, (self.prefix, *parts)))

    def uri(self, *parts: str) -> str:
        """The same as a URI."""
        return f"s3://{self.bucket}/{self.key(*parts)}".rstrip("/")

    def sizes(self) -> list[int]:
        """Bytes of every object below it."""
        return [item["size"] for page in obstore.list(self.store, self.prefix or None) for item in page]

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return bytes(obstore.get(self.store, key).bytes())

    def upload(self, root: Path, under: str) -> dict[str, int]:
        """Copy a local folder below a prefix; returns keys and sizes."""
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        keys = {self.key(under, path.relative_to(root).as_posix()): path for path in files}
        in_threads(THREADS, lambda key: obstore.put(self.store, key, keys[key]), list(keys))
        return {key: path.stat().st_size for key, path in keys.items()}

    def empty(self) -> None:
        """Remove every object below it."""
        for page in obstore.list(self.store, self.prefix or None):
            obstore.delete(self.store, [item["path"] for item in page])


@contextmanager
def engine_folder(place: Place, name: str, *, keep: bool) -> Iterator[Folder]:
    """Where engine runs go: a bucket of its own on an emulator, else a prefix.

    Args:
        place: Where.
        name: Part of the bucket's or the prefix's name.
        keep: Whether it stays at the end of the block.
    """
    own = _own_bucket(place, name) if place.endpoint else ""
    folder = place.folder(own or place.bucket, "" if own else f"{place.prefix}/{name}-engine-runs")
    try:
        yield folder
    finally:
        if not keep:
            folder.empty()
            if own:
                place.bucket_client().delete_bucket(Bucket=own)


def _own_bucket(place: Place, name: str) -> str:
    """Make a bucket; its name, or nothing when this server gives none."""
    own = f"sr-bench-{secrets.token_hex(4)}-{name.replace('_', '-')[-40:]}"
    try:
        place.bucket_client().create_bucket(Bucket=own)
    except Exception as error:  # noqa: BLE001 - whatever it is: a prefix will do
        note(f"no bucket for engine runs ({error}); they share {place.bucket}, and listings may be slow")
        return ""
    return own
