"""What a careful downstream reader does with a READY run: believe nothing, recompute everything.

It uses the object store, the control bus and the engine's files, never the authority and never reused digests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from scenario_runner.artifacts.base import Artifacts, RunRoot
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.bus.base import NotSeen
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, parse_json, sha256_hex
from scenario_runner.contracts.documents import Envelope, ReadySignal, RunFactsView, explain_validation
from scenario_runner.contracts.errors import (
    EvidenceChanged,
    Refusal,
    RequestRefused,
)
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.contracts.states import EventKind, SignalKind, Strategy
from scenario_runner.gates.laws import gate_paths
from scenario_runner.gates.receipts import (
    ABSENT_NOTE,
    bundle_hash_of,
    gate_receipt,
    instance_receipts,
    locator,
)
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import MAX_DOCUMENT
from scenario_runner.runs.evaluation import Evaluation, evaluate
from scenario_runner.runs.packs import Packs
from scenario_runner.storage.base import ObjectStore, ObjectTooLargeError

ReadSignal = Callable[[str, str], bytes | NotSeen | None]
_TRIES: Final = 3
#: What was admitted under bounds of its own may be verified however large it is.
_ANY_EXTENT: Final = EvidenceBounds(1 << 62, 10_000_000, 366 * 86400)


@dataclass
class Findings:
    """Checks that were made, in order."""

    checks: list[Json] = field(default_factory=list)

    def expect(self, check: str, *, ok: bool, detail: str = "", **facts: Any) -> bool:  # noqa: ANN401
        """Record one check; returns whether it held."""
        entry: Json = {"check": check, "ok": ok, **facts}
        if detail and not ok:
            entry["detail"] = detail
        self.checks.append(entry)
        return ok

    def not_possible(self, check: str, why: str) -> None:
        """Record that a check could not be made: it is no failure of the run, and no proof either."""
        self.checks.append({"check": check, "ok": True, "not_possible": True, "detail": f"not possible: {why}"})

    @property
    def ok(self) -> bool:
        """True when at least one check was made and every one held."""
        made = [check for check in self.checks if not check.get("not_possible")]
        return bool(made) and all(check["ok"] for check in made)


class Verifier:
    """Verifies facts views.

    Args:
        store: The object store.
        packs: The deployed interface pack and pinned ones.
        artifacts: Reader of engine run roots, without digest reuse.
        topic: The control topic.
        read_signal: Envelope bytes of a message id (and run id) on the control bus, None when it is not there, or why
            that cannot be said.
        heartbeat: Called with bytes read, for progress.
    """

    def __init__(
        self,
        store: ObjectStore,
        packs: Packs,
        artifacts: Artifacts,
        topic: str,
        read_signal: ReadSignal,
        heartbeat: Callable[[int], None],
    ) -> None:
        self._store, self._packs, self._artifacts, self._topic = store, packs, artifacts, topic
        self._read_signal, self._heartbeat = read_signal, heartbeat

    def verify(self, data: bytes) -> tuple[str, Findings]:
        """Verify the bytes of a facts view; returns its run id (or empty) and the checks."""
        found = Findings()
        try:
            document = parse_json(data)
            RunFactsView.model_validate(document)
        except ValidationError as error:
            found.expect("facts view is well formed", ok=False, detail=explain_validation(error))
            return "", found
        except ValueError as error:
            found.expect("facts view is well formed", ok=False, detail=str(error))
            return "", found
        found.expect("facts view is well formed", ok=True)
        run_id = document["run_id"]
        self._check_identity(document, found)
        self._check_ready(document, data, found)
        pack = self._check_plan(document, found)
        if pack is not None:
            self._check_evidence(document, pack, found)
        return run_id, found

    # --- documents

    def _read(self, ref: str) -> Any:  # noqa: ANN401
        try:
            stored = self._store.read(ref, MAX_DOCUMENT)
        except ObjectTooLargeError:
            return None
        if stored is None:
            return None
        try:
            return parse_json(stored.data)
        except ValueError:
            return None

    def _check_identity(self, view: Json, found: Findings) -> None:
        run_id = view["run_id"]
        found.expect("pins name the run", ok=view["pins"]["run_id"] == run_id)
        wanted = {"plan_ref": refs.plan_ref, "record_ref": refs.record_ref, "status_ref": refs.status_ref}
        for key, ref in wanted.items():
            found.expect(f"{key} is the run's", ok=view[key] == ref(run_id), detail=f"{view[key]} is not {ref(run_id)}")
        actual = bundle_hash_of(
            view["locators"], view["gate_receipts"], view.get("instance_receipts", []), view["policy_rev"]
        )
        found.expect(
            "bundle_hash recomputes",
            ok=actual == view["bundle_hash"],
            expected=view["bundle_hash"],
            actual=actual,
        )
        located = {item["output_id"] for item in view["locators"]}
        absent = {
            note.removeprefix(ABSENT_NOTE) for note in view.get("evidence_notes", []) if note.startswith(ABSENT_NOTE)
        }
        found.expect(
            "intended outputs are located or declared absent",
            ok=bool(located) and located | absent == set(view.get("intended_outputs", [])) and not located & absent,
        )
        found.expect("every gate receipt is a PASS", ok=all(item["status"] == "PASS" for item in view["gate_receipts"]))

    def _check_ready(self, view: Json, data: bytes, found: Findings) -> None:
        run_id, digest = view["run_id"], sha256_hex(data)
        expected = {
            "run_id": run_id,
            "facts_view_ref": refs.facts_view_ref(run_id),
            "bundle_hash": view["bundle_hash"],
        }
        found.expect(
            "ready_signal points at this facts view",
            ok=_is_ready(self._read(refs.ready_signal_ref(run_id)), expected),
        )
        message_id = ready_message_id(run_id, view["bundle_hash"])
        raw = self._read_signal(message_id, run_id)
        if isinstance(raw, NotSeen):
            found.not_possible("READY is on the control bus", f"message {message_id}: {raw.why}")
            return
        if not found.expect("READY is on the control bus", ok=raw is not None, detail=f"no message {message_id}"):
            return
        try:
            envelope = Envelope.model_validate(parse_json(raw or b""))
        except ValidationError as error:
            found.expect("READY on the control bus is well formed", ok=False, detail=explain_validation(error))
            return
        except ValueError as error:
            found.expect("READY on the control bus is well formed", ok=False, detail=str(error))
            return
        found.expect(
            "READY's envelope is the run's",
            ok=(envelope.topic, envelope.message_id, envelope.partition_key) == (self._topic, message_id, run_id)
            and envelope.attributes.get("kind") in (SignalKind.READY, SignalKind.READY_REEMIT),
        )
        found.expect("READY's payload points at this facts view", ok=_is_ready(envelope.payload, expected))
        claimed = envelope.attributes.get("facts_view_digest")
        found.expect(
            "READY's facts_view_digest is this facts view's", ok=claimed == digest, expected=claimed, actual=digest
        )
        status = self._read(refs.status_ref(run_id))
        found.expect("run_status is READY", ok=isinstance(status, dict) and status.get("state") == "READY")

    def _check_plan(self, view: Json, found: Findings) -> InterfacePack | None:
        run_id = view["run_id"]
        plan = self._read(refs.plan_ref(run_id))
        if not found.expect("run_plan is there", ok=isinstance(plan, dict)):
            return None
        gates = sorted(item["gate_id"] for item in view["gate_receipts"])
        found.expect("policy of plan and facts view agree", ok=plan.get("policy_rev") == view["policy_rev"])
        found.expect(
            "outputs of plan and facts view agree",
            ok=plan.get("intended_outputs") == view.get("intended_outputs"),
        )
        found.expect("gates of plan and facts view agree", ok=plan.get("required_gates") == gates)
        try:
            pack = self._packs.get(self._pinned_digest(run_id))
            wanted = list(required_gates(pack, view.get("intended_outputs", [])))
        except RequestRefused as refused:
            found.expect("required gates recompute from the pinned pack", ok=False, detail=refused.detail)
            return None
        found.expect("required gates recompute from the pinned pack", ok=wanted == gates, expected=wanted, actual=gates)
        return pack

    def _pinned_digest(self, run_id: str) -> str:
        """Digest of the pack that the run's record says it was planned with; the deployed one when it does not say."""
        stored = self._store.read(refs.record_ref(run_id), MAX_DOCUMENT)
        for line in (stored.data if stored else b"").splitlines():
            try:
                event = parse_json(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event_kind") == EventKind.PLAN_COMMITTED:
                return str(event.get("details", {}).get("interface_pack_digest", self._packs.current.digest))
        return self._packs.current.digest

    # --- evidence

    def _check_evidence(self, view: Json, pack: InterfacePack, found: Findings) -> None:
        intent = _intent_of(view)
        location = _location(view, pack, intent)
        if not found.expect("all evidence lies under one run root", ok=location is not None):
            return
        assert location is not None
        try:
            evaluation = self._look(location, pack, intent, view)
        except Refusal as refusal:
            found.expect("the engine run can be read", ok=False, detail=refusal.detail)
            return
        self._compare_gates(view, evaluation, intent, location, found)
        self._compare_outputs(view, evaluation, intent, location, found)

    def _look(self, location: str, pack: InterfacePack, intent: Intent, view: Json) -> Evaluation:
        gates = tuple(sorted(item["gate_id"] for item in view["gate_receipts"]))
        for last in (False,) * (_TRIES - 1) + (True,):
            with ReadBudget(self._heartbeat, bounds=_ANY_EXTENT) as budget:
                root: RunRoot = self._artifacts.open(location, budget)
                try:
                    return evaluate(root, pack, intent.tokens(), gates, tuple(view["intended_outputs"]))
                except EvidenceChanged:
                    if last:
                        raise
                finally:
                    root.close()
        raise AssertionError

    def _compare_gates(
        self, view: Json, evaluation: Evaluation, intent: Intent, location: str, found: Findings
    ) -> None:
        passed = {item.gate.gate_id: item for item in evaluation.verified.gates} if evaluation.verified else {}
        reports = {item["gate_id"]: item for item in evaluation.report["gates"]}
        for receipt in view["gate_receipts"]:
            gate_id = receipt["gate_id"]
            report = reports.get(gate_id, {})
            claimed = receipt.get("digest", {}).get("hex")
            ok = report.get("outcome") == "PASS"
            detail = str(report.get("detail", ""))
            if ok and gate_id in passed and gate_receipt(passed[gate_id], intent, location) != receipt:
                ok, detail = False, "the receipt differs from what the evidence gives"
            found.expect(
                f"gate {gate_id} re-hashes",
                ok=ok and claimed == report.get("actual"),
                detail=detail,
                law=report.get("law"),
                expected=claimed,
                actual=report.get("actual"),
            )

    def _compare_outputs(
        self, view: Json, evaluation: Evaluation, intent: Intent, location: str, found: Findings
    ) -> None:
        reports = {item["output_id"]: item for item in evaluation.report["outputs"]}
        for item in view["locators"]:
            report = reports.get(item["output_id"], {})
            claimed = item.get("content_digest", {}).get("hex")
            found.expect(
                f"output {item['output_id']} re-hashes",
                ok=report.get("outcome") == "PASS" and report.get("digest") == claimed,
                detail=str(report.get("detail", "")),
                expected=claimed,
                actual=report.get("digest"),
            )
        if not found.expect(
            "the evidence as a whole passes", ok=evaluation.verified is not None, detail=evaluation.detail
        ):
            return
        assert evaluation.verified is not None
        rebuilt = [locator(item, intent, location) for item in evaluation.verified.outputs]
        found.expect("locators are what the evidence gives", ok=rebuilt == view["locators"])
        proofs = instance_receipts(evaluation.verified, intent, location)
        found.expect(
            "instance receipts are what the evidence gives",
            ok=[item.document for item in proofs] == view.get("instance_receipts", []),
        )
        for proof in proofs:
            stored = self._read(proof.ref)
            found.expect(f"instance receipt of {proof.output_id} is stored", ok=_same_receipt(stored, proof.document))
            if proof.manifest_ref:
                manifest = self._store.read(proof.manifest_ref, MAX_DOCUMENT)
                found.expect(
                    f"bundle manifest of {proof.output_id} is stored",
                    ok=manifest is not None and manifest.data == proof.manifest,
                )


def _is_ready(document: object, expected: Json) -> bool:
    try:
        signal = ReadySignal.model_validate(document)
    except ValidationError:
        return False
    return {key: getattr(signal, key) for key in expected} == expected


def _same_receipt(stored: object, expected: Json) -> bool:
    if not isinstance(stored, dict) or not isinstance(stored.get("target_ref"), dict):
        return False
    target = {**stored["target_ref"], "path": expected["target_ref"]["path"]}
    return {**stored, "target_ref": target} == expected


def _intent_of(view: Json) -> Intent:
    pins = view["pins"]
    return Intent(
        run_id=view["run_id"],
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


def _location(view: Json, pack: InterfacePack, intent: Intent) -> str | None:
    """The run root that every receipt's flag lies under; None when there is not exactly one."""
    roots = set()
    for receipt in view["gate_receipts"]:
        gate = pack.gates.get(receipt["gate_id"])
        flag = receipt.get("artifacts", {}).get("passed_flag_path", "")
        if gate is None:
            return None
        relative = "/" + gate_paths(gate, intent.tokens()).flag
        if not flag.endswith(relative):
            return None
        roots.add(flag.removesuffix(relative))
    return roots.pop() if len(roots) == 1 else None
