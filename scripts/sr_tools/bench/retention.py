"""``scenario-runner retention run``: a million rows go, first alone, then beside a daemon that admits requests."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Final

import yaml

from sr_tools.bench.report import MICROS, CheckFailedError, Json, at_rank, note, reported, result
from sr_tools.bench.world import World, run_id_of, with_digest

Query = Callable[[str], Sequence[tuple[Any, ...]]]

_POLICY_DAYS: Final = 30
#: All rows are so old.
_AGE_DAYS: Final = 100
_MOST_MS: Final = 200.0
#: Requests a second while admissions are timed: many more than a platform has, few enough to leave the daemon idle.
_RATE: Final = 20
#: Most admissions that are timed without retention beside them.
_ALONE: Final = 400
#: This part of the rows goes beside a daemon: enough for some hundred admissions.
_PART_BESIDE: Final = 5
#: Bytes of a dead letter.
_LETTER: Final = 700


@dataclass(frozen=True)
class Dialect:
    """How an engine writes what the others write differently.

    Attributes:
        series: Numbers from 1 to N as the table ``s(n)``.
        hex: A number as 64 hex characters.
        blob: So many bytes.
    """

    series: str
    hex: str
    blob: str


SQLITE: Final = Dialect(
    "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {})",
    "printf('%064x', {})",
    "zeroblob({})",
)
POSTGRES: Final = Dialect(
    "WITH s(n) AS (SELECT generate_series(1::bigint, {}))",
    "lpad(to_hex({}), 64, '0')",
    "decode(repeat('00', {}), 'hex')",
)


def fill(query: Query, dialect: Dialect, count: int) -> None:
    """Put old rows into the tables of a daemon: a million records, and in proportion whatever else expires.

    Keys are in no order, as those of a spool: each deletion then touches another page of the unique index.
    """
    at_us = time.time_ns() // 1000 - _AGE_DAYS * 86_400 * MICROS
    mixed = dialect.hex.format("(n * 2654435761) % 4294967296")

    def insert(rows: int, text: str) -> None:
        query(f"{dialect.series.format(rows)} {text} FROM s")

    refused = "CASE WHEN n % 20 = 0 THEN 'REJECTED' ELSE 'ACCEPTED' END"
    insert(count, f"""
        INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                                    raw_sha256, raw_size)
        SELECT 'spool/request.json#' || {mixed}, {mixed}, 'RUN_REQUEST', substr({mixed}, 33), {refused},
               CASE WHEN n % 20 = 0 THEN 'RECORD_NOT_JSON' ELSE '' END, '', {at_us} + n, {mixed}, {_LETTER}
    """)  # fmt: skip
    query(f"""
        INSERT INTO dead_letters (record_key, raw)
        SELECT record_key, {dialect.blob.format(_LETTER)} FROM intake_records WHERE disposition = 'REJECTED'
    """)
    empty = dialect.blob.format(0)
    for emission, kind in ((0, "READY"), (1, "READY_REEMIT")):
        insert(count // 5, f"""
            INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq,
                                due_us, sent_us, emission)
            SELECT {mixed}, substr({mixed}, 33), '{kind}', '', {empty}, {dialect.blob.format(300)}, {at_us} + n, 5, 0,
                   {at_us} + n, {emission}
        """)  # fmt: skip
    insert(count // 10, f"""
        INSERT INTO digest_reuse (digest_key, digests, kept_us) SELECT {mixed}, {dialect.blob.format(80)}, {at_us} + n
    """)  # fmt: skip


def measure(world: World, query: Query, dialect: Dialect, count: int, where: str) -> list[Json]:
    """Remove the rows alone, and once more beside a daemon.

    Raises:
        CheckFailedError: Not what should be removed was removed.
    """
    _write_policy(world)
    note(f"retention: making {count} records")
    fill(query, dialect, count)
    alone, seconds = _sweep(world)
    removed = _check(alone, count)
    longest = max(item["longest_batch_ms"] for item in alone["kinds"] if item["longest_batch_ms"] is not None)
    how = f"{removed} rows on {where}, nothing beside it: {_told(alone)}"
    found = [
        result("retention_longest_batch", longest, "ms", f"<= {_MOST_MS:g}", how, met=longest <= _MOST_MS),
        reported("retention_rate", removed / seconds, "rows/s", "the same, of the whole command with its pauses"),
    ]
    query("DELETE FROM outbox")
    query("DELETE FROM intake_records")
    query("DELETE FROM dead_letters")
    note("retention: making a part of the rows again, for a daemon")
    fill(query, dialect, count // _PART_BESIDE)
    return found + _beside(world, query, min(_ALONE, count // 100), where)


def _write_policy(world: World) -> None:
    keys = ("intake_records_days", "dead_letter_raw_days", "outbox_sent_days", "digest_reuse_days")
    policy = {**world.policy(), "retention": dict.fromkeys(keys, _POLICY_DAYS)}
    policy.pop("content_digest")
    (world.root / "retention.yaml").write_text(yaml.safe_dump(with_digest(policy)), "utf-8")


def _sweep(world: World) -> tuple[Json, float]:
    command = [world.subject.command, "retention", "run", "--wiring", str(world.root / "wiring.yaml"),
               "--policy", str(world.root / "retention.yaml"), "--json"]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(
        command, env=world.subject.environment(), capture_output=True, check=False, timeout=world.timeout
    )
    if done.returncode != 0:
        raise CheckFailedError(f"retention run exited with {done.returncode}: {done.stderr.decode()[-300:]}")
    return json.loads(done.stdout), time.perf_counter() - began


def _check(document: Json, count: int) -> int:
    removed = {item["kind"]: item["removed"] for item in document["kinds"]}
    wanted = {"intake_records": count - count // 20, "dead_letter_raw": count // 20, "outbox_sent": count // 5,
              "digest_reuse": count // 10, "spool_consumed": None}  # fmt: skip
    if removed != wanted or not document["complete"]:
        raise CheckFailedError(f"removed were {removed}, {wanted} should have been")
    return sum(number for number in removed.values() if number)


def _told(document: Json) -> str:
    return ", ".join(f"{item['kind']} {item['removed']} (longest batch {item['longest_batch_ms']} ms)"
                     for item in document["kinds"] if item["removed"])  # fmt: skip


def _beside(world: World, query: Query, admissions: int, where: str) -> list[Json]:
    """Admissions of a daemon without and with retention beside it."""
    request = world.make_engine_run("shared", 0)
    with world.serve() as daemon:
        daemon.wait_for_start()
        note("retention: admissions alone")
        alone = _admissions(world, query, request, "alone", lambda sent: sent >= admissions)
        note("retention: admissions beside it")
        over = Event()
        answer: list[tuple[Json, float]] = []

        def sweep() -> None:
            try:
                answer.append(_sweep(world))
            finally:
                over.set()

        thread = Thread(target=sweep)
        thread.start()
        beside = _admissions(world, query, request, "beside", lambda _: over.is_set())
        thread.join()
        daemon.stop()
    if not answer:
        raise CheckFailedError("retention run failed beside the daemon")
    document, seconds = answer[0]
    longest = max(item["longest_batch_ms"] for item in document["kinds"] if item["longest_batch_ms"] is not None)
    removed = sum(item["removed"] or 0 for item in document["kinds"])
    how = f"{_RATE} requests a second into the spool of a daemon on {where}, from the rename to the time of the record"
    return [
        *(reported(f"admission_{name}_{part}", at_rank(times, rank) * 1000, "ms", how, admissions=len(times))
          for name, times in (("alone", alone), ("beside_retention", beside))
          for part, rank in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))),
        reported("retention_beside_rate", removed / seconds, "rows/s", f"beside those admissions; {_told(document)}"),
        reported("retention_beside_longest_batch", longest, "ms", "likewise, with the wait for the daemon's commits"),
    ]  # fmt: skip


def _admissions(world: World, query: Query, request: Json, name: str, over: Callable[[int], bool]) -> list[float]:
    """Seconds of each admission, dropped at a steady rate until it is over.

    Raises:
        CheckFailedError: One was not admitted within a minute.
    """
    dropped: dict[str, float] = {}
    begin = time.time()
    while not over(len(dropped)):
        key = f"{name}-{len(dropped)}"
        dropped[world.drop(request, key)] = time.time()
        time.sleep(max(0.0, begin + len(dropped) / _RATE - time.time()))
    assert run_id_of(f"{name}-0") in dropped
    newest = f"SELECT run_id, received_us FROM intake_records ORDER BY record_id DESC LIMIT {len(dropped)}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = query(newest)
        admitted = {run_id: received_us / MICROS for run_id, received_us in rows}
        if dropped.keys() <= admitted.keys():
            return [admitted[run_id] - at for run_id, at in dropped.items()]
        time.sleep(0.2)
    raise CheckFailedError("a request was not admitted within a minute")
