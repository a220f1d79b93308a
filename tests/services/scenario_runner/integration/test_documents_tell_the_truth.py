"""README.md, docs/ and the scripts are compared with the code, and what they show is executed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import COMMAND, REPO, help_of

from scenario_runner.cli.console import Exit
from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.strict_yaml import read_yaml
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring, parse_wiring
from scenario_runner.service.compose import allowed_roots
from scenario_runner.service.engine import engine_terms
from scenario_runner.service.permissions import NEEDED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

README = (REPO / "README.md").read_text("utf-8")
DOCS = REPO / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text("utf-8")
OPERATING = (DOCS / "guides/operating.md").read_text("utf-8")
EVERYTHING = "\n".join([README, *(path.read_text("utf-8") for path in sorted(DOCS.rglob("*.md")))])


def section(document: str, title: str) -> str:
    assert f"\n{title}\n" in document
    return re.split(r"^#+ ", document.partition(f"\n{title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def keys_of(table: str) -> set[str]:
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def test_the_configuration_names_every_wiring_key_and_no_other() -> None:
    assert keys_of(section(CONFIGURATION, "## Wiring profile")) == set(Wiring.model_fields)


def test_the_configuration_names_every_policy_key_and_no_other() -> None:
    assert keys_of(section(CONFIGURATION, "## Policy profile")) == set(Policy.model_fields)


def test_the_contracts_list_every_reason_code_with_its_sentence() -> None:
    codes = section((DOCS / "contracts.md").read_text("utf-8"), "## 5. Reason codes")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", codes, flags=re.MULTILINE)
    assert rows == [(str(reason), SENTENCES[reason]) for reason in Reason]


def test_the_guides_list_every_permission_with_what_it_is_for() -> None:
    guide = (DOCS / "guides/permissions.md").read_text("utf-8").partition("\n## Resources\n")[0]
    assert dict(re.findall(r"^\| `([a-z0-9]+:[A-Za-z]+)` \| (.+) \|$", guide, flags=re.MULTILINE)) == NEEDED


def test_the_guides_list_the_exit_codes() -> None:
    rows = re.findall(r"^\| ([0-9]) \| ", section(OPERATING, "## Exit codes"), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [code for code in Exit if code is not Exit.DEFECT]


@pytest.mark.parametrize("name", ["commands.md", "guides/monitoring.md", "runbook.md", "cost.md"])
def test_the_generated_parts_are_those_of_the_code(name: str) -> None:
    before = (DOCS / name).read_text("utf-8")
    spec = importlib.util.spec_from_file_location("generate", DOCS / "site/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.generated(before) == before, "run: python docs/site/generate.py"


def engine_snippets() -> list[str]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", EVERYTHING, flags=re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "engine_command:" in block]


@pytest.mark.parametrize("snippet", engine_snippets())
def test_every_engine_of_the_documents_can_be_configured_so(snippet: str) -> None:
    keys: dict[str, Any] = read_yaml(str(REPO / "config/platform/sr/wiring_local.yaml"), env={})
    engine = {"engine_roots": ["/data/runs"], **yaml.safe_load(snippet)}
    if engine.get("engine_invoker") == "ecs":
        engine["engine_ecs_region"] = "eu-west-1"  # from the environment, mostly
    wiring = parse_wiring(keys | engine, "snippet")
    assert engine_terms(wiring, allowed_roots(wiring)) is not None


def commands() -> list[tuple[str, ...]]:
    """Every call of the command in a code block of the documents."""
    blocks = re.findall(r"^```sh\n(.*?)^```", EVERYTHING, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("scenario-runner ")]
    return sorted({tuple(line.partition("#")[0].split()) for line in lines})


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_documents_exists_with_its_options(words: tuple[str, ...]) -> None:
    names = [word for word in words[1:3] if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
    shown = help_of(*names)
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def shell_block(title: str) -> str:
    """The shell commands of a section of the README."""
    return section(README, title).partition("```sh\n")[2].partition("```")[0]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    """Runs a script where a clone would run it, and returns what it prints."""
    for name in ("config", "scripts"):
        (tmp_path / name).symlink_to(REPO / name)
    environment = {**os.environ, "PATH": f"{os.path.dirname(COMMAND)}:{os.environ['PATH']}"}
    environment = {name: value for name, value in environment.items() if not name.startswith("SR_")}

    def run(script: str) -> str:
        bash = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(bash, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_first_request_of_the_readme_leads_to_ready(shell: Callable[[str], str]) -> None:
    before, submitted, after = shell_block("## A first request").partition("scenario-runner submit")
    settings = before.splitlines()[0]
    line, _, after = (submitted + after).partition("\n")
    run_id = re.findall(r"^run_id: +(\w+)$", shell(f"{before}\n{line}"), flags=re.MULTILINE)[0]
    shown = shell(f"{settings}\n{after}".replace("RUN_ID", run_id))
    assert re.search(r"^state: +READY$", shown, flags=re.MULTILINE)
    assert re.search(r"^PASS: ", shown, flags=re.MULTILINE)


def test_the_one_shot_command_of_the_readme_invokes_the_engine_and_leads_to_ready(
    shell: Callable[[str], str], tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("an engine that is a process of the host needs Linux")
    shown = shell(shell_block("## Engine runs that SR makes"))
    assert re.search(r"^state: +READY$", shown, flags=re.MULTILINE)
    (made,) = (tmp_path / "runs/invoked").iterdir()
    receipt = json.loads((made / "run_receipt.json").read_bytes())
    assert receipt["run_id"] == made.name != receipt["engine_run_id"]


def test_the_request_of_the_readme_has_the_form_of_a_request() -> None:
    block = section(README, "## A first request").partition("```json\n")[2].partition("```")[0]
    request = json.loads(block.replace("<64 lowercase hex>", "a" * 64))
    assert parse_run_request(request).run_equivalence_key == "nightly-2026-01-01"


def test_the_readme_names_the_command_of_ci() -> None:
    called = (REPO / ".ci/run").read_text("utf-8").splitlines()[-1].removeprefix("exec ")
    assert f"\n{called} " in section(README, "## Two commands").partition("```sh")[2]


def test_the_scripts_of_the_readme_can_be_run_and_parse() -> None:
    for name in ("scripts/run_local.sh", "scripts/run_tests.sh", ".ci/run"):
        script = REPO / name
        assert script.stat().st_mode & 0o111, name
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0, name


def test_the_powershell_snippets_parse_and_set_what_the_env_files_say() -> None:
    pytest.importorskip("tree_sitter_pwsh")
    import tree_sitter
    import tree_sitter_pwsh

    guide = (DOCS / "guides/install.md").read_text("utf-8")
    block = guide.partition("```powershell\n")[2].partition("```")[0]
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
