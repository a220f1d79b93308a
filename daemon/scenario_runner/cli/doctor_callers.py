"""Where ``doctor`` asks, and as whom: paths, servers and services of a profile, and the user or role that counts."""

import os
from dataclasses import dataclass

from scenario_runner.authority.connect import describe_server, sqlite_path
from scenario_runner.cli.doctor_report import Asked, Report
from scenario_runner.contracts.errors import in_short
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.first_start import this_user
from scenario_runner.storage.aws import Credentials
from scenario_runner.storage.boto import client_of


@dataclass(frozen=True, slots=True)
class Callers:
    """Where the checks ask, and as whom."""

    authority: Asked
    store: Asked
    bus: Asked

    @classmethod
    def of(cls, report: Report, wiring: Wiring) -> "Callers":
        """Those of a profile. AWS is asked who the caller is; an emulator cannot know."""
        user, caller = this_user(), ""
        if wiring.uses_aws:
            with report.examining("AWS"):
                caller = _caller_of_aws(wiring)
        path = sqlite_path(wiring.authority_store_dsn)
        database = Asked(path, user) if path is not None else Asked(*describe_server(wiring.authority_store_dsn))
        on_s3 = wiring.store_root.startswith("s3://")
        store = Asked(wiring.s3_endpoint_url or "S3 of AWS", caller) if on_s3 else Asked(wiring.store_root, user)
        if wiring.bus_kind == "kinesis":
            bus = Asked(wiring.control_bus_endpoint_url or "Kinesis of AWS", caller)
        else:
            bus = Asked(os.path.abspath(wiring.control_bus_root or ""), user)
        return cls(database, store, bus)


def _caller_of_aws(wiring: Wiring) -> str:
    """The ARN of the caller, or where the keys come from: at an endpoint that is not AWS nobody else can say."""
    source = f"credentials of {Credentials().source}"
    if wiring.s3_endpoint_url or wiring.control_bus_endpoint_url:
        return source
    try:
        client = client_of("sts", wiring.control_bus_region or wiring.s3_region, None)
        return str(client.get_caller_identity()["Arn"])
    except Exception as error:  # noqa: BLE001 - whoever may not ask STS may still be allowed all that SR needs
        return f"{source} (STS does not say who that is: {in_short(error)})"
