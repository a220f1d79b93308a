"""A world to measure in: one profile and everything it names, under one folder, and checks of what was done there."""

import argparse
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from sr_tools.bench.daemon import Daemon, Usage, log_tail
from sr_tools.bench.report import MICROS, CheckFailedError, Json
from sr_tools.bench.subject import Subject
from sr_tools.engine import DEFAULT_OUTPUTS, make_run

TOPIC: Final = "fp.bus.control.v1"
#: Files younger than 2 s are read again by rule (racily clean); after so many seconds they need not be.
RACY_SECONDS: Final = 2.5
#: Bytes per output file of a small run.
SMALL_PART_BYTES: Final = 4096
SMALL: Final = "10 gates of 6 members, 9 parts of 4 KB"
RATE: Final = "value: runs over the wall time of the whole `serve --until-idle`; steady: first admission to last READY"
_PUBLISHED: Final = (
    "SELECT r.admitted_us, o.sent_us FROM outbox o JOIN runs r ON r.run_id = o.run_id "
    "WHERE o.kind = 'READY' AND o.sent_us IS NOT NULL"
)


@dataclass(frozen=True)
class World:
    """One profile and everything it names; engine runs may be shared between worlds.

    Attributes:
        root: Its folder.
        runs: Folder of engine runs.
        subject: What is measured in it.
        timeout: Seconds after which a daemon counts as stuck.
        logs: What each daemon printed, in order of their starts.
    """

    root: Path
    runs: Path
    subject: Subject
    timeout: float
    logs: list[Path] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path, options: argparse.Namespace, runs: Path | None = None) -> "World":
        """A world, ready to serve in."""
        world = cls(root, runs or root / "runs", options.subject, options.timeout)
        world.prepare()
        return world

    def prepare(self) -> None:
        """Write both profiles and the folders."""
        for folder in (self.runs, self.requests):
            folder.mkdir(parents=True, exist_ok=True)
        self.write("wiring", self.wiring())
        self.write("policy", self.policy())

    def write(self, name: str, profile: Json) -> None:
        """Write a profile under its name."""
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(profile), "utf-8")

    @property
    def requests(self) -> Path:
        """Where requests are dropped."""
        return self.root / "control-bus/requests"

    @property
    def signals(self) -> Path:
        """Where SR publishes."""
        return self.root / "control-bus" / TOPIC

    @property
    def store(self) -> Path:
        """The object store."""
        return self.root / "object-store"

    def wiring(self) -> Json:
        """The wiring profile."""
        pack = self.subject.pack
        return {
            "profile_id": "bench",
            "object_store_root": str(self.store),
            "authority_store_dsn": f"sqlite:///{self.root / 'authority.db'}",
            "control_bus_kind": "spool",
            "control_bus_root": str(self.root / "control-bus"),
            "control_bus_topic": TOPIC,
            "engine_catalogue_path": str(pack / "engine_outputs.catalogue.yaml"),
            "gate_map_path": str(pack / "engine_gates.map.yaml"),
            "engine_contracts_root": str(pack / "contracts"),
            "schema_root": str(self.subject.schemas),
            "engine_roots": [str(self.runs)],
            "auth_mode": "disabled",
        }

    @staticmethod
    def policy() -> Json:
        """The policy profile."""
        return with_digest({
            "policy_id": "bench",
            "revision": "v0",
            "reuse_policy": "ALLOW",
            "evidence_wait_seconds": 3600,
            "attempt_limit": 3,
            "traffic_output_ids": list(DEFAULT_OUTPUTS),
        })  # fmt: skip

    # --- engine runs and requests

    def make_engine_run(
        self, key: str, number: int, part_bytes: int = SMALL_PART_BYTES, members: int = 6, parts: int = 3
    ) -> Json:
        """One engine run with an identity of its own, on this machine; returns a request for it."""
        path = self.root / "request.json"
        make_run(
            pack=self.subject.pack,
            runs=self.runs,
            run_key=key,
            seed=1000 + number,
            manifest_fingerprint=hashlib.sha256(f"manifest {number}".encode()).hexdigest(),
            parameter_hash=hashlib.sha256(f"parameters {number}".encode()).hexdigest(),
            request=path,
            part_bytes=part_bytes,
            members=members,
            parts=parts,
        )
        return dict(json.loads(path.read_bytes()))

    def drop(self, request: Mapping[str, Any], key: str) -> str:
        """Drop a request under a run equivalence key; returns the run id it will have."""
        data = json.dumps({**request, "run_equivalence_key": key}).encode()
        temporary = self.requests / f".{key}.tmp"
        temporary.write_bytes(data)
        temporary.rename(self.requests / f"{key}.json")
        return run_id_of(key)

    # --- the daemon

    def serve(self, *more: str) -> Daemon:
        """Start the daemon; use it as a context, so that it is never left behind."""
        return Daemon(self.subject, self.serve_arguments(*more), self.next_log(), self.timeout)

    def serve_arguments(self, *more: str) -> list[str]:
        """Arguments of ``serve`` in this world."""
        return ["serve", "--wiring", str(self.root / "wiring.yaml"), "--policy", str(self.root / "policy.yaml"), *more]

    def next_log(self) -> Path:
        """The file for what the next daemon prints."""
        self.logs.append(self.root / f"serve-{len(self.logs)}.log")
        return self.logs[-1]

    def drain(self, run_ids: Sequence[str], daemons: int = 1) -> Usage:
        """Let the engine runs get older than the racily-clean rule, serve until nothing is left, and check.

        Args:
            run_ids: What is to be READY then.
            daemons: How many serve it at the same time.

        Returns:
            What they took together; the wall time is that of the one that took longest.

        Raises:
            CheckFailedError: See :meth:`check`.
        """
        time.sleep(RACY_SECONDS)
        with ExitStack() as started:
            serving = [started.enter_context(self.serve("--until-idle")) for _ in range(daemons)]
            took = [daemon.finish() for daemon in serving]
        self.check(run_ids)
        return Usage(
            max(usage.wall for usage in took), sum(usage.cpu for usage in took), sum(usage.peak_rss for usage in took)
        )

    # --- what was done

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the authority, read only; none when the daemon has not made the database or its tables yet."""
        path = self.root / "authority.db"
        if not path.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
                return connection.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise

    def times(self, condition: str = "") -> list[tuple[int, int]]:
        """(admitted, published) of READY runs in microseconds, in order of publishing."""
        rows = self.query(f"{_PUBLISHED}{condition and f' AND {condition}'} ORDER BY o.sent_us")
        return [(int(admitted), int(sent)) for admitted, sent in rows]

    def ready(self) -> dict[str, Json]:
        """Envelopes of READY by file name."""
        found = {path.name: json.loads(path.read_bytes()) for path in self.signals.glob("*.json")}
        return {name: item for name, item in found.items() if item["attributes"]["kind"] == "READY"}

    def documents(self) -> int:
        """How many durable files SR wrote: ledger documents and signals."""
        ledger = sum(1 for path in self.store.rglob("*") if path.is_file() and ".private" not in path.parts)
        return ledger + sum(1 for _ in self.signals.glob("*.json"))

    def contents(self, refs: Sequence[str]) -> Iterator[bytes]:
        """The bytes of documents that SR wrote."""
        return ((self.store / ref).read_bytes() for ref in refs)

    def check(self, run_ids: Sequence[str]) -> None:
        """Exactly these runs are READY, once each, and every facts view has the promised digest.

        Raises:
            CheckFailedError: Says what is missing, doubled or different.
        """
        envelopes = list(self.ready().values())
        found = sorted(str(item["payload"]["run_id"]) for item in envelopes)
        if found != sorted(run_ids):
            missing, extra = len(set(run_ids) - set(found)), len(found) - len(set(found) & set(run_ids))
            raise CheckFailedError(
                f"{len(run_ids)} READY expected, {len(found)} found: {missing} missing, {extra} doubled or unasked; "
                f"{log_tail(self.logs[-1])}"
            )
        views = [str(item["payload"]["facts_view_ref"]) for item in envelopes]
        for item, view, data in zip(envelopes, views, self.contents(views), strict=True):
            if hashlib.sha256(data).hexdigest() != item["attributes"]["facts_view_digest"]:
                raise CheckFailedError(f"{view} does not have the digest that READY promises")


def with_digest(policy: Json) -> Json:
    """A policy profile with the digest of its content."""
    content = {key: value for key, value in policy.items() if key != "content_digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return content | {"content_digest": hashlib.sha256(canonical.encode()).hexdigest()}


def run_id_of(key: str) -> str:
    """The id of the run that a run equivalence key names."""
    return hashlib.sha256(f"sr_run|{key}".encode()).hexdigest()[:32]


def rates(times: Sequence[tuple[int, int]], usage: Usage, count: int) -> Json:
    """Runs per second in both ways, and the cost.

    Args:
        times: See :meth:`World.times`.
        usage: What the process took that drained them.
        count: How many runs.
    """
    span = steady_seconds(times)
    return {
        "runs": count,
        "wall_seconds": round(usage.wall, 3),
        "wall_runs_per_second": round(count / usage.wall, 1),
        "steady_seconds": round(span, 3),
        "steady_runs_per_second": round(count / span, 1),
        "cpu_seconds": round(usage.cpu, 3),
        "cpu_ms_per_run": round(usage.cpu * 1000 / count, 2),
        "peak_rss_mb": round(usage.peak_rss / 1e6, 1),
    }


def steady_seconds(times: Sequence[tuple[int, int]]) -> float:
    """Seconds from the first admission to the last READY."""
    return (times[-1][1] - min(admitted for admitted, _ in times)) / MICROS
