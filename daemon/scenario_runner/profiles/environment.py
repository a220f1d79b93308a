"""Keys of a wiring profile that the environment sets: endpoints, regions and the stream.

``SR_KINESIS_*`` override a profile whose control bus is a stream. The AWS SDKs' own ``AWS_ENDPOINT_URL*`` and
``AWS_REGION`` fill in what the profile leaves open, for S3, Kinesis, DynamoDB and ECS alike. Every value is checked
here, under the name of its variable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.profiles import values

Check = Callable[[str], str]
KINESIS_OVERRIDES: Final[Mapping[str, tuple[str, Check]]] = {
    "SR_KINESIS_ENDPOINT_URL": ("control_bus_endpoint_url", values.endpoint),
    "SR_KINESIS_STREAM": ("control_bus_stream", values.stream_name),
    "SR_KINESIS_REGION": ("control_bus_region", values.region),
    "SR_KINESIS_DYNAMODB_ENDPOINT_URL": ("kinesis_dynamodb_endpoint_url", values.endpoint),
}
"""Environment variables that override a profile whose control bus is a stream, with the key and its check."""
_REGIONS: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ANY_ENDPOINT: Final = "AWS_ENDPOINT_URL"
_IGNORE_ENDPOINTS: Final = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"


@dataclass(frozen=True, slots=True)
class Setting:
    """A checked value and the variable that it comes from."""

    variable: str
    value: str


def from_environment(document: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Setting]:
    """The values that the environment sets for keys of a parsed, not yet validated wiring document.

    Raises:
        ConfigurationError: a variable that is used holds no valid value; names it.
    """
    found: dict[str, Setting] = {}

    def fill(key: str, variables: tuple[str, ...], check: Check) -> None:
        variable = next((name for name in variables if env.get(name)), None)
        if variable is not None and key not in found and document.get(key) in (None, ""):
            found[key] = _setting(variable, env, check)

    if document.get("control_bus_kind") == "kinesis":
        for variable, (key, check) in KINESIS_OVERRIDES.items():
            if env.get(variable):
                found[key] = _setting(variable, env, check)
        names = endpoint_variables("KINESIS", env)
        fill("kinesis_dynamodb_endpoint_url", endpoint_variables("DYNAMODB", env)[:1], values.endpoint)
        fill("control_bus_endpoint_url", names, values.endpoint)
        if found.get("control_bus_endpoint_url", _NOTHING).variable in names:
            fill("kinesis_dynamodb_endpoint_url", names[1:], values.endpoint)
        fill("control_bus_region", _REGIONS, values.region)
    if _on_s3(document):
        fill("s3_endpoint_url", endpoint_variables("S3", env), values.endpoint)
        fill("s3_region", _REGIONS, values.region)
    if document.get("engine_invoker") == "ecs":
        fill("engine_ecs_endpoint_url", endpoint_variables("ECS", env), values.endpoint)
        fill("engine_ecs_region", _REGIONS, values.region)
    return found


_NOTHING: Final = Setting("", "")


def endpoint_variables(service: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """The SDKs' variables for the endpoint of a service, the most specific first; none when they are switched off."""
    if ignores_endpoints(env):
        return ()
    return f"{_ANY_ENDPOINT}_{service}", _ANY_ENDPOINT


def ignores_endpoints(env: Mapping[str, str]) -> bool:
    """Whether the SDKs' variables for endpoints are switched off."""
    return env.get(_IGNORE_ENDPOINTS, "").strip().lower() == "true"


def _setting(variable: str, env: Mapping[str, str], check: Check) -> Setting:
    try:
        return Setting(variable, check(env[variable]))
    except ValueError as error:
        raise ConfigurationError(
            f"environment variable {variable}", str(error), f"correct {variable}, or unset it"
        ) from error


def _on_s3(document: Mapping[str, Any]) -> bool:
    roots = document.get("engine_roots") or []
    listed = roots.split(",") if isinstance(roots, str) else roots if isinstance(roots, list) else []
    places = (document.get("object_store_root"), *listed)
    if document.get("evidence_events_queue_url"):
        return True  # its events are about S3, and its region is that of S3 unless its host names one
    return any(isinstance(place, str) and place.strip().startswith("s3://") for place in places)
