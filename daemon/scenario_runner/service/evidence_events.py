"""Who else tells of evidence than the control bus: a queue of S3 events, and the folders of this host."""

import re
import time
from collections.abc import Sequence
from typing import Any, Final

import structlog

from scenario_runner.artifacts.inotify import Inotify
from scenario_runner.authority.base import Authority
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.intake.evidence_queue import EvidenceQueue
from scenario_runner.intake.folder_watch import FolderWatch
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.storage.boto import client_of

_log = structlog.get_logger("evidence_events")
_KEY: Final = "evidence_events_queue_url"
#: Hosts of AWS, also those of interface endpoints, name their region.
_OF_AWS: Final = re.compile(
    r"https?://(?:[^/]*\.)?sqs\.([a-z0-9-]+)\.(?:vpce\.)?amazonaws\.com(?:\.cn)?(?::\d+)?/", re.ASCII
)


def open_queue_client(wiring: Wiring) -> Any:  # noqa: ANN401 - boto3 has no types
    """A client of the service that holds the profile's queue.

    Raises:
        ConfigurationError: boto3 is not installed, or nothing names the region.
    """
    url = wiring.evidence_events_queue_url or ""
    of_aws = _OF_AWS.match(url)
    region = of_aws[1] if of_aws else wiring.s3_region or wiring.control_bus_region
    if not region:
        raise ConfigurationError(f"key '{_KEY}'", "its host names no region", "set s3_region, or AWS_REGION")
    server = url.rpartition("/")[0].rpartition("/")[0]
    return client_of("sqs", region, server, _KEY)


def open_evidence_queue(wiring: Wiring, authority: Authority, allowed: Sequence[str]) -> EvidenceQueue | None:
    """The queue of a profile; None when it names none."""
    url = wiring.evidence_events_queue_url
    return None if url is None else EvidenceQueue(open_queue_client(wiring), url, authority, allowed)


def open_folder_watch(wiring: Wiring, authority: Authority, allowed: Sequence[str]) -> FolderWatch | None:
    """A watch of the profile's folders; None where it is switched off, or where there is no folder or no inotify."""
    if wiring.evidence_watch == "off" or not any(root.startswith("/") for root in allowed):
        return None
    try:
        inotify = Inotify()
    except OSError as error:
        _log.info(
            "folders of engine runs are not watched; waiting runs are examined by their schedule", detail=str(error)
        )
        return None
    return FolderWatch(inotify, authority, allowed, wiring.poll_seconds, time.monotonic)
