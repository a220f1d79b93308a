"""What a profile may not be in production: ``profile_class: production`` refuses it, all of it at once.

Each rule is about something that works on one machine for a first try, and loses, leaks or admits too much where real
requests are served.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from scenario_runner.authority.connect import is_postgres, tls_of
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.profiles.environment import ignores_endpoints
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.storage.aws import HONOURED

_ENDPOINTS: Final = (
    "s3_endpoint_url", "control_bus_endpoint_url", "kinesis_dynamodb_endpoint_url", "engine_ecs_endpoint_url",
    "evidence_events_queue_url",
)  # fmt: skip
_ENDPOINT_VARIABLES: Final = tuple(sorted(name for name in HONOURED if name.startswith("AWS_ENDPOINT_URL")))
#: What a request passes on its way to the stream, the credentials' service included.
_ENDPOINTS_OF_PRODUCER: Final = ("control_bus_endpoint_url",)
_VARIABLES_OF_PRODUCER: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_STS")
#: The one for traces goes before the one for everything.
_COLLECTOR: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_COLLECTOR_HEADERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_PLAIN: Final = "http://"
#: The only ``sslmode`` under which a server is who it says: all below it take any certificate, or none.
_PROVEN: Final = "verify-full"

EXAMPLE_PACK: Final = "bc6c6659a9b88b83593d143ff1b639936cda15f3bf45b91acc5f15bc9e0ba524"
"""Digest of the interface pack in ``config/``."""

EXAMPLE_POLICY: Final = "245438699674f1e9f9bfd82d71d1e5344d2a2d29381bc220c01f2a5f1a944681"
"""Content digest of the policy in ``config/``."""


def load_to_write(path: str) -> Wiring:
    """Load a profile for a command that writes.

    Raises:
        ConfigurationError: The profile is not valid, or is of the class ``production`` and does not fit.
    """
    wiring = load_wiring(path)
    require_class(wiring)
    return wiring


def require_class(wiring: Wiring, env: Mapping[str, str] | None = None) -> None:
    """Refuse a profile of the class ``production`` that is none.

    Args:
        wiring: The profile.
        env: The environment; that of the process by default.

    Raises:
        ConfigurationError: Names every key that does not fit, and what to do about each.
    """
    _require(wiring, _violations(wiring, os.environ if env is None else env))


def require_class_of_producer(wiring: Wiring, env: Mapping[str, str] | None = None) -> None:
    """Refuse a profile of the class ``production`` through which requests are not safely submitted.

    A producer writes to the control bus alone: where the ledger and the authority lie is for the daemons to check.

    Args:
        wiring: The profile.
        env: The environment; that of the process by default.

    Raises:
        ConfigurationError: Names every key that does not fit, and what to do about each.
    """
    _require(wiring, _violations_of_producer(wiring, os.environ if env is None else env))


def warnings_of(wiring: Wiring, pack: InterfacePack, policy: Policy | None) -> list[str]:
    """What a profile of the class ``production`` should not be, and may: the profiles that are shipped name examples.

    Args:
        wiring: The profile.
        pack: Its interface pack.
        policy: The policy, where one is known.
    """
    found = []
    if wiring.profile_class == "production":
        if pack.digest == EXAMPLE_PACK:
            found.append("the interface pack is the example that is shipped: deploy the pack of the engine")
        if policy is not None and policy.content_digest == EXAMPLE_POLICY:
            found.append("the policy is the example that is shipped: decide on limits and waits of your own")
    return found


def _require(wiring: Wiring, violations: Iterator[str]) -> None:
    """Raise ConfigurationError when a profile of the class ``production`` has violations."""
    if wiring.profile_class != "production":
        return
    found = list(violations)
    if found:
        listed = "; ".join(f"({number}) {text}" for number, text in enumerate(found, 1))
        raise ConfigurationError(
            f"profile {wiring.profile_id}, key 'profile_class'",
            f"production does not allow what this profile says: {listed}",
            "change each of them; only a profile that serves no real request is 'smoke'",
        )


def _violations(wiring: Wiring, env: Mapping[str, str]) -> Iterator[str]:
    if not wiring.object_store_root.startswith("s3://"):
        yield "object_store_root is a folder: use s3://bucket/prefix"
    yield from _of_authority(wiring.authority_store_dsn, env)
    yield from _of_bus(wiring)
    if wiring.auth_mode == "disabled":
        yield "auth_mode is disabled, so anybody may ask for runs: use allowlist, with auth_allowlist"
    if wiring.kinesis_timing == "fast":
        yield "kinesis_timing is fast, which is for tests: leave it out"
    if not wiring.engine_roots:
        yield "engine_roots is not set, so no engine run is allowed: name the prefixes under which engines write"
    yield from _plain_endpoints(wiring, env, _ENDPOINTS, _ENDPOINT_VARIABLES)
    yield from _plain_collector(env)


def _violations_of_producer(wiring: Wiring, env: Mapping[str, str]) -> Iterator[str]:
    yield from _of_bus(wiring)
    yield from _plain_endpoints(wiring, env, _ENDPOINTS_OF_PRODUCER, _VARIABLES_OF_PRODUCER)


def _of_bus(wiring: Wiring) -> Iterator[str]:
    if wiring.bus_kind != "kinesis":
        yield "control_bus_kind is a spool: use kinesis, with control_bus_stream"


def _of_authority(dsn: str, env: Mapping[str, str]) -> Iterator[str]:
    if not is_postgres(dsn):
        yield "authority_store_dsn is SQLite, for one host alone: use postgresql://..., with sslmode=verify-full"
        return
    mode = tls_of(dsn, env)
    if mode not in ("", _PROVEN):
        yield (
            f"authority_store_dsn has sslmode {mode}, under which anybody can answer for the server: use "
            "sslmode=verify-full, with sslrootcert"
        )


def _plain_endpoints(
    wiring: Wiring, env: Mapping[str, str], keys: Sequence[str], variables: Sequence[str]
) -> Iterator[str]:
    """Endpoints without TLS; a variable that a key takes its value from is named once."""
    origins = set()
    for key in keys:
        if (getattr(wiring, key) or "").startswith(_PLAIN):
            origin = wiring.origin(key)
            origins.add(origin)
            named = key if origin == f"key {key}" else f"{key} (from {origin})"
            yield f"{named} has no TLS: use https://, or leave it out"
    if ignores_endpoints(env):
        return
    for name in variables:
        if name not in origins and env.get(name, "").lower().startswith(_PLAIN):
            yield f"the variable {name} has no TLS: use https://, or unset it"


def _plain_collector(env: Mapping[str, str]) -> Iterator[str]:
    """A collector of traces on another host that is sent headers, which hold its secret, without TLS."""
    name = next((name for name in _COLLECTOR if env.get(name)), "")
    address = env.get(name, "").strip()
    if not address.lower().startswith(_PLAIN) or _is_this_host(address):
        return
    if headers := next((name for name in _COLLECTOR_HEADERS if env.get(name)), ""):
        yield f"the variable {name} has no TLS, and {headers} is sent there: use https://, or a collector on this host"


def _is_this_host(address: str) -> bool:
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
