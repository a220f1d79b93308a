"""Publishing signals to a Kinesis stream, and putting run requests there.

A request to the stream may fail for some of its records, and the stream does not order those that are sent again. So no
request holds two records with one partition key: they are sent in rounds, and a record that could not be sent holds
back the later ones of its key, which is a run id.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from typing_extensions import override

from scenario_runner.authority.values import OutboxRow
from scenario_runner.bus.base import PublishResult, SignalPublisher
from scenario_runner.bus.envelope import signal_envelope, without_publication_time
from scenario_runner.bus.stream import MAX_RECORD_BYTES, PutResult, Stream
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.rounds import rounds_without_repeats

_HELD_BACK: Final = "an earlier signal or request of the run is not on the stream yet"


class KinesisPublisher(SignalPublisher):
    """Publishes signals as records, at least once; the partition key is the run id.

    Args:
        stream: The stream.
        topic: Topic of the envelopes.
    """

    def __init__(self, stream: Stream, topic: str) -> None:
        self._stream, self._topic = stream, topic

    @override
    def publish(self, rows: Sequence[OutboxRow]) -> list[PublishResult]:
        records = [(row.partition_key, signal_envelope(self._topic, row)) for row in rows]
        repeats = _repeats(rows)
        refused = _too_large(rows, records) | _conflicts(rows, records, repeats)
        sent = [index for index in range(len(rows)) if index not in repeats or index in refused]
        unsendable = {position for position, index in enumerate(sent) if index in refused}
        answers = put_in_order(self._stream, [records[index] for index in sent], unsendable)
        results = {
            index: refused.get(index) or self._result(rows[index], answer)
            for index, answer in zip(sent, answers, strict=True)
        }
        for index, earlier in repeats.items():  # a repeat shares the result of what it repeats, unless they differ
            results.setdefault(index, replace(results[earlier], outbox_id=rows[index].outbox_id))
        return [results[index] for index in range(len(rows))]

    @override
    def check(self) -> None:
        self._stream.check()

    def _result(self, row: OutboxRow, answer: PutResult) -> PublishResult:
        if answer.error:
            return PublishResult(row.outbox_id, answer.error)
        place = {"stream": self._stream.name, "shard_id": answer.shard_id, "sequence_number": answer.sequence_number}
        return PublishResult(row.outbox_id, "", receipt=canonical_bytes(place).decode())


def put_in_order(
    stream: Stream, records: Sequence[tuple[str, bytes]], unsendable: Collection[int] = ()
) -> list[PutResult]:
    """Put records so that those with one partition key come to lie on the stream in their order.

    Args:
        stream: The stream.
        records: Partition key and data of each.
        unsendable: Indices of records that are not put; they hold back like records that could not be put.

    Returns:
        One result for each record, in their order. A record that is not on the stream holds back the later ones of its
        partition key.
    """
    results = [PutResult(error=_HELD_BACK)] * len(records)
    stuck: set[str] = set()
    for indices in rounds_without_repeats([key for key, _ in records]):
        sendable = [index for index in indices if index not in unsendable and records[index][0] not in stuck]
        for index, answer in zip(sendable, stream.put([records[index] for index in sendable]), strict=True):
            results[index] = answer
        stuck.update(records[index][0] for index in indices if results[index].error)
    return results


def _too_large(rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]]) -> dict[int, PublishResult]:
    """The refusals of signals that no stream takes."""
    return {
        index: PublishResult(
            rows[index].outbox_id,
            f"the signal holds {len(data)} bytes, the stream takes at most {MAX_RECORD_BYTES - len(key.encode())} "
            "under its key",
            permanent=True,
        )
        for index, (key, data) in enumerate(records)
        if len(data) + len(key.encode()) > MAX_RECORD_BYTES
    }


def _repeats(rows: Sequence[OutboxRow]) -> dict[int, int]:
    """Signals with message id and emission of an earlier signal: index of each, and of the earlier one."""
    first: dict[tuple[str, int], int] = {}
    indices = enumerate(first.setdefault((row.message_id, row.emission), index) for index, row in enumerate(rows))
    return {index: earlier for index, earlier in indices if earlier != index}


def _conflicts(
    rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]], repeats: Mapping[int, int]
) -> dict[int, PublishResult]:
    """The refusals of repeats that have other bytes than the signal that they repeat."""
    return {
        index: PublishResult(
            rows[index].outbox_id,
            f"the message id {rows[index].message_id} already stands for another message",
            permanent=True,
        )
        for index, earlier in repeats.items()
        if without_publication_time(records[earlier][1]) != without_publication_time(records[index][1])
    }


def put_requests(stream: Stream, requests: Sequence[tuple[str, bytes]]) -> list[str | Unavailable]:
    """Put requests on the stream, those of one run in their order.

    Args:
        stream: The stream.
        requests: Run id and envelope of each.

    Returns:
        For each the key of its record, as the authority will have it; or why it is not certain that it is there.
    """
    return [
        Unavailable(answer.error)
        if answer.error
        else f"kinesis/{stream.name}/{answer.shard_id}/{answer.sequence_number}"
        for answer in put_in_order(stream, requests)
    ]
