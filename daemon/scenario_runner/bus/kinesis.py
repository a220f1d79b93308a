"""Publishing signals to a Kinesis stream.

A request to the stream may fail for some of its records, and the stream does not order those that are sent again. So no
request holds two signals of one run: signals are sent in rounds, and a signal that could not be sent holds back the
later signals of its run.
"""

from collections.abc import Mapping, Sequence
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
        errors = _conflicts(rows, records, repeats)
        once = [index for index in range(len(rows)) if index not in repeats]
        for positions in rounds_without_repeats([rows[index].run_id for index in once]):
            self._send([once[position] for position in positions], rows, records, errors)
        # A repeat stands and falls with the signal that it repeats, unless it is in conflict with it.
        return [
            PublishResult(row.outbox_id, errors[index if index in errors else repeats[index]])
            for index, row in enumerate(rows)
        ]

    def _send(
        self, indices: Sequence[int], rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]],
        errors: dict[int, str],
    ) -> None:  # fmt: skip
        """Send at most one signal of each run, and note the error of each, or an empty text.

        Args:
            indices: Which signals.
            rows: All signals of the batch.
            records: Partition key and data of each.
            errors: Errors by index: those of earlier rounds; those of this round are added.
        """
        first_failure: dict[str, int] = {}
        for index in sorted(index for index, error in errors.items() if error):
            first_failure.setdefault(rows[index].run_id, index)
        sendable = []
        for index in indices:
            key, data = records[index]
            if len(data) + len(key.encode()) > MAX_RECORD_BYTES:
                most = MAX_RECORD_BYTES - len(key.encode())
                errors[index] = f"the signal holds {len(data)} bytes, the stream takes at most {most} under its key"
            elif first_failure.get(rows[index].run_id, index) < index:
                errors[index] = _HELD_BACK
            else:
                sendable.append(index)
        answers = self._stream.put([records[index] for index in sendable])
        errors.update((index, answer.error) for index, answer in zip(sendable, answers, strict=True))


def _repeats(rows: Sequence[OutboxRow]) -> dict[int, int]:
    """Signals with the message id of an earlier signal: index of each, and of the earlier one."""
    first: dict[str, int] = {}
    indices = enumerate(first.setdefault(row.message_id, index) for index, row in enumerate(rows))
    return {index: earlier for index, earlier in indices if earlier != index}


def _conflicts(
    rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]], repeats: Mapping[int, int]
) -> dict[int, str]:
    """The errors of repeats that have other bytes than the signal that they repeat."""
    return {
        index: f"the message id {rows[index].message_id} already stands for another message"
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
