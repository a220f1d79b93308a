"""Which errors of PostgreSQL are waited for, which are told at once, and that each is told with what to do."""

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("psycopg_pool")

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout

from scenario_runner.authority.postgres_pool import UNSTORABLE, is_transient

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("the connection is closed"),
        psycopg.InterfaceError("the connection is lost"),
        PoolTimeout("no connection after 2 s"),
        errors.AdminShutdown(),
        errors.CrashShutdown(),
        errors.CannotConnectNow(),
        errors.TooManyConnections(),
        errors.SerializationFailure(),
        errors.DeadlockDetected(),
        errors.LockNotAvailable(),
        errors.ReadOnlySqlTransaction(),
        errors.IdleInTransactionSessionTimeout(),
        errors.DiskFull(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_go_away_by_itself_is_tried_again(error: psycopg.Error) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        PoolClosed("closed"),
        psycopg.OperationalError('FATAL:  password authentication failed for user "x"'),
        psycopg.OperationalError('FATAL:  database "x" does not exist'),
        psycopg.OperationalError("FATAL:  unsupported startup parameter: options"),
        errors.ProtocolViolation("transaction blocks not allowed in statement pooling mode"),
        errors.QueryCanceled("canceling statement due to statement timeout"),
        errors.UndefinedTable("relation does not exist"),
        errors.SyntaxError(),
        errors.UniqueViolation(),
        errors.CheckViolation(),
        errors.InsufficientPrivilege(),
        errors.NumericValueOutOfRange(),
        errors.ProgramLimitExceeded(),
        psycopg.DataError("NUL"),
        ValueError("ours"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:30]}",
)
def test_what_comes_again_with_every_try_is_told_at_once(error: Exception) -> None:
    assert not is_transient(error)


def test_only_errors_that_lie_in_a_value_refuse_a_record() -> None:
    assert issubclass(errors.NumericValueOutOfRange, UNSTORABLE)
    assert not issubclass(errors.UniqueViolation, UNSTORABLE)
    assert not any(issubclass(kind, psycopg.InterfaceError) for kind in UNSTORABLE)
