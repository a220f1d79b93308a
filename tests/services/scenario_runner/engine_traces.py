"""A world's engine that leaves traces (:mod:`engine_program`), and the judge of what they show."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from support import World

MARK: Final = b"SR_ATTEMPT_ID="
PROGRAM: Final = str(Path(__file__).with_name("engine_program.py"))
LAUNCHER: Final = str(Path(__file__).with_name("engine_program.sh"))


class TracedEngine:
    """The engine of a world, and what it did.

    Args:
        folder: Where traces and sealed runs are kept.
        seconds: For how long an attempt works: from, to.
        ignores_sigterm: The share of attempts that ignore it.
        leaves_daemon: The share of attempts that leave a process in a session of its own.
        breaks: The share of attempts that end with exit status 3.
    """

    SEEDS = (1, 2)

    def __init__(
        self, folder: Path, seconds: tuple[float, float] = (0.0, 0.0), ignores_sigterm: float = 0.0,
        leaves_daemon: float = 0.0, breaks: float = 0.0,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True)
        self.folder = folder
        self.behave(seconds=seconds, ignores_sigterm=ignores_sigterm, leaves_daemon=leaves_daemon, breaks=breaks)
        maker = World(folder / "maker")
        self._requests: dict[int, Any] = {}
        for seed in self.SEEDS:
            made = maker.make_run(f"sealed-{seed}", seed=seed, members=3, parts=2, outputs=["s3_candidate_set_1A"])
            os.rename(made["engine_run_root"], folder / f"sealed-{seed}")
            self._requests[seed] = made["request"]

    def behave(self, **behaviour: Any) -> None:
        """Say what attempts do from now on; ``break_first``: the first so many attempts of each run break."""
        everything = {"seconds": (0, 0), "ignores_sigterm": 0, "leaves_daemon": 0, "breaks": 0, "break_first": 0}
        (self.folder / "behaviour.json").write_text(json.dumps(everything | behaviour))

    def wiring(self, world: Any, **more: Any) -> None:
        """Make it the engine of a world."""
        world.write_profiles(
            engine_command=[
                "/bin/sh", LAUNCHER, sys.executable, PROGRAM,
                str(self.folder), "{run_id}", "{engine_run_root}", "{seed}", "{attempt_no}",
            ],
            engine_attempts_dir=str(world.root / "attempts"),
            engine_run_root_template=f"{world.runs}/made/{{run_id}}",
            **more,
        )  # fmt: skip

    def request(self, key: str) -> dict[str, Any]:
        """A request that invokes it."""
        seed = self.SEEDS[hashlib.sha256(key.encode()).digest()[0] % len(self.SEEDS)]
        made = {**self._requests[seed], "run_equivalence_key": key, "requested_strategy": "FORCE_INVOKE"}
        del made["engine_run_root"]
        return made

    def trace(self) -> list[dict[str, Any]]:
        """Every stamp so far, in the order in which they were made."""
        path = self.folder / "trace.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def launches(self) -> list[str]:
        """The attempt of every launch."""
        return [line["attempt_id"] for line in self.trace() if line["what"] == "begin"]

    def problems(self, limit: int) -> Iterator[str]:
        """What must not be in traces: two launches of an attempt, two engines of a run, one too late, too many."""
        trace = self.trace()
        begun = Counter(line["attempt_id"] for line in trace if line["what"] == "begin")
        yield from (f"the attempt {one} was launched {count} times" for one, count in begun.items() if count > 1)
        for line in trace:
            if line["what"] == "overlap":
                yield f"two engines of {line['run_id']} lived at the same time, the other one {line['attempt_id']}"
        of_runs: dict[str, list[int]] = {}
        for line in trace:
            if line["what"] == "begin":
                of_runs.setdefault(line["run_id"], []).append(line["attempt_no"])
        for run_id, numbers in of_runs.items():
            if len(numbers) > limit:
                yield f"the run {run_id} had {len(numbers)} launches, {limit} are allowed"
            if numbers != sorted(numbers):
                yield f"an attempt of {run_id} was launched after one that was to follow its end: {numbers}"


def marked_processes(attempt_ids: Iterable[str] | None = None) -> dict[int, str]:
    """Processes that bear the mark of an attempt (of these, or of any), and that attempt."""
    wanted = None if attempt_ids is None else set(attempt_ids)
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                marks = [one for one in file.read().split(b"\0") if one.startswith(MARK)]
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marks and state not in ("Z", "X"):
            attempt_id = marks[0].removeprefix(MARK).decode()
            if wanted is None or attempt_id in wanted:
                found[int(name)] = attempt_id
    return found
