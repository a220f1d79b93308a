"""``authority rebuild``: recreate an empty authority from the ledger."""

import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import typer

from scenario_runner.audit.findings import Findings
from scenario_runner.audit.ledger_findings import LedgerFinding
from scenario_runner.audit.required import Named, Unknown
from scenario_runner.audit.verify import Verifier
from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.base import Authority
from scenario_runner.bus.envelope import signal_file_name
from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.cli.console import Exit, exit_on_error, print_err, print_json_line, print_line
from scenario_runner.cli.options import caller
from scenario_runner.cli.outputs.acting import LEDGER_FINDING, REBUILD_REPORT
from scenario_runner.cli.read_only import existing_authority
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.contracts.ids import attempt_id_of
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.profiles.policy import Policy, load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.rebuild.documents import read_document
from scenario_runner.rebuild.reading import Reading, RunReader, collect_rarely
from scenario_runner.rebuild.ready import ReadFirst, ReadyProver, Witness, not_asked
from scenario_runner.rebuild.rebuild import ACTION, CANNOT_KNOW, Rebuild, Report
from scenario_runner.rebuild.refusals import not_empty
from scenario_runner.rebuild.requirements import Requirements
from scenario_runner.rebuild.restore import Restorer
from scenario_runner.service.compose import (
    allowed_roots,
    check_profile,
    make_admission_policy,
    open_artifacts,
    open_authority,
    open_pack,
    open_schemas,
    open_store,
)
from scenario_runner.service.control_bus import open_spool, state_modes
from scenario_runner.service.identity import NamedStore, named_stores, require_known
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

#: Threads that read from S3: each waits 25 ms for an answer, and a run has five documents. A folder is read by the
#: calling thread: its files are in memory mostly.
_S3_READERS: Final = 96
#: The writer inserts as fast as four processes read.
_MOST_PROCESSES: Final = 4
_PROGRESS_SECONDS: Final = 1.0
"""Between two lines of progress."""


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """What the command line says; texts are empty where it says nothing."""

    reason: str
    policy: str
    witness: str
    requested_by: str | None
    dry_run: bool

    def witness_of(self, wiring: Wiring) -> Witness:
        """Who must agree that a run is READY.

        Raises:
            UsageError: nobody of this name, or a stream, which forgets after a day.
        """
        if not self.witness:
            return Witness.BUS if wiring.bus_kind == "spool" else Witness.EVIDENCE
        if self.witness not in set(Witness):
            raise UsageError(f"--witness {self.witness!r} is not one of {', '.join(Witness)}")
        if self.witness == Witness.BUS and wiring.bus_kind != "spool":
            raise UsageError("--witness bus needs a spool: a stream forgets; name evidence, or ledger")
        return Witness(self.witness)


def run(wiring_path: str, options: RebuildOptions, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        document = rebuild_authority(load_wiring(wiring_path), options, as_json=as_json)
    if as_json:
        print_json_line({"report": document}, REBUILD_REPORT)
    else:
        _print_report(document)
    raise typer.Exit(Exit.NEGATIVE if document["findings"] else Exit.DONE)


def rebuild_authority(wiring: Wiring, options: RebuildOptions, *, as_json: bool) -> Json:
    """Rebuild the authority of a profile, or say what would be restored; findings are printed as they are made.

    Returns:
        The report.

    Raises:
        UsageError: options that cannot be used, or an authority that is not empty.
        Unavailable: infrastructure does not answer; the rebuild is unfinished.
    """
    if not options.reason.strip():
        raise UsageError("--reason is empty: the audit says why the authority was rebuilt")
    check_profile(wiring)
    witness = options.witness_of(wiring)
    policy = load_policy(options.policy) if options.policy else None
    os.umask(state_modes(wiring).umask)
    with _authority(wiring, options) as authority:
        store, spool = open_store(wiring), open_spool(wiring)
        stores = named_stores(store, spool)
        identities = tuple((item.name, _identity(item, authority)) for item in stores)
        act = ActionRow(
            f"cli/{secrets.token_hex(16)}", 0, caller(options.requested_by), "cli", ACTION, store.where,
            options.reason, "", "",
        )  # fmt: skip
        make = partial(make_reader, wiring, policy, witness, identities)
        threads = _S3_READERS if wiring.store_root.startswith("s3://") else 0
        reading = Reading(make(), make, threads, _other_processes())
        collect_rarely()
        on_finding = print_finding_line if as_json else print_finding
        terms = _terms(store.where, witness, policy)
        rebuild = Rebuild(authority, store, reading, on_finding, _Progress(), terms)
        report = rebuild.run(act, identities, dry_run=options.dry_run)
    return _document(report, act, identities, witness, options)


def _terms(ledger: str, witness: Witness, policy: Policy | None) -> str:
    """By what runs are restored, as it is kept while a rebuild has not ended, and in the act."""
    named = policy.content_digest if policy is not None else "none"
    return f"ledger {ledger}, witness {witness.value}, policy {named}"


def _other_processes() -> int:
    """Processes that read and verify: one for each core that this one may use. One core has none to share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES) if cores > 1 else 0


def make_reader(
    wiring: Wiring, policy: Policy | None, witness: Witness, identities: tuple[tuple[str, str], ...]
) -> RunReader:
    """What reads and verifies runs, in this process or in another one: with stores of its own, which are those known.

    Raises:
        Unavailable: another store is there.
    """
    store, spool = open_store(wiring), open_spool(wiring)
    stores, known = named_stores(store, spool), dict(identities)
    for item in stores:
        item.store.expect(known[item.name])
    return RunReader(store, _Parts(wiring, policy, witness, store, stores).restorer())


@contextmanager
def readers(wiring: Wiring) -> Iterator[Executor | None]:
    """Threads that read objects; None where the calling thread reads as fast."""
    if not wiring.store_root.startswith("s3://"):
        yield None
        return
    with ThreadPoolExecutor(_S3_READERS, thread_name_prefix="read") as pool:
        yield pool


@contextmanager
def _authority(wiring: Wiring, options: RebuildOptions) -> Iterator[Authority | None]:
    """The authority; a dry run makes none where there is none."""
    if not options.dry_run:
        authority = open_authority(wiring)
        try:
            yield authority
        finally:
            authority.close()
        return
    with existing_authority(wiring) as known:
        if known is not None and known.unfinished_rebuild() is None and known.runs(None, 1):
            raise not_empty(wiring.store_root)
        yield known


def _identity(item: NamedStore, authority: Authority | None) -> str:
    """The identity of a store, which every use of it proves from now on. A store without one is a bare mount point.

    Raises:
        Unavailable: there is none, or another one than the authority knows.
    """
    known = require_known(item, authority) if authority is not None else ""
    identity = known or item.store.identity()
    if not identity:
        raise Unavailable(f"{item.title} has no identity: no daemon ever worked on it; mount the right one there")
    item.store.expect(identity)
    return identity


@dataclass(frozen=True)
class _Parts:
    """The objects of a rebuild, from the profile."""

    wiring: Wiring
    policy: Policy | None
    witness: Witness
    store: ObjectStore
    stores: list[NamedStore]

    def restorer(self) -> Restorer:
        wiring, pack = self.wiring, open_pack(self.wiring)
        packs = PinnedPacks(pack, Ledger(self.store, open_schemas(wiring)))
        admission = make_admission_policy(wiring, self.policy, pack) if self.policy is not None else None
        requirements = Requirements(
            pack, allowed_roots(wiring),
            frozenset(wiring.auth_allowlist) if wiring.auth_mode == "allowlist" else None,
            admission.plan_inputs if admission is not None else None, self.store.locate,
        )  # fmt: skip
        prover = ReadyProver(
            self.store, packs, wiring.control_bus_topic, self.witness, self._spool_reader(), self._examiner(packs)
        )
        return Restorer(self.store.locate, prover.prove, requirements.check, self._launched)

    def _spool_reader(self) -> ReadFirst | None:
        spool = next((item.store for item in self.stores if item.kind == "spool"), None)
        if spool is None:
            return None

        def read(message_id: str, emissions: tuple[int, ...]) -> tuple[bytes, int] | None:
            for emission in emissions:
                name = f"{self.wiring.control_bus_topic}/{signal_file_name(message_id, emission)}"
                try:
                    stored = spool.read(name, MAX_RECORD_BYTES)
                except UnreadableObjectError:
                    return b"", emission
                if stored is not None:
                    return stored.data, emission
            return None

        return read

    def _examiner(self, packs: PinnedPacks) -> "Examiner":
        named = Named(policy_rev=self.policy.rev().wire() if self.policy is not None else None)
        artifacts = open_artifacts(self.wiring, None)
        unknown = Unknown("the authority is being rebuilt")
        verifier = Verifier(
            self.store, packs, artifacts, self.wiring.control_bus_topic, not_asked, lambda _done, _total: None,
            lambda _: unknown, named,
        )  # fmt: skip
        return Examiner(verifier)

    def _launched(self, run_id: str, number: int) -> bool:
        """Whether the invocation document of an attempt is there: engines on ECS read it from the object store."""
        return read_document(self.store, refs.engine_invocation_ref(attempt_id_of(run_id, number))) is not None


class Examiner:
    """Verifies facts views against the engine's files.

    Args:
        verifier: Without the authority, and without the control bus.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def __call__(self, data: bytes) -> Findings:
        """The checks of a facts view."""
        return self._verifier.verify(data)[1]


# --- output


class _Progress:
    """Prints on stderr, at intervals, how many runs were restored."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_SECONDS

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            rate = report.runs / report.seconds if report.seconds else 0.0
            print_err(f"{report.runs} runs read, {report.findings.total()} findings ({rate:.0f} runs/s)")


def print_finding_line(finding: LedgerFinding) -> None:
    """Print a finding as one line of JSON."""
    print_json_line(finding.document(), LEDGER_FINDING)


def print_finding(finding: LedgerFinding) -> None:
    """Print a finding for a person."""
    document = finding.document()
    print_line(f"{document['code']}  {document['object']}")
    print_line(f"  {document['detail']}")
    for name in ("expected", "actual"):
        if document[name]:
            print_line(f"  {name}: {document[name]}")
    print_line(f"  {document['remedy']}")


def _document(
    report: Report, act: ActionRow, identities: tuple[tuple[str, str], ...], witness: Witness, options: RebuildOptions
) -> Json:
    outcome = "FINDINGS" if report.findings else "REBUILT"
    return {
        "outcome": "DRY_RUN" if options.dry_run else outcome,
        "dry_run": options.dry_run,
        "action_key": None if options.dry_run else act.action_key,
        "requested_by": act.actor,
        "reason": act.reason,
        "ledger": act.subject,
        "stores": [{"store": name, "identity": identity} for name, identity in identities],
        "witness": witness.value,
        "runs": report.runs,
        "restored": report.restored,
        "by_state": dict(sorted(report.by_state.items())),
        "events": report.events,
        "attempts": report.attempts,
        "signals": report.signals,
        "findings": report.findings.total(),
        "findings_by_code": dict(sorted(report.findings.items())),
        "seconds": round(report.seconds, 3),
        "cannot_know": list(CANNOT_KNOW),
    }


def _print_report(document: Json) -> None:
    verb = "would be restored" if document["dry_run"] else "restored"
    states = ", ".join(f"{count} {state}" for state, count in document["by_state"].items())
    print_line(f"{document['outcome']}: {document['restored']} of {document['runs']} runs {verb}: {states or 'none'}")
    print_line(f"{document['events']} events, {document['signals']} signals, {document['attempts']} engine attempts")
    print_line(f"READY had to be confirmed by: {document['witness']}")
    for item in document["stores"]:
        print_line(f"the authority knows {item['store']} by its identity {item['identity']}")
    print_line("What the ledger cannot know:")
    for sentence in document["cannot_know"]:
        print_line(f"  - {sentence}")
