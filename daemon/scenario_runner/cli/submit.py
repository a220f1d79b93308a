"""``submit``: put one run request on the control bus, and wait for its verdict if asked to.

:mod:`scenario_runner.cli.submit_lines` puts many there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import typer

from scenario_runner.audit.explain import status_of, status_of_record
from scenario_runner.authority.views.base import Views
from scenario_runner.bus.envelope import request_envelope
from scenario_runner.bus.kinesis import put_requests
from scenario_runner.bus.spool import MAX_RECORD_BYTES, RequestFolder
from scenario_runner.cli.console import exit_for_state, exit_on_error, print_fields, print_json, print_request
from scenario_runner.cli.corrections import CorrectionFlags
from scenario_runner.cli.intake_check import intake_check
from scenario_runner.cli.outputs.acting import SUBMIT
from scenario_runner.cli.read_only import KeptAuthority, require_marked
from scenario_runner.cli.request_file import Requested, read_request
from scenario_runner.cli.request_flags import RequestFlags
from scenario_runner.cli.status import SUBMITTED, print_status
from scenario_runner.cli.waiting import check_timeout, wait_for_verdict
from scenario_runner.contracts.canonical import Json, canonical_sha256, sha256_hex
from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.contracts.errors import RequestRefused, Unavailable, UsageError
from scenario_runner.contracts.ids import run_id_of, submission_message_id
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Strategy
from scenario_runner.contracts.supersession import refuse_itself
from scenario_runner.intake.admission_policy import refuse_without_engine
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.control_bus import open_stream, spool_root, state_modes
from scenario_runner.service.identity import named_spool
from scenario_runner.service.production import require_class_of_producer
from scenario_runner.storage.anchored import AnchoredRoot

#: Threads that write files of a spool at once: more do not make a disk faster.
_WRITERS: Final = 8


@dataclass(frozen=True, slots=True)
class Options:
    """What ``submit`` was asked to do.

    Attributes:
        file: A request document; None when there is none.
        jsonl: A file of many request documents; None when there is none.
        flags: The flags of a request.
        correction: The run that it corrects.
        policy: Policy profile to check requests against as intake does; None to leave that to intake.
        wait: Whether to wait for the verdict.
        timeout: For how many seconds; None for no bound.
        only_print: Whether to print the request instead of sending it.
        as_json: Whether to print JSON.
    """

    file: str | None
    jsonl: str | None
    flags: RequestFlags
    correction: CorrectionFlags
    policy: str | None
    wait: bool
    timeout: float | None
    only_print: bool
    as_json: bool

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: Not exactly one source of requests, or options that do not go together.
        """
        flags = ", ".join(self.flags.given())
        sources = [text for text, is_given in (
            (f"the file {self.file}", self.file is not None),
            (f"--jsonl {self.jsonl}", self.jsonl is not None),
            (flags, bool(flags)),
        ) if is_given]  # fmt: skip
        if not sources:
            raise UsageError("name a FILE, or a file of many requests with --jsonl, or give the flags of a request")
        if len(sources) > 1:
            raise UsageError(f"a request comes from one place, and here are {' and '.join(sources)}; give one of them")
        if self.jsonl is not None and (self.wait or self.only_print):
            raise UsageError("--wait and --print are for one request; --jsonl has many")
        if self.wait and self.only_print:
            raise UsageError("--print sends nothing, so that there is nothing to wait for with --wait")
        if self.jsonl is not None and self.correction.supersedes is not None:
            raise UsageError("--supersedes is for one request; lines of --jsonl say it in envelopes of their own")
        self.correction.check()
        check_timeout(wait=self.wait, timeout=self.timeout)


@dataclass(frozen=True, slots=True)
class Submission:
    """A record as it goes on the control bus.

    Attributes:
        run_id: The run that it is about: records of one run keep their order on a stream. Of a record about no single
            run its message id.
    """

    run_id: str
    message_id: str
    data: bytes


Send = Callable[[Sequence[Submission]], list[str | Unavailable]]
"""Puts requests on a control bus; returns for each where it lies, or why it is not certain that it is there."""


def run(wiring_path: str, options: Options) -> None:
    """The command for one request."""
    with exit_on_error(as_json=options.as_json):
        options.check()
        wiring = load_wiring(wiring_path)
        requested = _requested(options, wiring)
        if options.only_print:
            print_request(requested.document)
            return
        require_class_of_producer(wiring)
        submission = prepare(wiring, requested)
        intake_check(wiring, options.policy)(submission.data)
        with open_bus(wiring) as send:
            (where,) = send([submission])
        if isinstance(where, Unavailable):
            raise where
        _report(wiring, submission, where, options)


def _requested(options: Options, wiring: Wiring) -> Requested:
    if options.file is not None:
        requested = read_request(options.file, wiring.control_bus_topic)
    else:
        document = options.flags.document()
        requested = Requested(parse_run_request(document), document)
    supersession = options.correction.supersession(wiring)
    if supersession is None:
        return requested
    if requested.supersession is not None:
        raise UsageError(f"the envelope in {options.file} says what it supersedes; leave out --supersedes")
    return requested._replace(supersession=supersession)


def prepare(wiring: Wiring, requested: Requested) -> Submission:
    """Put a request into its envelope.

    Raises:
        RequestRefused: It needs an engine that the profile does not have, supersedes its own run, or is too large.
    """
    request, document, supersession = requested
    refuse_without_engine(
        Strategy(request.requested_strategy or Strategy.AUTO), request.engine_run_root,
        engine=bool(wiring.engine_backend), template=wiring.engine_run_root_template is not None,
    )  # fmt: skip
    run_id = run_id_of(request.run_equivalence_key)
    refuse_itself(run_id, supersession)
    asked = document if supersession is None else {"request": document, **supersession.attributes()}
    message_id = submission_message_id(run_id, canonical_sha256(asked))
    data = request_envelope(
        wiring.control_bus_topic, message_id, time.time_ns() // 1000, run_id, document, supersession
    )
    if len(data) + len(run_id) > MAX_RECORD_BYTES:  # a stream counts the partition key
        raise RequestRefused(
            f"in its envelope the request holds {len(data)} bytes, the bus takes at most {MAX_RECORD_BYTES}",
            Reason.RECORD_TOO_LARGE,
        )
    return Submission(run_id, message_id, data)


@contextmanager
def open_bus(wiring: Wiring, stream_seconds: float | None = None) -> Iterator[Send]:
    """The control bus of a profile, for producers.

    Args:
        wiring: The profile.
        stream_seconds: How long a stream that fails is tried again; None for as long as signals are.

    Raises:
        Unavailable: The spool is another store than the one that the authority knows.
    """
    stream = open_stream(wiring)
    if stream is not None:
        retry = stream.retry if stream_seconds is None else replace(stream.retry, deadline_seconds=stream_seconds)
        patient = replace(stream, retry=retry)
        yield lambda many: put_requests(patient, [(item.run_id, item.data) for item in many])
        return
    spool = AnchoredRoot(spool_root(wiring), state_modes(wiring))
    require_marked(wiring, named_spool(spool))
    with ThreadPoolExecutor(_WRITERS, "spool") as pool:
        folder = RequestFolder(spool, pool)
        yield lambda many: folder.drop([(item.message_id, item.data) for item in many])


def _report(wiring: Wiring, submission: Submission, where: str, options: Options) -> None:
    """Print where a request lies, or with ``--wait`` what became of it, which is then the exit code."""
    found = {"run_id": submission.run_id, "message_id": submission.message_id, "record": where}
    if not options.as_json:
        print_fields(found, ("run_id", "message_id", "record"))
    if not options.wait:
        if options.as_json:
            print_json(found, SUBMIT)
        return
    with KeptAuthority(wiring) as authority:
        status = wait_for_verdict(_Follow(authority, submission).ask, options.timeout)
    print_status(found | status, SUBMIT, as_json=options.as_json)
    raise typer.Exit(exit_for_state(status["state"]))


class _Follow:
    """What became of one submission.

    The record is known by its bytes, which hold the time of the submission: an older refusal of the same request is not
    taken for its own.
    """

    def __init__(self, authority: KeptAuthority, submission: Submission) -> None:
        self._authority, self._run_id = authority, submission.run_id
        self._digest = sha256_hex(submission.data)
        self._admitted = False

    def ask(self) -> Json:
        """The refusal of the record, the status of its run once it is admitted, or else that it is submitted."""
        found = self._authority.ask(self._describe)
        if found is None:
            detail = "no daemon has taken the request from the control bus yet"
            return {"run_id": self._run_id, "state": SUBMITTED, "detail": detail}
        self._admitted = True  # or refused, and then nothing more is asked
        return found

    def _describe(self, views: Views) -> Json | None:
        if self._admitted:
            return status_of(views, self._run_id)
        return status_of_record(views, self._run_id, self._digest)
