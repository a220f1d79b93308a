"""Publishing signals to a Kinesis stream.

A request to the stream may fail for some of its records, and the stream does not order those that are sent again. So no
request holds two signals of one run: signals are sent in rounds, and a signal that could not be sent holds back the
later signals of its run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from typing_extensions import override

from scenario_runner.authority.base import OutboxRow
from scenario_runner.bus.base import PublishResult, SignalPublisher
from scenario_runner.bus.envelope import signal_envelope, without_publication_time
from scenario_runner.bus.stream import MAX_RECORD_BYTES, Stream
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.rounds import rounds_without_repeats

_HELD_BACK: Final = "an earlier signal of the run is not on the stream yet"


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
        results = _conflicts(rows, records, repeats)
        once = [index for index in range(len(rows)) if index not in repeats]
        for positions in rounds_without_repeats([rows[index].run_id for index in once]):
            self._send([once[position] for position in positions], rows, records, results)
        for index, earlier in repeats.items():  # a repeat shares the result of what it repeats, unless they differ
            results.setdefault(index, replace(results[earlier], outbox_id=rows[index].outbox_id))
        return [results[index] for index in range(len(rows))]

    def _send(
        self, indices: Sequence[int], rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]],
        results: dict[int, PublishResult],
    ) -> None:  # fmt: skip
        """Send at most one signal of each run.

        Args:
            indices: Which signals.
            rows: All signals of the batch.
            records: Partition key and data of each.
            results: Results by index: those of earlier rounds; those of this round are added.
        """
        first_failure: dict[str, int] = {}
        for index in sorted(index for index, result in results.items() if result.error):
            first_failure.setdefault(rows[index].run_id, index)
        sendable = []
        for index in indices:
            key, data = records[index]
            if len(data) + len(key.encode()) > MAX_RECORD_BYTES:
                most = MAX_RECORD_BYTES - len(key.encode())
                problem = f"the signal holds {len(data)} bytes, the stream takes at most {most} under its key"
                results[index] = PublishResult(rows[index].outbox_id, problem, permanent=True)
            elif first_failure.get(rows[index].run_id, index) < index:
                results[index] = PublishResult(rows[index].outbox_id, _HELD_BACK)
            else:
                sendable.append(index)
        answers = self._stream.put([records[index] for index in sendable])
        for index, answer in zip(sendable, answers, strict=True):
            results[index] = PublishResult(rows[index].outbox_id, answer.error)


def _repeats(rows: Sequence[OutboxRow]) -> dict[int, int]:
    """Signals with the message id of an earlier signal: index of each, and of the earlier one."""
    first: dict[str, int] = {}
    indices = enumerate(first.setdefault(row.message_id, index) for index, row in enumerate(rows))
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


def put_request(stream: Stream, run_id: str, data: bytes) -> str:
    """Put a request on the stream.

    Returns:
        The key of its record, as the authority will have it.

    Raises:
        Unavailable: It is not certain that the record is on the stream.
    """
    (answer,) = stream.put([(run_id, data)])
    if answer.error:
        raise Unavailable(answer.error)
    return f"kinesis/{stream.name}/{answer.shard_id}/{answer.sequence_number}"
