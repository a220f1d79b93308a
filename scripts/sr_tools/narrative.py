"""LocalStack's log as sentences about streams and records: the command ``localstack_narrative.py``."""

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Final

_CALL: Final = re.compile(r"AWS (?P<service>\w+)\.(?P<operation>\w+) => (?P<status>\d+)(?: \((?P<error>\w+)\))?")
_TIME: Final = re.compile(r"\d\d:\d\d:\d\d")
_READY: Final = re.compile(r"^Ready\.?$|Ready\.")
_SENTENCES: Final = {
    "kinesis.CreateStream": "A client created a stream.",
    "kinesis.DeleteStream": "A client deleted a stream.",
    "kinesis.DescribeStream": "A client asked for the description of a stream.",
    "kinesis.DescribeStreamSummary": "A client asked for the status of a stream.",
    "kinesis.ListStreams": "A client listed the streams.",
    "kinesis.ListShards": "A consumer listed the shards of a stream.",
    "kinesis.GetShardIterator": "A consumer chose where in a shard it begins to read.",
    "kinesis.GetRecords": "A consumer read records.",
    "kinesis.PutRecord": "A producer put one record on a stream.",
    "kinesis.PutRecords": "A producer put records on a stream.",
    "kinesis.SplitShard": "A client split a shard.",
    "kinesis.MergeShards": "A client merged two shards.",
    "kinesis.SubscribeToShard": "A consumer subscribed to a shard (enhanced fan-out).",
}


def sentences(lines: Iterable[str]) -> Iterator[str]:
    """Sentences about what happened; equal ones in a row become one, with how often."""
    last, count, when = "", 0, ""
    for line in lines:
        sentence, at = _sentence(line)
        if not sentence:
            continue
        if sentence == last:
            count += 1
            continue
        if last:
            yield _counted(when, last, count)
        last, count, when = sentence, 1, at
    if last:
        yield _counted(when, last, count)


def _sentence(line: str) -> tuple[str, str]:
    """The sentence for a line of the log, and the time in it; both empty for a line that says nothing of interest."""
    call = _CALL.search(line)
    if call is None:
        return ("LocalStack is ready.", "") if _READY.search(line.strip()) else ("", "")
    name = f"{call['service']}.{call['operation']}"
    sentence = _SENTENCES.get(name, f"A client called {name}.")
    if not call["status"].startswith("2"):
        sentence = f"{sentence.rstrip('.')}, and was refused: {call['error'] or 'status ' + call['status']}."
    at = _TIME.search(line)
    return sentence, at[0] if at else ""


def _counted(when: str, sentence: str, count: int) -> str:
    return f"{when + '  ' if when else ''}{sentence}{f' ({count} times)' if count > 1 else ''}"


def main() -> None:
    """Read the log from standard input, write sentences to standard output."""
    for sentence in sentences(sys.stdin):
        print(sentence, flush=True)
