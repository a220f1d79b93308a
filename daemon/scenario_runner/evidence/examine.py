"""One examination of a run's evidence: every gate first, then every output, then all of it seen unchanged.

The result is a finished verified set, or the reason why there is none. In both cases a report says what was found
where, per gate and output.
"""

from collections.abc import Sequence
from typing import Final

from scenario_runner.artifacts.base import RunRoot, Snapshot
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import EvidenceMissing, EvidenceRefused, Refusal
from scenario_runner.evidence.engine_receipt import check_run_receipt, output_of_another_run
from scenario_runner.evidence.findings import Finding, Outcome, Report
from scenario_runner.evidence.gate_reader import GateReading, measure, prefetch, read_gate
from scenario_runner.evidence.key import EvidenceKey
from scenario_runner.evidence.output_reader import digest_outputs
from scenario_runner.gates.verified_set import VerifiedSet
from scenario_runner.interface_pack.model import GateSpec, InterfacePack, Law

#: Members whose matching form is shown in a report: more would make events of bundles with many members too large.
_SHOWN_FORMS: Final = 50


def examine(root: RunRoot, pack: InterfacePack, key: EvidenceKey) -> tuple[Finding, Snapshot]:
    """Examine all evidence of a run once.

    Args:
        root: The engine run root of the key, opened; its budget says what the examination may cost.
        pack: The interface pack of the key.
        key: What is to be examined.

    Returns:
        The finding, and everything that it was derived from, which was the same at the end as when it was read.

    Raises:
        EvidenceChanged: something changed during the examination; examine again.
        ReadBudgetExceeded: it costs more than the budget's share.
        ExaminationTooLongError: it took longer than the policy allows.
        Unavailable: something could not be read.
    """
    finding = _examine(root, pack, key)
    snapshot = root.snapshot()
    root.confirm(snapshot)
    return finding, snapshot


def _examine(root: RunRoot, pack: InterfacePack, key: EvidenceKey) -> Finding:
    report = Report()
    verified = VerifiedSet(pack, key.gates, key.outputs)
    # the pack lists its gates with every upstream gate first
    gates = [gate for gate in pack.gates.values() if gate.gate_id in key.gates]
    prefetch(root, gates, key.values())
    if _is_of_another_run(root, pack, key, report):
        return report.finding(None)
    _examine_gates(root, gates, key, verified, report)
    if verified.gates_passed:
        digest_outputs(root, pack, key, verified, report)
    else:
        report.outputs = [_not_read(output_id, "its gates have not passed") for output_id in sorted(key.outputs)]
    if report.worst is not Outcome.PASS:
        return report.finding(None, verified.outputs)
    try:
        return report.finding(verified.finish(), verified.outputs)
    except EvidenceMissing as missing:
        report.classify(missing)
        return report.finding(None)


def _not_read(output_id: str, why: str) -> Json:
    return {"output_id": output_id, "outcome": "NOT_READ", "detail": why}


def _is_of_another_run(root: RunRoot, pack: InterfacePack, key: EvidenceKey, report: Report) -> bool:
    """Check the engine's run receipt. True when a path needs this run's id and the receipt names another run id.

    The engine's run id is its own, and many runs may refer to one engine run. But a path that holds ``{run_id}`` can
    then never exist, so that waiting for it is no use.
    """
    tokens = key.values()
    try:
        engine_run_id = check_run_receipt(root, tokens)
    except Refusal as refusal:
        report.run_receipt = report.classify(refusal)
        return False
    needing = {output_id for output_id in key.outputs if "run_id" in pack.outputs[output_id].template.tokens}
    if not engine_run_id or not needing or engine_run_id == tokens["run_id"]:
        return False
    for output_id in sorted(key.outputs):
        if output_id not in needing:
            report.outputs.append(_not_read(output_id, "the engine run at the root cannot hold all outputs"))
            continue
        path = pack.outputs[output_id].template.render(tokens)
        impossible = output_of_another_run(output_id, path, tokens["run_id"], engine_run_id)
        report.outputs.append({"output_id": output_id, "path": path} | report.classify(impossible))
    return True


def _examine_gates(
    root: RunRoot, gates: Sequence[GateSpec], key: EvidenceKey, verified: VerifiedSet, report: Report
) -> None:
    """Read all required gates together and admit them one by one, each after those that it depends on."""
    tokens = key.values()
    readings = [read_gate(root, gate, tokens) for gate in gates]
    measure(root, readings)
    for reading in readings:
        report.gates.append(_admit_gate(reading, verified, report))


def _admit_gate(reading: GateReading, verified: VerifiedSet, report: Report) -> Json:
    """Admit a gate to the verified set if its evidence passes; returns its entry for the report."""
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
        return entry | report.classify(reading.refusal)
    blocked = verified.blocked_by(gate.gate_id)
    if blocked:
        return entry | {"outcome": "BLOCKED", "blocked_by": blocked, "detail": "an upstream gate has not passed"}
    assert reading.members is not None
    assert reading.measured is not None
    try:
        passed = verified.admit_gate(gate.gate_id, paths, reading.members, reading.measured)
    except EvidenceRefused as refusal:
        return entry | report.classify(refusal)
    entry |= {"outcome": "PASS", "actual": passed.digest, "files": passed.files, "bytes": passed.bytes}
    if gate.law is Law.MEMBER_DIGESTS:
        entry["matched_forms"] = dict(sorted(passed.forms.items())[:_SHOWN_FORMS])
    return entry
