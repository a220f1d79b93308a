"""A queue of event notifications of S3: runs are told that wait where an object has come.

A message is deleted once the runs that it is about were told, and at once when it is about none. So a process that is
killed tells them again, and a message that nobody can use does not come back. No message decides anything of a run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from scenario_runner.authority.acts import Arrival
from scenario_runner.authority.arrivals import count_told
from scenario_runner.authority.base import Authority
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.counters import count
from scenario_runner.intake.s3_events import NoEventError, created_objects, roots_above
from scenario_runner.storage.boto import failure_of

#: How long one request waits for a message: the client gives up after 5 s, and a stop waits for it.
WAIT_SECONDS: Final = 3
#: Limit of the service for one request.
_MOST_MESSAGES: Final = 10
#: Each reason why messages are no events is logged once in this time, with how many they were: whoever may write to the
#: queue does not fill the log.
_QUIET_SECONDS: Final = 60.0
#: Reasons that are logged in that time: a reason quotes where a message is wrong, so there are as many as messages.
_MOST_REASONS: Final = 20
AWAY: Final = "evidence_queue.unavailable"
"""Counter of steps that failed because the queue, or the authority, did not answer."""
_log = structlog.get_logger("evidence_events")


class EvidenceQueue:
    """Takes event notifications from a queue, and tells waiting runs.

    Args:
        client: A boto3 client of SQS whose own retries are off.
        url: The queue.
        authority: Whose runs wait.
        allowed: Absolute paths and ``s3://`` URIs of the allowed engine roots.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self, client: Any, url: str, authority: Authority, allowed: Sequence[str],  # noqa: ANN401
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client, self._url, self._authority, self._monotonic = client, url, authority, monotonic
        self._allowed = tuple(root for root in allowed if root.startswith("s3://"))
        self._logged: dict[str, float] = {}
        self._unlogged = 0

    def step(self) -> int:
        """Wait some seconds for messages, tell the runs that they are about, and delete the messages.

        Returns:
            How many messages were there.

        Raises:
            Unavailable: The queue or the authority does not answer. What was not deleted comes again.
        """
        try:
            return self._step()
        except Unavailable:
            count(AWAY)
            raise

    def _step(self) -> int:
        messages = self._call("receive_message", MaxNumberOfMessages=_MOST_MESSAGES, WaitTimeSeconds=WAIT_SECONDS).get(
            "Messages", []
        )
        if not messages:
            return 0
        about = [self._roots_of(message) for message in messages]
        roots = sorted({root for found in about for root in found or ()})
        waiting = dict(zip(roots, self._authority.tell([Arrival(root) for root in roots]), strict=True))
        count_told("s3", sum(waiting.values()))
        self._delete(messages)
        for found in about:
            if found is not None:
                told = any(waiting[root] for root in found)
                count("sr_evidence_events_total", "told" if told else "unawaited" if found else "other")
        return len(messages)

    def _roots_of(self, message: Mapping[str, Any]) -> set[str] | None:
        """The engine run roots that a message may be about; None, and counted, when it is no event of S3."""
        try:
            objects = created_objects(message.get("Body", ""))
            return {root for place in objects for root in roots_above(place, self._allowed)}
        except NoEventError as error:
            self._log_once(str(error), message)
        except Exception as error:  # noqa: BLE001 - whatever a message causes stays with this message
            _log.critical("reading a message of the queue failed unexpectedly; it is deleted", exc_info=error,
                          message=message.get("MessageId", ""))  # fmt: skip
        count("sr_evidence_events_total", "invalid")
        return None

    def _log_once(self, detail: str, message: Mapping[str, Any]) -> None:
        """Log why a message is no event, unless the same was logged a moment ago, or too much was."""
        now = self._monotonic()
        self._logged = {reason: at for reason, at in self._logged.items() if now - at < _QUIET_SECONDS}
        if detail in self._logged or len(self._logged) >= _MOST_REASONS:
            self._unlogged += 1
            return
        self._logged[detail] = now
        _log.warning("a message of the queue is no event of S3; it is deleted", detail=detail,
                     message=message.get("MessageId", ""), others_not_logged=self._unlogged)  # fmt: skip
        self._unlogged = 0

    def _delete(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Delete messages; those that are not come again, which costs a look-up."""
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(messages)
        ]
        self._call("delete_message_batch", Entries=entries)

    def _call(self, operation: str, **arguments: Any) -> Any:  # noqa: ANN401 - boto3 has no types
        return call_queue(self._client, self._url, operation, **arguments)


def call_queue(client: Any, url: str, operation: str, **arguments: Any) -> Any:  # noqa: ANN401 - boto3 has no types
    """One call about a queue.

    Raises:
        Unavailable: The service does not answer, or refuses it.
    """
    try:
        return getattr(client, operation)(QueueUrl=url, **arguments)
    except Exception as error:
        _, sentence, _ = failure_of(error)
        raise Unavailable(f"the queue {url} cannot be read: {sentence}") from error
