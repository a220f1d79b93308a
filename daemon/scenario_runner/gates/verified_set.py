"""The verified set: the only way from evidence to READY.

It takes bytes and digests and does no I/O. In this order and no other:

1. each gate is admitted after every gate it depends on has been admitted;
2. outputs are admitted, or optional ones declared absent, only when every required gate has been admitted;
3. the set is finished when every intended output is accounted for and at least one is there.

A finished set is the only thing that a facts view can be made from. Calls in the wrong order are a defect of SR
(``SequenceError``); bad material is a refusal with a reason code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass

from scenario_runner.artifacts.base import FileDigest
from scenario_runner.contracts.canonical import canonical_bytes, sha256_hex
from scenario_runner.contracts.errors import EvidenceMissing, SequenceError
from scenario_runner.gates.laws import GatePaths, Measurement, Members, verify_digests
from scenario_runner.interface_pack.model import GateSpec, InterfacePack, OutputSpec
from scenario_runner.interface_pack.templates import Shape


@dataclass(frozen=True, slots=True)
class GatePass:
    """A gate that passed: its digest, where its evidence lies, and how each listed member matched."""

    gate: GateSpec
    paths: GatePaths
    digest: str
    files: int
    bytes: int
    forms: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OutputEvidence:
    """An output that is there: its digest, its files, and its bundle manifest (empty for a one-file output)."""

    spec: OutputSpec
    path: str
    digest: str
    files: tuple[FileDigest, ...]
    manifest: bytes

    @property
    def bytes(self) -> int:
        """Total size."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Verified:
    """A finished verified set. Made by :meth:`VerifiedSet.finish` and by nothing else."""

    gates: tuple[GatePass, ...]
    outputs: tuple[OutputEvidence, ...]
    absent: tuple[str, ...]
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise SequenceError("a verified set can only come from VerifiedSet.finish()")


_SEAL = object()


def bundle_manifest(files: Sequence[FileDigest]) -> bytes:
    """Canonical JSON of a multi-file output: ``[{bytes, path, sha256}]`` in byte order of the path."""
    ordered = sorted(files, key=lambda file: file.path.encode("utf-8"))
    return canonical_bytes([{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in ordered])


def display_path(spec: OutputSpec, rendered: str) -> str:
    """The rendered path as documents show it: a directory ends in a slash."""
    return rendered + "/" if spec.template.shape is Shape.DIRECTORY else rendered


class VerifiedSet:
    """Collects verified evidence for one run; see the module for the order of calls."""

    def __init__(self, pack: InterfacePack, required_gates: Sequence[str], intended_outputs: Sequence[str]) -> None:
        if not required_gates or not intended_outputs:
            raise SequenceError("a verified set needs at least one gate and one output")
        self._pack = pack
        self._required = frozenset(required_gates)
        self._intended = frozenset(intended_outputs)
        self._gates: dict[str, GatePass] = {}
        self._outputs: dict[str, OutputEvidence] = {}
        self._absent: set[str] = set()
        self._finished = False

    def blocked_by(self, gate_id: str) -> list[str]:
        """Gates that must be admitted before this one and are not; sorted."""
        return sorted(set(self._pack.gates[gate_id].upstream) - set(self._gates))

    @property
    def gates_passed(self) -> bool:
        """True when every required gate has been admitted."""
        return self._required == set(self._gates)

    @property
    def outputs(self) -> tuple[OutputEvidence, ...]:
        """Outputs that have been admitted. Whether the set will ever be finished, they do not say."""
        return tuple(self._outputs.values())

    def admit_gate(self, gate_id: str, paths: GatePaths, members: Members, measured: Measurement) -> GatePass:
        """Judge one gate and admit it if it passes.

        Raises:
            EvidenceRefused: the evidence contradicts itself.
            SequenceError: not a required gate, admitted already, or upstream gates are not admitted.
        """
        if self._finished or gate_id not in self._required or gate_id in self._gates:
            raise SequenceError(f"the gate {gate_id} cannot be admitted now")
        if self.blocked_by(gate_id):
            raise SequenceError(f"the gate {gate_id} was examined before {', '.join(self.blocked_by(gate_id))} passed")
        gate = self._pack.gates[gate_id]
        forms = verify_digests(gate, paths, members, measured)
        passed = GatePass(gate, paths, members.claimed, measured.files, measured.bytes, forms)
        self._gates[gate_id] = passed
        return passed

    def admit_output(self, output_id: str, path: str, files: Sequence[FileDigest]) -> OutputEvidence:
        """Admit one output with the digests of its files.

        Raises:
            EvidenceMissing: there are no files; an empty output is not there.
            SequenceError: gates are not all admitted, or the output is not intended or accounted for already.
        """
        spec = self._account(output_id)
        if not files:
            raise EvidenceMissing(f"the output {output_id} has no files at {path}", path=path)
        single = spec.template.shape is Shape.FILE
        if single and len(files) != 1:
            raise SequenceError(f"the one-file output {output_id} was measured as {len(files)} files")
        manifest = b"" if single else bundle_manifest(files)
        digest = files[0].sha256 if single else sha256_hex(manifest)
        evidence = OutputEvidence(spec, path, digest, tuple(files), manifest)
        self._outputs[output_id] = evidence
        return evidence

    def declare_absent(self, output_id: str) -> None:
        """Account for an optional output that is not there.

        Raises:
            EvidenceMissing: the output is not optional.
            SequenceError: as for :meth:`admit_output`.
        """
        if not self._account(output_id).optional:
            raise EvidenceMissing(f"the output {output_id} is not there and is not optional", path=output_id)
        self._absent.add(output_id)

    def _account(self, output_id: str) -> OutputSpec:
        if self._finished or not self.gates_passed:
            raise SequenceError(f"the output {output_id} was to be admitted before every required gate passed")
        if output_id not in self._intended or output_id in self._outputs or output_id in self._absent:
            raise SequenceError(f"the output {output_id} is not intended, or was accounted for already")
        return self._pack.outputs[output_id]

    def finish(self) -> Verified:
        """The finished set, sorted by id.

        Raises:
            EvidenceMissing: every intended output is optional and absent; nothing would be READY.
            SequenceError: a gate or output is not accounted for, or the set was finished before.
        """
        if self._finished or not self.gates_passed or self._intended != set(self._outputs) | self._absent:
            raise SequenceError("the verified set was finished before everything was accounted for")
        if not self._outputs:
            raise EvidenceMissing("every intended output is optional and absent", path="")
        self._finished = True
        return Verified(
            tuple(self._gates[key] for key in sorted(self._gates)),
            tuple(self._outputs[key] for key in sorted(self._outputs)),
            tuple(sorted(self._absent)),
            _SEAL,
        )
