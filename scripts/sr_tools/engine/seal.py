"""Sealing a run: bundles with index and passed flag, then outputs, then the receipt of the run.

The order is the engine's: a flag is written after everything that it attests.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from sr_tools.engine.files import RunFolder, output_files, payload
from sr_tools.engine.identity import Identity, sha256_hex
from sr_tools.engine.laws import INDEX_SHAPES, digest_of, files_below, law_digest
from sr_tools.engine.pack import CONCAT_LAW, INDEX_LAW, Gate
from sr_tools.engine.plan import Plan

MEMBER_NAMES: Final = (  # the byte order of these differs from an order by path component
    "checks/summary.bin",
    "checks-overview.bin",
    "Zeta_report.bin",
    "metrics.bin",
    "checks/deep/rng_accounting.bin",
    "s0_gate_receipt.bin",
)
#: Members of the concatenation law come in three forms (raw bytes, canonical JSON, a directory): one of each at least.
MEMBER_FORMS: Final = 3

Row = dict[str, object]


def seal_run(folder: RunFolder, plan: Plan, identity: Identity, *, skip_optional: bool) -> dict[str, list[str]]:
    """Write bundles, outputs and the receipt.

    Args:
        folder: Where to write.
        plan: What to write.
        identity: Of the run.
        skip_optional: Whether optional outputs stay unwritten.

    Returns:
        The relative paths of each output's files by output id, but for outputs inside a bundle: they are members of it.
    """
    kept = [output for output in plan.outputs if not (skip_optional and output.optional)]
    files = {o.output_id: output_files(plan.paths[o.output_id], folder.parts) for o in kept}
    for gate in plan.gates:
        own = {gate.bundle, gate.flag, gate.index}
        inside = [o for o in kept if plan.bundle_of(o) is gate and plan.paths[o.output_id] not in own]
        seal_gate(folder, gate, [rel for output in inside for rel in files[output.output_id]])
    written = {o.output_id: files[o.output_id] for o in kept if plan.bundle_of(o) is None}
    for rel in (rel for rels in written.values() for rel in rels):
        folder.write_payload(rel, folder.part_bytes)
    receipt = identity.document() | {
        "written_by": "make_engine_run",
        "data_seed": folder.data_seed,
        "gates": [gate.gate_id for gate in plan.gates],
        "outputs": sorted(files),
    }
    folder.write_json("run_receipt.json", receipt)
    return written


def seal_gate(folder: RunFolder, gate: Gate, extras: Sequence[str]) -> None:
    """Write one gate's bundle: members, index document, and the passed flag last.

    Args:
        folder: Where to write.
        gate: A resolved gate.
        extras: Relative paths of output files that lie in the bundle; they become members.
    """
    rows = _write_members(folder, gate, extras)
    if gate.index is not None:
        folder.write_json(gate.index, _index_document(gate, rows))
    folder.write(gate.flag, [flag_bytes(gate, {gate.digest_field: law_digest(folder.root, gate)})])


def flag_bytes(gate: Gate, fields: Mapping[str, str]) -> bytes:
    """The text of a passed flag: ``field = hex`` lines at even positions of the gate map, JSON at odd ones."""
    if gate.position % 2:
        return json.dumps(dict(fields)).encode() + b"\n"
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()


def _index_document(gate: Gate, rows: list[Row]) -> object:
    """The index document, in the shape that goes with the gate's position.

    Where the index law leaves out the index file itself, the index lists itself too (it cannot know its own digest),
    as real bundles do.
    """
    if gate.law == INDEX_LAW and gate.is_excluded(str(gate.index)):
        rows = [*rows, {"path": str(gate.index)[len(gate.member_base) :]}]
    shape = INDEX_SHAPES[gate.position % len(INDEX_SHAPES)]
    return rows if shape == "list" else {"gate_id": gate.gate_id, shape: rows}


def _write_members(folder: RunFolder, gate: Gate, extras: Sequence[str]) -> list[Row]:
    """Write the members of a bundle; returns their index rows, not in order of path."""
    count = max(folder.members, MEMBER_FORMS) if gate.law == CONCAT_LAW else folder.members
    name, rows = _digest_name(gate), list[Row]()
    for number in range(count):
        write = _write_formed_member if gate.law == CONCAT_LAW else _write_raw_member
        rel, digest = write(folder, _member_directory(gate), number)
        rows.append({"path": rel[len(gate.member_base) :], name: digest})
    for rel in extras:
        digest = digest_of([folder.write_payload(rel, folder.part_bytes)])
        rows.append({"path": rel[len(gate.member_base) :], name: digest})
    return rows


def _digest_name(gate: Gate) -> str:
    """The name of a listed digest: some gates list under the flag's own field, as real bundles do."""
    if gate.law == CONCAT_LAW or (gate.law == INDEX_LAW and not gate.position % 3):
        return gate.digest_field
    return "sha256_hex"


def _member_directory(gate: Gate) -> str:
    """Where members are put: the bundle, or a folder next to it when paths start from the run root."""
    if not gate.run_root:
        return gate.bundle
    evidence = gate.bundle.replace("/validation/", "/evidence/", 1)
    return evidence if evidence != gate.bundle else f"evidence/{gate.gate_id}/"


def _write_raw_member(folder: RunFolder, directory: str, number: int) -> tuple[str, str]:
    """Write one plain file; returns its relative path and digest."""
    known = number < len(MEMBER_NAMES)
    rel = directory + (MEMBER_NAMES[number] if known else f"extra/member_{number:05d}.bin")
    return rel, digest_of([folder.write_payload(rel, folder.member_bytes)])


def _write_formed_member(folder: RunFolder, directory: str, number: int) -> tuple[str, str]:
    """Write one member whose digest is over raw bytes, canonical JSON or a directory, in turn."""
    form = number % MEMBER_FORMS
    if form == 0:
        rel = f"{directory}raw/member_{number:05d}.bin"
        return rel, digest_of([folder.write_payload(rel, folder.member_bytes)])
    if form == 1:
        rel = f"{directory}reports/member_{number:05d}.json"
        filler = b"".join(payload(folder.data_seed, rel, (folder.member_bytes + 1) // 2)).hex()
        # An integer beyond 2^63 and a letter beyond ASCII: both are where canonical forms of JSON differ.
        report = {"status": "PASS", "number": number, "max": 2**64 - 1, "note": "gr\u00fcn", "filler": filler}
        folder.write_json(rel, report)
        canonical = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return rel, sha256_hex(canonical.encode())
    rel = f"{directory}tables/member_{number:05d}"
    for name in ("b.bin", "a/z.bin", "a-1.bin"):
        folder.write_payload(f"{rel}/{name}", max(1, folder.member_bytes // 3))
    return rel, digest_of(files_below(folder.root / rel))
