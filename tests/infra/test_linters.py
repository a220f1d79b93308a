"""cfn-lint and checkov have nothing to say about the templates."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from aws_emulator import TEMPLATES, TOOLS
from cloudformation import NAMES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.infra


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def cfn_lint(*templates: Path) -> subprocess.CompletedProcess[str]:
    return run(TOOLS / "venv/bin/cfn-lint", "--include-checks", "I", "--", *templates)


def checkov(folder: Path) -> dict[str, Any]:
    done = run(
        TOOLS / "venv-checkov/bin/checkov", "--framework", "cloudformation", "--directory", folder, "--output", "json",
        "--skip-download", "--soft-fail", "--compact",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_cfn_lint_finds_nothing_not_even_to_inform(tools: None) -> None:
    done = cfn_lint(*(TEMPLATES / name for name in NAMES))
    assert (done.returncode, done.stdout) == (0, "")


def test_cfn_lint_finds_what_is_wrong(tools: None, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((TEMPLATES / "data.yaml").read_text("utf-8").replace("RetentionPeriodHours", "RetentionHours"))
    assert "RetentionHours" in cfn_lint(wrong).stdout


def test_checkov_finds_nothing_and_is_asked_to_skip_nothing(tools: None) -> None:
    summary = checkov(TEMPLATES)["summary"]
    assert (summary["failed"], summary["skipped"], summary["parsing_errors"]) == (0, 0, 0)
    assert summary["passed"] > 90


def test_checkov_finds_what_is_wrong(tools: None, tmp_path: Path) -> None:
    text = (TEMPLATES / "data.yaml").read_text("utf-8")
    for good in ("StorageEncrypted: true", "BlockPublicAcls: true"):
        assert good in text
        text = text.replace(good, good.replace("true", "false"))
    (tmp_path / "data.yaml").write_text(text)
    failed = {item["check_id"] for item in checkov(tmp_path)["results"]["failed_checks"]}
    assert {"CKV_AWS_16", "CKV_AWS_53"} <= failed
