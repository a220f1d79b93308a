"""``authority rebuild``: recreate an empty authority from the ledger."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import typer

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.base import Authority
from scenario_runner.cli.acting import actor_of
from scenario_runner.cli.console import Exit, exit_on_error, print_json_line, print_line
from scenario_runner.cli.ledger_reading import Progress, print_finding, print_finding_line, reading_threads
from scenario_runner.cli.outputs.acting import REBUILD_REPORT
from scenario_runner.cli.read_only import existing_authority
from scenario_runner.cli.rebuild_reader import Terms, make_reader
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.rebuild.bus import Witness
from scenario_runner.rebuild.reading import Reading, collect_rarely, processes
from scenario_runner.rebuild.rebuild import ACTION, CANNOT_KNOW, Rebuild, Report, begin
from scenario_runner.rebuild.refusals import not_empty
from scenario_runner.service.compose import check_profile, open_authority
from scenario_runner.service.control_bus import open_spool, state_modes
from scenario_runner.service.identity import NamedStore, named_stores, require_known
from scenario_runner.service.production import load_to_write

#: The writer inserts as fast as four processes read.
_MOST_PROCESSES: Final = 4


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """What the command line says; texts are empty where it says nothing."""

    reason: str
    policy: str
    witness: str
    requested_by: str | None
    dry_run: bool
    catalogues: tuple[str, ...] = ()
    gate_maps: tuple[str, ...] = ()

    def packs(self) -> tuple[Json, ...]:
        """Documents of the interface packs that are named in addition to the profile's.

        Raises:
            UsageError: a file of one is missing.
            ConfigurationError: one is not valid.
        """
        if len(self.catalogues) != len(self.gate_maps):
            raise UsageError("an interface pack is two files: give as many --gate-map as --catalogue, in one order")
        return tuple(load_pack(*files).document for files in zip(self.catalogues, self.gate_maps, strict=True))

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
        document = rebuild_authority(load_to_write(wiring_path), options, as_json=as_json)
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
    terms = Terms(load_policy(options.policy) if options.policy else None, witness, options.packs())
    os.umask(state_modes(wiring).umask)
    make, threads, number = partial(make_reader, wiring, terms), reading_threads(wiring), _others()
    with processes(make, threads, number) as pool, _authority(wiring, options) as authority:
        reader, progress = make(), Progress()
        store = reader.store
        stores = named_stores(store, open_spool(wiring))
        identities = tuple((item.name, _identity(item, authority)) for item in stores)
        reader.expect(identities)
        act = ActionRow(
            f"cli/{secrets.token_hex(16)}", 0, actor_of(options.requested_by), "cli", ACTION, store.where,
            options.reason, "", "",
        )  # fmt: skip
        text, into = terms.text(store.where, wiring), None
        if authority is not None and not options.dry_run:
            into = begin(authority, act, text)
        reading = Reading(reader, identities, threads, pool)
        # Not before: until the authority is marked, a daemon may publish.
        ends = reading.ends(
            wiring.control_bus_topic, lambda read: progress(lambda _: f"{read} signals of the control bus read")
        )
        collect_rarely()
        rebuild = Rebuild(
            into, store, reading, print_finding_line if as_json else print_finding,
            lambda report: progress(partial(_progress, report)), text, ends, (reader.spool or store).locate,
        )  # fmt: skip
        report = rebuild.run(act, identities)
    return _document(report, act, identities, witness, options)


def _progress(report: Report, seconds: float) -> str:
    return f"{report.runs} runs read, {report.findings.total()} findings ({report.runs / seconds:.0f} runs/s)"


def _others() -> int:
    """Processes that read and verify: one for each core that this one may use. One core has none to share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES) if cores > 1 else 0


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
        "next": _next(report, options),
    }


def _next(report: Report, options: RebuildOptions) -> list[str]:
    """What an operator does now."""
    if options.dry_run:
        right = "Put right what the findings say; their runs would stay out. " if report.findings else ""
        return [f"{right}Then rebuild: the same command without --dry-run."]
    steps = [
        "Compare both sides: scenario-runner ledger check.",
        "Start the daemons, and send requests that were admitted and not driven yet again.",
    ]
    if report.findings:
        again = (
            "Runs with findings stay out, and nothing is published for them. To have them back, put right what the "
            "findings say and rebuild into another empty database, before a daemon works on this one."
        )
        return [again, *steps]
    return steps


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
    print_line("What to do next:")
    for sentence in document["next"]:
        print_line(f"  - {sentence}")
