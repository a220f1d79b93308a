"""A daemon that dies at a chosen call, without a line of it being changed; and helpers of the tests that use it.

As a program it is the ``scenario-runner`` command with one call wrapped, chosen by the environment:

``SR_CRASH_AT``     ``module:name`` or ``module:Class.name``, or ``durable`` for every call that makes something durable
                    (fsync, link, rename, unlink, mkdir, rmdir, commit of the authority)
``SR_CRASH_WHEN``   ``before`` or ``after`` the call
``SR_CRASH_NTH``    the how-manieth matching call, from 1
``SR_CRASH_MATCH``  only calls with this text in an argument, or made while the store writes an object whose path has it
``SR_CRASH_TRUE``   only calls that return something true (``after`` only)
``SR_CRASH_DO``     ``kill`` (SIGKILL), ``stop`` (SIGSTOP, goes on after SIGCONT), ``hang`` (that thread never returns),
                    ``count`` (nothing)
``SR_CRASH_MARK``   file that is written when the moment has come, or counts, with ``count``

A name that does not exist ends the program with status 99: a crash point that was renamed must not pass unseen.
"""

import faulthandler
import functools
import gc
import importlib
import inspect
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import fork_server

Process = subprocess.Popen[bytes] | fork_server.Forked

NO_SUCH_POINT: Final = 99
KILLED: Final = -9
STORE: Final = "scenario_runner.storage.filesystem:FilesystemStore"
DURABLE: Final = ("os:fsync", "os:link", "os:rename", "os:replace", "os:unlink", "os:mkdir", "os:rmdir",
                  "scenario_runner.storage.renames:rename_new", "scenario_runner.authority.sqlite:_commit")  # fmt: skip


# ---------------------------------------------------------------- the program


def holder_of(target: str) -> tuple[Any, str]:
    """The module or class that a target is an attribute of, and its name there."""
    module, _, path = target.partition(":")
    holder = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    inspect.getattr_static(holder, name)
    return holder, name


def _wrap(target: str, around: Callable[..., Any]) -> None:
    holder, name = holder_of(target)
    static = inspect.getattr_static(holder, name)
    original = getattr(holder, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(holder, name, staticmethod(wrapper) if isinstance(static, staticmethod) else wrapper)
    for module in [loaded for path, loaded in sys.modules.items() if path.startswith("scenario_runner.")]:
        for known in [known for known, value in vars(module).items() if value is original]:
            setattr(module, known, wrapper)  # they imported it by name, before


@dataclass
class Crash:
    """Counts matching calls and acts at the right one."""

    when: str
    nth: int
    match: str
    only_true: bool
    action: str
    mark: str
    seen: list[str] = field(default_factory=list)
    _keys: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def install(self, target: str) -> None:
        """Wrap the target, and the store's writes, whose paths then explain the calls that they make."""
        for name in ("_link", "replace"):
            _wrap(f"{STORE}.{name}", self._with_key)
        for one in DURABLE if target == "durable" else (target,):
            _wrap(one, self._around)

    def _with_key(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = getattr(self._keys, "key", "")
        self._keys.key = args[1]
        try:
            return original(*args, **kwargs)
        finally:
            self._keys.key = before

    def _around(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        text = f"{original.__name__} {getattr(self._keys, 'key', '')} {self._said((*args, *kwargs.values()))}"
        matches = self.match in text
        if matches and self.when == "before":
            self._count(text)
        result = original(*args, **kwargs)
        if matches and self.when == "after" and (result or not self.only_true):
            self._count(text)
        return result

    @staticmethod
    def _said(args: tuple[Any, ...]) -> str:
        """Arguments as text; a number may be a descriptor, which says more by its path."""
        said = []
        for arg in args:
            try:
                said.append(os.readlink(f"/proc/self/fd/{arg}") if type(arg) is int else str(arg)[:500])
            except OSError:
                said.append(str(arg))
        return " ".join(said)

    def _count(self, text: str) -> None:
        with self._lock:
            self.seen.append(text)
            if len(self.seen) != self.nth or self.action == "count":
                return
        self._act(text)

    def _act(self, text: str) -> None:
        if self.mark:
            with open(self.mark, "w", encoding="utf-8") as file:
                file.write(text)
        if self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.1)  # another thread may take the signal first; this one must not get ahead of it
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()


def main() -> None:
    """The ``scenario-runner`` command, set to crash."""
    env = os.environ
    crash = Crash(
        env["SR_CRASH_WHEN"], int(env["SR_CRASH_NTH"]), env["SR_CRASH_MATCH"], bool(env["SR_CRASH_TRUE"]),
        env["SR_CRASH_DO"], env["SR_CRASH_MARK"],
    )  # fmt: skip
    try:
        crash.install(env["SR_CRASH_AT"])
    except (ImportError, AttributeError) as error:
        print(f"there is no crash point {env['SR_CRASH_AT']}: {error}", file=sys.stderr)
        sys.exit(NO_SUCH_POINT)
    from scenario_runner.cli.main import main as command

    sys.argv[0] = "scenario-runner"
    try:
        command()
    finally:
        if crash.action == "count":
            Path(crash.mark).write_text(json.dumps(crash.seen), "utf-8")


# ---------------------------------------------------------------- for the tests


@dataclass(frozen=True)
class Moment:
    """When to act: see the module. ``after_result`` counts only calls that return something true."""

    at: str
    when: str = "before"
    nth: int = 1
    match: str = ""
    after_result: bool = False


def serve_arguments(world: Any, *more: str) -> list[str]:
    """Arguments of ``serve`` in a world; only errors are logged."""
    return ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--log-level", "error", *more]


def launch(world: Any, moment: Moment, *more: str, action: str = "kill", mark: Path | str = "") -> "Process":
    """Start ``serve`` set to act at a moment; its stderr goes to ``crashing.log`` of the world."""
    return launch_command(world, moment, *serve_arguments(world, *more), action=action, mark=mark)


def launch_command(
    world: Any, moment: Moment, *arguments: str, action: str = "kill", mark: Path | str = ""
) -> "Process":
    """Start any command in this way."""
    env = {
        **os.environ, "SR_CRASH_AT": moment.at, "SR_CRASH_WHEN": moment.when, "SR_CRASH_NTH": str(moment.nth),
        "SR_CRASH_MATCH": moment.match, "SR_CRASH_TRUE": "1" if moment.after_result else "", "SR_CRASH_DO": action,
        "SR_CRASH_MARK": str(mark),
    }  # fmt: skip
    if not fork_server.is_possible(env):
        return _popen(world, [sys.executable, __file__, *arguments], env)
    with open(os.devnull, "r+b") as null, open(log_of(world), "ab") as log:
        return fork_server.Forked(
            arguments, program="crashing", stdin=null, stdout=null, stderr=log, env=env, new_session=True
        )


def start(world: Any, *more: str) -> "subprocess.Popen[bytes]":
    """Start the installed command's ``serve``; its stderr goes to ``crashing.log`` of the world."""
    command = str(Path(sys.executable).parent / "scenario-runner")
    return _popen(world, [command, *serve_arguments(world, *more)], dict(os.environ))


def _popen(world: Any, arguments: list[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
    with open(log_of(world), "ab") as log:
        return subprocess.Popen(
            arguments, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )


class Fork:
    """A daemon in a fork of this process: the code of the installed command, without the start of an interpreter.

    Not where this process has other threads, nor for worlds on S3; see ``support.ForkedWorld``.

    Args:
        world: Its world.
        more: Further arguments of ``serve``.
        moment: When it acts.
        action: What it does then.
        prepare: Called in the fork before the command.
    """

    def __init__(
        self, world: Any, *more: str, moment: Moment | None = None, action: str = "kill",
        prepare: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        fork_server.load_everything()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        gc.freeze()  # a collection would touch, and so copy, all that is inherited
        code = 1
        try:
            prepare()
            _become_daemon(world, more, moment, action)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; AssertionError after so many seconds."""
        until(lambda: self.poll() is not None, "the daemon ends", timeout, pause=0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


def _become_daemon(world: Any, more: Sequence[str], moment: Moment | None, action: str) -> None:
    """In the child: be the command."""
    from scenario_runner.cli.main import main as command

    os.setsid()
    with open(os.devnull, "r+b") as null, open(log_of(world), "ab") as log:
        for number, file in enumerate((null, null, log)):
            os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w"), open(2, "w")  # noqa: SIM115
    faulthandler.disable()
    if moment is not None:
        Crash(moment.when, moment.nth, moment.match, moment.after_result, action, "").install(moment.at)
    sys.argv = ["scenario-runner", *serve_arguments(world, *more)]
    command()


def log_of(world: Any) -> Path:
    """Where daemons that :func:`launch` and :func:`start` started write their logs."""
    return Path(world.root) / "crashing.log"


def until(true: Callable[[], object], what: str, seconds: float = 30.0, pause: float = 0.01) -> None:
    """Poll until something is true; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(pause)


def until_up(*daemons: "Process | Fork") -> None:
    """Wait until daemons answer SIGTERM themselves: before that, their start is over at once."""
    for daemon in daemons:
        until(lambda daemon=daemon: daemon.poll() is not None or _catches_sigterm(daemon.pid), "a daemon is up")


def _catches_sigterm(pid: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines() if "SigCgt" in line)
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def is_stopped(daemon: "Process | Fork") -> bool:
    """True while a daemon is stopped (SIGSTOP)."""
    assert daemon.poll() is None, f"it has ended with {daemon.returncode}"
    return Path(f"/proc/{daemon.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "T"


def is_locked(database: Path) -> bool:
    """Whether a daemon, which may be stopped, is in the middle of a transaction on SQLite: then no other can start."""
    with closing(sqlite3.connect(database, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


def stop_unlocked(daemon: "Process | Fork", database: Path) -> None:
    """Stop a daemon (SIGSTOP) while it is in no transaction."""
    for _ in range(50):
        daemon.send_signal(signal.SIGSTOP)
        until(lambda: is_stopped(daemon), "it stops")
        if not is_locked(database):
            return
        daemon.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("it was in a transaction whenever it was stopped")


def drained(world: Any) -> None:
    """Drain with the installed command; AssertionError with its log when it does not end well."""
    served = world.serve("--log-level", "error")
    assert served.returncode == 0, served.stderr.decode()


@dataclass(frozen=True)
class Scenery:
    """Engine runs and the records that ask for them, for any number of worlds.

    Attributes:
        runs: Shared by all worlds, so that equal requests lead to equal bytes.
        records: File name to bytes, in the order of their names.
        policy: Changes of the policy profile.
        photo: The engine runs before anybody looked at them.
    """

    runs: Path
    records: dict[str, bytes]
    policy: dict[str, Any]
    photo: dict[str, tuple[int, int]]

    def world(self, root: Path, **wiring: Any) -> Any:
        """A world of its own with these engine runs, nothing dropped yet."""
        from support import World

        return World(root, {"engine_roots": [str(self.runs)], **wiring}, dict(self.policy))

    def drop(self, world: Any, *, fresh: bool = False) -> None:
        """Drop every record; see ``World.drop``."""
        for name, data in self.records.items():
            world.drop(data, name, fresh=fresh)

    def violations(
        self, world: Any, watch: Any = None, *, killed: bool = True, more: Sequence[bytes] = ()
    ) -> list[Any]:
        """What an independent checker finds wrong, once every record is dropped and drained."""
        from invariants import check, paths_of

        dropped = [*self.records.values(), *more]
        return check(paths_of(world), dropped=dropped, watch=watch, before=self.photo, killed=killed)


def load_records(make_run: Callable[[str, int], dict[str, Any]], worlds: int, keys: int) -> dict[str, bytes]:
    """Requests by file name, for ``worlds`` engine runs under ``keys`` keys each; every tenth comes twice."""
    records = {}
    for number in range(worlds):
        made = make_run(f"world-{number}", number)
        for key in range(keys):
            request = {**made["request"], "run_equivalence_key": f"world-{number}-key-{key}"}
            records[f"{key:03d}-{number:03d}.json"] = json.dumps(request).encode()
            if (number + key) % 10 == 0:
                again = {**request, "request_id": "again"}
                records[f"{key:03d}-{number:03d}-again.json"] = json.dumps(again).encode()
    return dict(sorted(records.items()))


def make_load(root: Path, worlds: int, keys: int, **options: Any) -> Scenery:
    """``worlds`` engine runs, each asked for under ``keys`` equivalence keys; every tenth request comes twice."""
    from invariants import photograph
    from support import World

    maker = World(root)
    records = load_records(
        lambda name, seed: maker.make_run(name, seed=seed, **{"members": 3, "parts": 2, **options}), worlds, keys
    )
    return Scenery(maker.runs, records, {}, photograph([maker.runs]))


def evidence(world: Any) -> dict[str, Any]:
    """What a world came to, without the moments at which things happened: equal for equal requests and engine runs."""
    from invariants_world import PREFIX, canonical, files_below, sha

    found: dict[str, Any] = {"rejected": [], "terminal": []}
    for item in world.signals():
        kind, payload = item["attributes"]["kind"], item["payload"]
        if kind == "READY":
            found[f"READY {item['message_id']}"] = (canonical(payload), item["attributes"], item["partition_key"])
        elif kind in ("READY_REEMIT", "TERMINAL_REEMIT"):
            found[kind] = found.get(kind, 0) + 1
        elif kind == "RUN_SUPERSEDES":
            found[f"{kind} {item['message_id']}"] = (canonical(payload), item["attributes"], item["partition_key"])
        elif kind == "TERMINAL":
            found["terminal"].append((payload["run_id"], payload["status_state"], payload["reason_code"]))
        else:
            found["rejected"].append((payload["run_id"], payload["disposition"], payload["reason_code"]))
    found["rejected"].sort()
    found["terminal"].sort()
    ledger = world.store / PREFIX  # asked for once: it may be a copy that is brought up to date
    for rel in files_below(ledger):
        folder, path = rel.split("/", 1)[0], ledger / rel
        if folder in ("run_facts_view", "ready_signal", "instance_receipts", "interface_pack", "supersession"):
            found[rel] = sha(path.read_bytes())
        elif folder == "run_plan":
            found[rel] = {k: v for k, v in json.loads(path.read_bytes()).items() if not k.endswith("_utc")}
        elif folder == "run_status":
            status = json.loads(path.read_bytes())
            found[rel] = (status["state"], status.get("reason_code"))
    return found


if __name__ == "__main__":
    main()
