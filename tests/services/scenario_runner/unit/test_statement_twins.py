"""Statements of Postgres have the terms of their twins for SQLite.

Tier 0 has no server of Postgres: what its statements do is tried in tier 1. Here each WHERE is compared with that of
the statements of SQLite that do the same, and that tier 0 tries. So a term that one engine loses is missed, and a guard
that is added to one engine is asked for on the other. ``statement_twins.yaml`` says where they differ, and why.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

import pytest
import yaml
from support import REPO

from sr_tools.guards.sql import innermost, sql_guards

pytestmark = pytest.mark.unit
AUTHORITY: Final = REPO / "daemon/scenario_runner/authority"
TABLE: Final[dict[str, Any]] = yaml.safe_load(
    (REPO / "tests/services/scenario_runner/statement_twins.yaml").read_text("utf-8")
)
FOLDERS: Final = ("sql", "views")

#: How each engine writes what both say, and what is written for it; one after the other.
WRITTEN: Final = [
    (re.compile(pattern), same)
    for pattern, same in (
        (r"%\((\w+)\)b", r":\1"),
        (r"::\w+(\[\])?", ""),
        (r"= ANY \((:\w+)\)", r"IN \1"),
        (r"<> ALL \((:\w+)\)", r"NOT IN \1"),
        (r"IN \(SELECT value FROM json_each\((:\w+)\)\)", r"IN \1"),
        (r"position\((\S+) IN (\S+)\)", r"instr(\2, \1)"),
        (r"\(SELECT now FROM clock\)|\b(clock|c)\.now\b|(?<![:.\w])now\b", ":now"),
        (r"\(SELECT (run|lease|relay) FROM bound\)", r":\1_bound"),
        (r"\bb\.(run|lease|relay)\b", r":\1_bound"),
        (r"\(SELECT never FROM bound\)|\bb\.never\b", ":until_restart"),
        (r"\bg\.(\w+)", r":\1"),  # "g" is a batch of what is given; SQLite is given a row at a time
        (r"(?<!\S)\+(?=\w)", ""),  # a column by which SQLite shall not search
        (r"^(\w+)\.(\w+) = \w+\.\2$", r"\2 = :\2"),
        (r"(?<![.\w])[a-z_]+\.(?=[a-z_])", ""),
    )
]


def written(term: str) -> str:
    """A term as both engines would write it."""
    for pattern, same in WRITTEN:
        term = pattern.sub(same, term)
    return term


def terms_of(source: bytes) -> dict[str, Counter[str]]:
    """Terms by the statements that have some."""
    found: dict[str, Counter[str]] = {}
    for statement, term in innermost(source):
        found.setdefault(statement, Counter())[written(term)] += 1
    return found


def statements_of(source: bytes) -> list[bytes]:
    """A file of named statements in pieces, each with its name."""
    return [b"-- name: " + part for part in source.split(b"-- name: ")[1:]]


def read(engine: str, folder: str) -> bytes:
    return (AUTHORITY / folder / f"{engine}.sql").read_bytes()


def listed(difference: dict[str, Any], engine: str) -> Counter[str]:
    return Counter(term for terms in difference.get(engine, {}).values() for term in terms)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_statement_of_postgres_has_the_terms_of_its_twins(folder: str) -> None:
    postgres, sqlite = terms_of(read("postgres", folder)), terms_of(read("sqlite", folder))
    complaints = []
    for statement, terms in postgres.items():
        difference = TABLE[folder].get(statement, {})
        twins = sum((sqlite.get(name, Counter()) for name in difference.get("like", [statement])), Counter[str]())
        for engine, more in (("postgres", terms - twins), ("sqlite", twins - terms)):
            told = listed(difference, engine)
            complaints += [f"{statement}: only {engine} has {term!r}" for term in more - told]
            complaints += [f"{statement}: {engine} has no {term!r} that the other has not" for term in told - more]
    assert complaints == [], "a term was lost; or statement_twins.yaml has to say why the engines differ"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_term_of_postgres_that_is_deleted_is_missed(folder: str) -> None:
    for statement in statements_of(read("postgres", folder)):
        (terms,) = terms_of(statement).values() or [Counter()]
        for guard in sql_guards(statement, ""):
            (left,) = terms_of(guard.without).values()
            del left["TRUE"], left["FALSE"]  # what the script puts in their place
            assert left < terms, guard.text


def test_what_is_told_of_differences_is_of_statements_and_reasons_that_exist() -> None:
    for folder in FOLDERS:
        names = {
            engine: {re.match(rb"-- name: ([a-z_]+)", part)[1].decode() for part in statements_of(read(engine, folder))}  # type: ignore[index]
            for engine in ("postgres", "sqlite")
        }
        assert set(TABLE[folder]) <= names["postgres"]
        assert {name for item in TABLE[folder].values() for name in item.get("like", [])} <= names["sqlite"]
    used = {
        reason
        for folder in FOLDERS
        for item in TABLE[folder].values()
        for engine in ("postgres", "sqlite")
        for reason in item.get(engine, {})
    }
    assert set(TABLE["reasons"]) <= used
    assert all(reason in TABLE["reasons"] or " " in reason for reason in used)


def test_terms_that_say_the_same_are_written_the_same() -> None:
    pairs = {
        "r.run_id = ANY (%(run_ids)b::text[])": "run_id IN (SELECT value FROM json_each(:run_ids))",
        "o.due_us <= (SELECT now FROM clock)": "due_us <= :now",
        "o.message_id = g.message_id": "message_id = :message_id",
        "position(%(manifest)b::bytea IN r.intent) > 0": "instr(r.intent, :manifest) > 0",
        "reason_code = %(reason)b": "+reason_code = :reason",
        "(o.sent_us, o.outbox_id) > (%(after_us)b::bigint, %(after_id)b::bigint)":
            "(o.sent_us, o.outbox_id) > (:after_us, :after_id)",
    }  # fmt: skip
    for postgres, sqlite in pairs.items():
        assert written(postgres) == written(sqlite)
    assert written("r.lease_owner = %(owner)b") != written("relay_owner = :owner")
    assert written("due_us > :now") != written("due_us >= :now")
