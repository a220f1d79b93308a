"""Checks that recompute: every gate and output is read and hashed again, and gives what was published."""

from collections.abc import Callable
from typing import Final

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.audit.documents import PublishedDocuments, PublishedView
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.parts import drifted_parts
from scenario_runner.contracts.errors import EvidenceChanged, Refusal
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.contracts.states import Strategy
from scenario_runner.evidence.examine import examine
from scenario_runner.evidence.findings import Finding
from scenario_runner.evidence.key import EvidenceKey, evidence_key
from scenario_runner.gates.laws import gate_paths
from scenario_runner.gates.receipts import gate_receipt, instance_receipts, locator
from scenario_runner.gates.verified_set import Verified
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import same_receipt

#: How often evidence that changes while it is read is examined. Nobody should write to the evidence of a READY run, so
#: a change is an accident (a file touched by a backup) that does not happen three times in a row.
_EXAMINATIONS: Final = 3
#: The run was admitted under the bounds of its own policy, and the reader's policy has no say in what may be verified:
#: no policy allows more bytes (4 EiB), files or seconds than these.
_ANY_EXTENT: Final = EvidenceBounds(1 << 62, 10_000_000, 366 * 86400)


class EvidenceCheck:
    """Recomputes the evidence of a facts view.

    Args:
        artifacts: Reader of engine run roots, without digest reuse: every byte is read.
        documents: The ledger's documents.
        progress: Called with the bytes hashed so far, and those to hash of the files listed so far.
    """

    def __init__(
        self, artifacts: Artifacts, documents: PublishedDocuments, progress: Callable[[int, int], None]
    ) -> None:
        self._artifacts, self._documents, self._progress = artifacts, documents, progress

    def check(self, view: PublishedView, pack: InterfacePack, gates: tuple[str, ...], found: Findings) -> None:
        """Examine the evidence under a pack and compare gates, outputs and receipts with a facts view.

        Args:
            view: The facts view.
            pack: The interface pack to verify under.
            gates: The gates that the pack requires.
            found: Receives the checks.
        """
        intent = _intent_of(view)
        location = _location(view, pack, intent)
        found.expect("all evidence lies under one run root", ok=location is not None)
        if location is None:
            return
        try:
            key = evidence_key(location, pack, intent.tokens(), gates, view.outputs, _ANY_EXTENT)
            finding = self._examine(pack, key)
        except (Refusal, EvidenceChanged) as error:
            found.expect("the engine run can be read", ok=False, detail=error.detail)
            return
        _compare_gates(view, finding, intent, location, found)
        self._compare_outputs(view, finding, found)
        verified = finding.verified
        found.expect("the evidence as a whole passes", ok=verified is not None, detail=finding.detail)
        if verified is not None:
            self._compare_receipts(view, verified, intent, location, found)

    def _examine(self, pack: InterfacePack, key: EvidenceKey) -> Finding:
        for last in (False,) * (_EXAMINATIONS - 1) + (True,):
            with ReadBudget(lambda more: self._has_read(more, budget), bounds=key.bounds) as budget:
                root = self._artifacts.open(key.root, budget)
                try:
                    return examine(root, pack, key)[0]
                except EvidenceChanged:
                    if last:
                        raise
                    self._before_next_try()
                finally:
                    root.close()
        raise AssertionError

    def _has_read(self, _more: int, budget: ReadBudget) -> None:
        """Called from any thread, when bytes were hashed.

        Args:
            _more: How many.
            budget: That of the examination.
        """
        self._progress(budget.hashed, budget.to_hash)

    def _before_next_try(self) -> None:
        """Called before evidence that changed meanwhile is examined again."""

    def _compare_outputs(self, view: PublishedView, finding: Finding, found: Findings) -> None:
        reports = {item["output_id"]: item for item in finding.report["outputs"]}
        read = {item.spec.output_id: item for item in finding.outputs}
        for item in view.document["locators"]:
            output_id, claimed = item["output_id"], item.get("content_digest", {}).get("hex")
            report = reports.get(output_id, {})
            actual, detail, parts = report.get("digest"), str(report.get("detail", "")), None
            if output_id in read and actual != claimed:
                detail, parts = drifted_parts(read[output_id], str(claimed), view, self._documents)
            found.expect(
                f"output {output_id} re-hashes", ok=report.get("outcome") == "PASS" and actual == claimed,
                detail=detail, expected=claimed, actual=actual, **({"parts": parts} if parts else {}),
            )  # fmt: skip

    def _compare_receipts(
        self, view: PublishedView, verified: Verified, intent: Intent, location: str, found: Findings
    ) -> None:
        rebuilt = [locator(item, intent.identity(), location) for item in verified.outputs]
        found.expect("locators are what the evidence gives", ok=rebuilt == view.document["locators"])
        receipts = instance_receipts(verified, intent.identity(), location)
        found.expect(
            "instance receipts are what the evidence gives",
            ok=[item.document for item in receipts] == view.document.get("instance_receipts", []),
        )
        for receipt in receipts:
            stored = self._documents.read_bytes(receipt.ref) or b""
            found.expect(f"instance receipt of {receipt.output_id} is stored", ok=same_receipt(stored, receipt.data))
            if receipt.manifest_ref:
                manifest = self._documents.read_bytes(receipt.manifest_ref)
                found.expect(f"bundle manifest of {receipt.output_id} is stored", ok=manifest == receipt.manifest)


def _compare_gates(view: PublishedView, finding: Finding, intent: Intent, location: str, found: Findings) -> None:
    passed = {item.gate.gate_id: item for item in finding.verified.gates} if finding.verified else {}
    reports = {item["gate_id"]: item for item in finding.report["gates"]}
    for receipt in view.document["gate_receipts"]:
        gate_id = receipt["gate_id"]
        report = reports.get(gate_id, {})
        claimed, actual = receipt.get("digest", {}).get("hex"), report.get("actual")
        ok, detail = report.get("outcome") == "PASS", str(report.get("detail", ""))
        if gate_id in passed and gate_receipt(passed[gate_id], intent.identity(), location) != receipt:
            ok, detail = False, "the receipt differs from what the evidence gives"
        found.expect(
            f"gate {gate_id} re-hashes",
            ok=ok and claimed == actual, detail=detail, law=report.get("law"), expected=claimed, actual=actual,
        )  # fmt: skip


def _intent_of(view: PublishedView) -> Intent:
    """The part of the run's intent that receipts and paths depend on; a facts view holds no more of it."""
    pins = view.document["pins"]
    return Intent(
        run_id=view.run_id,
        run_equivalence_key="",
        manifest_fingerprint=pins["manifest_fingerprint"],
        parameter_hash=pins["parameter_hash"],
        seed=pins["seed"],
        scenario_id=pins["scenario_id"],
        scenario_set=(),
        window_start_utc="",
        window_end_utc="",
        output_ids=(),
        strategy=Strategy.AUTO,
        engine_run_root="",
    )


def _location(view: PublishedView, pack: InterfacePack, intent: Intent) -> str | None:
    """The run root that the flag of every receipt lies under; None when there is not exactly one."""
    roots = set()
    for receipt in view.document["gate_receipts"]:
        gate = pack.gates.get(receipt["gate_id"])
        flag = receipt.get("artifacts", {}).get("passed_flag_path", "")
        if gate is None:
            return None
        relative = "/" + gate_paths(gate, intent.tokens()).flag
        if not flag.endswith(relative):
            return None
        roots.add(flag.removesuffix(relative))
    return roots.pop() if len(roots) == 1 else None
