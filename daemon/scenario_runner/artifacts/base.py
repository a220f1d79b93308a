"""The artifact contract: what the gates may ask about an engine run root, on any store."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import Refusal, Unavailable
from scenario_runner.contracts.plan import DEFAULT_BOUNDS

#: A flag is a line or a few.
MAX_FLAG_BYTES: Final = 64 * 1024
#: Indexes and manifests hold thousands of entries. Parsed, they take many times their size in memory.
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
#: Entries of one folder that are kept in memory; a policy that allows larger outputs raises it.
MAX_FILES: Final = DEFAULT_BOUNDS.max_output_files
#: Folders within folders of one output: more than any engine makes, few enough to walk.
MAX_DEPTH: Final = 32
#: Segments of a whole path: an output may itself lie twice as deep as what it holds.
MAX_SEGMENTS: Final = 96


class Kind(StrEnum):
    """What stands at a path."""

    FILE = "file"
    DIRECTORY = "directory"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file: path relative to the run root, size in bytes, sha256 in hex.

    Attributes:
        version: The version of the object that was read, where its store keeps versions; else empty.
        source: Where the sha256 comes from.
    """

    path: str
    bytes: int
    sha256: str
    version: str = ""
    source: DigestSource = DigestSource.READ


@dataclass(frozen=True, slots=True)
class SequenceDigest:
    """Files read in order: sha256 of their concatenated bytes, and each on its own."""

    sha256: str
    files: tuple[FileDigest, ...]

    @property
    def bytes(self) -> int:
        """Total size."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen of an engine run root.

    Attributes:
        files: Identity of every file that was read.
        listings: Names in every directory that was listed.
        kinds: What stood at every path whose kind was asked for, absence included.
        stable: True when every file had changed last well before it was read (the racily-clean rule), so that equal
            identities later mean equal bytes.
    """

    files: Mapping[str, tuple[object, ...]]
    listings: Mapping[str, tuple[tuple[str, bool], ...]]
    kinds: Mapping[str, Kind]
    stable: bool


class RunRoot(Protocol):
    """One engine run root, opened for one examination of it.

    Paths are relative to the root. Everything that is read is remembered, and :meth:`confirm` checks that all of it is
    still the same. Methods raise ``EvidenceMissing`` (not there), ``EvidenceRefused``
    (symbolic link, device, too large, bad name), ``EvidenceChanged`` and ``Unavailable`` (could not be read), and what
    the budget raises.
    """

    location: str
    budget: ReadBudget

    def kind(self, path: str) -> Kind:
        """What stands at the path; a link or device is refused."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of one file of at most ``limit`` bytes."""
        ...

    def prefetch(self, paths: Iterable[str], limit: int) -> None:
        """Fetch small files that will be read soon, in parallel, where that saves time; raises no refusal."""
        ...

    def files_under(self, path: str, *, parts: bool = False) -> list[str]:
        """Every regular file below a directory, in byte order of the path; empty when there is none.

        With ``parts``, folders that stand where a part should be are refused: empty ones, and those whose name has the
        ending of a file next to them.
        """
        ...

    def files_matching(self, path: str) -> list[str]:
        """Regular files whose name matches the last segment (``*`` is any run of characters), in byte order."""
        ...

    def size(self, paths: Iterable[str]) -> int:
        """Bytes of some files together, from their metadata.

        A file that is not there or is refused counts as none; :meth:`digest` reports it.
        """
        ...

    def derive(self, path: str, limit: int, name: str, function: Callable[[bytes], str]) -> str:
        """The answer of a function to the bytes of one file of at most ``limit`` bytes.

        It is cached under the function's name like a digest, as long as the file is the same.
        """
        ...

    def digest(
        self, sequences: Sequence[Sequence[str]], source: DigestSource = DigestSource.READ
    ) -> list[SequenceDigest | Refusal]:
        """Digest sequences of files, in parallel; returns a digest or a refusal for each.

        Args:
            sequences: Paths of the files of each sequence.
            source: Where the digest of a file that is alone in its sequence may come from. A file for which the store
                keeps none that can be trusted is read all the same.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Everything that was read so far."""
        ...

    def confirm(self, snapshot: Snapshot) -> None:
        """Compare everything in a snapshot with what is there now; raises ``EvidenceChanged`` if anything differs."""
        ...

    def close(self) -> None:
        """Close what is held open."""
        ...


@dataclass(frozen=True, slots=True)
class RootsSeen:
    """What one look at run roots found.

    Attributes:
        there: Roots at which something stands, be it what an examination refuses.
        absent: Roots at which nothing stands.
        unknown: Roots of which nothing can be said, with the reason.
    """

    there: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = field(default_factory=dict)


class Artifacts(Protocol):
    """Opens engine run roots."""

    remote: bool
    """True when examinations mostly wait for a network, so that several should run at the same time."""

    def open(self, engine_run_root: str, budget: ReadBudget) -> RunRoot:
        """Open a run root under one of the allowed roots.

        Args:
            engine_run_root: Normalised location.
            budget: What the examination may cost.

        Raises:
            EvidenceMissing: there is nothing at the location.
            EvidenceRefused: the location is not (any more) a plain directory under an allowed root.
            Unavailable: the location is under none of this daemon's engine_roots, or that allowed root is not there:
                a profile or a mount to be put right, which says nothing about the evidence.
        """
        ...

    def look(self, roots: Sequence[str]) -> RootsSeen:
        """Whether anything stands at run roots: as many of them as about one request answers, the first at least.

        It only tells whether an examination is worth while, and never raises because of what it finds.

        Args:
            roots: Normalised locations, at least one.
        """
        ...

    def close(self) -> None:
        """Stop the threads that read."""
        ...


class RootNotAllowedError(Unavailable):
    """A run root lies under none of this daemon's engine_roots: no outage that passes."""


def root_not_allowed(engine_run_root: str, roots: Iterable[str]) -> RootNotAllowedError:
    """Why a run root cannot be opened: this daemon's profile does not allow it (any more). Not the evidence's fault."""
    return RootNotAllowedError(
        f"the engine run root {engine_run_root} is under none of this profile's engine_roots "
        f"({', '.join(roots) or 'it has none'}); correct engine_roots in the wiring profile and start again"
    )
