"""Which files of an output are not as they were published: a digest of many parts says only that one of them is not."""

from collections.abc import Mapping
from typing import Final

from scenario_runner.audit.documents import PublishedDocuments, PublishedView, manifest_of
from scenario_runner.contracts.canonical import Json, parse_json, sha256_hex
from scenario_runner.gates.verified_set import OutputEvidence

#: Parts of one output that are named, in order of their paths: the first ones show where to look, and an event stays
#: small.
_SHOWN_PARTS: Final = 5


def drifted_parts(
    evidence: OutputEvidence, claimed: str, view: PublishedView, documents: PublishedDocuments
) -> tuple[str, list[Json]]:
    """Compare the files of an output with those that were published.

    Args:
        evidence: The output as it was read now.
        claimed: Its digest as it was published, which is another one.
        view: The facts view.
        documents: The ledger's documents.

    Returns:
        A sentence, and the first parts that differ: ``{path, drift, expected, actual}``, where ``drift`` is CHANGED,
        MISSING or ADDED. None where nothing that was published says what the parts were.
    """
    if not evidence.manifest:
        path = evidence.files[0].path
        return f"{path} is not as it was", [_part(path, claimed, evidence.digest)]
    published = _published(evidence.spec.output_id, claimed, view, documents)
    if published is None:
        return "no bundle manifest says what its parts were", []
    found = {file.path: file.sha256 for file in evidence.files}
    parts = [
        _part(path, published.get(path, ""), found.get(path, ""))
        for path in sorted(published.keys() | found.keys())
        if published.get(path) != found.get(path)
    ]
    if not parts:  # sizes, which are part of the manifest, and follow from the bytes
        return "its parts have the digests that were published, and other sizes", []
    first = parts[0]
    how = f"{len(parts)} parts of {len(published)} differ, the first" if len(parts) > 1 else "a part differs"
    return f"{how}: {first['path']} ({first['drift']})", parts[:_SHOWN_PARTS]


def _part(path: str, expected: str, actual: str) -> Json:
    drift = "ADDED" if not expected else "CHANGED" if actual else "MISSING"
    return {"path": path, "drift": drift, "expected": expected or None, "actual": actual or None}


def _published(
    output_id: str, claimed: str, view: PublishedView, documents: PublishedDocuments
) -> Mapping[str, str] | None:
    """Digests of the parts by path, from the manifest that has the published digest."""
    receipts = [item for item in view.document.get("instance_receipts", []) if item["output_id"] == output_id]
    manifest = manifest_of(receipts[0]) if receipts else None
    data = documents.read_bytes(manifest.ref) if manifest is not None else None
    if data is None or sha256_hex(data) != claimed:
        return None
    try:
        return {str(item["path"]): str(item["sha256"]) for item in parse_json(data)}
    except (ValueError, TypeError, KeyError):
        return None
