"""``runs list``: runs, newest first."""

from scenario_runner.authority.base import RunRow
from scenario_runner.cli.console import exit_on_error, print_json, print_line
from scenario_runner.cli.read_only import existing_authority
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.states import RunState
from scenario_runner.contracts.times import format_micros
from scenario_runner.profiles.wiring import load_wiring


def run(wiring_path: str, state: str | None, limit: int, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        found = list_runs(wiring_path, state, limit)
    if as_json:
        print_json({"runs": found})
        return
    for item in found:
        print_line(f"{item['run_id']}  {item['state']:16}  {item['updated_at_utc']}  {item.get('reason_code', '')}")


def list_runs(wiring_path: str, state: str | None, limit: int) -> list[Json]:
    """Runs of one state or of all, newest first.

    Raises:
        UsageError: no such state.
    """
    if state is not None and state not in set(RunState):
        raise UsageError(f"--state {state!r} is not one of {', '.join(RunState)}")
    with existing_authority(load_wiring(wiring_path)) as authority:
        return [_summary(row) for row in authority.runs(state, limit)] if authority is not None else []


def _summary(row: RunRow) -> Json:
    item = {
        "run_id": row.run_id,
        "run_equivalence_key": row.run_equivalence_key,
        "state": row.state.value,
        "admitted_at_utc": format_micros(row.admitted_us),
        "updated_at_utc": format_micros(row.updated_us),
        "evidence_deadline_utc": format_micros(row.deadline_us),
    }
    return item | ({"reason_code": row.reason_code} if row.reason_code else {})
