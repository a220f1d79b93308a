"""``daemons``: the processes of ``serve`` that report themselves to the authority, also while they are idle."""

from typing import Final

from scenario_runner.authority.observed import DaemonRow
from scenario_runner.cli.console import exit_on_error, print_err
from scenario_runner.cli.lists import Form, Page, print_list
from scenario_runner.cli.outputs.looking import DAEMONS
from scenario_runner.cli.read_only import existing_views
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.times import MICROS, format_micros
from scenario_runner.profiles.wiring import load_wiring

#: A daemon reports itself twice a minute at least; with two reports missing it hangs or was killed.
_ALIVE_SECONDS: Final = 60
#: Daemons that are shown: far more than work on one authority.
_MOST: Final = 1000


def run(wiring_path: str, *, as_json: bool, as_lines: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json or as_lines, logs=False):
        with existing_views(load_wiring(wiring_path)) as views:
            rows = views.daemons(_MOST) if views is not None else []
        form = Form.of(as_json=as_json, as_lines=as_lines)
        print_list(DAEMONS, Page([_shown(row) for row in rows], _MOST, str), form, _line)
        if not rows and form is Form.TEXT:
            print_err("no daemon has reported itself within a day")


def _shown(row: DaemonRow) -> Json:
    seconds = max(0, (row.now_us - row.seen_us) // MICROS)
    return {
        "owner": row.owner,
        "role": row.role,
        "version": row.version,
        "host": row.host,
        "started_at_utc": format_micros(row.started_us),
        "seen_at_utc": format_micros(row.seen_us),
        "seconds_since_seen": seconds,
        "state": "RUNNING" if seconds <= _ALIVE_SECONDS else "NOT_SEEN",
    }


def _line(item: Json) -> str:
    pid = item["owner"].split("|")[2:3]
    return (
        f"{item['state']:9}{item['role']:13}{item['version']:9}{item['host']} (process {''.join(pid)})  started "
        f"{item['started_at_utc']}, seen {item['seconds_since_seen']} s ago"
    )
