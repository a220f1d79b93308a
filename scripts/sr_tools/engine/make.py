"""One call that writes one sealed engine run, whole or not at all."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sr_tools.engine.damage import ROOT_MISSING, choose_target, do_damage
from sr_tools.engine.damage_outputs import WrittenOutput
from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.files import RunFolder
from sr_tools.engine.identity import DERIVED, Identity, sha256_hex
from sr_tools.engine.pack import DEFAULT_PACK, load_pack
from sr_tools.engine.plan import Plan, choose_outputs, make_plan
from sr_tools.engine.seal import seal_run

WINDOW: Final = {
    "window_start_utc": "2026-01-01T00:00:00Z",
    "window_end_utc": "2026-01-02T00:00:00Z",
    "window_tz": "UTC",
}


def make_run(
    *,
    pack: str | Path = DEFAULT_PACK,
    catalogue: str | Path | None = None,
    gate_map: str | Path | None = None,
    runs: str | Path = "runs",
    number: int = 1,
    run_key: str = "local-demo-1",
    seed: int = 7,
    manifest_fingerprint: str | None = None,
    parameter_hash: str | None = None,
    scenario_id: str = "baseline_v1",
    engine_run_id: str | None = None,
    run_id: str | None = None,
    run_root: str | Path | None = None,
    outputs: Sequence[str] | None = None,
    all_outputs: bool = False,
    skip_optional: bool = False,
    members: int = 6,
    member_bytes: int = 512,
    parts: int = 3,
    part_bytes: int = 4096,
    data_seed: int = 1,
    damage: str | None = None,
    damage_target: str | None = None,
    request: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write one sealed engine run, whole or not at all, and say what it is.

    Args:
        pack: Folder of the interface pack.
        catalogue: The catalogue, where it is not the pack's.
        gate_map: The gate map, where it is not the pack's.
        runs: Folder of all runs; the run goes to ``RUNS/local_full_run-NUMBER/RUN_ID``.
        number: See ``runs``.
        run_key: Run equivalence key.
        seed: Seed of the run, 0 to 2^64-1.
        manifest_fingerprint: 64 hex; None derives it from ``data_seed``.
        parameter_hash: 64 hex; None derives it from ``data_seed``.
        scenario_id: The scenario.
        engine_run_id: The engine's own id of the run, 32 hex, or ``derived``; None takes the id that a request gives.
        run_id: The run id of an invocation, 32 hex: the receipt and the paths carry it. None when there is none.
        run_root: Folder of this run, in the place of the one under ``runs``.
        outputs: Ids of the outputs to write; None for the default ones.
        all_outputs: Every output that a request can address and that is not inside a bundle.
        skip_optional: Leave optional outputs unwritten; the request still asks for them.
        members: Members per bundle.
        member_bytes: Bytes per member.
        parts: Files per directory or glob output.
        part_bytes: Bytes per output file.
        data_seed: What all bytes follow from.
        damage: One of :data:`~sr_tools.engine.damage.DAMAGE_KINDS`; None leaves the run in order.
        damage_target: Id of the gate or output that the damage goes to; None for the first that it applies to.
        request: File to write a run request to; None writes none.
        force: Replace a run that is already there.

    Returns:
        ``{run_id, engine_run_id, run_equivalence_key, engine_run_root (absolute), manifest_fingerprint,
        parameter_hash, seed, scenario_id, output_ids, gate_ids, damage, damage_target,
        bytes, files, request}``; bytes and files count the run as sealed.

    Raises:
        MakeRunError: A value, an id or a damage does not fit, or the run is there already.
    """
    identity = Identity(
        run_key=run_key,
        seed=seed,
        manifest_fingerprint=manifest_fingerprint or sha256_hex(f"manifest_fingerprint|{data_seed}".encode()),
        parameter_hash=parameter_hash or sha256_hex(f"parameter_hash|{data_seed}".encode()),
        scenario_id=scenario_id,
        engine_run_id=engine_run_id or "",
        invoked_for=run_id or "",
    )
    if engine_run_id == DERIVED:
        identity = replace(identity, engine_run_id=sha256_hex(f"engine_run|{data_seed}|{run_key}".encode())[:32])
    identity.check()
    folder = RunFolder(Path(), data_seed, members, member_bytes, parts, part_bytes)
    folder.check()
    loaded = load_pack(pack, catalogue, gate_map)
    plan = make_plan(loaded, choose_outputs(loaded, outputs, all_outputs=all_outputs), identity)
    target = choose_target(damage, damage_target, plan, skip_optional=skip_optional)

    # Everything is checked by now: what follows writes.
    root = Path(runs).resolve() / f"local_full_run-{number}" / identity.folder_name
    if run_root is not None:
        root = Path(run_root).resolve()
    _write_run(root, folder, plan, identity, damage, target, skip_optional=skip_optional, force=force)
    if request is not None:
        _write_request(Path(request), run_request(identity, plan, root))
    return identity.document() | {
        "run_id": identity.run_id,
        "engine_run_id": identity.folder_name,
        "engine_run_root": str(root),
        "output_ids": [output.output_id for output in plan.outputs],
        "gate_ids": [gate.gate_id for gate in plan.gates],
        "damage": damage,
        "damage_target": target,
        "bytes": sum(folder.sizes.values()),
        "files": len(folder.sizes),
        "request": None if request is None else str(request),
    }


def _write_run(
    root: Path,
    folder: RunFolder,
    plan: Plan,
    identity: Identity,
    damage: str | None,
    target: str | None,
    *,
    skip_optional: bool,
    force: bool,
) -> None:
    """Seal a run under a temporary name, rename it to its own, and damage it there.

    Damage comes last because some kinds write absolute paths or put something next to the run root.
    """
    outside, folder.root = root.with_name(f"{root.name}.outside"), root.with_name(f".{root.name}.making")
    _make_room(root, outside, folder.root, force=force)
    written = seal_run(folder, plan, identity, skip_optional=skip_optional)
    if damage == ROOT_MISSING:
        shutil.rmtree(folder.root)
        return
    folder.root.rename(root)
    if damage is not None and target is not None:
        files = [root / rel for rel in written.get(target, [])]
        do_damage(damage, plan, target, WrittenOutput(root, files, outside))


def _make_room(root: Path, outside: Path, making: Path, *, force: bool) -> None:
    if not force and (root.exists() or root.is_symlink()):
        raise MakeRunError(f"{root} exists; give --force to replace it, or another --number or --run-key")
    for path in (root, outside, making):
        if path.is_symlink() or path.exists():
            shutil.rmtree(path)
    making.mkdir(parents=True)


def run_request(identity: Identity, plan: Plan, root: Path) -> dict[str, object]:
    """A run request that asks for this run's outputs and never invokes an engine."""
    return {
        "run_equivalence_key": identity.run_key,
        "manifest_fingerprint": identity.manifest_fingerprint,
        "parameter_hash": identity.parameter_hash,
        "seed": identity.seed,
        "scenario": {"scenario_id": identity.scenario_id},
        "window": WINDOW,
        "requested_strategy": "FORCE_REUSE",
        "output_ids": [output.output_id for output in plan.outputs],
        "engine_run_root": str(root),
        "invoker": "make_engine_run",
    }


def _write_request(path: Path, document: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
