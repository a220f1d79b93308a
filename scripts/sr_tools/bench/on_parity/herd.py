"""What a herd of waiting runs costs on S3 and PostgreSQL, and what it costs others when it is woken."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import obstore
from psycopg.conninfo import make_conninfo

from sr_tools.bench.herd import Herd, evidence_of, measure, name_of, root_of, rows_of, waiting_template
from sr_tools.bench.many_runs import apart, fill_postgres, state_of
from sr_tools.bench.on_parity.place import THREADS
from sr_tools.bench.on_parity.world import ParityWorld, parity_world
from sr_tools.bench.processes import cpu_of
from sr_tools.bench.references import in_threads
from sr_tools.bench.report import Json, note
from sr_tools.bench.woken import measure_woken
from sr_tools.bench.world import RACY_SECONDS, World


def herd(options: argparse.Namespace, folder: Path) -> list[Json]:
    """See :mod:`sr_tools.bench.herd`; other engine runs lie beside the absent roots, an object each."""
    sizes = {"runs": options.herd_runs, "siblings": options.herd_siblings}
    with _herd(options, folder, **sizes, same_root=options.herd_same_root, in_rounds=True, come=False) as made:
        return measure(made, options)


def woken(options: argparse.Namespace, folder: Path) -> list[Json]:
    """See :mod:`sr_tools.bench.woken`."""
    sizes = {"runs": options.woken_runs, "siblings": 0}
    with _herd(options, folder, **sizes, same_root=True, in_rounds=False, come=options.woken_come) as made:
        return measure_woken(made, options)


@contextmanager
def _herd(
    options: argparse.Namespace, folder: Path, *, runs: int, siblings: int, same_root: bool, in_rounds: bool, come: bool
) -> Iterator[Herd]:
    local = World.make(folder / "templates", options)
    templates = waiting_template(local)
    with parity_world(options, folder / "herd") as world:
        name = world.schema.name
        world.more_wiring["authority_store_dsn"] = make_conninfo(world.schema.dsn, application_name=name)
        world.prepare()
        world.serve("--until-idle").finish()  # makes the tables
        keys = [world.engine.key("herd", name_of("sibling", number), "run_receipt.json") for number in range(siblings)]
        in_threads(THREADS, lambda key: obstore.put(world.engine.store, key, b"{}"), keys)
        base = world.engine.uri("herd")
        if come:
            world.engine.upload(evidence_of(local), f"herd/{name_of('absent', 0)}")
        request, _ = world.upload_engine_run("beside", 1)
        note(f"herd: making {runs} runs")
        make = rows_of(base, same_root=same_root, in_rounds=in_rounds)
        apart(fill_postgres, world.schema.dsn, templates, runs, world.now_us(), state_of, make)
        time.sleep(RACY_SECONDS)
        yield Herd(world, request, "S3 and PostgreSQL", partial(_backends_cpu, world, name), root_of(base, 0))


def _backends_cpu(world: ParityWorld, application: str) -> float:
    """Seconds of CPU of the server's processes that serve the daemon; 0 where the server is another machine."""
    pids = world.query(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{application}'")
    return sum(cpu_of(int(pid)) for (pid,) in pids)
