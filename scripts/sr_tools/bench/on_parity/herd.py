"""What a herd of waiting runs costs on S3 and PostgreSQL."""

import argparse
from pathlib import Path

import obstore
from psycopg.conninfo import make_conninfo

from sr_tools.bench.herd import Herd, measure, name_of, rows_of, waiting_template
from sr_tools.bench.many_runs import apart, fill_postgres, state_of
from sr_tools.bench.on_parity.place import THREADS
from sr_tools.bench.on_parity.world import ParityWorld, parity_world
from sr_tools.bench.processes import cpu_of
from sr_tools.bench.references import in_threads
from sr_tools.bench.report import Json, note
from sr_tools.bench.world import World


def herd(options: argparse.Namespace, folder: Path) -> list[Json]:
    """See :mod:`sr_tools.bench.herd`; other engine runs lie beside the absent roots, an object each."""
    templates = waiting_template(World.make(folder / "templates", options))
    with parity_world(options, folder / "herd") as world:
        name = world.schema.name
        world.more_wiring["authority_store_dsn"] = make_conninfo(world.schema.dsn, application_name=name)
        world.prepare()
        world.serve("--until-idle").finish()  # makes the tables
        keys = [world.engine.key("herd", name_of("sibling", number), "run_receipt.json")
                for number in range(options.herd_siblings)]  # fmt: skip
        in_threads(THREADS, lambda key: obstore.put(world.engine.store, key, b"{}"), keys)
        request, _ = world.upload_engine_run("beside", 1)
        note(f"herd: making {options.herd_runs} runs")
        make = rows_of(world.engine.uri("herd"), same_root=options.herd_same_root)
        apart(fill_postgres, world.schema.dsn, templates, options.herd_runs, world.now_us(), state_of, make)
        return measure(Herd(world, request, "S3 and PostgreSQL", lambda: _backends_cpu(world, name)), options)


def _backends_cpu(world: ParityWorld, application: str) -> float:
    """Seconds of CPU of the server's processes that serve the daemon; 0 where the server is another machine."""
    pids = world.query(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{application}'")
    return sum(cpu_of(int(pid)) for (pid,) in pids)
