"""A world into which records are dropped that no control bus should bring, and what becomes of each."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hostile_records import MIB

if TYPE_CHECKING:
    from hostile_records import Make
    from support import World


def name_of(case: str) -> str:
    return (
        "m-"
        + "".join(char if char.isascii() and char.isalnum() else f"-{ord(char):x}-" for char in case)[:90]
        + ".json"
    )


def rows(world: World, query: str, *parameters: Any) -> list[Any]:
    with closing(sqlite3.connect(world.database)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query, parameters).fetchall()


@dataclass
class Drained:
    """A world after one ``serve`` over many records."""

    world: World
    sent: dict[str, bytes]
    good: list[str]
    code: int
    log: str

    @cached_property
    def records(self) -> list[Any]:
        return rows(self.world, "SELECT * FROM intake_records")

    @cached_property
    def reasons(self) -> list[dict[str, Any]]:
        return self.world.rejected()

    def record(self, name: str) -> Any:
        found = [row for row in self.records if row["record_key"].startswith(f"spool/{name}#")]
        assert len(found) == 1, f"{name} has {len(found)} dispositions"
        return found[0]

    def reason(self, name: str) -> dict[str, Any]:
        found = [item for item in self.reasons if item["record"] == name]
        assert len(found) == 1, f"{name} has {len(found)} reason files"
        return found[0]

    def assert_refused(self, name: str, reason_code: str, says: str, disposition: str = "REJECTED") -> None:
        record, reason, sent = self.record(name), self.reason(name), self.sent[name]
        assert (record["disposition"], record["reason_code"]) == (disposition, reason_code), record["detail"]
        assert (reason["disposition"], reason["reason_code"]) == (disposition, reason_code)
        assert reason["sentence"]
        assert says in reason["detail"]
        assert (self.world.bus / "rejected" / name).read_bytes() == sent
        assert not (self.world.bus / "requests" / name).exists()
        letters = rows(self.world, "SELECT raw FROM dead_letters WHERE record_key = ?", record["record_key"])
        assert [bytes(row["raw"]) for row in letters] == [sent[:MIB]]


def drain(world: World, cases: dict[str, Make], good: list[dict[str, Any]]) -> Drained:
    """Drop a good request, the hostile ones, and the other good ones; drain once."""
    sent: dict[str, bytes] = {}
    for case, make in cases.items():
        # its own key, unless the case is about the key, and never the good run's
        sent[name_of(case)] = make(good[0]["request"] | {"run_equivalence_key": f"hostile {case!a}"[:500]})
    for name, data in sent.items():
        world.drop(data, name)
    for number, item in enumerate(good):
        world.drop(item["request"], f"{'az'[number % 2]}-good-{number}.json")
    served = world.serve()
    return Drained(world, sent, [item["run_id"] for item in good], served.returncode, served.stderr.decode())
