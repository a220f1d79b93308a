"""Publishing signals to a Kinesis stream.

The stream does not order the records of one request when some of them fail, so no request holds two signals of one
run: they go in rounds, and what could not be put holds back the later signals of its run.
"""

from collections.abc import Sequence
from typing import Final

from scenario_runner.authority.base import OutboxRow
from scenario_runner.bus.base import Published
from scenario_runner.bus.envelope import signal_envelope, timeless
from scenario_runner.bus.stream import MAX_RECORD_BYTES, Stream
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.rounds import rounds_without_repeats

_BEHIND: Final = "an earlier signal of the run is not on the stream yet"


class KinesisPublisher:
    """Publishes signals as records, at least once, the run id being the partition key.

    Args:
        stream: Where they go.
        topic: Topic of the envelopes.
    """

    def __init__(self, stream: Stream, topic: str) -> None:
        self._stream, self._topic = stream, topic

    def publish(self, rows: Sequence[OutboxRow]) -> list[Published]:
        """See :class:`~scenario_runner.bus.base.SignalPublisher`."""
        records = [(row.partition_key, signal_envelope(self._topic, row)) for row in rows]
        errors: dict[int, str] = {}
        same = self._same(rows, records, errors)
        fresh = [index for index in range(len(rows)) if index not in same]
        for positions in rounds_without_repeats([rows[index].run_id for index in fresh]):
            self._send([fresh[position] for position in positions], rows, records, errors)
        return [Published(row.outbox_id, errors[same.get(index, index)]) for index, row in enumerate(rows)]

    def _same(
        self, rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]], errors: dict[int, str]
    ) -> dict[int, int]:
        """Rows that share their message id with an earlier one, and which; with other bytes they are refused."""
        first: dict[str, int] = {}
        same: dict[int, int] = {}
        for index, row in enumerate(rows):
            earlier = first.setdefault(row.message_id, index)
            if earlier == index:
                continue
            if timeless(records[earlier][1]) == timeless(records[index][1]):
                same[index] = earlier
            else:
                same[index] = index
                errors[index] = f"the message id {row.message_id} already stands for another message"
        return same

    def _send(
        self, indices: Sequence[int], rows: Sequence[OutboxRow], records: Sequence[tuple[str, bytes]],
        errors: dict[int, str],
    ) -> None:  # fmt: skip
        """Put one signal of each run; what its run's earlier signal holds back is not sent."""
        stuck: dict[str, int] = {}
        for index in sorted(index for index, error in errors.items() if error):
            stuck.setdefault(rows[index].run_id, index)
        fitting = []
        for index in indices:
            key, data = records[index]
            if len(data) + len(key.encode()) > MAX_RECORD_BYTES:
                most = MAX_RECORD_BYTES - len(key.encode())
                errors[index] = f"the signal holds {len(data)} bytes, the stream takes at most {most} under its key"
            elif stuck.get(rows[index].run_id, index) < index:
                errors[index] = _BEHIND
            else:
                fitting.append(index)
        answers = self._stream.put([records[index] for index in fitting])
        errors.update((index, answer.error) for index, answer in zip(fitting, answers, strict=True))


def put_request(stream: Stream, run_id: str, data: bytes) -> str:
    """Put a request on the stream.

    Returns:
        The key of its record, as the authority will have it.

    Raises:
        Unavailable: it is not certain that the record is on the stream.
    """
    (answer,) = stream.put([(run_id, data)])
    if answer.error:
        raise Unavailable(answer.error)
    return f"kinesis/{stream.name}/{answer.shard_id}/{answer.sequence_number}"
