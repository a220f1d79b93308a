"""A world with a run of every state, whose database is lost and made again from its ledger."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import yaml
from support import PACK, ForkedWorld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SMALL: dict[str, Any] = {"members": 2, "parts": 2, "outputs": ["s3_candidate_set_1A"]}
DAMAGES = {"ready": None, "failed": "flag_says_fail", "quarantined": "flag_bit_off", "waiting": "flag_missing"}
#: Columns that the ledger does not know, with what they are after a rebuild.
UNKNOWN = {
    "runs": {"lease_epoch", "due_us", "wakes", "settled"},
    "outbox": {"outbox_id", "attempts", "sent_us"},
}


class Lost:
    """A world with a run of every state, whose database can be lost."""

    def __init__(self, root: Path, **wiring: Any) -> None:
        self.world = ForkedWorld(root, wiring)
        self.runs: dict[str, str] = {}
        self.requests: dict[str, Any] = {}
        for seed, (name, damage) in enumerate(DAMAGES.items()):
            made = self.world.make_run(name, seed=seed, **SMALL, **({"damage": damage} if damage else {}))
            self.runs[name], self.requests[name] = str(made["run_id"]), made["request"]
            self.world.drop(made["request"], f"{name}.json")
        self.serve()

    def serve(self) -> None:
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()

    def lose(self) -> None:
        for path in self.world.root.glob("authority.db*"):
            path.unlink()

    def rebuild(self, *more: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        """Exit code, findings and report."""
        done = self.world.command(
            "authority", "rebuild", "--wiring", str(self.world.wiring), "--reason", "a test", "--json", *more
        )
        if done.returncode not in (0, 1):
            return done.returncode, [], {"error": done.stderr.decode()}
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, lines[:-1], lines[-1]["report"]

    def check(self, *more: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        done = self.world.command("ledger", "check", "--wiring", str(self.world.wiring), "--json", *more)
        if done.returncode not in (0, 1):
            return done.returncode, [], {"error": done.stderr.decode()}
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, lines[:-1], lines[-1]["summary"]

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        with closing(sqlite3.connect(self.world.database)) as connection:
            connection.row_factory = sqlite3.Row
            tables = {"runs": "run_id", "run_events": "run_id, seq", "outbox": "message_id, emission",
                      "engine_attempts": "run_id, attempt_no"}  # fmt: skip
            return {
                table: [
                    {key: row[key] for key in row.keys() if key not in UNKNOWN.get(table, set())}  # noqa: SIM118
                    for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
                ]
                for table, order in tables.items()
            }

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.world.database)) as connection, connection:
            return connection.execute(statement).fetchall()

    def document(self, folder: str, run: str = "ready") -> Path:
        ending = "jsonl" if folder == "run_record" else "json"
        return self.world.ledger / folder / f"{self.runs[run]}.{ending}"

    def files(self) -> dict[str, bytes]:
        roots = (self.world.ledger, self.world.signals_folder)
        found = [path for root in roots for path in root.rglob("*") if path.is_file() and ".private" not in path.parts]
        return {str(path): path.read_bytes() for path in found}

    def states(self) -> dict[str, str]:
        found = dict(self.sql("SELECT run_id, state FROM runs"))
        return {name: found[run_id] for name, run_id in self.runs.items() if run_id in found}


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def later_pack(lost: Lost) -> tuple[str, ...]:
    """The profile names another pack from now on; returns the options that name the one of the runs."""
    earlier = (PACK / "engine_outputs.catalogue.yaml", PACK / "engine_gates.map.yaml")
    document = yaml.safe_load(earlier[0].read_text("utf-8"))
    later = lost.world.root / "later.yaml"
    document["outputs"].append({**document["outputs"][-1], "output_id": "a_later_output"})
    later.write_text(yaml.safe_dump(document), "utf-8")
    lost.world.write_profiles(engine_catalogue_path=str(later))
    return ("--catalogue", str(earlier[0]), "--gate-map", str(earlier[1]))


def keep(root: Path, lost: Lost) -> Path:
    """Keep a copy of a world, for :func:`as_kept` to give it to each test; returns its root."""
    (root.parent / "runs.json").write_text(json.dumps([lost.runs, lost.requests]))
    shutil.copytree(root, root.parent / "kept")
    return root


def as_kept(root: Path) -> Lost:
    """The world as it was kept, with its database; its paths stay those of the place where it was made."""
    shutil.rmtree(root)
    shutil.copytree(root.parent / "kept", root)
    found = object.__new__(Lost)
    found.world = ForkedWorld(root)
    found.runs, found.requests = json.loads((root.parent / "runs.json").read_text())
    return found
