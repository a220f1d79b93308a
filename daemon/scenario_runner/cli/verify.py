"""``verify``: from a run id or a facts view file to the checks and an exit code."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import typer

from scenario_runner.audit.documents import PublishedDocuments
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.published import ReadSignal
from scenario_runner.audit.required import Known, Named, Unknown
from scenario_runner.audit.supersession import ends_of
from scenario_runner.audit.verify import Verifier
from scenario_runner.authority.values import RunRow
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.bus.envelope import signal_file_name
from scenario_runner.bus.spool import MAX_RECORD_BYTES, spool_store
from scenario_runner.bus.stream import Stream
from scenario_runner.cli.console import Exit, exit_for_state, exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.looking import VERIFY
from scenario_runner.cli.progress import Progress
from scenario_runner.cli.read_only import KeptAuthority, existing_views, never_started, require_marked
from scenario_runner.cli.run_ids import checked_name, named_run
from scenario_runner.cli.text import Word, shortened
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.depth import DEPTH
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, UsageError
from scenario_runner.contracts.ids import HEX32, run_id_of
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import parse_instant, to_micros
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.compose import open_artifacts, open_pack, open_schemas, open_store
from scenario_runner.service.control_bus import open_stream, spool_root
from scenario_runner.service.identity import NamedStore
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

#: Columns of the mark of a check, with its glyph; characters of a word of a detail.
_MARK, _WORD = 6, 72
#: Checks that did not hold which are shown; the first one mostly explains the others.
_MOST_SHOWN: Final = 10
#: Files of one message that are looked for in a spool: where the first was lost, one that repeats it stands for it. A
#: run is published again a few times in its life.
_SEARCHED_EMISSIONS: Final = 100


@dataclass(frozen=True, slots=True)
class NamedFiles:
    """Files that ``verify`` was given in addition to the profile; empty when it was not."""

    catalogue: str = ""
    gate_map: str = ""
    policy: str = ""

    def check(self) -> None:
        """Refuse half an interface pack.

        Raises:
            UsageError: only one of its two files is named.
        """
        if bool(self.catalogue) is not bool(self.gate_map):
            raise UsageError("an interface pack is two files: give both --catalogue and --gate-map")


def run(wiring_path: str, target: str, files: NamedFiles, *, verbose: bool, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        document, code = verify_target(wiring_path, target, files)
    if as_json:
        print_json(document, VERIFY)
    else:
        _print(document, verbose=verbose)
    raise typer.Exit(code)


def _print(document: Json, *, verbose: bool) -> None:
    """The verdict, what did not hold or could not be checked, and who vouches; every check where that is asked for."""
    marked = [(check, _mark(check)) for check in document["checks"]]
    shown = marked if verbose else [(check, mark) for check, mark in marked if mark != "ok"]
    for check, mark in shown if verbose else shown[:_MOST_SHOWN]:
        _print_check(check, mark, verbose=verbose)
    if not verbose and len(shown) > _MOST_SHOWN:
        print_line(f"      and {len(shown) - _MOST_SHOWN} more; -v shows every check")
    for name in ("pack", "policy"):
        if document.get(name):
            print_line(f"{name}: {document[name]['origin']}  {document[name].get('digest', '')}".rstrip())
    if document.get(DEPTH):
        print_line(f"depth: READY was decided at {document[DEPTH]}; every file was read now")
    if document.get("supersedes"):
        print_line(f"supersedes {document['supersedes']['old_run_id']}: {document['supersedes']['purpose']}")
    for item in document.get("superseded_by", []):
        print_line(f"superseded by {item['new_run_id']}: {item['purpose']}")
    print_line(Word(document["outcome"]), f": {document['summary']}")


def _mark(check: Json) -> str:
    return "n/a" if check.get("not_possible") else "ok" if check["ok"] else "FAIL"


def _print_check(check: Json, mark: str, *, verbose: bool) -> None:
    detail = str(check.get("detail", ""))
    if not verbose:  # what a path begins and ends with says most, and lines of paths hide the next line
        detail = " ".join(shortened(word, _WORD) for word in detail.split())
    print_line(Word(mark, _MARK), f"{check['check']}" + (f": {detail}" if detail else ""))
    for key in ("expected", "actual"):
        if mark == "FAIL" and check.get(key) is not None:
            shown = str(check[key])
            print_line(f"      {key + ':':9} {shown if verbose else shortened(shown, 3 * _WORD)}")


def verify_target(wiring_path: str, target: str, files: NamedFiles) -> tuple[Json, Exit]:
    """Verify a run.

    Args:
        wiring_path: The profile.
        target: A run, see :mod:`scenario_runner.cli.run_ids`, or the path of a facts view file.
        files: What was named in addition to the profile.

    Returns:
        ``{run_id, outcome, summary, checks, pack, policy}`` and the exit code.

    Raises:
        UsageError: there is no such run or file.
        Unavailable: a store, the control bus or an engine run root does not answer.
    """
    files.check()
    wiring = load_wiring(wiring_path)
    pack = load_pack(files.catalogue, files.gate_map) if files.catalogue else open_pack(wiring)
    policy_rev = load_policy(files.policy).rev().wire() if files.policy else None
    named = Named(pack=bool(files.catalogue), policy_rev=policy_rev)
    target = _target(wiring, target)
    if HEX32.fullmatch(target) and never_started(wiring):
        raise UsageError(f"nothing is known of run {target}: the daemon was never started here", Reason.RUN_NOT_FOUND)
    store, known = open_store(wiring), _known_by(wiring)
    require_marked(wiring, NamedStore("object_store", store.where, store))
    try:
        run_id, data = _facts_view(target, store)
    except UnreadableObjectError as error:
        return _failed(target, "facts view is well formed", error.detail), Exit.NEGATIVE
    if data is None:
        return _not_ready(run_id, store, known)
    found_id, findings = _verify(wiring, store, pack, known, named, data)
    run_id = run_id or found_id
    ends = ends_of(PublishedDocuments(store), run_id) if run_id else {}
    return _document(run_id, findings) | ends, Exit.DONE if findings.ok else Exit.NEGATIVE


def _verify(
    wiring: Wiring, store: ObjectStore, pack: InterfacePack, known: Known, named: Named, data: bytes
) -> tuple[str, Findings]:
    packs = PinnedPacks(pack, Ledger(store, open_schemas(wiring)))
    artifacts = open_artifacts(wiring, None)
    try:
        read_signal = _signal_reader(wiring, store)
        with Progress("verified") as progress:
            verifier = Verifier(store, packs, artifacts, wiring.control_bus_topic, read_signal, progress, known, named)
            return verifier.verify(data)
    finally:
        artifacts.close()


def _document(run_id: str, findings: Findings) -> Json:
    missed = sum(1 for check in findings.checks if check.get("not_possible"))
    failed = sum(1 for check in findings.checks if not check["ok"])
    return {
        "run_id": run_id,
        "outcome": "PASS" if findings.ok else "FAIL",
        "summary": f"{len(findings.checks)} checks, {failed} failed" + (f", {missed} not possible" if missed else ""),
        "checks": findings.checks,
        "pack": findings.pack,
        "policy": findings.policy,
        **findings.depth,
    }


def _failed(run_id: str, check: str, detail: str) -> Json:
    checks = [{"check": check, "ok": False, "detail": detail}]
    return {"run_id": run_id, "outcome": "FAIL", "summary": detail, "checks": checks}


# --- what is verified


def _target(wiring: Wiring, text: str) -> str:
    """The run id or file that is meant. Readers may have no access to the authority: keys and ids do without it."""
    if HEX32.fullmatch(text) or os.path.isfile(text):
        return text
    checked_name(text)
    with KeptAuthority(wiring) as authority:
        try:
            return named_run(authority.ask, text)
        except (ConfigurationError, Unavailable):
            return run_id_of(text)


def _facts_view(target: str, store: ObjectStore) -> tuple[str, bytes | None]:
    """The run id, when the target is one, and the bytes of the facts view, when there is one."""
    if HEX32.fullmatch(target):
        stored = store.read(refs.facts_view_ref(target), MAX_DOCUMENT)
        return target, stored.data if stored else None
    if not os.path.isfile(target):
        raise UsageError(f"{target[:200]!r} is neither a run id (32 lowercase hex characters) nor a facts view file")
    try:
        with open(target, "rb") as file:
            return "", file.read(MAX_DOCUMENT)
    except OSError as error:
        raise Unavailable(f"cannot read {target}: {error.strerror}") from error


def _not_ready(run_id: str, store: ObjectStore, known: Known) -> tuple[Json, Exit]:
    """The answer for a run without a facts view, by its state in the authority, or else in the ledger."""
    row = known(run_id)
    state = _status_field(run_id, store, "state") if isinstance(row, Unknown) else row.state.value
    if not state:
        raise UsageError(f"neither the authority nor the ledger knows a run {run_id}", Reason.RUN_NOT_FOUND)
    code = Exit.NEGATIVE if state == "READY" else exit_for_state(state)
    document = _failed(run_id, "facts view is there", f"the run is {state}; {refs.facts_view_ref(run_id)} is absent")
    return document | ends_of(PublishedDocuments(store), run_id), code


def _status_field(run_id: str, store: ObjectStore, key: str) -> str:
    """A value of a run's status in the ledger; empty when there is none."""
    try:
        stored = store.read(refs.status_ref(run_id), MAX_DOCUMENT)
        return str(parse_json(stored.data)[key]) if stored is not None else ""
    except (ValueError, TypeError, KeyError, UnreadableObjectError):
        return ""


def _known_by(wiring: Wiring) -> Known:
    """What the profile's authority knows of runs. Readers may have no access to it, so a failure is no error."""

    def known(run_id: str) -> RunRow | Unknown:
        try:
            with existing_views(wiring) as views:
                if views is None:
                    return Unknown("the profile's authority was never started")
                return views.run(run_id) or Unknown("the profile's authority does not know the run")
        except (ConfigurationError, Unavailable) as error:
            return Unknown(f"the profile's authority cannot be read: {error.detail}")

    return known


# --- READY on the control bus


def _signal_reader(wiring: Wiring, ledger: ObjectStore) -> ReadSignal:
    stream = open_stream(wiring)
    if stream is not None:
        return stream_reader(stream, ledger, _receipts_by(wiring))
    store = spool_store(spool_root(wiring))

    def read(message_id: str, _run_id: str) -> bytes | None:
        for emission in range(_SEARCHED_EMISSIONS):
            name = signal_file_name(message_id, emission)
            try:
                stored = store.read(f"{wiring.control_bus_topic}/{name}", MAX_RECORD_BYTES)
            except UnreadableObjectError:
                return b""  # something is there that SR did not write: it is not well formed, rather than absent
            if stored is not None:
                return stored.data
        return None

    return read


Receipts = Callable[[str, str], list[Json]]
"""Publish receipts of a message id and a run id, the first publication first."""


def _receipts_by(wiring: Wiring) -> Receipts:
    """The receipts that the profile's authority keeps; none where it cannot be read."""

    def receipts(message_id: str, run_id: str) -> list[Json]:
        try:
            with existing_views(wiring) as views:
                rows = views.signals(run_id).rows if views is not None else ()
        except (ConfigurationError, Unavailable):
            return []
        return [parse_json(row.receipt.encode()) for row in rows if row.message_id == message_id and row.receipt]

    return receipts


def stream_reader(stream: Stream, ledger: ObjectStore, receipts: Receipts = lambda *_: []) -> ReadSignal:
    """Reads a message where its receipt says, or else searches from the moment when the run became READY.

    A receipt only says where to look: what lies there is compared like anything else.
    """

    def read(message_id: str, run_id: str) -> bytes | SearchInconclusive | None:
        for receipt in receipts(message_id, run_id):
            if receipt["stream"] == stream.name:
                found = stream.read_at(message_id, receipt["shard_id"], receipt["sequence_number"])
                if found is not None:
                    return found
        try:
            ready_us = to_micros(parse_instant(_status_field(run_id, ledger, "updated_at_utc")))
        except ValueError:
            return SearchInconclusive("run_status does not say when the run became READY, so there is nowhere to begin")
        return stream.find(message_id, run_id, ready_us)

    return read
