"""Engine run roots on any store: the scheme of a location selects the reader."""

from collections.abc import Mapping, Sequence

from typing_extensions import override

from scenario_runner.artifacts.base import Artifacts, RootsSeen, RunRoot
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import needs_posix


class ArtifactsByScheme(Artifacts):
    """Opens a run root with the reader of its scheme.

    Args:
        readers: By scheme (``s3``); the empty scheme is the file system, which Windows has no reader of.
    """

    def __init__(self, readers: Mapping[str, Artifacts]) -> None:
        self._readers = readers
        self.remote = any(reader.remote for reader in readers.values())

    @override
    def open(self, engine_run_root: str, budget: ReadBudget) -> RunRoot:
        reader = self._reader(engine_run_root)
        if reader is None:
            raise needs_posix(engine_run_root, "an engine run in a folder")
        return reader.open(engine_run_root, budget)

    @override
    def look(self, roots: Sequence[str]) -> RootsSeen:
        reader = self._reader(roots[0])
        ours = [root for root in roots if self._reader(root) is reader]
        if reader is None:
            return RootsSeen(unknown={root: needs_posix(root, "an engine run in a folder").detail for root in ours})
        return reader.look(ours)

    def _reader(self, engine_run_root: str) -> Artifacts | None:
        scheme = engine_run_root.partition("://")[0] if "://" in engine_run_root else ""
        return self._readers.get(scheme) or self._readers.get("")

    @override
    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
