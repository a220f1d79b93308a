"""Corrections on the embedded authority: what is asked of the run that is superseded, under the write lock."""

import sqlite3
from collections.abc import Mapping

from scenario_runner.authority.values import NewRun
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import FINAL_STATES
from scenario_runner.contracts.supersession import not_ended, not_found


def obstacle(connection: sqlite3.Connection, sql: Mapping[str, str], run: NewRun) -> tuple[Reason, str] | None:
    """Why a run that does not exist yet cannot supersede another; None when it can, supersedes none, or exists."""
    supersession = run.supersession
    if supersession is None or connection.execute(sql["state_of"], {"run_id": run.run_id}).fetchone() is not None:
        return None
    old = connection.execute(sql["state_of"], {"run_id": supersession.old_run_id}).fetchone()
    if old is None:
        return not_found(supersession)
    return None if old["state"] in FINAL_STATES else not_ended(supersession)
