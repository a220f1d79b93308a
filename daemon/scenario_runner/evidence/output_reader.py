"""Reading the outputs of a run: which files make each, and their digests."""

from collections.abc import Mapping
from typing import Final

from scenario_runner.artifacts.base import FileDigest, Kind, RunRoot, SequenceDigest
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.depth import DEPTH, READ_FILES, DigestSource, least
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    Refusal,
)
from scenario_runner.evidence.bounds import check_extent
from scenario_runner.evidence.findings import Report
from scenario_runner.evidence.key import EvidenceKey
from scenario_runner.gates.verified_set import VerifiedSet, display_path
from scenario_runner.interface_pack.model import InterfacePack, OutputSpec
from scenario_runner.interface_pack.templates import Shape

#: Files that one output's entry in a report names: more would make events of many-part outputs too large.
_SHOWN_FILES: Final = 1000

Files = list[str] | Refusal
"""Paths of the files of an output, or why they cannot be named."""


def digest_outputs(root: RunRoot, pack: InterfacePack, key: EvidenceKey, verified: VerifiedSet, report: Report) -> None:
    """Digest the files of all intended outputs in one call and admit each output to the verified set.

    Raises:
        EvidenceChanged: something changed meanwhile.
        SequenceError: a required gate has not passed.
    """
    tokens = key.values()
    found = {output_id: _find_files(root, pack.outputs[output_id], tokens) for output_id in sorted(key.outputs)}
    wanted = [path for _, files in found.values() if isinstance(files, list) for path in files]
    digested = dict(zip(wanted, root.digest([[path] for path in wanted], key.source), strict=True))
    for output_id, (path, files) in found.items():
        entry: Json = {"output_id": output_id, "path": path}
        try:
            entry |= _admit_output(pack.outputs[output_id], path, files, digested, verified, key.source)
        except Refusal as refusal:
            entry |= report.classify(refusal)
        report.outputs.append(entry)


def _find_files(root: RunRoot, spec: OutputSpec, tokens: Mapping[str, str]) -> tuple[str, Files]:
    """The path of an output as documents show it, and its files."""
    try:
        path = spec.template.render(tokens)
    except ValueError as error:
        return "", EvidenceRefused(f"the path of the output {spec.output_id} cannot be rendered: {error}")
    try:
        files = _files_of(root, spec, path)
        check_extent(root, path, files)
    except Refusal as refusal:
        return display_path(spec, path), refusal
    return display_path(spec, path), files


def _files_of(root: RunRoot, spec: OutputSpec, path: str) -> list[str]:
    """Files of an output; empty when there is nothing at its path at all."""
    shape = spec.template.shape
    if shape is Shape.GLOB and "/" not in path:
        return root.files_matching(path)
    kind = root.kind(path.rpartition("/")[0] if shape is Shape.GLOB else path)
    if kind is Kind.ABSENT:
        return []
    if (kind is Kind.FILE) is not (shape is Shape.FILE):
        raise EvidenceRefused(f"{path} is a {kind}, which the path template does not mean", path=path)
    if shape is Shape.FILE:
        return [path]
    if shape is Shape.GLOB:
        return root.files_matching(path)
    files = root.files_under(path, parts=True)
    if not files:
        raise EvidenceMissing(f"the directory {path} of the output {spec.output_id} is empty", path=path)
    return files


def _admit_output(
    spec: OutputSpec,
    path: str,
    files: Files,
    digested: Mapping[str, SequenceDigest | Refusal],
    verified: VerifiedSet,
    source: DigestSource,
) -> Json:
    if isinstance(files, Refusal):
        raise files
    if not files and spec.optional:
        verified.declare_absent(spec.output_id)
        return {"outcome": "ABSENT_OPTIONAL", "detail": "optional and not there"}
    digests: list[FileDigest] = []
    for file in files:
        result = digested[file]
        if isinstance(result, EvidenceMissing) and not isinstance(result, EvidenceArchived):
            raise EvidenceChanged(f"{file} disappeared while it was being read", path=file)
        if isinstance(result, Refusal):
            raise result
        digests.append(result.files[0])
    evidence = verified.admit_output(spec.output_id, path, digests)
    found: Json = {"outcome": "PASS", "digest": evidence.digest, "files": len(digests), "bytes": evidence.bytes}
    versions = {item.path: item.version for item in digests[:_SHOWN_FILES] if item.version}
    return found | ({"versions": versions} if versions else {}) | _depth(digests, source)


def _depth(digests: list[FileDigest], source: DigestSource) -> Json:
    """The depth of an output, which is that of each of its files but the ones that are named; empty where all is read.

    Of an output with very many files that were read, some are not named. They then seem less deep than they are, never
    deeper.
    """
    if source is DigestSource.READ:
        return {}
    depth = least(item.source for item in digests)
    read = [item.path for item in digests if item.source is DigestSource.READ] if depth is not DigestSource.READ else []
    return {DEPTH: depth.value} | ({READ_FILES: read[:_SHOWN_FILES]} if read else {})
