"""A spool with its intake, an authority, and a clock that only the test moves."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.intake.spool import SpoolConsumer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from support import World

    from scenario_runner.authority.values import Admission, Admitted


OLD = (1_700_000_000, 1_700_000_000)


@dataclass
class Spool:
    """A spool with its intake, an authority, and a clock that only the test moves."""

    world: World
    rules: Any
    now: float = 0.0
    during: Callable[[], object] = lambda: None
    others: list[SqliteAuthority] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority = SqliteAuthority(str(self.world.database))
        self.intake = self.another()

    def another(self) -> SpoolConsumer:
        """One more intake on this spool, opened."""
        made = SpoolConsumer(str(self.world.bus), self, self.rules, lambda: self.now)  # type: ignore[arg-type]
        made.open()
        return made

    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        """The authority's, with something that happens just before."""
        self.during()
        return self.authority.admit(records)

    def request(self, key: str, **changes: Any) -> dict[str, Any]:
        hex64 = "a" * 64
        return {
            "run_equivalence_key": key, "manifest_fingerprint": hex64, "parameter_hash": hex64, "seed": 7,
            "scenario": {"scenario_id": "baseline"}, "engine_run_root": str(self.world.runs / "run"),
            "window": {"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00Z",
                       "window_tz": "UTC"},
            **changes,
        }  # fmt: skip

    def drop(self, key: str, name: str = "request.json") -> None:
        self.world.drop(self.request(key), name)

    def path(self, *parts: str) -> Path:
        return self.world.bus.joinpath(*parts)

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in self.path(folder).iterdir() if not path.name.endswith(".reason.json"))

    def claimed(self) -> list[str]:
        return sorted(path.name for path in self.path(".private/claimed").rglob("*") if path.is_file())

    def records(self) -> list[tuple[str, str]]:
        """(name, disposition) of every record."""
        with closing(sqlite3.connect(self.world.database)) as connection:
            rows = connection.execute("SELECT record_key, disposition FROM intake_records ORDER BY received_us, 1")
            return [(key.removeprefix("spool/").partition("#")[0], disposition) for key, disposition in rows]

    def keys(self) -> set[str]:
        return {run.run_equivalence_key for run in self.authority.runs(None, 100)}

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


def unavailable() -> None:
    raise Unavailable("the authority is away")
