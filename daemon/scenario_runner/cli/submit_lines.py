"""``submit --jsonl``: put many run requests on the control bus, one a line, in batches.

Whatever the number of lines, one batch is in memory. A line that cannot be submitted gets a result that says why, and
does not stop the others. A batch of which nothing can be sent does: the bus is away, and a later run of the same file
submits the rest; requests that were submitted twice become DUPLICATEs.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import typer

from scenario_runner.bus.stream import MAX_REQUEST_BYTES, MAX_REQUEST_RECORDS
from scenario_runner.cli.console import Exit, exit_for_error, exit_on_error, print_err, print_json_line
from scenario_runner.cli.intake_check import Check, intake_check
from scenario_runner.cli.outputs.acting import SUBMIT_LINE
from scenario_runner.cli.progress import Progress
from scenario_runner.cli.request_file import checked_request
from scenario_runner.cli.request_lines import Line, read_lines
from scenario_runner.cli.status import SUBMITTED
from scenario_runner.cli.submit import Options, Send, Submission, open_bus, prepare
from scenario_runner.cli.waiting import interruptible
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import RequestRefused, ScenarioRunnerError, Unavailable
from scenario_runner.intake.decode import Message, run_id_hint
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.production import require_class_of_producer

#: A stream that throttles or fails over is back within seconds; after a minute a person should know.
_STREAM_SECONDS: Final = 60.0
_RERUN: Final = "submit the same file again: what is on the bus already becomes a DUPLICATE"


@dataclass(frozen=True, slots=True)
class _Item:
    """A line that is to be submitted, or why it is not."""

    line: int
    run_id: str
    submission: Submission | None = None
    error: ScenarioRunnerError | None = None


class _Counts:
    """How many lines were submitted and how many were not, and the exit code that follows."""

    def __init__(self) -> None:
        self.last_line = self.submitted = self.failed = 0
        self.exit = Exit.DONE

    def add(self, item: _Item, error: ScenarioRunnerError | None) -> None:
        """Count a line that was reported."""
        self.last_line = item.line
        if error is None:
            self.submitted += 1
            return
        self.failed += 1
        self.exit = max(self.exit, exit_for_error(error))

    def summary(self) -> str:
        """One sentence for a person."""
        return f"{self.submitted} requests submitted, {self.failed} not"


def run(wiring_path: str, file: str, options: Options) -> None:
    """The command for many requests."""
    with exit_on_error(as_json=options.as_json):
        options.check()
        wiring = load_wiring(wiring_path)
        require_class_of_producer(wiring)
        raise typer.Exit(submit_lines(wiring, file, intake_check(wiring, options.policy)))


def submit_lines(wiring: Wiring, file: str, check: Check) -> Exit:
    """Submit the requests of a file, and print one JSON object a line for each, in their order.

    Args:
        wiring: The profile.
        file: A path; ``-`` reads standard input. Each line holds a request, bare or in an envelope; empty lines hold
            none.
        check: Refuses what intake would refuse.

    Returns:
        0 when all were submitted; 1 when a line was refused, or a signal or the end of the reader came before the end
        of the file; 5 when the bus did not take a request.

    Raises:
        UsageError: The file cannot be read.
        Unavailable: The spool is another store than the one that the authority knows.
    """
    counts = _Counts()
    try:
        with interruptible(), open_bus(wiring, _STREAM_SECONDS) as send, Progress("submitted") as progress:
            lines = _watched(read_lines(file), _size_of(file), progress)
            for batch in _batches(lines, wiring, check):
                if not _submit(batch, send, counts):
                    print_err(f"stopped after line {counts.last_line}, the control bus is away; {_RERUN}")
                    break
    except KeyboardInterrupt:
        print_err(f"interrupted after line {counts.last_line}; {_RERUN}")
        return Exit.NEGATIVE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush must not fail again
        print_err(f"nobody reads the results any more; stopped after line {counts.last_line}; {_RERUN}")
        return Exit.NEGATIVE
    print_err(counts.summary())
    return counts.exit


def _size_of(file: str) -> int:
    """Bytes of a regular file; 0 when they are not known."""
    try:
        return os.stat(file).st_size if file != "-" else 0
    except OSError:
        return 0  # whoever opens it says what is wrong


def _watched(lines: Iterator[Line | None], total: int, progress: Progress) -> Iterator[Line | None]:
    """The lines, with progress where results do not go to the same terminal."""
    done, shows = 0, not sys.stdout.isatty()
    for line in lines:
        if line is not None and shows:
            done += line.size + 1
            progress(done, total)
        yield line


def _batches(lines: Iterator[Line | None], wiring: Wiring, check: Check) -> Iterator[list[_Item]]:
    """Lines in batches that one request to a stream can take; a batch ends early when none has come."""
    batch: list[_Item] = []
    size = 0
    for line in lines:
        item = _item(line, wiring, check) if line is not None and not line.is_empty else None
        weight = len(item.submission.data) + len(item.run_id) if item is not None and item.submission else 0
        if batch and (line is None or len(batch) == MAX_REQUEST_RECORDS or size + weight > MAX_REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        if item is not None:
            batch.append(item)
            size += weight
    if batch:
        yield batch


def _item(line: Line, wiring: Wiring, check: Check) -> _Item:
    message = Message(f"line {line.number}", line.raw, line.size)
    try:
        submission = prepare(wiring, checked_request(message, wiring.control_bus_topic))
        check(submission.data)
    except RequestRefused as error:
        return _Item(line.number, run_id_hint(message), error=error)
    return _Item(line.number, submission.run_id, submission)


def _submit(batch: Sequence[_Item], send: Send, counts: _Counts) -> bool:
    """Send a batch and print the result of every line; false when it held requests and none of them could be sent."""
    submissions = [item.submission for item in batch if item.submission is not None]
    places = iter(send(submissions) if submissions else [])
    arrived = False
    for item in batch:
        place = next(places) if item.submission is not None else ""
        error = place if isinstance(place, Unavailable) else item.error
        arrived = arrived or error is None
        counts.add(item, error)
        print_json_line(_result(item, str(place), error), SUBMIT_LINE)
    sys.stdout.flush()
    return arrived or not submissions


def _result(item: _Item, where: str, error: ScenarioRunnerError | None) -> Json:
    found: Json = {"line": item.line} | ({"run_id": item.run_id} if item.run_id else {})
    if item.submission is not None:
        found["message_id"] = item.submission.message_id
    if error is None:
        return found | {"outcome": SUBMITTED, "record": where}
    outcome = "UNAVAILABLE" if isinstance(error, Unavailable) else "REFUSED"
    reason = {"reason_code": error.reason.value, "sentence": error.sentence(), "detail": error.detail}
    return found | {"outcome": outcome, "error": reason}
