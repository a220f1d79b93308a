"""What a careful downstream reader does with a READY run: believe nothing, recompute everything.

It uses the object store, the control bus and the engine's files, and never reused digests. What was required of the run
is told by the operator or by the rows of the authority, never by the ledger alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from scenario_runner.artifacts.base import Artifacts, RunRoot
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.authority.base import RunRow
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json, sha256_hex
from scenario_runner.contracts.documents import Envelope, ReadySignal, RunFactsView, explain_validation
from scenario_runner.contracts.errors import (
    EvidenceChanged,
    LedgerDrift,
    Refusal,
    RequestRefused,
    SequenceError,
)
from scenario_runner.contracts.ids import HEX64, ready_message_id
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.contracts.states import EventKind, RunState, SignalKind, Strategy
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
from scenario_runner.ledger.ledger import MAX_DOCUMENT, same_receipt
from scenario_runner.runs.evaluation import Evaluation, evaluate
from scenario_runner.runs.packs import Packs
from scenario_runner.runs.requirements import Known, Named, Origin, Unknown, pinned_inputs, pinned_plan
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

ReadSignal = Callable[[str, str], bytes | SearchInconclusive | None]
_TRIES: Final = 3
#: What was admitted under bounds of its own may be verified however large it is.
_ANY_EXTENT: Final = EvidenceBounds(1 << 62, 10_000_000, 366 * 86400)


@dataclass
class Findings:
    """Checks that were made, in order.

    Attributes:
        pack: ``{origin, digest}`` of the interface pack that was verified under; empty when it did not come to that.
        policy: ``{origin, policy_id, revision, content_digest}``.
    """

    checks: list[Json] = field(default_factory=list)
    pack: Json = field(default_factory=dict)
    policy: Json = field(default_factory=dict)

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
        known: What the authority knows of a run.
        named: What the operator named.
    """

    def __init__(
        self,
        store: ObjectStore,
        packs: Packs,
        artifacts: Artifacts,
        topic: str,
        read_signal: ReadSignal,
        heartbeat: Callable[[int], None],
        known: Known,
        named: Named,
    ) -> None:
        self._store, self._packs, self._artifacts, self._topic = store, packs, artifacts, topic
        self._read_signal, self._heartbeat = read_signal, heartbeat
        self._known, self._named = known, named

    def verify(self, data: bytes) -> tuple[str, Findings]:
        """Verify the bytes of a facts view; returns its run id (or empty) and the checks."""
        found = Findings()
        try:
            document = parse_json(data)
            RunFactsView.model_validate(document)
            canonical = canonical_bytes(document)
        except ValidationError as error:
            found.expect("facts view is well formed", ok=False, detail=explain_validation(error))
            return "", found
        except (ValueError, SequenceError) as error:
            found.expect("facts view is well formed", ok=False, detail=str(error))
            return "", found
        found.expect("facts view is well formed", ok=True)
        found.expect("facts view is canonical", ok=canonical == data, detail="its bytes are not those that SR writes")
        run_id = document["run_id"]
        row = self._known(run_id)
        self._check_identity(document, found)
        self._check_ready(document, data, found)
        self._check_row(row, document, data, found)
        self._check_policy(row, document, found)
        pack = self._pack_of(run_id, row, found)
        gates = self._check_plan(document, pack, found) if pack is not None else None
        if pack is not None and gates is not None:
            self._check_evidence(document, pack, gates, found)
        return run_id, found

    # --- documents

    def _bytes(self, ref: str) -> bytes | None:
        """An object; None when there is none that can be read as one."""
        try:
            stored = self._store.read(ref, MAX_DOCUMENT)
        except UnreadableObjectError:
            return None
        return None if stored is None else stored.data

    def _read(self, ref: str) -> Any:  # noqa: ANN401
        data = self._bytes(ref)
        try:
            return None if data is None else parse_json(data)
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
        if isinstance(raw, SearchInconclusive):
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

    # --- what was required

    def _check_row(self, row: RunRow | Unknown, view: Json, data: bytes, found: Findings) -> None:
        """Compare the facts view and the plan with what the authority pinned at admission."""
        if isinstance(row, Unknown):
            found.not_possible("run is as the authority pinned it", row.why)
            return
        inputs = pinned_inputs(row)
        found.expect(
            "authority says READY",
            ok=row.state is RunState.READY,
            expected=RunState.READY.value,
            actual=row.state.value,
        )
        announced, digest = row.facts_view_digest, sha256_hex(data)
        found.expect(
            "facts view is the one that the authority announced",
            ok=announced == digest, expected=announced, actual=digest,
        )  # fmt: skip
        wanted, there = sha256_hex(pinned_plan(row)), self._bytes(refs.plan_ref(row.run_id))
        actual = sha256_hex(there) if there is not None else ""
        found.expect(
            "run_plan is the one that the authority pinned", ok=actual == wanted, expected=wanted, actual=actual
        )
        gates = sorted(item["gate_id"] for item in view["gate_receipts"])
        found.expect(
            "required gates are those that the authority pinned",
            ok=gates == list(inputs.gates), expected=list(inputs.gates), actual=gates,
        )  # fmt: skip
        outputs = view.get("intended_outputs", [])
        found.expect(
            "outputs are those that the authority pinned",
            ok=outputs == list(inputs.outputs), expected=list(inputs.outputs), actual=outputs,
        )  # fmt: skip

    def _check_policy(self, row: RunRow | Unknown, view: Json, found: Findings) -> None:
        check, actual = "policy is named by the operator or pinned by the authority", view["policy_rev"]
        if self._named.policy_rev is not None:
            origin, wanted = Origin.OPERATOR, self._named.policy_rev
        elif not isinstance(row, Unknown):
            origin, wanted = Origin.AUTHORITY, row.inputs["policy_rev"]
        else:
            origin, wanted = Origin.LEDGER, actual
        found.policy = {"origin": origin.value, **wanted}
        if origin is Origin.LEDGER:
            found.not_possible(check, f"it is {origin}; name it with --policy")
        else:
            found.expect(check, ok=wanted == actual, origin=origin.value, expected=wanted, actual=actual)

    def _pack_of(self, run_id: str, row: RunRow | Unknown, found: Findings) -> InterfacePack | None:
        """The pack to verify under; a check of its own says who vouches for it."""
        at_hand = self._packs.current.digest
        if not isinstance(row, Unknown):
            origin, digest = Origin.AUTHORITY, str(row.inputs["pack_digest"])
        else:
            digest = self._recorded_digest(run_id) or at_hand
            origin = Origin.OPERATOR if digest == at_hand else Origin.LEDGER
        if self._named.pack:
            pinned = digest if origin is Origin.AUTHORITY else at_hand
            found.expect(
                "interface pack that was named is the one that the authority pinned",
                ok=pinned == at_hand, expected=pinned, actual=at_hand,
            )  # fmt: skip
            origin, digest = Origin.OPERATOR, at_hand
        try:
            pack = self._packs.get(digest)
        except LedgerDrift as drift:
            found.expect("interface pack is intact", ok=False, detail=drift.detail, **drift.facts())
            return None
        found.pack = {"origin": origin.value, "digest": digest}
        found.expect(
            "interface pack is named by the operator or pinned by the authority",
            ok=origin is not Origin.LEDGER,
            detail=f"it is {origin}, and whoever can write there could have put it there; name the run's pack with "
            "--catalogue and --gate-map, or verify where the authority that admitted the run can be read",
            **found.pack,
        )
        return pack

    def _recorded_digest(self, run_id: str) -> str:
        """Digest of the pack that the ledger's run_record names; empty when it names none."""
        for line in (self._bytes(refs.record_ref(run_id)) or b"").splitlines():
            try:
                event = parse_json(line)
                if event["event_kind"] == EventKind.PLAN_COMMITTED:
                    named = str(event["details"]["interface_pack_digest"])
                    return named if HEX64.fullmatch(named) else ""
            except (ValueError, TypeError, KeyError):
                continue
        return ""

    def _check_plan(self, view: Json, pack: InterfacePack, found: Findings) -> tuple[str, ...] | None:
        """Compare the plan in the ledger with the facts view; the gates that the pack requires, or None."""
        plan = self._read(refs.plan_ref(view["run_id"]))
        if not found.expect("run_plan is there", ok=isinstance(plan, dict)):
            return None
        gates = sorted(item["gate_id"] for item in view["gate_receipts"])
        found.expect("policy of plan and facts view agree", ok=plan.get("policy_rev") == view["policy_rev"])
        found.expect(
            "outputs of plan and facts view agree",
            ok=plan.get("intended_outputs") == view.get("intended_outputs"),
        )
        found.expect("gates of plan and facts view agree", ok=plan.get("required_gates") == gates)
        check = "required gates recompute from the pinned pack"
        try:
            wanted = required_gates(pack, view.get("intended_outputs", []))
        except RequestRefused as refused:
            found.expect(check, ok=False, detail=refused.detail)
            return None
        found.expect(check, ok=list(wanted) == gates, expected=list(wanted), actual=gates)
        return wanted

    # --- evidence

    def _check_evidence(self, view: Json, pack: InterfacePack, gates: tuple[str, ...], found: Findings) -> None:
        intent = _intent_of(view)
        location = _location(view, pack, intent)
        if not found.expect("all evidence lies under one run root", ok=location is not None):
            return
        assert location is not None
        try:
            evaluation = self._evaluate(location, pack, intent, gates, tuple(view["intended_outputs"]))
        except Refusal as refusal:
            found.expect("the engine run can be read", ok=False, detail=refusal.detail)
            return
        self._compare_gates(view, evaluation, intent, location, found)
        self._compare_outputs(view, evaluation, intent, location, found)

    def _evaluate(
        self, location: str, pack: InterfacePack, intent: Intent, gates: tuple[str, ...], outputs: tuple[str, ...]
    ) -> Evaluation:
        for last in (False,) * (_TRIES - 1) + (True,):
            with ReadBudget(self._heartbeat, bounds=_ANY_EXTENT) as budget:
                root: RunRoot = self._artifacts.open(location, budget)
                try:
                    return evaluate(root, pack, intent.tokens(), gates, outputs)
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
            stored = self._bytes(proof.ref) or b""
            found.expect(f"instance receipt of {proof.output_id} is stored", ok=same_receipt(stored, proof.data))
            if proof.manifest_ref:
                found.expect(
                    f"bundle manifest of {proof.output_id} is stored",
                    ok=self._bytes(proof.manifest_ref) == proof.manifest,
                )


def _is_ready(document: object, expected: Json) -> bool:
    try:
        signal = ReadySignal.model_validate(document)
    except ValidationError:
        return False
    return {key: getattr(signal, key) for key in expected} == expected


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
