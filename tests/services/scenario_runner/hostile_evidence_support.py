"""Worlds whose evidence is damaged by a test, drained by the installed command."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenario_runner.audit.explain import explain_run
from scenario_runner.cli.status import find_run
from sr_tools import engine

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from support import World


MIB = 1 << 20
SIZES: dict[str, Any] = {"members": 3, "member_bytes": 64, "parts": 2, "part_bytes": 64}
SMALL: dict[str, Any] = {"outputs": ["outlet_catalogue"], **SIZES}
MISSING, MALFORMED, CONFLICT = "EVIDENCE_MISSING_DEADLINE", "EVIDENCE_MALFORMED", "EVIDENCE_CONFLICT"
LARGE, CHANGED, SAYS_NO = "EVIDENCE_TOO_LARGE", "EVIDENCE_CHANGED", "GATE_FAIL"
OUTPUT_TARGETS = ("outlet_catalogue", "s3_candidate_set_1A", "s0_sealed_inputs_1A")  # glob, directory, file


def fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def make(world: World, key: str, **options: Any) -> dict[str, Any]:
    """A small run of an identity of its own, so no receipt of one is about another."""
    chosen = {
        **SMALL,
        "manifest_fingerprint": fingerprint(f"m{key}"),
        "parameter_hash": fingerprint(f"p{key}"),
        **options,
    }
    return world.make_run(key, **chosen)


def flag_of(made: dict[str, Any], segment: str = "1A") -> Path:
    return next(Path(made["engine_run_root"]).glob(f"data/layer*/{segment}/validation/*/_passed.flag"))


def index_of(made: dict[str, Any], segment: str = "2A") -> Path:
    return next(path for path in flag_of(made, segment).parent.glob("*index*.json"))


def entries_of(document: Any) -> list[dict[str, Any]]:
    return engine.index_entries(document)


def explain(world: World, made: dict[str, Any]) -> dict[str, Any]:
    return find_run(str(world.wiring), made["run_id"], explain_run)


def state_of(world: World, made: dict[str, Any]) -> tuple[str, str]:
    document = explain(world, made)
    return document["state"], document.get("reason_code") or ""


def drain(world: World) -> subprocess.CompletedProcess[bytes]:
    served = world.serve()
    assert served.returncode == 0, served.stderr.decode()[-2000:]
    assert b"Traceback" not in served.stderr
    return served


@contextmanager
def polling(seconds: float = 30.0) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Gives ``until(check)``: waits until a check is true, looking often."""
    end = time.monotonic() + seconds
    pause = threading.Event()

    def until(check: Callable[[], Any]) -> Any:
        while not (value := check()):
            assert time.monotonic() < end, "waited too long"
            pause.wait(0.02)
        return value

    yield until


@dataclass
class Drained:
    """All damaged runs after one ``serve``."""

    world: World
    made: dict[tuple[str, str], dict[str, Any]]
    control: dict[str, Any]
    log: str

    @cached_property
    def signals(self) -> list[dict[str, Any]]:
        return self.world.signals()

    @cached_property
    def receipts(self) -> str:
        """Paths of all instance receipts."""
        return "\n".join(map(str, (self.world.ledger / "instance_receipts").rglob("*.json")))


def output_folder(made: dict[str, Any]) -> Path:
    return next(Path(made["engine_run_root"]).glob("data/layer1/1A/s3_candidate_set_1A/*/*"))
