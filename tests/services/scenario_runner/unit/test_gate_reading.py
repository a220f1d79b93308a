"""What is digested for gates and outputs, and what it means when a file of them is not there any more."""

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.artifacts.base import FileDigest, SequenceDigest
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import EvidenceChanged, EvidenceMissing, EvidenceRefused
from scenario_runner.contracts.plan import EvidenceBounds
from scenario_runner.contracts.reasons import Reason
from scenario_runner.evidence import output_reader
from scenario_runner.evidence.findings import Report
from scenario_runner.evidence.gate_reader import GateReading, measure
from scenario_runner.evidence.output_reader import _admit_output, digest_outputs
from scenario_runner.gates.laws import GatePaths, Law, Members

pytestmark = pytest.mark.unit

D = "d" * 64


class Root:
    """A run root of files of one byte."""

    def __init__(self, missing: str = "") -> None:
        self.budget = SimpleNamespace(bounds=EvidenceBounds(max_output_files=3))
        self.missing = missing
        self.digested: list[str] = []
        self.fetched: list[str] = []

    def size(self, files: Any) -> int:
        return len(files)

    def prefetch(self, paths: list[str], _most: int) -> None:
        self.fetched += paths

    def digest(self, sequences: list[tuple[str, ...]], _source: DigestSource = DigestSource.READ) -> list[Any]:
        self.digested += [path for files in sequences for path in files]
        gone = EvidenceMissing("it is not there", path=self.missing)
        return [
            gone if self.missing in files else SequenceDigest(D, tuple(FileDigest(path, 1, D) for path in files))
            for files in sequences
        ]


def reading(name: str, *files: str, law: Law = Law.BUNDLE, named: tuple[str, ...] = ()) -> GateReading:
    gate: Any = SimpleNamespace(gate_id=name, law=law)
    return GateReading(gate, GatePaths(f"{name}/flag", name, f"{name}/index"),
                       Members(D, files, (), (), frozenset(named)))  # fmt: skip


def test_a_gate_beyond_a_bound_is_refused_and_nothing_of_it_is_digested() -> None:
    root: Any = Root()
    large, small = reading("large", *"abcd"), reading("small", *"xyz")
    measure(root, [large, small])
    assert isinstance(large.refusal, EvidenceRefused)
    assert (large.refusal.reason, large.measured) == (Reason.EVIDENCE_TOO_LARGE, None)
    assert root.digested == list("xyz")
    assert small.refusal is None
    assert small.measured is not None


def test_only_members_that_may_be_listed_in_another_form_are_read_for_it() -> None:
    root: Any = Root()
    listed, raw = reading("listed", law=Law.MEMBER_DIGESTS), reading("raw", "x")
    listed.alone = {"file": ("file",), "folder": ("folder/a",)}
    listed.directories = {"folder"}
    raw.alone = {"beside": ("beside",)}
    measure(root, [listed, raw])
    assert root.fetched == ["file"]


@pytest.mark.parametrize(
    ("named", "path"), [((), ""), (("other", "x/yy"), ""), (("x",), ""), (("x/y",), "x/y"), (("x/y/z",), "x/y/z")]
)
def test_a_file_that_is_gone_contradicts_an_index_that_names_it_and_is_a_change_otherwise(
    named: tuple[str, ...], path: str
) -> None:
    root: Any = Root(missing="x/y")
    made = reading("g", "x/y", named=named)
    if not path:
        with pytest.raises(EvidenceChanged):
            measure(root, [made])
        return
    measure(root, [made])
    assert isinstance(made.refusal, EvidenceRefused)
    assert (made.refusal.reason, made.refusal.path) == (Reason.EVIDENCE_CONFLICT, path)


def test_versions_are_told_of_files_whose_store_keeps_them() -> None:
    files = [FileDigest("plain", 1, D), FileDigest("kept", 1, D, "v7")]
    digested = {file.path: SequenceDigest(D, (file,)) for file in files}
    spec: Any = SimpleNamespace(output_id="o", optional=False)
    verified: Any = SimpleNamespace(admit_output=lambda *_: SimpleNamespace(digest=D, bytes=2))
    admitted = _admit_output(spec, "out", ["plain", "kept"], digested, verified, DigestSource.READ)
    assert admitted["versions"] == {"kept": "v7"}
    assert "versions" not in _admit_output(spec, "out", ["plain"], digested, verified, DigestSource.READ)


def test_files_of_an_output_that_is_missing_are_not_digested_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": ("a.json", EvidenceMissing("it is not there", path="a.json")), "b": ("b.json", ["b.json"])}
    monkeypatch.setattr(output_reader, "_find_files", lambda _root, spec, _tokens: found[spec.output_id])
    pack: Any = SimpleNamespace(outputs={name: SimpleNamespace(output_id=name, optional=False) for name in found})
    verified: Any = SimpleNamespace(admit_output=lambda *_: SimpleNamespace(digest=D, bytes=1))
    root, key, report = Root(), SimpleNamespace(outputs=("b", "a"), values=dict, source=DigestSource.READ), Report()
    digest_outputs(root, pack, key, verified, report)  # type: ignore[arg-type]
    assert root.digested == ["b.json"]
    assert [(item["output_id"], item["outcome"]) for item in report.outputs] == [("a", "MISSING"), ("b", "PASS")]
