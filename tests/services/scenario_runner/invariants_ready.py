"""Invariants of what READY stands on: facts views, locators, gates, receipts, write-once objects."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import yaml
from invariants_world import PARTITIONS, PREFIX, RUN, Facts, Json, Pack, bytes_of, canonical, files_below, render, sha


def output_files(root: Path, template: str, tokens: Mapping[str, str]) -> list[str]:
    """Files of an output, relative to the run root, in byte order."""
    path = render(template, tokens)
    if path.endswith("/"):
        return [path + name for name in files_below(root / path)] if (root / path).is_dir() else []
    head, _, tail = path.rpartition("/")
    if "*" not in tail:
        return [path] if (root / path).exists() else []
    pattern = re.compile(".*".join(map(re.escape, tail.split("*"))), re.DOTALL)
    names = os.listdir(root / head) if (root / head).is_dir() else []
    return sorted((f"{head}/{name}" for name in names if pattern.fullmatch(name)), key=os.fsencode)


def output_digest(root: Path, template: str, tokens: Mapping[str, str]) -> tuple[str, bytes]:
    """Digest of an output and its bundle manifest (empty for one file); ValueError when it holds no file."""
    files = output_files(root, template, tokens)
    if not files:
        raise ValueError("it holds no regular file")
    path = render(template, tokens)
    if not path.endswith("/") and "*" not in path:
        return sha(bytes_of(root, path)), b""
    parts = {rel: bytes_of(root, rel) for rel in files}
    manifest = canonical([{"path": rel, "bytes": len(data), "sha256": sha(data)} for rel, data in parts.items()])
    return sha(manifest), manifest


# ---------------------------------------------------------------- I1..I15, each an iterator of sentences


def i1_ready_points_at_its_facts_view(w: Facts) -> Iterator[str]:
    """Every READY has its facts view, by digest and bundle hash."""
    for item in w.signals_of("READY", "READY_REEMIT"):
        payload, run_id = item["payload"], item["payload"]["run_id"]
        ref = payload["facts_view_ref"]
        if ref != f"{PREFIX}/run_facts_view/{run_id}.json" or ref not in w.objects:
            yield f"READY of {run_id} points at {ref}, which is not there"
            continue
        if item["attributes"].get("facts_view_digest") != sha(w.objects[ref]):
            yield f"READY of {run_id} carries another facts_view_digest than its facts view has"
        view = w.documents[ref]
        bundle_hash = sha(
            canonical(
                {
                    "locators": sorted(view["locators"], key=lambda one: one["output_id"]),
                    "receipts": sorted(view["gate_receipts"], key=lambda one: one["gate_id"]),
                    "instance_receipts": sorted(view.get("instance_receipts", []), key=lambda one: one["output_id"]),
                    "policy_rev": view["policy_rev"],
                }
            )
        )
        if not bundle_hash == view["bundle_hash"] == payload["bundle_hash"]:
            yield f"the bundle_hash of {run_id} does not recompute from its facts view"
        if item["message_id"] != sha(f"ready|{run_id}|{bundle_hash}") or item["partition_key"] != run_id:
            yield f"READY of {run_id} has a message id or partition key that does not derive from it"
        if w.rows.get(run_id, {}).get("facts_view_digest") != sha(w.objects[ref]):
            yield f"the row of {run_id} has another facts_view_digest than its facts view"


def i2_every_locator_re_hashes(w: Facts) -> Iterator[str]:
    """Locators name regular files under an allowed root, with the digest that they have."""
    for run_id in w.ready():
        root, view = w.root_of(run_id), w.document("run_facts_view", run_id)
        if not any(_is_under(root, allowed) for allowed in w.paths.engine_roots):
            yield f"the engine root {root} of {run_id} is not under an allowed root"
        for locator in view["locators"]:
            yield from _locator(w, run_id, locator, view["pins"])
    for key, value in w.documents.items():
        if key.endswith("/instance_receipt.json") and "bundle_manifest_ref" in value:
            manifest = w.objects.get(value["bundle_manifest_ref"], b"")
            if value["target_digest"] != {"algo": "sha256", "hex": sha(manifest)}:
                yield f"{key} attests another digest than its bundle manifest has"


def _locator(w: Facts, run_id: str, locator: Json, pins: Json) -> Iterator[str]:
    output, root, tokens = locator["output_id"], w.root_of(run_id), w.tokens_of(run_id)
    template = w.pack_of(run_id).outputs[output]["path_template"]
    if locator["path"] != f"{w.location_of(run_id)}/{render(template, tokens)}":
        yield f"the locator of {output} of {run_id} names {locator['path']}"
    if any(locator[key] != pins[key] for key in PARTITIONS if key in locator):
        yield f"the locator of {output} of {run_id} is not of the run's identity"
    try:
        digest, _ = output_digest(root, template, tokens)
    except (ValueError, OSError) as error:
        yield f"the output {output} of {run_id} cannot be hashed: {error}"
        return
    if locator["content_digest"] != {"algo": "sha256", "hex": digest}:
        yield f"the output {output} of {run_id} re-hashes to {digest}"


def _is_under(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def i3_every_ready_has_all_its_gates(w: Facts) -> Iterator[str]:
    """Gates recomputed from the pinned pack equal the receipts' gates, all PASS; outputs are accounted for."""
    for run_id in w.ready():
        view, pack = w.document("run_facts_view", run_id), w.pack_of(run_id)
        plan = w.document("run_plan", run_id)
        intended = view["intended_outputs"]
        located = [one["output_id"] for one in view["locators"]]
        absent = [note.partition(":")[2] for note in view.get("evidence_notes", []) if "ABSENT" in note]
        if not intended or not located or sorted(located + absent) != sorted(intended):
            yield f"the intended outputs of {run_id} are not its locators and declared-absent outputs"
        asked = w.intent_of(run_id)["output_ids"]
        if sorted(intended) != plan["intended_outputs"] or (asked and sorted(intended) != asked):
            yield f"the intended outputs of {run_id} differ between request, plan and facts view"
        for output in absent:
            if pack.outputs[output].get("availability") != "optional" or _is_there(w, run_id, output):
                yield f"{run_id} declares {output} absent, but it is required or there"
        required, receipts = pack.required(intended), view["gate_receipts"]
        if not required or sorted(one["gate_id"] for one in receipts) != sorted(required):
            yield f"the gates in the receipts of {run_id} are not the ones that the pinned pack requires"
        if plan["required_gates"] != sorted(required):
            yield f"the plan of {run_id} does not require the gates that the pinned pack requires"
        for receipt in receipts:
            yield from _gate_receipt(w, run_id, receipt)
        yield from _instance_receipts(w, run_id, view, pack, set(located))


def _is_there(w: Facts, run_id: str, output: str) -> bool:
    template = w.pack_of(run_id).outputs[output]["path_template"]
    return bool(output_files(w.root_of(run_id), template, w.tokens_of(run_id)))


def _gate_receipt(w: Facts, run_id: str, receipt: Json) -> Iterator[str]:
    gate_id, tokens = receipt["gate_id"], w.tokens_of(run_id)
    try:
        digest = w.gate_of(run_id, gate_id)
    except (ValueError, OSError, KeyError) as error:
        yield f"the gate {gate_id} of {run_id} does not pass for an independent verifier: {error}"
        return
    if receipt["status"] != "PASS" or receipt["digest"] != {"algo": "sha256", "hex": digest}:
        yield f"the receipt of {gate_id} of {run_id} is not a PASS with the digest {digest}"
    flag = f"{w.location_of(run_id)}/{render(w.pack_of(run_id).gates[gate_id]['passed_flag_path_template'], tokens)}"
    if receipt["artifacts"]["passed_flag_path"] != flag:
        yield f"the receipt of {gate_id} of {run_id} names another flag"
    scope = receipt["scope"]
    if "manifest_fingerprint" not in scope or any(str(scope[key]) != tokens[key] for key in scope):
        yield f"the receipt of {gate_id} of {run_id} is of another scope"


def receipt_key(pack: Pack, output: str, tokens: Mapping[str, str]) -> str:
    """Key of an instance receipt."""
    scope = "".join(f"/{key}={tokens[key]}" for key in pack.scope(output))
    return f"{PREFIX}/instance_receipts/output_id={output}{scope}/instance_receipt.json"


def _instance_receipts(w: Facts, run_id: str, view: Json, pack: Pack, located: set[str]) -> Iterator[str]:
    receipts = {one["output_id"]: one for one in view.get("instance_receipts", [])}
    locators = {one["output_id"]: one for one in view["locators"]}
    if set(receipts) != {output for output in located if pack.instance_scoped(output)}:
        yield f"{run_id} does not have one instance receipt for each instance-scoped output"
    for output, receipt in receipts.items():
        key = receipt_key(pack, output, w.tokens_of(run_id))
        stored = w.documents.get(key)
        if stored is None or _pathless(stored) != _pathless(receipt):
            yield f"the instance receipt of {output} in the facts view of {run_id} is not the one at {key}"
            continue
        same_target = receipt["target_ref"] == locators[output]
        if receipt["status"] != "PASS" or not same_target or receipt["artifacts"]["receipt_path"] != key:
            yield f"the instance receipt of {output} of {run_id} is not a PASS of what the locator names"
        if receipt["target_digest"] != locators[output]["content_digest"]:
            yield f"the instance receipt of {output} of {run_id} attests another digest than the locator"
        yield from _bundle_manifest(w, run_id, output, receipt)


def _pathless(receipt: Json) -> Json:
    return {**receipt, "target_ref": {**receipt["target_ref"], "path": ""}}


def _bundle_manifest(w: Facts, run_id: str, output: str, receipt: Json) -> Iterator[str]:
    template = w.pack_of(run_id).outputs[output]["path_template"]
    try:
        _, manifest = output_digest(w.root_of(run_id), template, w.tokens_of(run_id))
    except (ValueError, OSError) as error:
        yield f"the manifest of {output} of {run_id} cannot be recomputed: {error}"
        return
    ref = receipt.get("bundle_manifest_ref")
    if bool(manifest) != bool(ref) or (ref and w.objects.get(ref) != manifest):
        yield f"the bundle manifest of {output} of {run_id} does not recompute from the engine run"


def i10_write_once_objects_parse(w: Facts) -> Iterator[str]:
    """Objects parse and are canonical; nothing temporary is reachable."""
    yield from w.unparsed
    for run_id in w.rows:
        for folder in ("run_plan", "run_status"):
            if f"{PREFIX}/{folder}/{run_id}.json" not in w.objects:
                yield f"{run_id} has no {folder}"
    for key, value in w.documents.items():
        if key.startswith(f"{PREFIX}/interface_pack/") and sha(canonical(value)) != Path(key).stem:
            yield f"the pinned pack {key} does not have its digest"
        of_run = "/engine_invocations/" not in key and re.fullmatch(RUN, Path(key).stem)
        if "run_id" in value and of_run and value["run_id"] != Path(key).stem:
            yield f"{key} is about {value['run_id']}"
    yield from _deployed_pack(w)
    for folder, private in ((w.paths.store, f"{PREFIX}/.private/"), (w.paths.spool, ".private/")):
        yield from _temporary_files(w, folder, private)


def _deployed_pack(w: Facts) -> Iterator[str]:
    """A pinned pack agrees with the deployed files wherever both speak (unless another pack was deployed since)."""
    sources = _sources(*(path.read_text("utf-8") for path in (w.paths.catalogue, w.paths.gate_map)))
    for digest, pack in w.packs.items():
        pairs = [(pack.outputs, sources.outputs), (pack.gates, sources.gates)]
        if len(w.packs) == 1 and any(not _covers(theirs, ours) for ours, theirs in pairs):
            yield f"the pinned pack {digest} does not say what the deployed interface pack says"


@lru_cache(maxsize=4)
def _sources(catalogue: str, gate_map: str) -> Pack:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    outputs, gates = yaml.load(catalogue, loader)["outputs"], yaml.load(gate_map, loader)["gates"]
    return Pack({"outputs": outputs, "gates": gates})


def _covers(whole: object, part: object) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _covers(whole[key], value) for key, value in part.items())
    return whole == part


def _temporary_files(w: Facts, folder: Path, private: str) -> Iterator[str]:
    for rel in files_below(folder):
        if rel.startswith(private):
            if (
                not re.fullmatch(r"store\.json|[0-9]{2}\.lock|probe-[0-9]{3}", rel.removeprefix(private))
                and not w.killed
            ):
                yield f"{folder / rel} is a temporary file that was left behind"
        elif rel.endswith(".tmp") or any(part.startswith(".") for part in rel.split("/")):
            yield f"{folder / rel} is a temporary file within reach"


def i11_receipts_follow_their_gates(w: Facts) -> Iterator[str]:
    """A PASS instance receipt is preceded, in a record, by the PASS of the gates of its output."""
    attested: dict[str, set[str]] = defaultdict(set)
    for run_id in w.rows:
        passed: set[str] = set()
        for line in w.records.get(run_id, []):
            if line["event_kind"] == "GATES_PASSED":
                passed |= {one["gate_id"] for one in line["details"]["gates"] if one["outcome"] == "PASS"}
            for output, key in line["details"].get("receipts", {}).items():
                if w.pack_of(run_id).required([output]) <= passed:
                    attested[key].add(run_id)
    for key, value in w.documents.items():
        if key.endswith("/instance_receipt.json") and value.get("status") == "PASS" and not attested[key]:
            yield f"{key} is a PASS that no record's gates precede"
