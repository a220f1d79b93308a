"""One Kinesis stream, spoken to with boto3: is it there, put records, look for a message.

Answers are turned into this project's errors here; nothing of boto3 leaves the room. boto3 is imported when a stream
is first spoken to. Its own retries are off: a put is tried again by the one policy, with the same bytes.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from scenario_runner.bus.base import NotSeen
from scenario_runner.contracts.canonical import parse_json
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, in_short
from scenario_runner.contracts.times import MICROS
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.aws import sdk_client

MAX_RECORD_BYTES: Final = 1 << 20
"""Data and partition key of one record."""
MAX_REQUEST_RECORDS: Final = 500
MAX_REQUEST_BYTES: Final = 5 << 20
_RETRY: Final = RetryPolicy(first_seconds=0.05, most_seconds=2.0, jitter=True, deadline_seconds=10.0)
"""A shard that takes no more records this second takes some in the next; the relay waits for longer outages."""

_CONNECT_SECONDS: Final = 2.0
_READ_SECONDS: Final = 5.0
_SERVER_ERROR: Final = 500
_PASSING: Final = frozenset(
    {
        "ProvisionedThroughputExceededException", "LimitExceededException", "ThrottlingException", "Throttling",
        "InternalFailure", "InternalFailureException", "ServiceUnavailable", "RequestLimitExceeded",
        "KMSThrottlingException", "RequestTimeout", "RequestTimeoutException", "ResourceInUseException",
    }
)  # fmt: skip
_LOOK_RECORDS: Final = 200_000
_LOOK_SECONDS: Final = 30.0
_NEAR_MARGIN_US: Final = 300 * MICROS
"""Where a search begins, before the moment on our clock: records carry the stream's."""

_FAR_MARGIN_US: Final = 7200 * MICROS
"""Where it begins anew when nothing was found: the stream's clock may be an hour or two behind ours."""

_READS_PAUSE_SECONDS: Final = 0.2


class _PassingError(Exception):
    """An answer that may be another one in a moment; ``args[0]`` says it."""


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, _PassingError)


def client_of(service: str, region: str | None, endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no types
    """A boto3 client without retries of its own.

    Raises:
        ConfigurationError: boto3 is not installed, or nothing names a region.
    """
    try:
        from botocore.config import Config  # noqa: PLC0415 - slow to import, and an extra
    except ImportError as error:
        raise ConfigurationError(
            "control_bus_kind 'kinesis'", "boto3 is not installed", "install scenario-runner[kinesis]"
        ) from error
    if not region:
        raise ConfigurationError(
            "key 'control_bus_region'", "no region is named", "set control_bus_region, SR_KINESIS_REGION or AWS_REGION"
        )
    config = Config(
        connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries={"total_max_attempts": 1},
        max_pool_connections=8,
    )  # fmt: skip
    return sdk_client(service, region, endpoint_url, config)


def failure_of(error: Exception) -> tuple[str, str, bool]:
    """A boto3 error as (code, sentence, whether it may pass)."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        passing = type(error).__module__.startswith(("botocore", "urllib3", "http")) or isinstance(error, OSError)
        lasting = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
        return type(error).__name__, f"{type(error).__name__}: {in_short(error)}", passing and not lasting
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    message = response.get("Error", {}).get("Message", "")
    return code, f"{code}: {message}", code in _PASSING or status >= _SERVER_ERROR


@dataclass(frozen=True, slots=True)
class Put:
    """Where a record lies, or why it is not on the stream."""

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
    """

    name: str
    region: str | None = None
    endpoint_url: str | None = None
    connect: Callable[[str, str | None, str | None], Any] = client_of
    retry: RetryPolicy = _RETRY
    sleep: Callable[[float], None] = field(default=time.sleep)
    monotonic: Callable[[], float] = field(default=time.monotonic)
    now_us: Callable[[], int] = field(default=lambda: time.time_ns() // 1000)

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - boto3 has no types
        """The boto3 client, made when first wanted."""
        return self.connect("kinesis", self.region, self.endpoint_url)

    def ask(self, operation: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Call an operation that may be repeated.

        Raises:
            ConfigurationError: the stream does not exist, or the caller may not do this.
            Unavailable: no answer before the deadline of the retries.
        """
        try:
            return with_retries(lambda: self._once(operation, arguments), self.retry, _is_passing, wait=self.sleep)
        except _PassingError as error:
            raise Unavailable(f"stream {self.name}: {error}") from error

    def _once(self, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        try:
            return getattr(self.client, operation)(**arguments)
        except ConfigurationError:
            raise
        except Exception as error:
            code, sentence, passing = failure_of(error)
            if passing:
                raise _PassingError(sentence) from error
            if code == "ResourceNotFoundException":
                raise ConfigurationError(
                    f"stream {self.name}", "it does not exist", "create it, or correct control_bus_stream"
                ) from error
            if code.endswith(
                ("Credentials", "CredentialsError", "AccessDeniedException", "UnrecognizedClientException")
            ):
                raise ConfigurationError(f"stream {self.name}", sentence, "grant this to the daemon's role") from error
            raise Unavailable(f"stream {self.name}: {sentence}") from error

    def check(self) -> str:
        """The stream's status.

        Raises:
            ConfigurationError: it does not exist, or may not be described.
            Unavailable: it does not answer, or is being created or deleted.
        """
        status = str(self._summary()["StreamStatus"])
        if status not in ("ACTIVE", "UPDATING"):
            raise Unavailable(f"stream {self.name} is {status}")
        return status

    def identity(self) -> str:
        """The stream's ARN and when it was created, in milliseconds: another stream of its name has another one.

        Raises:
            ConfigurationError: it does not exist, or may not be described.
            Unavailable: it does not answer.
        """
        summary = self._summary()
        return f"{summary['StreamARN']}@{round(summary['StreamCreationTimestamp'].timestamp() * 1000)}"

    def _summary(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("describe_stream_summary", StreamName=self.name)["StreamDescriptionSummary"]
        return answer

    def shards(self) -> list[dict[str, Any]]:
        """Every shard that the stream still has, open and closed."""
        found: list[dict[str, Any]] = []
        arguments: dict[str, Any] = {"StreamName": self.name}
        while True:
            page = self.ask("list_shards", **arguments)
            found += page["Shards"]
            if not page.get("NextToken"):
                return found
            arguments = {"NextToken": page["NextToken"]}

    # --- putting

    def put(self, records: Sequence[tuple[str, bytes]]) -> list[Put]:
        """Put (partition key, data) pairs; one answer for each.

        When an answer is lost the pair is sent again, so a record may be on the stream twice, with the same bytes.
        """
        answers: list[Put] = []
        for request in _requests(records):
            answers += self._put_request(request)
        return answers

    def _put_request(self, records: Sequence[tuple[str, bytes]]) -> list[Put]:
        answers = [Put(error="not tried")] * len(records)
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
                answers[index] = Put(
                    item.get("ShardId", ""), item.get("SequenceNumber", ""),
                    f"{code}: {item.get('ErrorMessage', '')}" if code else "",
                )  # fmt: skip
            open_ones[:] = [index for index in open_ones if answers[index].error]
            if open_ones:
                raise _PassingError(answers[open_ones[0]].error)

        try:
            with_retries(attempt, self.retry, _is_passing, wait=self.sleep)
        except (_PassingError, ConfigurationError, Unavailable) as error:
            why = str(error) if isinstance(error, _PassingError) else error.detail
            for index in open_ones:
                answers[index] = Put(error=f"stream {self.name}: {why}")
        return answers

    # --- looking

    def find(self, message_id: str, partition_key: str, since_us: int) -> bytes | NotSeen | None:
        """Look for a message from a moment (microseconds since the epoch) to the tip of the stream.

        The moment is one of our clock, the stream's may differ: what is not found from shortly before the moment is
        looked for in the two hours before as well.

        Returns:
            The record's data, None when it is certainly not there, or why that cannot be said.
        """
        hours = int(self._summary()["RetentionPeriodHours"])
        near_us, far_us = since_us - _NEAR_MARGIN_US, since_us - _FAR_MARGIN_US
        hashed = int.from_bytes(hashlib.md5(partition_key.encode(), usedforsecurity=False).digest(), "big")
        spans = [(shard["ShardId"], shard["HashKeyRange"]) for shard in self.shards()]
        shards = [name for name, span in spans if int(span["StartingHashKey"]) <= hashed <= int(span["EndingHashKey"])]
        deadline, budget = self.monotonic() + _LOOK_SECONDS, _LOOK_RECORDS
        for begin_us, end_us in ((near_us, None), (far_us, near_us)):
            for data in (data for shard_id in shards for data in self._read(shard_id, begin_us, end_us)):
                if message_id.encode() in data and _message_id(data) == message_id:
                    return data
                budget -= 1
                if budget <= 0 or self.monotonic() > deadline:
                    return NotSeen(f"not among the {_LOOK_RECORDS - budget} records that were looked at; gave up")
        if far_us < self.now_us() - hours * 3600 * MICROS:
            return NotSeen(f"the stream keeps records for {hours} h and the signal is older")
        return None

    def _read(self, shard_id: str, begin_us: int, end_us: int | None) -> Iterator[bytes]:
        """Data of a shard's records from a moment to another, or to its end or tip; empty for each empty answer."""
        try:
            iterator = self.ask(
                "get_shard_iterator", StreamName=self.name, ShardId=shard_id, ShardIteratorType="AT_TIMESTAMP",
                Timestamp=begin_us / MICROS,
            )["ShardIterator"]  # fmt: skip
        except Unavailable as error:
            if end_us is None and "InvalidArgumentException" in error.detail:
                return  # on the stream's clock the moment has not come yet, so nothing arrived after it
            raise
        while iterator:
            page = self.ask("get_records", ShardIterator=iterator, Limit=10_000)
            for record in page["Records"]:
                if end_us is not None and _arrived_us(record) > end_us:
                    return
                yield record["Data"]
            if not page["Records"]:
                if not page.get("MillisBehindLatest"):
                    return
                yield b""
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


def _requests(records: Sequence[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Records in requests that the service takes."""
    request: list[tuple[str, bytes]] = []
    size = 0
    for key, data in records:
        weight = len(key.encode()) + len(data)
        if request and (len(request) == MAX_REQUEST_RECORDS or size + weight > MAX_REQUEST_BYTES):
            yield request
            request, size = [], 0
        request.append((key, data))
        size += weight
    if request:
        yield request
