"""On Windows: everything imports, what asks S3, PostgreSQL and Kinesis works, and the rest names WSL2.

Windows is simulated by taking POSIX away from the package (see windows_like). What the daemon does is done by the real
one, as on the Linux host that serves a Windows user.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest
import windows_like
from support import REPO, World, need_posix, s3_place

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

IMPORT_ALL = """
import importlib, pkgutil, scenario_runner
names = [module.name for module in pkgutil.walk_packages(scenario_runner.__path__, 'scenario_runner.')]
for name in names:
    importlib.import_module(name)
from scenario_runner import posix
print(len(names), posix.AVAILABLE, posix.WINDOWS)
"""
IMPORT_TESTS = """
import importlib, pathlib
paths = sorted(pathlib.Path(sys.argv[1]).rglob("test_*.py"))
sys.path[:0] = sorted({str(path.parent) for path in paths})
for path in paths:
    importlib.import_module(path.stem)
"""
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
ON_S3: dict[str, Any] = {"object_store_root": "s3://sr-local", "s3_endpoint_url": "http://localhost:9"}


def the_same(world: World, *arguments: str, stdin: str | None = None) -> dict[str, Any]:
    """What a command says on Windows, which is what it says elsewhere."""
    windows = windows_like.command(*arguments, "--json", input=stdin)
    here = world.command(*arguments, "--json", stdin=stdin.encode() if stdin is not None else None)
    assert windows.returncode == here.returncode, windows.stderr
    assert json.loads(windows.stdout) == json.loads(here.stdout)
    return json.loads(windows.stdout)  # type: ignore[no-any-return]


def refused(done: subprocess.CompletedProcess[str], place: str) -> None:
    """The command refused in one sentence that names WSL2."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert place in line
    assert "needs a POSIX system" in line
    assert "WSL2" in line


# --- without any server -----------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_every_module_imports() -> None:
    done = windows_like.run(IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    count, available, windows = done.stdout.split()
    assert int(count) > 90
    assert (available, windows) == ("False", "True")


@pytest.mark.integration
@pytest.mark.parametrize(
    "statement", ["import fcntl", "import pwd", "import os; os.fork", "from os import O_NOFOLLOW",
                  "import signal; signal.SIGKILL"],
)  # fmt: skip
def test_what_is_taken_away_is_not_there_for_us_and_is_for_libraries(statement: str) -> None:
    ours = {"__name__": "ours", "__file__": str(REPO / "daemon/ours.py")}
    assert windows_like.run(f"exec({statement!r}, {ours!r})").returncode == 1
    assert windows_like.run(statement).returncode == 0


@pytest.mark.integration
def test_the_daemon_the_folder_store_and_the_spool_refuse_in_one_sentence(tmp_path: Path) -> None:
    world = World(tmp_path / "folders")
    request = world.root / "request.json"
    request.write_text(json.dumps(world.make_run(members=1, parts=1)["request"]), "utf-8")
    wiring, both = ("--wiring", str(world.wiring)), ("--wiring", str(world.wiring), "--policy", str(world.policy))
    before = set(world.root.rglob("*"))
    refused(windows_like.command("serve", *both), "serve")
    refused(windows_like.command("submit", *wiring, str(request)), "control_bus_kind")
    world.database.touch()
    refused(windows_like.command("verify", "0" * 32, *wiring), "object_store_root")
    refused(windows_like.command("reemit", "0" * 32, *wiring, "--reason", "r"), "object_store_root")
    assert set(world.root.rglob("*")) == before | {world.database}
    assert windows_like.command("plan", *both, str(request)).returncode == 0
    doctor = windows_like.command("doctor", *both)
    assert doctor.returncode == 2
    assert doctor.stdout.count("needs a POSIX system") == 2, doctor.stdout
    assert "Traceback" not in doctor.stderr


@pytest.mark.integration
def test_a_profile_may_hold_windows_paths_there(tmp_path: Path) -> None:
    world = World(tmp_path / "w", {**ON_S3, "kinesis_state_dir": "C:\\sr\\kinesis", "control_bus_root": "C:\\sr\\bus"})
    refused(
        windows_like.command("serve", "--wiring", str(world.wiring), "--policy", str(world.policy), env=KEYS), "serve"
    )
    assert b"/mnt/c/sr/kinesis" in world.serve().stderr


@pytest.mark.integration
def test_every_test_module_imports_and_tests_of_the_daemon_skip_by_name() -> None:
    done = windows_like.run(IMPORT_TESTS, str(windows_like.HERE))
    assert done.returncode == 0, done.stderr[-2000:]
    some = [str(windows_like.HERE / name) for name in ("integration/test_first_ready.py", "unit/test_retry.py")]
    code = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = windows_like.run(code, *some, "-q", "-p", "no:cacheprovider", cwd=str(REPO))
    assert done.returncode == 0, done.stdout[-2000:]
    assert "needs a POSIX system" in done.stdout
    assert " passed" in done.stdout
    assert " skipped" in done.stdout


# --- on S3, Postgres and Kinesis --------------------------------------------------------------------------------------


@pytest.fixture
def dsn() -> Iterator[str]:
    need_posix()
    if not os.environ.get("SR_TEST_PG_DSN"):
        pytest.skip("SR_TEST_PG_DSN is not set: no Postgres to keep the rows in")
    from postgres_support import Schema, given_dsn

    made = Schema(given_dsn())
    yield made.dsn
    made.drop()


def on_servers(tag: str, dsn: str) -> dict[str, Any]:
    place = s3_place()
    return {
        "object_store_root": f"s3://{place.bucket}/{tag}/store", "s3_endpoint_url": place.endpoint or None,
        "s3_region": place.region or None, "s3_path_style": place.path_style, "authority_store_dsn": dsn,
        "engine_roots": [f"s3://{place.bucket}/{tag}/runs"],
    }  # fmt: skip


def uploaded(made: dict[str, Any], tag: str) -> dict[str, Any]:
    """The request of an engine run, and the run on S3."""
    from pathlib import Path

    place, root = s3_place(), Path(made["engine_run_root"])
    client = place.client()
    for path in filter(Path.is_file, root.rglob("*")):
        client.upload_file(str(path), place.bucket, f"{tag}/runs/sealed/{path.relative_to(root).as_posix()}")
    return {**made["request"], "engine_run_root": f"s3://{place.bucket}/{tag}/runs/sealed"}


def a_tag() -> str:
    return f"{s3_place().prefix}/windows-{secrets.token_hex(4)}".lstrip("/")


@pytest.mark.parity
def test_what_asks_s3_and_postgres_answers_as_elsewhere(tmp_path: Path, dsn: str) -> None:
    tag = a_tag()
    world = World(tmp_path / "w", on_servers(tag, dsn))
    made = world.make_run(members=2, parts=1)
    request = uploaded(made, tag)
    world.drop(request)
    assert world.serve().returncode == 0
    wiring, run_id = ("--wiring", str(world.wiring)), made["run_id"]
    assert the_same(world, "status", run_id, *wiring)["state"] == "READY"
    assert the_same(world, "explain", run_id, *wiring)["state"] == "READY"
    assert [run["run_id"] for run in the_same(world, "runs", "list", *wiring)["runs"]] == [run_id]
    planned = the_same(world, "plan", *wiring, "--policy", str(world.policy), "-", stdin=json.dumps(request))
    assert all(item["path"].startswith("s3://") and "\\" not in item["path"] for item in planned["outputs"])
    refused(windows_like.command("verify", run_id, *wiring), "control_bus_kind")


@pytest.mark.localstack
def test_a_request_is_submitted_to_a_stream_and_its_run_verified(tmp_path: Path, dsn: str) -> None:
    from streaming import ENDPOINT, WHY_NOT

    if not ENDPOINT:
        pytest.skip(WHY_NOT)
    from streaming import KinesisWorld, seed_leases

    tag = a_tag()
    world = KinesisWorld(tmp_path / "w", wiring_changes=on_servers(tag, dsn))
    seed_leases(world)
    made = world.make_run(members=2, parts=1)
    wiring = ("--wiring", str(world.wiring))
    submitted = windows_like.command("submit", *wiring, "-", "--json", input=json.dumps(uploaded(made, tag)))
    assert submitted.returncode == 0, submitted.stderr
    assert json.loads(submitted.stdout)["run_id"] == made["run_id"]
    served = world.serve(timeout=180)
    assert served.returncode == 0, served.stderr.decode()[-3000:]
    assert the_same(world, "status", made["run_id"], *wiring)["state"] == "READY"
    assert the_same(world, "verify", made["run_id"], *wiring)["outcome"] == "PASS"
    again = windows_like.command("reemit", made["run_id"], *wiring, "--reason", "a consumer lost it", "--json")
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert (answer["outcome"], answer["kind"], answer["emission"]) == ("PUBLISHED", "READY_REEMIT", 1)
    (signal,) = world.signals("READY_REEMIT")
    assert (signal["message_id"], signal["payload"]["run_id"]) == (answer["message_id"], made["run_id"])
    many = ("--state", "READY", "--since", "2020-01-01T00:00:00Z", "--reason", "rehydrate", "--json")
    done = windows_like.command("reemit", *wiring, *many)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["PUBLISHED"]
