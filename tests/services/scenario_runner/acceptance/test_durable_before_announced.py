"""Nothing is announced before it is durable, also after a power loss: the order of a daemon's own system calls."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import COMMAND, World, need_posix
from system_calls import FLUSHES, Call, Trace, need_strace, record

pytestmark = pytest.mark.integration

#: Seeds of two engine runs, each a world of its own: nothing of their receipts is shared.
SEEDS = (71, 72)
#: Of one whose evidence came late: its record and status were written before, and are replaced.
WAITED = 73
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
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Ready], Trace]:
    """Three runs that one daemon drove in a batch, by seed, and its system calls."""
    need_posix()
    need_strace()
    world = World(tmp_path_factory.mktemp("recorded").resolve() / "world")
    late = world.make_run("waited", seed=WAITED, members=3, parts=2)["request"]
    flag = min(Path(late["engine_run_root"]).rglob("_passed.flag"))
    flag.rename(world.root / "flag")
    world.drop(late, f"{WAITED}.json")
    assert world.serve().returncode == 0
    (world.root / "flag").rename(flag)
    for seed in SEEDS:
        world.drop(world.make_run(f"own-{seed}", seed=seed, members=3, parts=2)["request"], f"{seed}.json")
    serve = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    trace = record(serve, world.root / "calls")
    runs = {}
    for signal in world.signals_folder.glob("*.json"):
        run_id = json.loads(signal.read_bytes())["payload"]["run_id"]
        seed = world.document("run_facts_view", run_id)["pins"]["seed"]
        runs[seed] = Ready(world, run_id, seed, signal)
    assert runs.keys() == {*SEEDS, WAITED}
    return runs, trace


@pytest.mark.parametrize("seed", SEEDS)
def test_all_that_ready_promises_is_durable_before_it_is_announced(
    recorded: tuple[dict[int, Ready], Trace], seed: int
) -> None:
    runs, trace = recorded
    assert runs[seed].problems(trace) == []


def test_documents_that_were_replaced_are_durable_before_ready_is_announced(
    recorded: tuple[dict[int, Ready], Trace],
) -> None:
    runs, trace = recorded
    run = runs[WAITED]
    record, status, _ = map(str, run.documents(BEFORE_THE_SIGNAL))
    sent = trace.named(str(run.signal))
    for path in (record, status):
        assert trace.named(path).name.startswith("rename"), "it was there before"
        assert trace.lost(path, sent.began, str(run.world.root)) == []


def test_no_flush_could_be_left_out(recorded: tuple[dict[int, Ready], Trace]) -> None:
    """Each file and folder that READY needs is flushed, and without its flushes the first test would fail."""
    runs, trace = recorded
    for run in map(runs.__getitem__, SEEDS):
        for needed in dict.fromkeys(run.needed(trace)):

            def left_out(call: Call, needed: str = needed) -> bool:
                return call.name in FLUSHES and call.path == needed

            flushed = any(map(left_out, trace.calls))
            assert flushed, f"{needed} is never flushed"
            assert run.problems(trace.without(left_out)) != [], f"nobody misses the flush of {needed}"


def test_a_request_is_acknowledged_after_its_admission_is_durable(
    recorded: tuple[dict[int, Ready], Trace],
) -> None:
    runs, trace = recorded
    for run in map(runs.__getitem__, SEEDS):
        log = f"{run.world.database}-wal"
        admitted = trace.first("pwrite64", log, run.run_id)
        acknowledged = next(
            call for call in trace.calls
            if call.is_naming and call.path.startswith(f"{run.world.bus}/consumed/") and f"{run.seed}" in call.path
        )  # fmt: skip
        assert trace.is_flushed(log, admitted.ended, acknowledged.began)
