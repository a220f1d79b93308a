"""README.md and the scripts are held against the code, so that they cannot rot."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from support import COMMAND, REPO

from scenario_runner.cli.console import Exit
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.permissions import NEEDED

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

README = (REPO / "README.md").read_text("utf-8")


def section(title: str) -> str:
    return re.split(r"^#+ ", README.partition(f"{title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def keys_of(table: str) -> set[str]:
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def test_the_readme_names_every_wiring_key_and_no_other() -> None:
    assert keys_of(section("### Wiring profile")) == set(Wiring.model_fields)


def test_the_readme_names_every_policy_key_and_no_other() -> None:
    assert keys_of(section("### Policy profile")) == set(Policy.model_fields)


def test_the_readme_lists_every_reason_code_with_its_sentence() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", section("## Reason codes"), flags=re.MULTILINE)
    assert rows == [(str(reason), SENTENCES[reason]) for reason in Reason]


def test_the_readme_lists_every_permission_with_what_it_is_for() -> None:
    rows = re.findall(r"^\| `([a-z0-9]+:[A-Za-z]+)` \| (.+) \|$", section("## Permissions of AWS"), flags=re.MULTILINE)
    assert dict(rows) == NEEDED


def test_the_readme_lists_the_exit_codes() -> None:
    rows = re.findall(r"^\| ([0-9]) \| ", README, flags=re.MULTILINE)
    assert [int(row) for row in rows] == [code for code in Exit if code is not Exit.DEFECT]


def commands() -> list[tuple[str, ...]]:
    block = section("## Day to day").partition("```sh\n")[2].partition("```")[0]
    found = [line.partition("#")[0].split() for line in block.splitlines() if line.startswith("scenario-runner")]
    return [tuple(words) for words in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_options(words: tuple[str, ...]) -> None:
    names = [word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)]
    shown = subprocess.run([COMMAND, *names, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.stdout


def test_every_path_that_the_readme_links_to_exists() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    assert linked
    assert [path for path in linked if not path.startswith("http") and not (REPO / path).exists()] == []


def test_the_scripts_of_the_readme_can_be_run_and_parse() -> None:
    for name in ("scripts/run_local.sh", "scripts/run_tests.sh", ".ci/run"):
        script = REPO / name
        assert script.stat().st_mode & 0o111, name
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0, name


def test_the_powershell_snippets_of_the_readme_parse_and_set_what_the_env_files_say() -> None:
    pytest.importorskip("tree_sitter_pwsh")
    import tree_sitter
    import tree_sitter_pwsh

    block = README.partition("```powershell\n")[2].partition("```")[0]
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_pwsh.language()))
    assert not parser.parse(block.encode()).root_node.has_error
    (pattern,) = set(re.findall(r"-match '([^']+)'", block))
    for name in (".env.example", ".env.localstack.example"):
        lines = (REPO / name).read_text("utf-8").splitlines()
        settings = [line for line in lines if line and not line.startswith("#")]
        assert [line for line in lines if re.search(pattern, line)] == settings


def test_a_clone_with_windows_line_ends_keeps_those_of_scripts_and_env_files(tmp_path: Path) -> None:
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout of git")
    clone = ["git", "clone", "-q", "-c", "core.autocrlf=true", str(REPO), str(tmp_path / "clone")]
    subprocess.run(clone, check=True)
    texts = [path for path in (tmp_path / "clone").rglob("*") if path.is_file() and ".git" not in path.parts]
    assert [path.name for path in texts if b"\r\n" in path.read_bytes()] == []


def test_nothing_committed_names_an_index_address() -> None:
    constraints = (REPO / "constraints.txt").read_text("utf-8")
    assert "://" not in constraints
    pinned = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line) for line in pinned)
