"""The command that deletes guards: what it takes for a guard, and what is left without it."""

from __future__ import annotations

import pytest

from sr_tools.guards.report import reasons
from sr_tools.guards.rooms import ROOMS, all_guards, guards_of
from sr_tools.guards.sql import innermost

pytestmark = pytest.mark.unit

SOURCE = b"""\
def f(x, y):
    "\xc3\xa4"
    if x is None:
        raise ValueError
    elif (z := x) and not y or y > 3:
        return z
    check_it(x)
    if y:
        x = 1
    return x or y


class C:
    def g(self):
        self._check(1)
        return [z for z in self.all if z and z.free]
"""


SQL = b"""\
-- name: one
-- WHERE this is a comment AND no term
UPDATE runs SET a = CASE WHEN a > 1 AND b THEN 1 ELSE 0 END
WHERE run_id IN (SELECT run_id FROM runs WHERE due <= :now ORDER BY due) AND state = 'X AND Y'
  AND (NOT free OR (until > 0 AND owner <> ''))
RETURNING a;

-- name: two
SELECT EXISTS (SELECT 1 FROM runs WHERE due IS NULL
                 AND (run_id = :only OR last)  -- only
              );
"""


def test_refusals_checks_filters_and_terms_are_guards_and_other_statements_are_not() -> None:
    found = [(item.function, item.line, item.kind, item.text.partition(" in ")[0]) for item in guards_of(SOURCE, "m")]
    assert sorted(found, key=lambda item: (item[1], item[2:])) == [
        ("f", 3, "refusal", "if x is None: raise ValueError"),
        ("f", 5, "refusal", "if (z := x) and not y or y > 3: return z"),
        ("f", 5, "term", "(z := x) and not y"),
        ("f", 5, "term", "not y"),
        ("f", 5, "term", "y > 3"),
        ("f", 5, "term", "z := x"),
        ("f", 7, "check", "check_it(x)"),
        ("f", 10, "term", "x"),
        ("f", 10, "term", "y"),
        ("C.g", 15, "check", "self._check(1)"),
        ("C.g", 16, "filter", "z and z.free"),
        ("C.g", 16, "term", "z"),
        ("C.g", 16, "term", "z.free"),
    ]


def test_without_a_guard_the_rest_is_as_it_was() -> None:
    guards = {(item.line, item.text.partition(" in ")[0]): item.without for item in guards_of(SOURCE, "m")}
    assert guards[3, "if x is None: raise ValueError"] == SOURCE.replace(b"x is None", b"((x is None) and False)")
    assert guards[7, "check_it(x)"] == SOURCE.replace(b"check_it(x)", b"None")
    assert guards[16, "z and z.free"] == SOURCE.replace(b"z and z.free", b"((z and z.free) or True)")
    assert guards[10, "x"] == SOURCE.replace(b"x or y", b"((y))")
    for without in guards.values():
        compile(without, "m", "exec")


def test_the_guards_of_named_statements_are_the_terms_of_every_where() -> None:
    found = [(item.function, item.line, item.text) for item in guards_of(SQL, "m.sql")]
    assert sorted(found) == [
        ("one", 4, "due <= :now"),
        ("one", 4, "run_id IN (SELECT run_id FROM runs WHERE due <= :now ORDER BY due)"),
        ("one", 4, "state = 'X AND Y'"),
        ("one", 5, "(NOT free OR (until > 0 AND owner <> ''))"),
        ("one", 5, "(until > 0 AND owner <> '')"),
        ("one", 5, "NOT free"),
        ("one", 5, "owner <> ''"),
        ("one", 5, "until > 0"),
        ("two", 9, "due IS NULL"),
        ("two", 10, "(run_id = :only OR last)"),
        ("two", 10, "last"),
        ("two", 10, "run_id = :only"),
    ]


def test_innermost_terms_have_no_term_within_them() -> None:
    assert sorted(innermost(SQL)) == [
        ("one", "NOT free"),
        ("one", "due <= :now"),
        ("one", "owner <> ''"),
        ("one", "state = 'X AND Y'"),
        ("one", "until > 0"),
        ("two", "due IS NULL"),
        ("two", "last"),
        ("two", "run_id = :only"),
    ]


def test_a_term_of_sql_is_deleted_by_what_decides_nothing_in_its_place() -> None:
    without = {item.text: item.without for item in guards_of(SQL, "m.sql")}
    assert without["state = 'X AND Y'"] == SQL.replace(b"state = 'X AND Y'", b"TRUE")
    assert without["NOT free"] == SQL.replace(b"NOT free", b"FALSE")
    assert without["owner <> ''"] == SQL.replace(b"owner <> ''", b"TRUE")
    assert without["(run_id = :only OR last)"] == SQL.replace(b"(run_id = :only OR last)", b"TRUE"), "the mark stays"
    assert without["due IS NULL"] == SQL.replace(b"due IS NULL", b"TRUE")


def test_a_guard_is_known_again_when_the_file_changes_elsewhere() -> None:
    moved = {item.key for item in guards_of(b"import os\n\n\n" + SOURCE, "m")}
    assert moved == {item.key for item in guards_of(SOURCE, "m")}
    assert len(moved) == 13


def test_every_reason_is_about_a_guard_that_exists() -> None:
    guards = {(*item.named, which) for item in all_guards(ROOMS) for which in (None, item.nth)}
    assert set(reasons()) <= guards
    assert all(reasons().values())
