"""What a run was required to show, and who says so: the operator, the authority, or the ledger alone.

The ledger alone is no witness: whoever can write it could lower the requirements of a run and publish a READY that
meets them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from scenario_runner.audit.documents import PublishedDocuments, PublishedView
from scenario_runner.audit.findings import Findings
from scenario_runner.authority.values import RunRow
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json, sha256_hex
from scenario_runner.contracts.errors import LedgerDrift, RequestRefused
from scenario_runner.contracts.ids import HEX64
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import PlanInputs, plan_document, plan_inputs_from_document
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.packs import PinnedPacks


class Origin(StrEnum):
    """Who vouches for the pack or policy that a run is verified under."""

    OPERATOR = "named by the operator"
    AUTHORITY = "pinned by the authority"
    LEDGER = "vouched for by the ledger only"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The authority says nothing about a run; ``why`` is the reason."""

    why: str


Known = Callable[[str], RunRow | Unknown]
"""What the authority knows of a run id."""


@dataclass(frozen=True, slots=True)
class Named:
    """What the operator names on the command line, in addition to the profile.

    Attributes:
        pack: True when the current pack was named on the command line: it counts whatever the run was pinned to.
        policy_rev: ``{policy_id, revision, content_digest}``; None when no policy was named.
    """

    pack: bool = False
    policy_rev: Json | None = None


def check_pinned(row: RunRow | Unknown, view: PublishedView, documents: PublishedDocuments, found: Findings) -> None:
    """Compare the facts view and the plan with what the authority pinned when it admitted the run."""
    if isinstance(row, Unknown):
        found.not_possible("run is as the authority pinned it", row.why)
        return
    pinned = plan_inputs_from_document(row.inputs)
    found.expect_equal("authority says READY", expected=RunState.READY.value, actual=row.state.value)
    found.expect_equal(
        "facts view is the one that the authority announced", expected=row.facts_view_digest, actual=view.digest
    )
    plan = documents.read_bytes(refs.plan_ref(row.run_id))
    found.expect_equal(
        "run_plan is the one that the authority pinned",
        expected=sha256_hex(_pinned_plan(row, pinned)), actual="" if plan is None else sha256_hex(plan),
    )  # fmt: skip
    found.expect_equal(
        "required gates are those that the authority pinned", expected=list(pinned.gates), actual=view.gates
    )
    found.expect_equal(
        "outputs are those that the authority pinned", expected=list(pinned.outputs), actual=view.outputs
    )


def _pinned_plan(row: RunRow, pinned: PlanInputs) -> bytes:
    """The bytes of the only run_plan that this run can have."""
    intent = intent_from_document(row.run_id, row.run_equivalence_key, row.intent)
    return canonical_bytes(plan_document(intent, pinned, row.admitted_us))


def check_policy(row: RunRow | Unknown, view: PublishedView, named: Named, found: Findings) -> None:
    """Compare the policy of the facts view with the one that the operator named, or else the authority pinned."""
    check, actual = "policy is named by the operator or pinned by the authority", view.document["policy_rev"]
    if named.policy_rev is not None:
        origin, wanted = Origin.OPERATOR, named.policy_rev
    elif not isinstance(row, Unknown):
        origin, wanted = Origin.AUTHORITY, row.inputs["policy_rev"]
    else:
        origin, wanted = Origin.LEDGER, actual
    found.policy = {"origin": origin.value, **wanted}
    if origin is Origin.LEDGER:
        found.not_possible(check, f"it is {origin}; name it with --policy")
    else:
        found.expect_equal(check, expected=wanted, actual=actual, origin=origin.value)


def choose_pack(
    row: RunRow | Unknown, run_id: str, packs: PinnedPacks, named: Named, documents: PublishedDocuments, found: Findings
) -> InterfacePack | None:
    """The interface pack to verify under, after a check of who vouches for it; None when its object is not intact."""
    current = packs.current.digest
    if not isinstance(row, Unknown):
        origin, digest = Origin.AUTHORITY, str(row.inputs["pack_digest"])
    else:
        digest = _recorded_pack(documents.read_bytes(refs.record_ref(run_id))) or current
        origin = Origin.OPERATOR if digest in packs.vouched else Origin.LEDGER
    if named.pack:
        pinned = digest if origin is Origin.AUTHORITY else current
        found.expect_equal(
            "interface pack that was named is the one that the authority pinned", expected=pinned, actual=current
        )
        origin, digest = Origin.OPERATOR, current
    try:
        pack = packs.get(digest)
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


def _recorded_pack(record: bytes | None) -> str:
    """Digest of the pack that a run_record names; empty when it names none."""
    for line in (record or b"").splitlines():
        try:
            event = parse_json(line)
            if event["event_kind"] == EventKind.PLAN_COMMITTED:
                digest = str(event["details"]["interface_pack_digest"])
                return digest if HEX64.fullmatch(digest) else ""
        except (ValueError, TypeError, KeyError):
            continue
    return ""


def check_plan(
    view: PublishedView, pack: InterfacePack, documents: PublishedDocuments, found: Findings
) -> tuple[str, ...] | None:
    """Compare the plan in the ledger with the facts view, and both with the pack.

    Returns:
        The gates that the pack requires for the outputs of the facts view; None when that cannot be computed.
    """
    plan = documents.read_object(refs.plan_ref(view.run_id))
    found.expect("run_plan is there", ok=plan is not None)
    if plan is None:
        return None
    policy_rev, outputs = view.document["policy_rev"], view.document.get("intended_outputs")
    found.expect("policy of plan and facts view agree", ok=plan.get("policy_rev") == policy_rev)
    found.expect("outputs of plan and facts view agree", ok=plan.get("intended_outputs") == outputs)
    found.expect("gates of plan and facts view agree", ok=plan.get("required_gates") == view.gates)
    check = "required gates recompute from the pinned pack"
    try:
        wanted = required_gates(pack, view.outputs)
    except RequestRefused as refused:
        found.expect(check, ok=False, detail=refused.detail)
        return None
    found.expect_equal(check, expected=list(wanted), actual=view.gates)
    return wanted
