"""Nothing is announced before it is durable, also after a power loss: the order of a daemon's own system calls."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import COMMAND, World, need_posix
from system_calls import FLUSHES, Call, Trace, need_strace, record

pytestmark = pytest.mark.integration

#: Seeds of two engine runs, each a world of its own: nothing of their receipts is shared.
SEEDS = (71, 72)
BEFORE_THE_ROW = ("run_plan/{run}.json", "run_facts_view/{run}.json")
BEFORE_THE_SIGNAL = ("run_record/{run}.jsonl", "run_status/{run}.json", "ready_signal/{run}.json")


@dataclass(frozen=True)
class Ready:
    """A READY run, as the folders show it when its daemon has ended."""

    world: World
    run_id: str
    seed: int
    signal: Path

    def documents(self, names: tuple[str, ...]) -> list[Path]:
        found = [self.world.ledger / name.format(run=self.run_id) for name in names]
        assert all(path.is_file() for path in found)
        return found

    def receipts(self) -> list[Path]:
        """Instance receipts and bundle manifests."""
        found = [
            path
            for path in self.world.ledger.glob("instance_receipts/**/*.json")
            if f"seed={self.seed}" in path.relative_to(self.world.ledger).parts
        ]
        assert {path.name for path in found} == {"instance_receipt.json", "bundle_manifest.json"}
        return found

    def needed(self, trace: Trace) -> Iterator[str]:
        """Every file and folder that must be flushed before READY is on the bus."""
        for path in (
            *self.documents(BEFORE_THE_ROW),
            *self.receipts(),
            *self.documents(BEFORE_THE_SIGNAL),
            self.signal,
        ):
            yield from trace.needed(str(path), str(self.world.root))
        yield f"{self.world.database}-wal"

    def problems(self, trace: Trace) -> list[str]:
        """What is announced before it is durable."""
        root, log = str(self.world.root), f"{self.world.database}-wal"
        # A page of the log may reach the disk as soon as it is written: that moment counts, not the log's flush.
        row = trace.first("pwrite64", log, f"run_facts_view/{self.run_id}.json")
        sent = trace.named(str(self.signal))
        moments = [(path, row.began) for path in (*self.documents(BEFORE_THE_ROW), *self.receipts())]
        moments += [(path, sent.began) for path in self.documents(BEFORE_THE_SIGNAL)]
        moments += [(self.signal, trace.end)]
        found = [problem for path, moment in moments for problem in trace.lost(str(path), moment, root)]
        if not trace.is_flushed(log, row.ended, sent.began):
            found.append("the row of READY is not durable before its signal is on the bus")
        return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Ready], Trace]:
    """Two runs that one daemon drove in a batch, and its system calls."""
    need_posix()
    need_strace()
    world = World(tmp_path_factory.mktemp("recorded").resolve() / "world")
    for seed in SEEDS:
        made = world.make_run(f"own-{seed}", seed=seed, members=3, parts=2)
        world.drop(made["request"], f"{seed}.json")
    serve = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    trace = record(serve, world.root / "calls")
    runs = []
    for signal in world.signals_folder.glob("*.json"):
        run_id = signal.read_text("utf-8").split('"run_id":"')[1][:32]
        runs.append(Ready(world, run_id, world.document("run_facts_view", run_id)["pins"]["seed"], signal))
    assert sorted(run.seed for run in runs) == sorted(SEEDS)
    return runs, trace


def test_all_that_ready_promises_is_durable_before_it_is_announced(recorded: tuple[list[Ready], Trace]) -> None:
    runs, trace = recorded
    assert {run.seed: run.problems(trace) for run in runs} == {seed: [] for seed in SEEDS}


def test_no_flush_could_be_left_out(recorded: tuple[list[Ready], Trace]) -> None:
    """Each file and folder that READY needs is flushed, and without its flushes the test above would fail."""
    runs, trace = recorded
    for run in runs:
        for needed in dict.fromkeys(run.needed(trace)):

            def left_out(call: Call, needed: str = needed) -> bool:
                return call.name in FLUSHES and call.path == needed

            flushed = any(map(left_out, trace.calls))
            assert flushed, f"{needed} is never flushed"
            assert run.problems(trace.without(left_out)) != [], f"nobody misses the flush of {needed}"


def test_a_request_is_acknowledged_after_its_admission_is_durable(recorded: tuple[list[Ready], Trace]) -> None:
    runs, trace = recorded
    for run in runs:
        log = f"{run.world.database}-wal"
        admitted = trace.first("pwrite64", log, run.run_id)
        acknowledged = next(
            call for call in trace.calls
            if call.is_naming and call.path.startswith(f"{run.world.bus}/consumed/") and f"{run.seed}" in call.path
        )  # fmt: skip
        assert trace.is_flushed(log, admitted.ended, acknowledged.began)
