"""Which parts of an output differ from those that were published, and when nobody can say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.artifacts.base import FileDigest
from scenario_runner.audit.documents import PublishedView
from scenario_runner.audit.parts import drifted_parts
from scenario_runner.contracts.canonical import canonical_bytes, sha256_hex
from scenario_runner.gates.verified_set import OutputEvidence, bundle_manifest

pytestmark = pytest.mark.unit

PUBLISHED = [FileDigest(f"out/part-{number}", 1, f"{number}" * 64) for number in range(8)]
MANIFEST = bundle_manifest(PUBLISHED)


def evidence(*files: FileDigest, multi: bool = True) -> OutputEvidence:
    spec: Any = SimpleNamespace(output_id="o")
    manifest = bundle_manifest(files) if multi else b""
    digest = sha256_hex(manifest) if multi else files[0].sha256
    return OutputEvidence(spec, "out/", digest, tuple(files), manifest)


def compared(found: OutputEvidence, stored: bytes | None = MANIFEST, claimed: str = sha256_hex(MANIFEST)) -> Any:
    receipt = {"output_id": "o", "bundle_manifest_ref": "m", "target_digest": {"hex": claimed}}
    documents: Any = SimpleNamespace(read_bytes={"m": stored}.get)
    view = PublishedView(b"", {"instance_receipts": [{"output_id": "another"}, receipt]})
    return drifted_parts(found, claimed, view, documents)


def test_the_first_parts_that_differ_are_named_and_all_are_counted() -> None:
    changed = [FileDigest(item.path, 1, "f" * 64) for item in PUBLISHED[1:]]
    detail, parts = compared(evidence(*changed, FileDigest("out/part-9", 1, "9" * 64)))
    assert detail == "9 parts of 8 differ, the first: out/part-0 (MISSING)"
    assert [(part["path"], part["drift"]) for part in parts] == [
        ("out/part-0", "MISSING"), *((f"out/part-{number}", "CHANGED") for number in range(1, 5)),
    ]  # fmt: skip
    assert parts[0] == {"path": "out/part-0", "drift": "MISSING", "expected": "0" * 64, "actual": None}
    assert (parts[1]["expected"], parts[1]["actual"]) == ("1" * 64, "f" * 64)


@pytest.mark.parametrize(
    ("stored", "claimed"),
    [
        (None, sha256_hex(MANIFEST)),
        (MANIFEST + b" ", sha256_hex(MANIFEST)),
        *((data, sha256_hex(data)) for data in (b"garbage", b"7", b'[{"path":"p"}]', canonical_bytes({"a": 1}))),
    ],
)
def test_a_manifest_that_was_not_published_names_no_part(stored: bytes | None, claimed: str) -> None:
    assert compared(evidence(PUBLISHED[0]), stored, claimed) == ("no bundle manifest says what its parts were", [])


def test_an_output_without_receipt_has_no_manifest_and_one_of_one_file_needs_none() -> None:
    nothing: Any = SimpleNamespace()
    view = PublishedView(b"", {})
    assert drifted_parts(evidence(PUBLISHED[0]), "a" * 64, view, nothing)[1] == []
    detail, (part,) = drifted_parts(evidence(PUBLISHED[0], multi=False), "a" * 64, view, nothing)
    assert detail == "out/part-0 is not as it was"
    assert part == {"path": "out/part-0", "drift": "CHANGED", "expected": "a" * 64, "actual": "0" * 64}


def test_parts_of_other_sizes_alone_are_told_of() -> None:
    other = bundle_manifest([FileDigest(item.path, 2, item.sha256) for item in PUBLISHED])
    detail, parts = compared(evidence(*PUBLISHED), other, sha256_hex(other))
    assert (parts, "other sizes" in detail) == ([], True)
