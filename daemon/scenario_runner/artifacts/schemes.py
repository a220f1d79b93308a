"""Engine run roots wherever they lie: the scheme of a location tells who reads it."""

from collections.abc import Mapping

from scenario_runner.artifacts.base import Artifacts, RunRoot
from scenario_runner.artifacts.budget import ReadBudget


class ArtifactsByScheme:
    """See :class:`~scenario_runner.artifacts.base.Artifacts`.

    Args:
        readers: By scheme (``s3``); the empty scheme is the file system.
    """

    def __init__(self, readers: Mapping[str, Artifacts]) -> None:
        self._readers = readers
        self.remote = any(reader.remote for reader in readers.values())

    def open(self, engine_run_root: str, budget: ReadBudget) -> RunRoot:
        """See :class:`~scenario_runner.artifacts.base.Artifacts`."""
        scheme = engine_run_root.partition("://")[0] if "://" in engine_run_root else ""
        return self._readers[scheme if scheme in self._readers else ""].open(engine_run_root, budget)

    def close(self) -> None:
        """See :class:`~scenario_runner.artifacts.base.Artifacts`."""
        for reader in self._readers.values():
            reader.close()
