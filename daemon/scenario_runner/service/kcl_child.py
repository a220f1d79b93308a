"""The process that KCL's MultiLangDaemon starts for each shard: connects to the authority, then serves KCL's requests.

Its stdout is KCL's protocol, so the real one is put aside before anything is imported that might print, and
descriptor 1 becomes stderr. It ignores SIGTERM, which the whole process group gets: the JVM stops on it, and ends this
process through the protocol. It also ends when the JVM is gone, or when the supervisor has been gone for longer than an
orderly stop takes.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any, Final

_WATCH_SECONDS: Final = 1.0
"""How often the parents are checked: an orphan holds a shard's lease, which nobody else gets for 10 s anyway."""
_ORPHANED: Final = 75
"""Exit status: EX_TEMPFAIL of sysexits.h."""
_EXTRA_PATIENCE_SECONDS: Final = 5.0
"""How much longer than an orderly stop takes a process group without a supervisor may live."""


def _watch(parent: int, supervisor: str, patience: float) -> None:
    """End this process when the JVM, its parent, is gone; end the group when the supervisor has been gone for too long.

    Args:
        parent: Process id of the JVM.
        supervisor: Process id and start time of the daemon.
        patience: Seconds that the group may outlive the supervisor.
    """
    from scenario_runner.intake.kcl.slots import runs
    from scenario_runner.posix import SIGKILL

    pid, _, started = supervisor.partition(" ")
    gone_since: float | None = None
    while True:
        time.sleep(_WATCH_SECONDS)
        if os.getppid() != parent:
            os._exit(_ORPHANED)
        if runs(int(pid), started):
            continue
        gone_since = gone_since or time.monotonic()
        if time.monotonic() - gone_since > patience:
            os.killpg(0, SIGKILL)  # the JVM does not stop by itself; the group holds only it and its children


def _serve(child: dict[str, Any], protocol: int) -> None:
    from amazon_kclpy.kcl import KCLProcess

    from scenario_runner.authority.connect import connect_authority
    from scenario_runner.contracts.canonical import parse_object
    from scenario_runner.intake.kcl.config import DRAIN_SECONDS
    from scenario_runner.intake.kcl.processor import ShardProcessor
    from scenario_runner.intake.kcl.reports import Reporter
    from scenario_runner.interface_pack.loader import pack_from_document
    from scenario_runner.profiles.policy import Policy
    from scenario_runner.profiles.wiring import Wiring
    from scenario_runner.service.compose import make_rules
    from scenario_runner.service.telemetry import set_up_logging

    set_up_logging("info")
    sys.stdout = sys.stderr
    watch = (os.getppid(), child["supervisor"], DRAIN_SECONDS + _EXTRA_PATIENCE_SECONDS)
    threading.Thread(target=_watch, args=watch, name="watch", daemon=True).start()
    wiring = Wiring.model_validate_json(child["wiring"])
    policy = Policy.model_validate_json(child["policy"])
    with open(child["pack"], "rb") as file:
        pack = pack_from_document(parse_object(file.read()))
    processor = ShardProcessor(
        wiring.control_bus_stream or "",
        lambda: connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}"),
        make_rules(wiring, policy, pack),
        Reporter(child["reports"], child["generation"]),
    )
    KCLProcess(processor, sys.stdin, os.fdopen(protocol, "w", encoding="utf-8"), sys.stderr).run()


def main() -> None:
    """Entry point; every error ends the process with a status that makes KCL hand the records out again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    protocol = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        from scenario_runner.intake.kcl.keeper import CHILD_VARIABLE

        _serve(json.loads(os.environ[CHILD_VARIABLE]), protocol)
    except BaseException as error:  # noqa: BLE001 - the last line of defence
        from scenario_runner.intake.kcl.processor import die

        die(error)


if __name__ == "__main__":
    main()
