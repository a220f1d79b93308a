"""One Kinesis stream, used through boto3: check that it exists, put records, search for a message.

Errors of boto3 become errors of this project here. boto3 is imported when a stream is first used. Its own retries are
off: calls are tried again by the retry policy, and a put always with the same bytes.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.bus.batching import bounded_batches
from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.boto import client_of, failure_of

MAX_RECORD_BYTES: Final = 1 << 20
"""Limit of the service for data and partition key of one record."""

MAX_REQUEST_RECORDS: Final = 500
"""Limit of the service for one PutRecords."""

MAX_REQUEST_BYTES: Final = 5 << 20
"""Limit of the service for one PutRecords, partition keys included."""

_RETRY: Final = RetryPolicy(first_seconds=0.05, most_seconds=2.0, jitter=True, deadline_seconds=10.0)
"""A shard that takes no more records this second takes some in the next; the relay waits for longer outages."""

#: A search that read so many records is inconclusive: `verify` asks for one record whose time it knows.
_SEARCHED_RECORDS: Final = 200_000
#: So is one that took so long: a person waits for it.
_SEARCH_SECONDS: Final = 30.0
#: One GetRecords takes at most 10,000.
_READ_RECORDS: Final = 10_000
_NEAR_MARGIN_US: Final = 300 * MICROS
"""How far before the given time a search starts: that is a time of our clock, records carry the stream's."""

_FAR_MARGIN_US: Final = 7200 * MICROS
"""How far before it starts again when nothing was found: the stream's clock may be two hours behind ours."""

#: Ends of the codes with which the service, or the search for credentials, denies a call.
_DENIALS: Final = ("Credentials", "CredentialsError", "AccessDeniedException", "UnrecognizedClientException")
#: The service allows five reads a second and shard.
_READS_PAUSE_SECONDS: Final = 0.2


class _TransientError(Exception):
    """An error after which the same call may succeed; ``args[0]`` is its text."""


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, _TransientError)


@dataclass(frozen=True, slots=True)
class PutResult:
    """Where a record lies on the stream, or why it is not there.

    Attributes:
        shard_id: The shard; empty when there was an error.
        sequence_number: The sequence number; empty when there was an error.
        error: Why the record is not on the stream; empty when it is.
    """

    shard_id: str = ""
    sequence_number: str = ""
    error: str = ""


@dataclass(frozen=True)
class Stream:
    """A stream.

    Args:
        name: The stream's name.
        region: Its region; the environment's when None.
        endpoint_url: Of an emulator; None for the service.
        connect: Makes the client; for tests.
        retry: How one call, or one put, is tried again.
        sleep: Pauses.
        monotonic: Seconds, never going back.
        now_us: Microseconds since the epoch on our clock.
        denials_pass: Whether the service may yet allow what it denies. A daemon waits: keys are rotated, and a new
            role is known everywhere only after some seconds. A person at a command corrects the configuration.
    """

    name: str
    region: str | None = None
    endpoint_url: str | None = None
    connect: Callable[[str, str | None, str | None], Any] = client_of
    retry: RetryPolicy = _RETRY
    sleep: Callable[[float], None] = field(default=time.sleep)
    monotonic: Callable[[], float] = field(default=time.monotonic)
    now_us: Callable[[], int] = field(default=lambda: time.time_ns() // 1000)
    denials_pass: bool = False

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - boto3 has no types
        """The boto3 client, made when first wanted."""
        return self.connect("kinesis", self.region, self.endpoint_url)

    def call(self, operation: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Call an operation that is safe to repeat.

        Raises:
            ConfigurationError: The stream does not exist, or the caller may not do this.
            Unavailable: No answer before the deadline of the retries.
        """
        try:
            return with_retries(lambda: self._once(operation, arguments), self.retry, _is_transient, wait=self.sleep)
        except _TransientError as error:
            raise Unavailable(f"stream {self.name}: {error}") from error

    def _once(self, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        try:
            return getattr(self.client, operation)(**arguments)
        except ConfigurationError:
            raise
        except Exception as error:
            code, sentence, transient = failure_of(error)
            if transient:
                raise _TransientError(sentence) from error
            if code == "ResourceNotFoundException":
                raise ConfigurationError(
                    f"stream {self.name}", "it does not exist", "create it, or correct control_bus_stream"
                ) from error
            if code.endswith(_DENIALS) and not self.denials_pass:
                raise ConfigurationError(f"stream {self.name}", sentence, "grant this to the daemon's role") from error
            raise Unavailable(f"stream {self.name}: {sentence}") from error

    def check(self) -> str:
        """The stream's status.

        Raises:
            ConfigurationError: It does not exist, or may not be described.
            Unavailable: It does not answer, or is being created or deleted.
        """
        status = str(self._summary()["StreamStatus"])
        if status not in ("ACTIVE", "UPDATING"):
            raise Unavailable(f"stream {self.name} is {status}")
        return status

    def identity(self) -> str:
        """The stream's ARN and the time of its creation in milliseconds: unique also among streams of one name.

        Raises:
            ConfigurationError: It does not exist, or may not be described.
            Unavailable: It does not answer.
        """
        summary = self._summary()
        return f"{summary['StreamARN']}@{round(summary['StreamCreationTimestamp'].timestamp() * 1000)}"

    def retention_hours(self) -> int:
        """How long the stream keeps a record.

        Raises:
            ConfigurationError: It does not exist, or may not be described.
            Unavailable: It does not answer.
        """
        return int(self._summary()["RetentionPeriodHours"])

    def _summary(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("describe_stream_summary", StreamName=self.name)["StreamDescriptionSummary"]
        return answer

    def shards(self) -> list[dict[str, Any]]:
        """All shards of the stream, open and closed, until their records have expired."""
        found: list[dict[str, Any]] = []
        arguments: dict[str, Any] = {"StreamName": self.name}
        while True:
            page = self.call("list_shards", **arguments)
            found += page["Shards"]
            if not page.get("NextToken"):
                return found
            arguments = {"NextToken": page["NextToken"]}

    # --- putting

    def put(self, records: Sequence[tuple[str, bytes]]) -> list[PutResult]:
        """Put records.

        When an answer is lost the records are sent again. So a record may be on the stream twice, with the same bytes.

        Args:
            records: Partition key and data of each.

        Returns:
            One result for each record, in their order.
        """
        answers: list[PutResult] = []
        for request in bounded_batches(records, _weight, MAX_REQUEST_RECORDS, MAX_REQUEST_BYTES):
            answers += self._put_request(request)
        return answers

    def _put_request(self, records: Sequence[tuple[str, bytes]]) -> list[PutResult]:
        answers = [PutResult(error="not tried")] * len(records)
        open_ones = list(range(len(records)))

        def attempt() -> None:
            response = self._once(
                "put_records",
                {
                    "StreamName": self.name,
                    "Records": [{"PartitionKey": records[i][0], "Data": records[i][1]} for i in open_ones],
                },
            )
            for index, item in zip(tuple(open_ones), response["Records"], strict=True):
                code = item.get("ErrorCode")
                answers[index] = PutResult(
                    item.get("ShardId", ""), item.get("SequenceNumber", ""),
                    f"{code}: {item.get('ErrorMessage', '')}" if code else "",
                )  # fmt: skip
            open_ones[:] = [index for index in open_ones if answers[index].error]
            if open_ones:
                raise _TransientError(answers[open_ones[0]].error)

        try:
            with_retries(attempt, self.retry, _is_transient, wait=self.sleep)
        except (_TransientError, ConfigurationError, Unavailable) as error:
            why = str(error) if isinstance(error, _TransientError) else error.detail
            for index in open_ones:
                answers[index] = PutResult(error=f"stream {self.name}: {why}")
        return answers

    # --- searching

    def read_at(self, message_id: str, shard_id: str, sequence_number: str) -> bytes | None:
        """Read a message where its receipt says that it lies: one request, however full the stream is.

        Returns:
            The data of its record; None when the stream has no such record any more, or another message lies there.

        Raises:
            Unavailable: No answer before the deadline of the retries.
        """
        try:
            iterator = self.call(
                "get_shard_iterator", StreamName=self.name, ShardId=shard_id,
                ShardIteratorType="AT_SEQUENCE_NUMBER", StartingSequenceNumber=sequence_number,
            )["ShardIterator"]  # fmt: skip
            page = self.call("get_records", ShardIterator=iterator, Limit=1)
        except ConfigurationError:
            return None  # the shard is gone with its records; what else it may be, the search that follows says
        except Unavailable as error:
            if "InvalidArgumentException" in error.detail:
                return None  # a receipt of another stream of this name
            raise
        for record in page["Records"]:
            if record["SequenceNumber"] == sequence_number and _message_id(record["Data"]) == message_id:
                return bytes(record["Data"])
        return None

    def find(self, message_id: str, partition_key: str, since_us: int) -> bytes | SearchInconclusive | None:
        """Search for a message from a point in time to the tip of the stream.

        The time is one of our clock, and the stream's may differ. So a message that is not found from shortly before
        that time on is searched for in the two hours before, too.

        Args:
            message_id: The message.
            partition_key: Its partition key, which says on which shards it can be.
            since_us: When it was put at the earliest, in microseconds since the epoch.

        Returns:
            The data of its record; None when it is certainly not on the stream; or why that is not known.
        """
        hours = self.retention_hours()
        near_us, far_us = since_us - _NEAR_MARGIN_US, since_us - _FAR_MARGIN_US
        shards = self._shards_of(partition_key)
        deadline, left = self.monotonic() + _SEARCH_SECONDS, _SEARCHED_RECORDS
        for begin_us, end_us in ((near_us, None), (far_us, near_us)):
            for data in (data for shard_id in shards for data in self._read(shard_id, begin_us, end_us)):
                if message_id.encode() in data and _message_id(data) == message_id:
                    return data
                left -= 1
                if left <= 0 or self.monotonic() > deadline:
                    read = _SEARCHED_RECORDS - left
                    return SearchInconclusive(f"not among the {read} records that were read; gave up")
        if far_us < self.now_us() - hours * 3600 * MICROS:
            return SearchInconclusive(f"the stream keeps records for {hours} h and the signal is older")
        return None

    def _shards_of(self, partition_key: str) -> list[str]:
        """Ids of the shards, open and closed, that take or took records with a partition key."""
        # The service maps a key to a shard by its MD5, also where MD5 is not allowed for security.
        hash_key = int.from_bytes(hashlib.md5(partition_key.encode(), usedforsecurity=False).digest(), "big")
        spans = [(shard["ShardId"], shard["HashKeyRange"]) for shard in self.shards()]
        return [name for name, span in spans if int(span["StartingHashKey"]) <= hash_key <= int(span["EndingHashKey"])]

    def _read(self, shard_id: str, begin_us: int, end_us: int | None) -> Iterator[bytes]:
        """Data of a shard's records between two times, or to its end or tip; empty bytes for each empty answer."""
        try:
            iterator = self.call(
                "get_shard_iterator", StreamName=self.name, ShardId=shard_id, ShardIteratorType="AT_TIMESTAMP",
                Timestamp=begin_us / MICROS,
            )["ShardIterator"]  # fmt: skip
        except Unavailable as error:
            if end_us is None and "InvalidArgumentException" in error.detail:
                return  # on the stream's clock that time lies ahead, so no record has arrived since
            raise
        while iterator:
            page = self.call("get_records", ShardIterator=iterator, Limit=_READ_RECORDS)
            for record in page["Records"]:
                if end_us is not None and _arrived_us(record) > end_us:
                    return
                yield record["Data"]
            if not page["Records"]:
                if not page.get("MillisBehindLatest"):
                    return
                yield b""  # lets the search see its deadline
                self.sleep(_READS_PAUSE_SECONDS)
            iterator = page.get("NextShardIterator")


def _arrived_us(record: dict[str, Any]) -> int:
    arrived = record.get("ApproximateArrivalTimestamp")
    return round(arrived.timestamp() * MICROS) if arrived is not None else 0


def _message_id(data: bytes) -> object:
    try:
        document = parse_json(data)
    except ValueError:
        return None
    return document.get("message_id") if isinstance(document, dict) else None


def _weight(record: tuple[str, bytes]) -> int:
    """Bytes of a record as the service counts them."""
    key, data = record
    return len(key.encode()) + len(data)
