"""Migrations only add, so that daemons of the release before go on while a newer one brings the schema up to date."""

from __future__ import annotations

import re

import pytest
from support import REPO

from scenario_runner.authority.statements import load_migrations

pytestmark = pytest.mark.unit

#: What no statement of the release before can notice. A new column has a default, or may be NULL.
ADDITIONS = (
    r"CREATE TABLE \w+ .*",
    r"CREATE (UNIQUE )?INDEX \w+ ON \w+ .*",
    r"CREATE FUNCTION .*",
    r"ALTER TABLE \w+ ADD COLUMN (?!.* NOT NULL(?!.* DEFAULT )).*",
)
#: Migrations that do more, each with its reason. CHANGELOG.md says of each: stop every daemon first.
STOP_FIRST = {
    ("postgres", 4): "a signal may be published more than once, so its message id alone is no longer unique",
    ("sqlite", 5): "the same; SQLite can change a constraint only by making the table anew",
}


def statements(text: str) -> list[str]:
    code = re.sub(r"--.*", "", text)
    return [" ".join(part.split()) for part in code.split(";") if part.strip()]


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
def test_a_migration_only_adds_or_is_named_with_its_reason(engine: str) -> None:
    more = {
        number: [text for text in statements(migration) if not any(re.fullmatch(form, text) for form in ADDITIONS)]
        for number, _, migration in load_migrations(engine)
    }
    assert {(engine, number) for number, found in more.items() if found} == {
        key for key in STOP_FIRST if key[0] == engine
    }, more


def test_the_changelog_says_so_in_the_words_that_the_guide_promises() -> None:
    words = "*stop every daemon first*"
    promised = (REPO / "docs/guides/rollout.md").read_text("utf-8")
    assert words in " ".join(promised.split())
    said = (REPO / "CHANGELOG.md").read_text("utf-8").partition("\n### Before you upgrade\n")[2].partition("\n### ")[0]
    assert words in " ".join(said.split())


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE runs ADD COLUMN a text NOT NULL", "ALTER TABLE runs DROP COLUMN a", "DROP INDEX i",
        "ALTER TABLE runs ALTER COLUMN a TYPE bigint", "UPDATE runs SET a = 1", "CREATE TRIGGER t",
    ],
)  # fmt: skip
def test_what_a_statement_of_before_would_notice_is_no_addition(text: str) -> None:
    assert not any(re.fullmatch(form, text) for form in ADDITIONS)
