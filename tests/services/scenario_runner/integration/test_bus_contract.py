"""The publishing contract, over every backend; and what is particular to the spool.

A new backend is one more entry in ``BACKENDS``: how to open a publisher, how to read the bus, and the publisher as a
script for another process.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import streaming
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from processes_support import run_together
from streaming import make_stream

from scenario_runner.authority.values import OutboxRow
from scenario_runner.bus.base import PublishResult, SignalPublisher
from scenario_runner.bus.envelope import request_envelope, signal_envelope
from scenario_runner.bus.kinesis import KinesisPublisher
from scenario_runner.bus.spool import MAX_RECORD_BYTES, RequestFolder, SpoolPaths, SpoolPublisher
from scenario_runner.bus.stream import Stream
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import OWN_SIGNALS, SignalKind

pytestmark = pytest.mark.integration

TOPIC = "fp.bus.control.v1"
CREATED = 1_767_225_600_123_456
SCHEMA = (
    Path(__file__).resolve().parents[4] / "config/platform/contracts/scenario_runner/control_bus_envelope.schema.yaml"
)


@dataclass
class Backend:
    """One bus that can be opened again and again, here and in other processes."""

    open: Callable[[], SignalPublisher]
    records: Callable[[], dict[str, list[bytes]]]
    script: str
    limit: int
    write_once: bool = True  # a stream takes whatever is put


def _spool(folder: Path, pool: ThreadPoolExecutor) -> Backend:
    root = str(folder / "spool")

    def records() -> dict[str, list[bytes]]:
        """Every record on the bus by its message id."""
        where = Path(root) / TOPIC
        return {path.stem: [path.read_bytes()] for path in sorted(where.glob("*"))} if where.is_dir() else {}

    return Backend(
        lambda: SpoolPublisher(root, TOPIC, pool),
        records,
        f"from scenario_runner.bus.spool import SpoolPublisher\npublisher = SpoolPublisher({root!r}, {TOPIC!r})",
        MAX_RECORD_BYTES,
    )


def _kinesis(_folder: Path, _pool: ThreadPoolExecutor) -> Backend:
    stream = make_stream(shards=2)
    where = f"{stream!r}, {streaming.REGION!r}, {streaming.ENDPOINT!r}"

    def records() -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for record in streaming.records_of(stream):
            found.setdefault(json.loads(record["Data"])["message_id"], []).append(record["Data"])
        return found

    return Backend(
        lambda: KinesisPublisher(Stream(stream, streaming.REGION, streaming.ENDPOINT), TOPIC),
        records,
        "from scenario_runner.bus.kinesis import KinesisPublisher\nfrom scenario_runner.bus.stream import Stream\n"
        f"publisher = KinesisPublisher(Stream({where}), {TOPIC!r})",
        MAX_RECORD_BYTES - 32,  # the partition key counts
        write_once=False,
    )


BACKENDS: dict[str, Callable[[Path, ThreadPoolExecutor], Backend]] = {"spool": _spool, "kinesis": _kinesis}
NEEDS_STREAM = [
    pytest.mark.localstack,
    pytest.mark.skipif(not streaming.ENDPOINT, reason=streaming.WHY_NOT),
]


@pytest.fixture(
    params=[pytest.param(name, marks=NEEDS_STREAM if name == "kinesis" else []) for name in sorted(BACKENDS)]
)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with ThreadPoolExecutor(4) as pool:
        yield BACKENDS[request.param](tmp_path, pool)


@pytest.fixture
def publisher(backend: Backend) -> SignalPublisher:
    return backend.open()


def message_id(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def row(number: int, payload: Any = None, **changes: Any) -> OutboxRow:
    document = {"run_id": f"{number:032x}", "bundle_hash": "b" * 64} if payload is None else payload
    made = OutboxRow(
        outbox_id=number,
        message_id=message_id(number),
        run_id=f"{number:032x}",
        kind=SignalKind.READY,
        partition_key=f"{number:032x}",
        attributes={"facts_view_digest": "f" * 64},
        payload=canonical_bytes(document),
        created_us=CREATED + number,
        attempts=1,
    )
    return replace(made, **changes)


def publish(publisher: SignalPublisher, *rows: OutboxRow) -> None:
    results = [replace(result, receipt="") for result in publisher.publish(rows)]
    assert results == [PublishResult(item.outbox_id, "") for item in rows]


def test_what_repeats_a_message_is_published_beside_it(publisher: SignalPublisher, backend: Backend) -> None:
    first = row(1)
    again = row(1, outbox_id=2, emission=1, kind=SignalKind.READY_REEMIT, created_us=CREATED + 9)
    other = row(1, outbox_id=3, emission=2, kind=SignalKind.READY_REEMIT, created_us=CREATED + 10)
    publish(publisher, first)
    publish(publisher, again)
    publish(publisher, again, other)
    found = [json.loads(data) for records in backend.records().values() for data in records]
    kinds = [item["attributes"]["kind"] for item in found if item["message_id"] == first.message_id]
    assert sorted(set(kinds)) == ["READY", "READY_REEMIT"]
    assert kinds.count("READY_REEMIT") == (2 if backend.write_once else 3)
    assert {canonical_bytes(item["payload"]) for item in found} == {first.payload}


def on_the_bus(backend: Backend, item: OutboxRow) -> bytes:
    """The one form in which a message is on the bus, however often it is there."""
    found = set(backend.records()[item.message_id])
    assert len(found) == 1
    return found.pop()


# --- the contract -----------------------------------------------------------------------------------------------------


def test_a_signal_is_on_the_bus_as_the_contract_words_it(backend: Backend, publisher: SignalPublisher) -> None:
    publish(publisher, row(1))
    assert json.loads(on_the_bus(backend, row(1))) == {
        "topic": TOPIC,
        "message_id": message_id(1),
        "published_at_utc": "2026-01-01T00:00:00.123457Z",
        "attributes": {"kind": "READY", "facts_view_digest": "f" * 64},
        "partition_key": f"{1:032x}",
        "payload": {"run_id": f"{1:032x}", "bundle_hash": "b" * 64},
    }


@pytest.mark.parametrize("kind", sorted(OWN_SIGNALS))
def test_every_kind_of_signal_satisfies_the_envelopes_schema(
    backend: Backend, publisher: SignalPublisher, kind: SignalKind
) -> None:
    publish(publisher, row(1, kind=kind, attributes={}))
    document = json.loads(on_the_bus(backend, row(1)))
    schema = yaml.safe_load(SCHEMA.read_text("utf-8"))
    assert list(Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(document)) == []
    assert document["attributes"] == {"kind": kind.value}


def test_the_payload_keeps_every_byte_of_the_row(backend: Backend, publisher: SignalPublisher) -> None:
    payload = {
        "seed": 2**64 - 1,
        "text": 'é \U0001f600 "quoted" \\ \u2028 \x7f',
        "nested": {"b": [1, None, True], "a": {}},
    }
    publish(publisher, row(1, payload))
    data = on_the_bus(backend, row(1))
    assert canonical_bytes(json.loads(data)["payload"]) == canonical_bytes(payload)
    assert data == canonical_bytes(json.loads(data))


def test_publishing_again_gives_the_same_bytes(backend: Backend, publisher: SignalPublisher) -> None:
    publish(publisher, row(1), row(2))
    before = {number: on_the_bus(backend, row(number)) for number in (1, 2)}
    for attempts in (2, 3):
        publish(backend.open(), row(2, attempts=attempts), row(1, attempts=attempts))
    assert {number: on_the_bus(backend, row(number)) for number in (1, 2)} == before


def test_the_same_signal_twice_in_one_batch_is_fine(backend: Backend, publisher: SignalPublisher) -> None:
    publish(publisher, row(1), row(2), row(1))
    assert set(backend.records()) == {message_id(1), message_id(2)}
    on_the_bus(backend, row(1))


OTHER_PAYLOADS: dict[str, tuple[Any, Any]] = {
    "another value": ({"a": 1}, {"a": 2}),
    "one key more": ({"a": 1}, {"a": 1, "b": 2}),
    "one key less": ({"a": 1, "b": 2}, {"a": 1}),
    "another order in a list": ({"a": [1, 2]}, {"a": [2, 1]}),
    "a text for a number": ({"a": 1}, {"a": "1"}),
    "true for one": ({"a": 1}, {"a": True}),
    "zero for false": ({"a": [False]}, {"a": [0]}),
}


@pytest.mark.parametrize("case", OTHER_PAYLOADS)
def test_another_payload_under_the_same_id_is_reported_and_the_first_stays(
    backend: Backend, publisher: SignalPublisher, case: str
) -> None:
    if not backend.write_once:
        pytest.skip("a stream takes whatever is put; the authority has each message id once")
    first, second = OTHER_PAYLOADS[case]
    publish(publisher, row(1, first))
    before = on_the_bus(backend, row(1))
    results = publisher.publish([row(2), row(1, second), row(3)])
    assert [(result.outbox_id, bool(result.error)) for result in results] == [(2, False), (1, True), (3, False)]
    assert on_the_bus(backend, row(1)) == before
    on_the_bus(backend, row(2))
    on_the_bus(backend, row(3))


def test_two_payloads_under_one_id_in_one_batch_are_not_both_reported_as_published(
    backend: Backend, publisher: SignalPublisher
) -> None:
    results = publisher.publish([row(1, {"a": 1}), row(1, {"a": 2}, outbox_id=9)])
    assert [(result.outbox_id, bool(result.error)) for result in results] == [(1, False), (9, True)]
    assert json.loads(on_the_bus(backend, row(1)))["payload"] == {"a": 1}


def sized(backend: Backend, number: int, size: int) -> OutboxRow:
    """A row whose envelope holds exactly so many bytes."""
    empty = row(number, {"pad": ""})
    made = row(number, {"pad": "x" * (size - len(signal_envelope(TOPIC, empty)))})
    assert len(signal_envelope(TOPIC, made)) == size
    return made


def test_a_signal_that_just_fits_is_published(backend: Backend, publisher: SignalPublisher) -> None:
    fitting = sized(backend, 1, backend.limit)
    publish(publisher, fitting)
    assert len(on_the_bus(backend, fitting)) == backend.limit
    publish(publisher, fitting)


def test_a_signal_that_is_too_large_is_refused_before_it_is_sent_and_its_neighbours_are_not(
    backend: Backend, publisher: SignalPublisher
) -> None:
    results = publisher.publish([row(1), sized(backend, 2, backend.limit + 1), row(3)])
    assert [(result.outbox_id, bool(result.error)) for result in results] == [(1, False), (2, True), (3, False)]
    assert str(backend.limit) in results[1].error
    assert set(backend.records()) == {message_id(1), message_id(3)}


def test_there_is_one_answer_for_each_row_in_the_order_of_the_rows(publisher: SignalPublisher) -> None:
    rows = [row(number) for number in (5, 3, 9, 1, 7, 2)]
    assert [result.outbox_id for result in publisher.publish(rows)] == [5, 3, 9, 1, 7, 2]


def test_a_large_batch_is_published_whole(backend: Backend, publisher: SignalPublisher) -> None:
    rows = [row(number) for number in range(1, 201)]
    publish(publisher, *rows)
    assert set(backend.records()) == {item.message_id for item in rows}


def test_a_check_of_a_bus_that_is_there_passes_and_publishes_nothing(
    backend: Backend, publisher: SignalPublisher
) -> None:
    publish(publisher, row(1))
    before = backend.records()
    publisher.check()
    assert backend.records() == before


def test_an_empty_batch_is_fine(backend: Backend, publisher: SignalPublisher) -> None:
    assert publisher.publish([]) == []
    assert backend.records() == {}


def test_two_processes_that_publish_the_same_signals_publish_the_same_bytes(backend: Backend) -> None:
    prepare = (
        f"{backend.script}\n"
        "from scenario_runner.authority.base import OutboxRow\n"
        "from scenario_runner.contracts.states import SignalKind\n"
        "import hashlib\n"
        "def row(n):\n"
        "    message_id = hashlib.sha256(str(n).encode()).hexdigest()\n"
        "    payload = b'{\"n\":%d}' % n\n"
        "    return OutboxRow(n, message_id, 'r', SignalKind.READY, 'p', {}, payload, n, 1 + int(sys.argv[1]))\n"
    )
    run_together(
        prepare,
        "for start in range(0, 100, 10):\n"
        "    for result in publisher.publish([row(n) for n in range(start, start + 10)]):\n"
        "        assert result.error == '', result\n",
    )
    found = backend.records()
    assert set(found) == {message_id(number) for number in range(100)}
    assert all(len(set(copies)) == 1 for copies in found.values())


# --- the spool --------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(root: Path) -> SpoolPublisher:
    return SpoolPublisher(str(root), TOPIC)


def test_a_signal_is_a_file_named_by_its_message_id_and_nothing_else_is_left(root: Path, spool: SpoolPublisher) -> None:
    publish(spool, row(1), row(2))
    publish(spool, row(2))
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert found == sorted(f"{TOPIC}/{message_id(number)}.json" for number in (1, 2))


@pytest.mark.parametrize("pool_size", [0, 4])
def test_signals_appear_in_the_order_of_the_rows(root: Path, monkeypatch: pytest.MonkeyPatch, pool_size: int) -> None:
    appeared: list[str] = []
    real = os.link

    def link(source: str, target: str, **options: Any) -> None:
        real(source, target, **options)
        appeared.append(os.path.basename(target).removesuffix(".json"))

    monkeypatch.setattr(os, "link", link)
    rows = [row(number) for number in (9, 4, 7, 1, 8, 2, 6)]
    if pool_size:
        with ThreadPoolExecutor(pool_size) as pool:
            publish(SpoolPublisher(str(root), TOPIC, pool), *rows)
    else:
        publish(SpoolPublisher(str(root), TOPIC), *rows)
    assert appeared == [item.message_id for item in rows]


def test_a_signal_is_durable_before_it_is_reported(
    root: Path, spool: SpoolPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, str]] = []
    real_sync, real_link = os.fsync, os.link

    def sync(fd: int) -> None:
        real_sync(fd)
        log.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))

    def link(source: str, target: str, **options: Any) -> None:
        written = os.readlink(source) if source.startswith("/proc/self/fd/") else source  # it may have no name yet
        real_link(source, target, **options)
        log.extend([("source", written), ("link", target)])

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "link", link)
    publish(spool, row(1))
    names = [name for name, _ in log]
    source = next(text for name, text in log if name == "source")
    assert log.index(("fsync", source)) < names.index("link")
    assert ("fsync", str(root / TOPIC)) in log[names.index("link") :]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["write", "fsync", "link", "mkdir"])
def test_a_disk_that_fails_is_reported_for_every_signal_and_raised_for_none(
    root: Path, spool: SpoolPublisher, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        results = spool.publish([row(1), row(2)])
    assert [(result.outbox_id, bool(result.error)) for result in results] == [(1, True), (2, True)]
    publish(spool, row(1), row(2))


def test_a_signal_whose_place_is_taken_by_something_else_is_reported(root: Path, spool: SpoolPublisher) -> None:
    (root / TOPIC / f"{message_id(1)}.json").mkdir(parents=True)
    os.symlink("/etc/hostname", root / TOPIC / f"{message_id(2)}.json")
    (root / TOPIC / f"{message_id(3)}.json").write_bytes(b"not an envelope")
    (root / TOPIC / f"{message_id(4)}.json").write_bytes(b"x" * (MAX_RECORD_BYTES + 1))
    results = spool.publish([row(number) for number in (1, 2, 3, 4, 5)])
    assert [bool(result.error) for result in results] == [True, True, True, True, False]
    assert (root / TOPIC / f"{message_id(3)}.json").read_bytes() == b"not an envelope"


def test_an_error_says_where_and_what_to_do(root: Path, spool: SpoolPublisher) -> None:
    publish(spool, row(1, {"a": 1}))
    (result,) = spool.publish([row(1, {"a": 2})])
    assert message_id(1) in result.error
    assert "another" in result.error


def test_the_folders_of_a_spool_are_made_when_missing(root: Path) -> None:
    paths = SpoolPaths(str(root))
    for _ in range(2):
        paths.make()
    assert {"consumed", "rejected", "requests"} <= {path.name for path in root.iterdir() if path.is_dir()}


def test_folders_that_cannot_be_made_are_unavailable(root: Path) -> None:
    root.write_text("a file in the way", "utf-8")
    with pytest.raises(Unavailable):
        SpoolPaths(str(root)).make()


def test_a_dropped_request_lies_whole_in_the_requests_folder(root: Path) -> None:
    data = request_envelope(TOPIC, "m-1", CREATED, "a" * 32, {"run_equivalence_key": "k"})
    (where,) = RequestFolder(str(root)).drop([("m-1", data)])
    assert where == str(root / "requests" / "m-1.json")
    assert Path(where).read_bytes() == data
    assert json.loads(data)["attributes"] == {"kind": "RUN_REQUEST", "run_id": "a" * 32}
    assert [path.name for path in (root / "requests").iterdir()] == ["m-1.json"]


# --- the envelope -----------------------------------------------------------------------------------------------------


def test_an_envelope_is_a_pure_function_of_its_row() -> None:
    assert signal_envelope(TOPIC, row(1)) == signal_envelope(TOPIC, row(1, attempts=7, outbox_id=9))
    assert signal_envelope(TOPIC, row(1)) != signal_envelope(TOPIC, row(1, created_us=CREATED))
    assert signal_envelope(TOPIC, row(1)) != signal_envelope("another.topic", row(1))


def test_the_kind_of_an_envelope_stands_beside_the_attributes_of_its_row() -> None:
    document = json.loads(signal_envelope(TOPIC, row(1, kind=SignalKind.TERMINAL, attributes={"traceparent": "00-x"})))
    assert document["attributes"] == {"kind": "TERMINAL", "traceparent": "00-x"}
