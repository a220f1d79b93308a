"""The process that KCL's MultiLangDaemon starts for each shard: opens the authority and processes records.

Its stdout is KCL's protocol. So the real stdout is put aside before anything is imported that might print, and
descriptor 1 becomes stderr. SIGTERM is meant for the JVM alone, which announces a stop in the protocol. This process
ends when its JVM is gone, or when its supervisor has been gone for longer than an orderly stop takes.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any, Final

#: Two reads of /proc; an orphan that runs for a second more does no harm.
_WATCH_SECONDS: Final = 1.0
#: Beyond the grace that the JVM gives record processors, for the JVM itself to end.
_GRACE_SECONDS: Final = 5.0
#: Exit status of a process whose JVM is gone (EX_TEMPFAIL).
_ORPHANED: Final = 75


def _watch(parent: int, supervisor: str, patience: float) -> None:
    """End this process when its JVM has ended, or its supervisor is gone for too long."""
    from scenario_runner.kcl.worker_ids import is_alive
    from scenario_runner.posix import SIGKILL

    pid, _, started = supervisor.partition(" ")
    gone_since: float | None = None
    while True:
        time.sleep(_WATCH_SECONDS)
        if os.getppid() != parent:
            os._exit(_ORPHANED)
        if is_alive(int(pid), started):
            continue
        gone_since = gone_since or time.monotonic()
        if time.monotonic() - gone_since > patience:
            # The kernel sent the JVM a SIGTERM when the supervisor died, and it did not end. The group holds the JVM
            # and its shard workers only: the launcher made a session of its own.
            os.killpg(0, SIGKILL)


def _serve(config: dict[str, Any], protocol: int) -> None:
    from amazon_kclpy.kcl import KCLProcess

    from scenario_runner.authority.connect import connect_authority
    from scenario_runner.contracts.canonical import parse_object
    from scenario_runner.intake.kcl_processor import ShardProcessor
    from scenario_runner.interface_pack.loader import pack_from_document
    from scenario_runner.kcl.config import DRAIN_SECONDS
    from scenario_runner.kcl.shard_status import StatusWriter
    from scenario_runner.profiles.policy import Policy
    from scenario_runner.profiles.wiring import Wiring
    from scenario_runner.service.compose import make_admission_policy
    from scenario_runner.service.span_export import traced
    from scenario_runner.service.telemetry import LogFormat, set_up_logging

    set_up_logging("info", LogFormat.JSON)  # the daemon that started the JVM parses it, and logs it in its own format
    sys.stdout = sys.stderr
    watch = (os.getppid(), config["supervisor"], DRAIN_SECONDS + _GRACE_SECONDS)
    threading.Thread(target=_watch, args=watch, name="watch", daemon=True).start()
    wiring = Wiring.model_validate_json(config["wiring"])
    policy = Policy.model_validate_json(config["policy"])
    with open(config["pack"], "rb") as file:
        pack = pack_from_document(parse_object(file.read()))
    processor = ShardProcessor(
        wiring.control_bus_stream or "",
        lambda: connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}"),
        make_admission_policy(wiring, policy, pack),
        StatusWriter(config["status_folder"], config["generation"]),
    )
    with traced("intake", os.environ):
        KCLProcess(processor, sys.stdin, os.fdopen(protocol, "w", encoding="utf-8"), sys.stderr).run()


def main() -> None:
    """Entry point; every error ends the process with a status that makes KCL deliver the records again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    protocol = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        from scenario_runner.kcl.supervisor import WORKER_CONFIG_VARIABLE

        _serve(json.loads(os.environ[WORKER_CONFIG_VARIABLE]), protocol)
    except BaseException as error:  # noqa: BLE001 - the last line of defence
        from scenario_runner.intake.kcl_processor import die

        die(error)


if __name__ == "__main__":
    main()
