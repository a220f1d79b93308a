#!/usr/bin/env python3
"""Turn LocalStack's log into sentences about streams and records. Reads standard input, writes standard output."""

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Final

_CALL: Final = re.compile(r"AWS (?P<service>\w+)\.(?P<operation>\w+) => (?P<status>\d+)(?: \((?P<error>\w+)\))?")
_TIME: Final = re.compile(r"\d\d:\d\d:\d\d")
_SENTENCES: Final = {
    "kinesis.CreateStream": "A stream was asked for.",
    "kinesis.DeleteStream": "A stream was deleted.",
    "kinesis.DescribeStream": "Somebody asked what a stream looks like.",
    "kinesis.DescribeStreamSummary": "Somebody asked how a stream is.",
    "kinesis.ListStreams": "Somebody asked which streams there are.",
    "kinesis.ListShards": "A consumer asked which shards the stream has.",
    "kinesis.GetShardIterator": "A consumer chose where in a shard it begins to read.",
    "kinesis.GetRecords": "A consumer read records.",
    "kinesis.PutRecord": "A producer put one record on a stream.",
    "kinesis.PutRecords": "A producer put records on a stream.",
    "kinesis.SplitShard": "A shard is being split.",
    "kinesis.MergeShards": "Two shards are being merged.",
    "kinesis.SubscribeToShard": "A consumer subscribed to a shard (enhanced fan-out).",
}
_READY: Final = re.compile(r"^Ready\.?$|Ready\.")


def sentences(lines: Iterable[str]) -> Iterator[str]:
    """Sentences about what happened; the same one in a row is told once, with how often."""
    last, count, when = "", 0, ""
    for line in lines:
        sentence, at = _sentence(line)
        if not sentence:
            continue
        if sentence == last:
            count += 1
            continue
        if last:
            yield _told(when, last, count)
        last, count, when = sentence, 1, at
    if last:
        yield _told(when, last, count)


def _sentence(line: str) -> tuple[str, str]:
    call = _CALL.search(line)
    if call is None:
        return ("LocalStack is ready.", "") if _READY.search(line.strip()) else ("", "")
    name = f"{call['service']}.{call['operation']}"
    sentence = _SENTENCES.get(name, f"Somebody called {name}.")
    if not call["status"].startswith("2"):
        sentence = f"{sentence.rstrip('.')}, and was refused: {call['error'] or 'status ' + call['status']}."
    at = _TIME.search(line)
    return sentence, at[0] if at else ""


def _told(when: str, sentence: str, count: int) -> str:
    return f"{when + '  ' if when else ''}{sentence}{f' ({count} times)' if count > 1 else ''}"


def main() -> None:
    """Entry point."""
    for sentence in sentences(sys.stdin):
        print(sentence, flush=True)


if __name__ == "__main__":
    main()
