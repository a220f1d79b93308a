"""The rules of the house: who may import whom, what the pure rooms never touch, where argv is read."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest
from package_modules import PACKAGE, imported, modules

pytestmark = pytest.mark.unit

FLOORS = {
    "counters": 0, "retry": 0, "posix": 0, "procfs": 0, "rounds": 0, "tracing": 0,  # beside the rooms, for who does I/O
    "contracts": 1,
    "storage": 2, "interface_pack": 2, "profiles": 2,
    "authority": 3, "bus": 3, "artifacts": 3,
    "gates": 4, "engine": 4, "ledger": 4,
    "evidence": 5,
    "runs": 6, "audit": 6, "kcl": 6,
    "intake": 7, "relay": 7,
    "service": 8, "rebuild": 8,
    "cli": 9,
}  # fmt: skip

# The rule is "only rooms below". These are the imports on one floor that exist, each with its reason; the list may
# get shorter, and a new one has to be argued for here.
SAME_FLOOR = {
    ("bus", "authority.values"): "an envelope is a pure function of the authority's outbox row, which is a value",
    ("ledger", "gates.receipts"): "the ledger writes the receipts and the facts view that the pure gates room builds",
}

PURE_ROOMS = ("contracts", "gates")
IO_LIBRARIES = frozenset(
    [
        "os",
        "io",
        "sqlite3",
        "socket",
        "subprocess",
        "pathlib",
        "boto3",
        "botocore",
        "obstore",
        "psycopg",
        "psycopg_pool",
        "shutil",
        "tempfile",
        "glob",
        "fcntl",
        "mmap",
        "select",
        "selectors",
        "asyncio",
        "threading",
        "multiprocessing",
        "concurrent",
        "signal",
        "time",
        "random",
        "secrets",
        "uuid",
        "urllib",
        "http",
        "ssl",
        "ftplib",
        "smtplib",
        "requests",
        "httpx",
        "aiohttp",
        "logging",
        "structlog",
        "opentelemetry",
        "prometheus_client",
        "tenacity",
        "ctypes",
        "platform",
        "pwd",
        "grp",
        "getpass",
        "importlib",
        "builtins",
        "sys",
    ]
)
PURE_EXCEPTIONS = {
    ("contracts/strict_yaml.py", "os"): "read_yaml opens the one file that it is given",
    ("contracts/strict_yaml.py", "open"): "read_yaml opens the one file that it is given",
}


def room_of(module: str) -> str:
    return module.partition("/")[0] if "/" in module else ""


def own(name: str) -> str | None:
    """``room.module`` of one of our own modules, else None."""
    head, _, rest = name.partition(".")
    return rest if head == "scenario_runner" and rest else None


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def own_imports() -> Iterator[tuple[str, str, int]]:
    """(module, imported ``room.module``, line) of every import of one of our own modules."""
    for module, tree in modules().items():
        for name, line in imported(tree):
            target = own(name)
            if target is not None and is_module(target):
                yield module, target, line


# --- rooms and floors -------------------------------------------------------------------------------------------------


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(FLOORS)


def test_a_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for module, target, line in own_imports():
        here, there = room_of(module), target.partition(".")[0]
        if here in ("", there):
            continue
        above = FLOORS[there] > FLOORS[here]
        beside = FLOORS[there] == FLOORS[here] and (here, target) not in SAME_FLOOR and target != there
        if above or beside:
            wrong.append(f"{module}:{line} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})")
    assert wrong == []


def test_every_listed_import_on_one_floor_is_still_there() -> None:
    found = {(room_of(module), target) for module, target, _ in own_imports()}
    assert set(SAME_FLOOR) <= found
    assert all(FLOORS[here] == FLOORS[target.partition(".")[0]] for here, target in SAME_FLOOR)


def test_there_are_no_circles_between_rooms() -> None:
    edges: dict[str, set[str]] = {}
    for module, target, _ in own_imports():
        here, there = room_of(module), target.partition(".")[0]
        if here and here != there:
            edges.setdefault(here, set()).add(there)
    done: list[str] = []
    while len(done) < len(FLOORS):
        free = [room for room in FLOORS if room not in done and edges.get(room, set()) <= set(done)]
        assert free, f"a circle among {sorted(set(FLOORS) - set(done))}"
        done += free


def test_the_package_itself_imports_no_room() -> None:
    assert [item for item in own_imports() if room_of(item[0]) == ""] == []


def test_there_are_no_circles_between_modules() -> None:
    edges: dict[str, set[str]] = {}
    for module, target, _ in own_imports():
        here = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if target not in (here, here.partition(".")[0]):
            edges.setdefault(here, set()).add(target)
    names = set(edges) | {target for targets in edges.values() for target in targets}
    done: set[str] = set()
    while names - done:
        free = {name for name in names - done if edges.get(name, set()) <= done}
        assert free, f"a circle among {sorted(names - done)}"
        done |= free


# --- purity -----------------------------------------------------------------------------------------------------------


def pure_modules() -> list[str]:
    return [module for module in modules() if room_of(module) in PURE_ROOMS]


@pytest.mark.parametrize("module", pure_modules())
def test_a_pure_module_imports_no_library_that_touches_the_outside(module: str) -> None:
    names = {name.partition(".")[0] for name, _ in imported(modules()[module])}
    allowed = {name for where, name in PURE_EXCEPTIONS if where == module}
    assert names & IO_LIBRARIES - allowed == set()


@pytest.mark.parametrize("module", pure_modules())
def test_a_pure_module_opens_nothing_prints_nothing_and_reads_no_clock(module: str) -> None:
    allowed = {name for where, name in PURE_EXCEPTIONS if where == module}
    wrong = []
    for node in ast.walk(modules()[module]):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.id
            if isinstance(node.func, ast.Name)
            else node.func.attr
            if isinstance(node.func, ast.Attribute)
            else ""
        )
        builtin = isinstance(node.func, ast.Name) and name in {
            "open",
            "print",
            "input",
            "eval",
            "exec",
            "__import__",
            "breakpoint",
        }
        clock = name in {"now", "utcnow", "today", "fromtimestamp", "time_ns", "getenv", "urandom"}
        if (builtin or clock) and name not in allowed:
            wrong.append(f"line {node.lineno}: {name}()")
    assert wrong == []


def test_the_listed_exceptions_are_still_needed() -> None:
    for module, name in PURE_EXCEPTIONS:
        tree = modules()[module]
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert name in calls | {imported_name for imported_name, _ in imported(tree)}


def fresh(statements: str) -> set[str]:
    """Modules that a new interpreter has loaded after some statements."""
    script = f"{statements}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_the_gates_room_loads_no_room_and_no_library_that_touches_the_outside() -> None:
    """Also not through what it imports: whatever is loaded beyond pydantic and the standard library's basics counts."""
    gates = [
        f"scenario_runner.gates.{path.stem}" for path in (PACKAGE / "gates").glob("*.py") if path.stem != "__init__"
    ]
    ground = fresh("import pydantic, orjson, hashlib, json, re, dataclasses, enum, typing, datetime\n"
                   "class M(pydantic.BaseModel):\n    a: int\nM.model_json_schema()")  # fmt: skip
    loaded = fresh("import " + ", ".join(gates))
    assert {name.partition(".")[0] for name in loaded - ground} & (
        IO_LIBRARIES - {"sys", "importlib", "builtins"}
    ) == set()
    ours = {name for name in loaded if name.startswith("scenario_runner.")}
    assert {name.split(".")[1] for name in ours} <= {"contracts", "interface_pack", "artifacts", "gates"}
    assert ours & {"scenario_runner.contracts.strict_yaml", "scenario_runner.interface_pack.loader",
                   "scenario_runner.artifacts.local", "scenario_runner.artifacts.reuse"} == set()  # fmt: skip


# --- argv -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [module for module in modules() if room_of(module) != "cli"])
def test_only_the_commands_read_argv(module: str) -> None:
    tree = modules()[module]
    names = {name.partition(".")[0] for name, _ in imported(tree)}
    assert names & {"argparse", "typer", "click", "optparse", "getopt"} == set()
    reads = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("argv", "orig_argv"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "sys"
            and any("argv" in alias.name for alias in node.names)
        )
    ]
    assert reads == []
