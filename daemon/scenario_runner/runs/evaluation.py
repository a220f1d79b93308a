"""One look at a run's evidence: every gate judged, then every output digested, then all of it seen unchanged.

The result is either a finished verified set or the reason why there is none, and in both cases a report that says,
per gate and output, what was found where.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.artifacts.base import FileDigest, Kind, RunRoot, SequenceDigest, Snapshot
from scenario_runner.artifacts.budget import ReadBudget, ReadBudgetExceeded
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    EvidenceSaysNo,
    Refusal,
)
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates.verified_set import Verified, VerifiedSet, trailing
from scenario_runner.interface_pack.model import InterfacePack, OutputSpec
from scenario_runner.interface_pack.templates import Shape
from scenario_runner.runs.extent import check_extent
from scenario_runner.runs.gate_evidence import GateReading, measure, prefetch, read_gate
from scenario_runner.runs.receipt_evidence import RECEIPT_IDENTITY, check_run_receipt, output_of_another_run

_SHOWN_FORMS: Final = 50
_LOOKING_KEPT: Final = 10_000
_SHOWN_VERSIONS: Final = 1000
_BUSY_BEAT_SECONDS: Final = 0.5


class Outcome(StrEnum):
    """What a look at the evidence came to, worst first."""

    CONFLICT = "CONFLICT"
    FAIL = "FAIL"
    MISSING = "MISSING"
    PASS = "PASS"  # noqa: S105 - a verdict


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of a look.

    Attributes:
        verified: The finished set when ``outcome`` is PASS, else None.
        report: ``{outcome, gates: [...], outputs: [...]}``, what explain shows.
    """

    outcome: Outcome
    reason: Reason | None
    detail: str
    report: Json
    verified: Verified | None


class _Report:
    """Collects what is found; the first worst finding gives reason and detail."""

    def __init__(self) -> None:
        self.gates: list[Json] = []
        self.outputs: list[Json] = []
        self.receipt: Json = {}
        self.worst = Outcome.PASS
        self.reason: Reason | None = None
        self.detail = ""

    def blame(self, refusal: Refusal) -> Json:
        """Classify a refusal; returns the fields that describe it."""
        outcome = Outcome.CONFLICT
        if isinstance(refusal, EvidenceMissing):
            outcome = Outcome.MISSING
        elif isinstance(refusal, EvidenceSaysNo):
            outcome = Outcome.FAIL
        order = list(Outcome)
        if order.index(outcome) < order.index(self.worst):
            self.worst, self.reason, self.detail = outcome, refusal.reason, refusal.detail
        found: Json = {
            "outcome": outcome.value,
            "reason_code": refusal.reason.value,
            "detail": refusal.detail,
        }
        if isinstance(refusal, EvidenceMissing):
            found["missing"] = refusal.path
        if isinstance(refusal, EvidenceRefused):
            found.update({k: v for k in ("path", "expected", "actual") if (v := getattr(refusal, k))})
        return found

    def document(self) -> Json:
        document: Json = {"outcome": self.worst.value, "gates": self.gates, "outputs": self.outputs}
        return document | ({"run_receipt": self.receipt} if self.receipt else {})


class EvaluationMemory:
    """Passed evaluations, to be believed again while everything they looked at is provably unchanged.

    Judging is a pure function of what was read, so unchanged files, listings, pack and path values give the same
    evaluation. What is unchanged is decided by looking at every file and directory again; only their bytes are not
    read a second time. Bounded; losing an entry costs time only.
    """

    def __init__(self, max_files: int = 50_000) -> None:
        self._max_files, self._files = max_files, 0
        self._kept: OrderedDict[Hashable, tuple[Snapshot, Evaluation]] = OrderedDict()
        self._looking: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @contextmanager
    def alone(self, key: Hashable, budget: ReadBudget) -> Iterator[None]:
        """Examine under a key while nobody else of this process does: who comes later finds what the first one kept.

        Raises:
            ReadBudgetExceeded: somebody examines it just now, and the budget does not allow to wait.
        """
        with self._lock:
            if len(self._looking) > _LOOKING_KEPT:
                self._looking = {key: lock for key, lock in self._looking.items() if lock.locked()}
            lock = self._looking.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=_BUSY_BEAT_SECONDS if budget.share.patient else 0):
            if not budget.share.patient:
                raise ReadBudgetExceeded("the same evidence is being read just now")
            budget.beat()
        try:
            yield
        finally:
            lock.release()

    def recall(self, key: Hashable, root: RunRoot) -> Evaluation | None:
        """The evaluation kept under a key, if all it looked at is still the same."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        try:
            root.confirm(kept[0])
        except Refusal:
            return None
        return kept[1]

    def keep(self, key: Hashable, snapshot: Snapshot, evaluation: Evaluation) -> None:
        """Keep a passed evaluation of files that were unchanged long before they were read."""
        if evaluation.verified is None or not snapshot.stable:
            return
        with self._lock:
            self._forget(key)
            self._kept[key] = (snapshot, evaluation)
            self._files += len(snapshot.files)
            while self._files > self._max_files:
                self._forget(next(iter(self._kept)))

    def _forget(self, key: Hashable) -> None:
        gone = self._kept.pop(key, None)
        self._files -= len(gone[0].files) if gone else 0


def used_tokens(
    pack: InterfacePack, tokens: Mapping[str, str], gates: Iterable[str], outputs: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    """The token values that the verdict on these gates and outputs, or the engine's run receipt, depends on."""
    names: set[str] = set(RECEIPT_IDENTITY)
    for gate_id in gates:
        gate = pack.gates[gate_id]
        names |= set(gate.scope)  # a flag may name the identity that its gate is about
        names |= gate.flag.tokens | gate.bundle_root.tokens | (gate.index.tokens if gate.index else frozenset())
    for output_id in outputs:
        names |= pack.outputs[output_id].template.tokens
    return tuple((name, tokens[name]) for name in sorted(names))


def evaluate(
    root: RunRoot,
    pack: InterfacePack,
    tokens: Mapping[str, str],
    gates: tuple[str, ...],
    outputs: tuple[str, ...],
    memory: EvaluationMemory | None = None,
) -> Evaluation:
    """Examine all evidence of a run once.

    Args:
        root: The engine run root, opened; its budget says what that may cost.
        pack: The pinned interface pack.
        tokens: Values of the path tokens.
        gates: Required gates.
        outputs: Intended outputs.
        memory: Evaluations that may be believed again; None judges everything afresh.

    Raises:
        EvidenceChanged: something changed during the examination; examine again.
        ReadBudgetExceeded: it costs more than the budget's share.
        ExaminationTooLongError: it took longer than the policy allows.
        Unavailable: something could not be read.
    """
    key = (root.location, pack.digest, used_tokens(pack, tokens, gates, outputs), gates, outputs, root.budget.bounds)
    if memory is None:
        return _look(root, pack, tokens, gates, outputs)[0]
    with memory.alone(key, root.budget):
        recalled = memory.recall(key, root)
        if recalled is not None:
            return recalled
        evaluation, snapshot = _look(root, pack, tokens, gates, outputs)
        memory.keep(key, snapshot, evaluation)
        return evaluation


def _look(
    root: RunRoot, pack: InterfacePack, tokens: Mapping[str, str], gates: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[Evaluation, Snapshot]:
    evaluation = _evaluate(root, pack, tokens, gates, outputs)
    snapshot = root.snapshot()
    root.confirm(snapshot)
    return evaluation, snapshot


def _evaluate(
    root: RunRoot,
    pack: InterfacePack,
    tokens: Mapping[str, str],
    gates: tuple[str, ...],
    outputs: tuple[str, ...],
) -> Evaluation:
    report = _Report()
    verified = VerifiedSet(pack, gates, outputs)
    engine_run_id = ""
    try:
        engine_run_id = check_run_receipt(root, tokens)
    except EvidenceChanged:
        raise
    except Refusal as refusal:
        report.receipt = report.blame(refusal)
    if engine_run_id not in ("", tokens["run_id"]) and _refuse_outputs_of_another_run(
        pack, tokens, outputs, engine_run_id, report
    ):
        return Evaluation(report.worst, report.reason, report.detail, report.document(), None)
    _judge_gates(root, pack, tokens, frozenset(gates), verified, report)
    if verified.gates_passed:
        _digest_outputs(root, pack, tokens, outputs, verified, report)
    else:
        report.outputs = [_not_read(output_id, "its gates have not passed") for output_id in sorted(outputs)]
    finished = None
    if report.worst is Outcome.PASS:
        try:
            finished = verified.finish()
        except EvidenceMissing as missing:
            report.blame(missing)
    return Evaluation(report.worst, report.reason, report.detail, report.document(), finished)


def _not_read(output_id: str, why: str) -> Json:
    return {"output_id": output_id, "outcome": "NOT_READ", "detail": why}


def _refuse_outputs_of_another_run(
    pack: InterfacePack, tokens: Mapping[str, str], outputs: tuple[str, ...], engine_run_id: str, report: _Report
) -> bool:
    """Whether a path needs the run's id, which the engine run at the root does not have: waiting is no use."""
    if not any("run_id" in pack.outputs[output_id].template.tokens for output_id in outputs):
        return False
    for output_id in sorted(outputs):
        template = pack.outputs[output_id].template
        if "run_id" not in template.tokens:
            report.outputs.append(_not_read(output_id, "the engine run at the root cannot hold all outputs"))
            continue
        path = template.render(tokens)
        refusal = output_of_another_run(output_id, path, tokens["run_id"], engine_run_id)
        report.outputs.append({"output_id": output_id, "path": path} | report.blame(refusal))
    return True


def _judge_gates(
    root: RunRoot,
    pack: InterfacePack,
    tokens: Mapping[str, str],
    required: frozenset[str],
    verified: VerifiedSet,
    report: _Report,
) -> None:
    gates = [gate for gate in pack.gates.values() if gate.gate_id in required]
    prefetch(root, gates, tokens)
    readings = [read_gate(root, gate, tokens) for gate in gates]
    measure(root, readings)
    for reading in readings:
        report.gates.append(_judge(reading, verified, report))


def _judge(reading: GateReading, verified: VerifiedSet, report: _Report) -> Json:
    gate, paths = reading.gate, reading.paths
    entry: Json = {
        "gate_id": gate.gate_id,
        "law": gate.law.value,
        "flag": paths.flag,
        "bundle_root": paths.bundle_root,
    }
    if paths.index:
        entry["index"] = paths.index
    if reading.members is not None:
        entry["expected"] = reading.members.claimed
    if reading.refusal is not None:
        return entry | report.blame(reading.refusal)
    blocked = verified.blocked_by(gate.gate_id)
    if blocked:
        return entry | {
            "outcome": "BLOCKED",
            "blocked_by": blocked,
            "detail": "an upstream gate has not passed",
        }
    assert reading.members is not None
    assert reading.measured is not None
    try:
        passed = verified.admit_gate(gate.gate_id, paths, reading.members, reading.measured)
    except EvidenceRefused as refusal:
        return entry | report.blame(refusal)
    entry |= {"outcome": "PASS", "actual": passed.digest, "files": passed.files, "bytes": passed.bytes}
    if gate.law.value == "sha256_member_digest_concat":
        entry["matched_forms"] = dict(sorted(passed.forms.items())[:_SHOWN_FORMS])
    return entry


def _digest_outputs(
    root: RunRoot,
    pack: InterfacePack,
    tokens: Mapping[str, str],
    outputs: tuple[str, ...],
    verified: VerifiedSet,
    report: _Report,
) -> None:
    found: dict[str, list[str] | Refusal] = {}
    for output_id in sorted(outputs):
        spec = pack.outputs[output_id]
        try:
            path = spec.template.render(tokens)
            there = _files_of(root, spec, path)
            check_extent(root, path, there)
            found[output_id] = there
        except EvidenceChanged:
            raise
        except Refusal as refusal:
            found[output_id] = refusal
    wanted = [path for files in found.values() if isinstance(files, list) for path in files]
    digested = dict(zip(wanted, root.digest([[path] for path in wanted]), strict=True))
    for output_id, files in found.items():
        spec = pack.outputs[output_id]
        path = trailing(spec, spec.template.render(tokens))
        entry: Json = {"output_id": output_id, "path": path}
        try:
            entry |= _admit_output(spec, path, files, digested, verified)
        except EvidenceChanged:
            raise
        except Refusal as refusal:
            entry |= report.blame(refusal)
        report.outputs.append(entry)


def _files_of(root: RunRoot, spec: OutputSpec, path: str) -> list[str]:
    """Files of an output; empty when there is nothing at its path at all."""
    shape = spec.template.shape
    if shape is Shape.GLOB and "/" not in path:
        return root.files_matching(path)
    kind = root.kind(path.rpartition("/")[0] if shape is Shape.GLOB else path)
    if kind is Kind.ABSENT:
        return []
    if (kind is Kind.FILE) is not (shape is Shape.FILE):
        raise EvidenceRefused(f"{path} is a {kind}, which the path template does not mean", path=path)
    if shape is Shape.FILE:
        return [path]
    if shape is Shape.GLOB:
        return root.files_matching(path)
    files = root.files_under(path, parts=True)
    if not files:
        raise EvidenceMissing(f"the directory {path} of the output {spec.output_id} is empty", path=path)
    return files


def _admit_output(
    spec: OutputSpec,
    path: str,
    files: list[str] | Refusal,
    digested: Mapping[str, SequenceDigest | Refusal],
    verified: VerifiedSet,
) -> Json:
    if isinstance(files, Refusal):
        raise files
    if not files and spec.optional:
        verified.declare_absent(spec.output_id)
        return {"outcome": "ABSENT_OPTIONAL", "detail": "optional and not there"}
    digests: list[FileDigest] = []
    for file in files:
        result = digested[file]
        if isinstance(result, EvidenceMissing) and not isinstance(result, EvidenceArchived):
            raise EvidenceChanged(f"{file} disappeared while it was being read", path=file)
        if isinstance(result, Refusal):
            raise result
        digests.append(result.files[0])
    evidence = verified.admit_output(spec.output_id, path, digests)
    found: Json = {"outcome": "PASS", "digest": evidence.digest, "files": len(digests), "bytes": evidence.bytes}
    versions = {item.path: item.version for item in digests[:_SHOWN_VERSIONS] if item.version}
    return found | ({"versions": versions} if versions else {})
