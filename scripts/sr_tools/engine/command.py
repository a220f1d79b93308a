"""The command ``make_engine_run.py``."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sr_tools.arguments import parse_size, split_ids
from sr_tools.engine.damage import DAMAGE_TABLE
from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.identity import DERIVED
from sr_tools.engine.make import make_run
from sr_tools.engine.pack import CATALOGUE_NAME, GATE_MAP_NAME
from sr_tools.engine.plan import DEFAULT_OUTPUTS

DESCRIPTION: Final = """\
Write a sealed engine run: for every gate that the chosen outputs need, a validation
bundle with its index and passed flag, then the outputs, then run_receipt.json. It
goes to RUNS/local_full_run-N/RUN_ID/, where RUN_ID is the first 32 hex of
sha256("sr_run|" + run key), or the engine's own id: --engine-run-id. The same
options write the same bytes.

  make_engine_run.py --request request.json           a good run, and a request for it
  make_engine_run.py --part-bytes 230M --members 20   about 2 GB of outputs
  make_engine_run.py --run-root DIR --run-id HEX32 ...  as the engine of an invocation
  make_engine_run.py --damage flag_bit_off --damage-target gate.layer1.3A.validation
"""


EPILOG: Final = f"""\
Damage kinds. One thing is wrong in an otherwise sealed run. Where a reader who trusts a
changed index can still compute a digest, the flag agrees with it: only a reader who
checks more than the flag notices. Without --damage-target the damage goes to the first
gate, or required output, that it applies to; index damage prefers a gate whose law reads
the index.

{DAMAGE_TABLE}"""


Option = tuple[str, Callable[[str], object], str]
"""Metavar, type and help of an option."""

OPTIONS: Final[Mapping[str, Option]] = {
    "pack": ("DIR", str, "interface pack (default: config/engine/interface_pack of this checkout)"),
    "catalogue": ("FILE", str, f"instead of {CATALOGUE_NAME} of the pack"),
    "gate_map": ("FILE", str, f"instead of {GATE_MAP_NAME} of the pack"),
    "runs": ("DIR", str, "where runs are kept (default %(default)s)"),
    "number": ("N", int, "the N of local_full_run-N (default %(default)s)"),
    "run_key": ("KEY", str, "run equivalence key (default %(default)s)"),
    "seed": ("UINT64", int, "seed of the run (default %(default)s)"),
    "manifest_fingerprint": ("HEX64", str, "default: derived from --data-seed"),
    "parameter_hash": ("HEX64", str, "default: derived from --data-seed"),
    "scenario_id": ("ID", str, "scenario (default %(default)s)"),
    "engine_run_id": (
        "HEX32",
        str,
        f"the engine's own id, in its receipt and paths; {DERIVED}: one of its own (default: the run's id)",
    ),
    "run_id": ("HEX32", str, "run id of an invocation: the receipt and the paths carry it"),
    "run_root": ("DIR", str, "folder of this run (default: below --runs)"),
    "outputs": ("ID[,ID...]", split_ids, f"outputs to write (default {','.join(DEFAULT_OUTPUTS)})"),
    "members": ("N", int, "members per bundle, at least 3 where they differ in form (default %(default)s)"),
    "member_bytes": (
        "SIZE",
        parse_size,
        "bytes per member (default %(default)s); K, M, G are powers of 1024",
    ),
    "parts": ("N", int, "files per directory or glob output (default %(default)s)"),
    "part_bytes": ("SIZE", parse_size, "bytes per output file (default %(default)s)"),
    "data_seed": ("N", int, "what all bytes follow from (default %(default)s)"),
    "damage": ("KIND", str, "make one thing wrong: one of the kinds below"),
    "damage_target": ("ID", str, "gate or output that the damage goes to"),
    "request": ("FILE", str, "also write a run request for these outputs, ready to submit"),
}
SWITCHES: Final[Mapping[str, str]] = {
    "all_outputs": "all outputs that a request can address and that are not inside a gate's bundle",
    "skip_optional": "leave optional outputs unwritten (a request still asks for them)",
    "force": "replace a run that is already there",
    "json": "print one JSON object instead of lines",
}


def _build_parser() -> argparse.ArgumentParser:
    """The command line; the defaults are those of :func:`make_run`."""
    parser = argparse.ArgumentParser(
        prog="make_engine_run.py",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = inspect.signature(make_run).parameters
    for name, (metavar, kind, text) in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, metavar=metavar, type=kind, default=defaults[name].default, help=text)
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    return parser


def _print_result(result: Mapping[str, Any]) -> None:
    """The result as lines for people; lists become counts with their ids."""
    for name, value in result.items():
        if isinstance(value, list):
            print(f"{name}: {len(value)}", *(f"  {item}" for item in value), sep="\n")
        elif value is not None:
            print(f"{name}: {value:,}" if name in {"bytes", "files"} else f"{name}: {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when the run is written, 2 for a usage error, 5 for an error of the file system.
    """
    options = vars(_build_parser().parse_args(argv))
    as_json = options.pop("json")
    try:
        result = make_run(**options)
    except (MakeRunError, OSError) as error:
        print(f"make_engine_run.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, MakeRunError) else 5
    if as_json:
        print(json.dumps(result))
    else:
        _print_result(result)
    return 0
