"""The database user of infra/aws/README.md has just the rights that a daemon needs.

Needs ``SR_TEST_PG_DSN``, and there the right to make databases and roles.
"""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_support import given_dsn, with_parameters

from scenario_runner.authority.connect import connect_authority

pytestmark = pytest.mark.parity

README = Path(__file__).resolve().parents[3] / "infra/aws/README.md"
NAME = "scenario_runner"
"""Of the database and of its user in README.md."""


@pytest.fixture
def dsn() -> Iterator[str]:
    """A database of the test's own, and in it the user that README.md makes; nobody else may connect."""
    import psycopg
    from psycopg.errors import InsufficientPrivilege

    base, name = given_dsn(), f"sr_test_{secrets.token_hex(6)}"
    (statements,) = re.findall(r"^```sql\n(.+?)^```$", README.read_text("utf-8"), re.M | re.S)
    password = secrets.token_hex(24)
    with psycopg.connect(base, autocommit=True) as server:
        try:
            server.execute(f"CREATE DATABASE {name}")
        except InsufficientPrivilege as error:
            pytest.skip(f"no database can be made: {error}")
        try:
            with psycopg.connect(with_parameters(base, dbname=name), autocommit=True) as admin:
                admin.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
                for statement in statements.replace(NAME, name).strip().split("\n"):
                    if statement == f"\\password {name}":  # psql asks for the password, and sends its hash
                        hashed = admin.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
                        admin.execute(f"ALTER USER {name} PASSWORD '{hashed.decode()}'")
                    else:
                        admin.execute(statement)
            yield with_parameters(base, dbname=name, user=name, password=password)
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
            server.execute(f"DROP ROLE IF EXISTS {name}")


def test_the_user_of_the_readme_makes_the_schema_and_works_in_it(dsn: str) -> None:
    authority = connect_authority(dsn, "test")
    assert authority.now_us() > 0
    authority.close()


def test_it_may_make_no_database_and_no_role(dsn: str) -> None:
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as user:
        for statement in ("CREATE DATABASE another", "CREATE ROLE another", "CREATE SCHEMA another"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(statement)
