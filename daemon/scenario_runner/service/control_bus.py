"""Which control bus a profile means: the spool of a folder, or a Kinesis stream with KCL."""

from concurrent.futures import ThreadPoolExecutor

from scenario_runner import posix
from scenario_runner.authority.base import Authority
from scenario_runner.bus.base import SignalPublisher
from scenario_runner.bus.kinesis import KinesisPublisher
from scenario_runner.bus.spool import SpoolPublisher
from scenario_runner.bus.stream import Stream
from scenario_runner.contracts.errors import ConfigurationError, needs_posix
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.intake.base import Intake
from scenario_runner.intake.kinesis import KinesisIntake
from scenario_runner.intake.spool import SpoolConsumer
from scenario_runner.kcl.lease_table import KclLeaseTable
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.modes import GROUP, PRIVATE, Modes


def spool_root(wiring: Wiring) -> str:
    """The spool of a profile.

    Raises:
        ConfigurationError: the profile's control bus is not a spool, or this platform has none.
    """
    if wiring.bus_kind != "spool" or wiring.control_bus_root is None:
        raise ConfigurationError(
            f"profile {wiring.profile_id}, key 'control_bus_kind'",
            f"{wiring.control_bus_kind!r} is not a spool",
            "use 'spool' with a control_bus_root",
        )
    if not posix.AVAILABLE:
        raise needs_posix(f"profile {wiring.profile_id}, key 'control_bus_kind'", "a spool as control bus")
    return wiring.control_bus_root


def state_modes(wiring: Wiring) -> Modes:
    """Modes of what SR creates."""
    return GROUP if wiring.state_mode == "group" else PRIVATE


def open_spool(wiring: Wiring) -> AnchoredRoot | None:
    """The spool's root folder, shared by whoever works in it; None when the control bus of a profile is a stream."""
    return AnchoredRoot(spool_root(wiring), state_modes(wiring)) if wiring.bus_kind == "spool" else None


def open_stream(wiring: Wiring) -> Stream | None:
    """The stream of a profile, not yet spoken to; None when its control bus is a spool."""
    if wiring.bus_kind != "kinesis" or wiring.control_bus_stream is None:
        return None
    return Stream(wiring.control_bus_stream, wiring.control_bus_region, wiring.control_bus_endpoint_url)


def open_lease_table(wiring: Wiring) -> KclLeaseTable:
    """Where KCL keeps the leases of a profile whose control bus is a stream."""
    return KclLeaseTable(wiring.kinesis_application, wiring.control_bus_region, wiring.dynamodb_endpoint_url)


def open_publisher(wiring: Wiring, spool: AnchoredRoot | None, pool: ThreadPoolExecutor) -> SignalPublisher:
    """Where signals go."""
    stream = open_stream(wiring)
    if stream is not None:
        return KinesisPublisher(stream, wiring.control_bus_topic)
    return SpoolPublisher(spool or spool_root(wiring), wiring.control_bus_topic, pool)


def open_intake(
    wiring: Wiring, policy: Policy, authority: Authority, admission: AdmissionPolicy, spool: AnchoredRoot | None
) -> Intake:
    """Where requests come from."""
    stream = open_stream(wiring)
    if stream is None:
        return SpoolConsumer(spool or spool_root(wiring), authority, admission)
    worker_config = {"wiring": wiring.model_dump_json(), "policy": policy.model_dump_json()}
    return KinesisIntake(wiring, stream, open_lease_table(wiring), worker_config, admission.pack.document)
