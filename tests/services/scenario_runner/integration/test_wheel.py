"""What pip builds from the repository holds all that an installation needs; a container has nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from support import REPO

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SHARED = "share/scenario-runner"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of what git knows, so that no left-over of a former build gets in."""
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout of git")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(listing, cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (REPO / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--wheel-dir", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "setuptools" in done.stderr:
        pytest.skip(f"pip cannot get setuptools, with which the wheel is built: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    (found,) = built.glob("*.whl")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = REPO / "daemon"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {str(path.relative_to(package)) for path in files if "egg-info" not in str(path)}
    assert wanted <= set(contents(wheel))


@pytest.mark.parametrize("folder", ["config", "deploy/systemd", "deploy/ecs"])
def test_a_wheel_holds_profiles_pack_schemas_units_and_task_definitions(wheel: Path, folder: str) -> None:
    found = contents(wheel)
    for path in (REPO / folder).rglob("*"):
        if path.is_file():
            (name,) = [name for name in found if name.endswith(f".data/data/{SHARED}/{path.relative_to(REPO)}")]
            assert found[name] == path.read_bytes()


def test_what_a_wheel_installs_can_be_used_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
    ]
    subprocess.run([*command, "--prefix", str(target), "--ignore-installed", str(wheel)], check=True)
    (site,) = target.glob("lib/python*/site-packages")
    shared = target / SHARED

    def run(*words: str) -> None:
        code = f"import sys; sys.path.insert(0, {str(site)!r}); from scenario_runner.cli.main import main; main()"
        call = [sys.executable, "-c", code, *words]
        done = subprocess.run(
            call, cwd=shared, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("contracts", "export", str(tmp_path / "exported"))
    exported = {str(path.relative_to(tmp_path / "exported")) for path in (tmp_path / "exported").rglob("*.yaml")}
    shipped = {str(path.relative_to(shared / "config")) for path in (shared / "config").rglob("*.schema.yaml")}
    assert exported == shipped
    # The profiles name pack and schemas relative to the folder that config/ lies in.
    (shared / "runs").mkdir()
    run("doctor", "--wiring", "config/platform/sr/wiring_local.yaml", "--policy", "config/platform/sr/policy_v0.yaml")


def test_the_installation_for_systemd_needs_the_wheel_alone_and_keeps_settings(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    (script,) = (tmp_path / "wheel").glob(f"*.data/data/{SHARED}/deploy/systemd/install.sh")
    root = tmp_path / "root"
    root.mkdir()
    settings = root / "etc/scenario-runner"
    command = ["sh", str(script), "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    environment = {**os.environ, "ROOT": str(root), "PYTHON": sys.executable}
    schema = "config/platform/contracts/scenario_runner/" + next(
        path.name for path in (REPO / "config/platform/contracts/scenario_runner").glob("*.yaml")
    )
    for turn in range(2):
        subprocess.run(command, env=environment, check=True)
        if turn == 0:
            (settings / "scenario-runner.env").write_text("SR_WIRING=/mine\n", "utf-8")
            (settings / "config/platform/sr/policy_v0.yaml").write_text("mine\n", "utf-8")
            (settings / schema).write_text("of the release before\n", "utf-8")
    assert (settings / "scenario-runner.env").read_text("utf-8") == "SR_WIRING=/mine\n"
    assert (settings / "config/platform/sr/policy_v0.yaml").read_text("utf-8") == "mine\n"
    assert (settings / schema).read_bytes() == (REPO / schema).read_bytes()
    assert (settings / "secrets.env").stat().st_mode & 0o777 == 0o600
    units = {path.name for path in (root / "etc/systemd/system").iterdir()}
    assert units == {"scenario-runner.service", "scenario-runner-run@.service"}
    assert (root / "usr/local/sbin/scenario-runner").stat().st_mode & 0o111
    assert (root / "opt/scenario-runner/bin/scenario-runner").exists()
    users = (root / "etc/sysusers.d/scenario-runner.conf").read_text("utf-8")
    unit = (root / "etc/systemd/system/scenario-runner.service").read_text("utf-8")
    assert users.split()[:2] == ["u", "scenario-runner"]
    assert "User=scenario-runner\n" in unit
