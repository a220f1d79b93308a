"""Where guards are looked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sr_tools.guards.guard import Guard
from sr_tools.guards.python import python_guards
from sr_tools.guards.sql import sql_guards

REPO: Final = Path(__file__).resolve().parents[3]
PACKAGE: Final = "daemon/scenario_runner"
ROOMS: Final = (
    "gates", "evidence", "runs", "ledger", "intake", "audit", "relay", "service/engine_lane.py",
    "authority/sql/sqlite.sql", "authority/views/sqlite.sql", "authority/sql/postgres.sql",
    "authority/views/postgres.sql",
)  # fmt: skip


def guards_of(source: bytes, file: str) -> list[Guard]:
    """Every guard of a module, or of a file of named statements."""
    return (sql_guards if file.endswith(".sql") else python_guards)(source, file)


def all_guards(rooms: Sequence[str]) -> list[Guard]:
    """Every guard of some rooms, or of single modules like ``runs/driver.py``."""
    found: list[Guard] = []
    for room in rooms:
        path = REPO / PACKAGE / room
        modules = [path] if path.is_file() else [*sorted(path.rglob("*.py")), *sorted(path.glob("sql/*.sql"))]
        if not modules:
            raise SystemExit(f"there is no room or module {room!r} under {PACKAGE}")
        for module in modules:
            found += guards_of(module.read_bytes(), module.relative_to(REPO).as_posix())
    return found
