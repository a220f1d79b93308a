"""The engine of tests that kill: it copies a sealed engine run to where it is told, and leaves traces of itself.

Its launch is stamped by ``engine_program.sh``, and its end here. A lock for each run, which the kernel gives back with
the life of its holder, shows two engines of one run that live at the same time. What each attempt does (how long it
works, whether it ignores SIGTERM, whether it leaves a daemon, whether it breaks) is drawn from its id, so that it does
the same in every world.

It is run with ``python -I -S``: only modules of the standard library that load in milliseconds.
"""

import fcntl
import json
import os
import random
import signal
import sys
import time


def main() -> int:
    """The engine: ``FOLDER RUN_ID RUN_ROOT SEED ATTEMPT_NO``; the folder holds its behaviour and the sealed runs."""
    folder, run_id, root, seed, attempt_no = sys.argv[1:]
    attempt_id = os.environ["SR_ATTEMPT_ID"]
    lock = os.open(os.path.join(folder, f"lock-{run_id}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _stamp(folder, run_id, attempt_id, "overlap")
    with open(os.path.join(folder, "behaviour.json"), encoding="utf-8") as file:
        behaviour = json.load(file)
    chance = random.Random(attempt_id)
    if chance.random() < behaviour["ignores_sigterm"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if chance.random() < behaviour["leaves_daemon"]:
        _leave_daemon()
    _stamp(folder, run_id, attempt_id, "works")
    print(f"attempt {attempt_id} works", flush=True)
    time.sleep(chance.uniform(*behaviour["seconds"]))
    if chance.random() < behaviour["breaks"] or int(attempt_no) <= behaviour["break_first"]:
        print("it broke", file=sys.stderr)
        return 3
    _copy(os.path.join(folder, f"sealed-{seed}"), root)
    with open(os.path.join(root, "run_receipt.json"), "r+", encoding="utf-8") as file:
        receipt = {**json.load(file), "run_id": run_id}
        file.seek(0)
        file.truncate()
        json.dump(receipt, file)
    _stamp(folder, run_id, attempt_id, "end")
    return 0


def _stamp(folder: str, run_id: str, attempt_id: str, what: str) -> None:
    """Append one line in one call, so that lines of several engines do not mix."""
    line = {"run_id": run_id, "attempt_id": attempt_id, "pid": os.getpid(), "what": what}
    descriptor = os.open(os.path.join(folder, "trace.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, json.dumps(line).encode() + b"\n")
    os.close(descriptor)


def _leave_daemon() -> None:
    """Fork twice, make a session, ignore SIGTERM, close all streams: a process that only a SIGKILL ends."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.closerange(0, 256)
    time.sleep(600)
    os._exit(0)


def _copy(source: str, target: str) -> None:
    for directory, _, names in os.walk(source):
        into = os.path.normpath(os.path.join(target, os.path.relpath(directory, source)))
        os.makedirs(into, exist_ok=True)
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                data = file.read()
            with open(os.path.join(into, name), "wb") as file:
                file.write(data)


if __name__ == "__main__":
    sys.exit(main())
