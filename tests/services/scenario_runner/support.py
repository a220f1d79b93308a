"""A world for tests: a profile, a policy, sealed engine runs, and the installed command as a subprocess."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import fork_server
import pytest
import yaml
from json_contract import check_output

from scenario_runner.intake.spool_files import QUIET_SECONDS
from sr_tools.engine import make_run

REPO = Path(__file__).resolve().parents[3]
PACK = REPO / "config/engine/interface_pack"
NEEDS_POSIX = "needs a POSIX system, as the daemon does: run it in WSL2"
COMMAND = str(Path(sys.executable).parent / "scenario-runner")
SMALL: dict[str, Any] = {
    "outputs": ["outlet_catalogue"],
    "members": 2,
    "member_bytes": 64,
    "parts": 2,
    "part_bytes": 64,
}
"""Options of an engine run that is as small as one can be with two of everything."""


@dataclass(frozen=True)
class S3Place:
    """Where the tests of tier 1 find S3: the variables SR_TEST_S3_*."""

    bucket: str
    prefix: str
    endpoint: str
    region: str
    path_style: bool | None

    def open_bucket(self) -> Any:
        from scenario_runner.storage.s3_client import S3Bucket, S3Settings

        return S3Bucket(self.bucket, S3Settings(self.endpoint, self.region, self.path_style))

    def client(self, **credentials: str) -> Any:
        """A boto3 client: another implementation than the one under test."""
        import boto3
        from botocore.config import Config

        style = "path" if self.path_style in (None, True) else "virtual"
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint or None,
            region_name=self.region or None,
            **credentials,
            config=Config(s3={"addressing_style": style}, retries={"max_attempts": 2}),
        )


def s3_place() -> S3Place:
    """The S3 of tier 1; the test is skipped, saying so, when there is none."""
    bucket = os.environ.get("SR_TEST_S3_BUCKET")
    if not bucket:
        pytest.skip("SR_TEST_S3_BUCKET is not set: no S3 server to test against")
    style = os.environ.get("SR_TEST_S3_PATH_STYLE", "")
    return S3Place(
        bucket,
        os.environ.get("SR_TEST_S3_PREFIX", "").strip("/"),
        os.environ.get("SR_TEST_S3_ENDPOINT_URL", ""),
        os.environ.get("SR_TEST_S3_REGION", ""),
        None if not style else style.lower() in ("1", "true", "yes"),
    )


def need_posix() -> None:
    """Skip the test, saying so, where the daemon does not run."""
    from scenario_runner import posix

    if not posix.AVAILABLE:
        pytest.skip(NEEDS_POSIX)


def run_command(
    *arguments: str, stdin: bytes | None = None, timeout: float = 120, installed: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run the command: as it is installed when that is asked for, or where a fork cannot have the environment."""
    if installed or not fork_server.is_possible(os.environ):
        return subprocess.run([COMMAND, *arguments], input=stdin, capture_output=True, timeout=timeout, check=False)
    return fork_server.run(arguments, stdin, timeout, os.environ)


@cache
def help_of(*names: str) -> str:
    """What a command says of itself."""
    shown = run_command(*names, "--help")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.decode()


@dataclass
class World:
    """One profile with everything it names, under one folder.

    Attributes:
        installed: Whether commands are processes of the installed command from their start (see ``fork_server``).
    """

    root: Path
    wiring_changes: dict[str, Any] = field(default_factory=dict)
    policy_changes: dict[str, Any] = field(default_factory=dict)
    installed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.runs.mkdir(exist_ok=True)
        self.write_profiles()

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def store(self) -> Path:
        return self.root / "object-store"

    @property
    def ledger(self) -> Path:
        return self.store / "fraud-platform/sr"

    @property
    def bus(self) -> Path:
        return self.root / "control-bus"

    @property
    def signals_folder(self) -> Path:
        return self.bus / "fp.bus.control.v1"

    @property
    def wiring(self) -> Path:
        return self.root / "wiring.yaml"

    @property
    def policy(self) -> Path:
        return self.root / "policy.yaml"

    @property
    def database(self) -> Path:
        return self.root / "authority.db"

    def write_profiles(self, **wiring: Any) -> None:
        """Write both profiles; a None value leaves a wiring key out."""
        from scenario_runner.profiles.policy import policy_digest

        keys: dict[str, Any] = {
            "profile_id": "test",
            "object_store_root": str(self.store),
            "authority_store_dsn": f"sqlite:///{self.database}",
            "control_bus_kind": "spool",
            "control_bus_root": str(self.bus),
            "engine_catalogue_path": str(PACK / "engine_outputs.catalogue.yaml"),
            "gate_map_path": str(PACK / "engine_gates.map.yaml"),
            "engine_contracts_root": str(PACK / "contracts"),
            "schema_root": str(REPO / "config/platform/contracts/scenario_runner"),
            "engine_roots": [str(self.runs)],
            "auth_mode": "disabled",
            **self.wiring_changes,
            **wiring,
        }
        self.wiring.write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}), "utf-8")
        policy: dict[str, Any] = {
            "policy_id": "test_policy",
            "revision": "v0",
            "reuse_policy": "ALLOW",
            "evidence_wait_seconds": 3600,
            "attempt_limit": 3,
            "traffic_output_ids": [
                "arrival_events_5B",
                "s2_flow_anchor_baseline_6B",
                "s3_flow_anchor_with_fraud_6B",
            ],
            **self.policy_changes,
        }
        policy["content_digest"] = policy_digest(policy, "test")
        self.policy.write_text(yaml.safe_dump(policy), "utf-8")

    def make_run(self, key: str = "key-1", **options: Any) -> dict[str, Any]:
        """A sealed engine run and a request for it (``["request"]``); see sr_tools.engine."""
        path = self.root / "requests-made" / f"{len(key)}-{abs(hash(key))}.json"
        made = dict(make_run(runs=self.runs, run_key=key, request=path, **options))
        return made | {"request": json.loads(path.read_bytes())}

    def drop(self, request: dict[str, Any] | bytes, name: str = "request.json", *, fresh: bool = False) -> Path:
        """Drop a record by hand: rename into the spool.

        It was written a while ago, unless it is fresh: a torn one is then waited for, as one that is being written.
        """
        folder = self.bus / "requests"
        folder.mkdir(parents=True, exist_ok=True)
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(data)
        if not fresh:
            written = time.time() - 5 * QUIET_SECONDS
            os.utime(temporary, (written, written))
        target = folder / name
        temporary.rename(target)
        return target

    def command(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command; what it prints as JSON must be what its schema promises."""
        done = run_command(*arguments, stdin=stdin, timeout=timeout, installed=self.installed)
        check_output(arguments, done.stdout)
        return done

    def serve(self, *more: str, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        """Drain with ``serve --until-idle``."""
        need_posix()
        return self.command("serve", "--wiring", str(self.wiring), "--policy", str(self.policy), "--until-idle", *more,
                            timeout=timeout)  # fmt: skip

    def start(self, *more: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the daemon in a process group of its own."""
        need_posix()
        arguments = [COMMAND, "serve", "--wiring", str(self.wiring), "--policy", str(self.policy), *more]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                                env={**os.environ, **(env or {})})  # fmt: skip

    def query(self, name: str, run_id: str) -> tuple[int, dict[str, Any]]:
        """``status`` or ``explain`` or ``verify`` of a run as (exit code, document)."""
        done = self.command(name, run_id, "--wiring", str(self.wiring), "--json")
        return done.returncode, json.loads(done.stdout or b"{}")

    def signals(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Envelopes that SR published, of one kind or all."""
        if not self.signals_folder.is_dir():
            return []
        found = [json.loads(path.read_bytes()) for path in sorted(self.signals_folder.glob("*.json"))]
        return [item for item in found if kind is None or item["attributes"]["kind"] == kind]

    def document(self, folder: str, run_id: str, suffix: str = "json") -> Any:
        """A ledger document of a run, or None."""
        path = self.ledger / folder / f"{run_id}.{suffix}"
        if not path.exists():
            return None
        text = path.read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()] if suffix == "jsonl" else json.loads(text)

    def rejected(self) -> list[dict[str, Any]]:
        """Reason files of refused records."""
        folder = self.bus / "rejected"
        return (
            [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.reason.json"))] if folder.is_dir() else []
        )


class ForkedWorld(World):
    """A world whose commands run in a fork of this process: the same code, without the start of an interpreter.

    Not for commands that reach S3: once this process has used the native client, its threads are missing in a fork, and
    the client waits for them for ever.
    """

    def command(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        from scenario_runner.cli.main import main

        need_posix()
        fork_server.load_everything()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin or b"")
            given.seek(0)
            pid = os.fork()
            if pid == 0:
                gc.freeze()  # a collection would touch, and so copy, all that is inherited
                for number, file in enumerate((given, out, err)):
                    os.dup2(file.fileno(), number)
                sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w"), open(2, "w")  # noqa: SIM115
                faulthandler.dump_traceback_later(timeout * 0.9, file=sys.stderr)  # a command that hangs says where
                code = 1
                try:
                    sys.argv = ["scenario-runner", *arguments]
                    main()
                except SystemExit as ended:
                    code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
                except BaseException:  # noqa: BLE001
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            end = time.monotonic() + timeout
            while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.002)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(list(arguments), code, out.read(), err.read())
        if code >= 0:
            check_output(arguments, done.stdout)
        return done
