"""The tiers are called the same everywhere: in the scripts for both shells, in the workflows, and in README.md."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
MARKS = {
    "tier0": "not parity and not localstack and not engine_fixture",
    "parity": "parity",
    "localstack": "localstack",
    "engine_fixture": "engine_fixture",
}
#: Its emulator and its tools are those of a POSIX system.
ONLY_SH = "infra"
PS1 = (REPO / "scripts/run_sr_tests.ps1").read_text("utf-8")
SH = (REPO / "scripts/run_tests.sh").read_text("utf-8")


@pytest.mark.parametrize("script", sorted((REPO / "scripts").glob("*.ps1")), ids=lambda path: path.name)
def test_every_powershell_script_parses(script: Path) -> None:
    import tree_sitter
    import tree_sitter_pwsh

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_pwsh.language()))
    assert not parser.parse(script.read_bytes()).root_node.has_error
    assert parser.parse(script.read_bytes() + b"\nfunction Broken { if ($x { }").root_node.has_error


@pytest.mark.parametrize("script", sorted((REPO / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_every_shell_script_parses(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_both_shells_offer_the_same_tiers_with_the_same_marks() -> None:
    assert re.search(r"\[ValidateSet\((.+?)\)\]", PS1)[1] == ", ".join(f"'{name}'" for name in (*MARKS, "all"))  # type: ignore[index]
    assert dict(re.findall(r"^    (\w+) += '(.+)'$", PS1, flags=re.MULTILINE)) == MARKS
    for name, marks in MARKS.items():
        assert re.search(rf"^{name}\(\)", SH, flags=re.MULTILINE)
        assert f'"{marks}"' in SH
    assert re.search(rf"^{ONLY_SH}\(\)", SH, flags=re.MULTILINE)


def test_pull_requests_are_gated_by_tier_0_and_the_night_by_the_others() -> None:
    folder = REPO / ".github/workflows"
    gate = yaml.safe_load((folder / "pull-request.yaml").read_text("utf-8"))["jobs"]["tier0"]["steps"]
    assert [step["run"] for step in gate if "run" in step] == [
        "scripts/run_tests.sh lint",
        "scripts/run_tests.sh tier0",
    ]
    night = yaml.safe_load((folder / "nightly.yaml").read_text("utf-8"))["jobs"]["tier"]
    assert night["strategy"]["matrix"]["tier"] == [*(name for name in MARKS if name != "tier0"), ONLY_SH]
    tiers = [
        step for step in (*gate, *night["steps"]) if "run_tests.sh" in step.get("run", "") and "lint" not in step["run"]
    ]
    assert [step.get("env") for step in tiers] == [{"SR_TEST_FOLDER": "${{ runner.temp }}"}] * 2, "on a disk"


@pytest.mark.parametrize(
    "name",
    [
        "test_s3_store.py",
        "test_authority_store_postgres.py",
        "test_parity_integration.py",
        "test_control_bus_kinesis.py",
        "test_engine_fixtures.py",
    ],
)
def test_the_files_that_users_run_by_name_are_there(name: str) -> None:
    assert (REPO / "tests/services/scenario_runner" / name).is_file()
    assert (REPO / "tests/services/scenario_runner" / name).read_text("utf-8").count("def test_") > 0


def test_the_parity_stack_has_the_ports_and_names_of_its_profile() -> None:
    compose = yaml.safe_load((REPO / "infra/local/docker-compose.sr-parity.yaml").read_text("utf-8"))
    services = compose["services"]
    assert services["minio"]["ports"] == ["127.0.0.1:9000:9000", "127.0.0.1:9001:9001"]
    assert services["postgres"]["ports"] == ["127.0.0.1:5433:5432"]
    assert services["minio"]["environment"] == {"MINIO_ROOT_USER": "minio", "MINIO_ROOT_PASSWORD": "minio123"}
    assert services["postgres"]["environment"] == {
        "POSTGRES_USER": "sr",
        "POSTGRES_PASSWORD": "sr",
        "POSTGRES_DB": "sr_dev",
    }
    assert services["minio-bucket"]["entrypoint"][-1] == "local/sr-local"
    for service in services.values():
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:[\w.-]+", service["image"])
        assert not service["image"].endswith(":latest")
    assert all("healthcheck" in services[name] for name in ("minio", "postgres"))
    profile = (REPO / "config/platform/sr/wiring_local_parity.yaml").read_text("utf-8")
    assert "postgresql://sr:sr@localhost:5433/sr_dev" in profile
    assert "http://localhost:9000" in profile
    assert "sr-local" in profile
