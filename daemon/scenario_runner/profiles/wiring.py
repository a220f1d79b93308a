"""The wiring profile: where everything is. Unknown keys, duplicates and bad values refuse start-up.

``${NAME}`` and ``${NAME:-default}`` expand from the environment; relative paths are relative to the working
directory.
"""

import os
import posixpath
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.refs import PREFIX
from scenario_runner.contracts.strict_yaml import load_yaml, read_bytes
from scenario_runner.contracts.times import parse_instant
from scenario_runner.profiles import values
from scenario_runner.profiles.engine_keys import EngineKeys, refuse_options_of_environment
from scenario_runner.profiles.environment import from_environment
from scenario_runner.profiles.fields import (
    Location,
    OptionalEndpoint,
    OptionalListen,
    OptionalLocation,
    OptionalName,
    OptionalQueue,
    OptionalRegion,
    OptionalText,
    Text,
    Texts,
)

_REMEDY: Final = "correct the wiring profile; docs/configuration.md lists every key"
_SQLITE: Final = "sqlite:///"


def _dsn(value: str) -> str:
    if value.startswith(_SQLITE):
        values.location(value.removeprefix(_SQLITE))
    return values.unquoted(values.one_line(value))


class Wiring(EngineKeys):
    """A validated wiring profile; see docs/configuration.md for the meaning of every key."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    profile_id: Text
    profile_class: Literal["smoke", "production"] = "smoke"
    object_store_root: Location
    state_mode: Literal["private", "group"] = "private"
    control_bus_topic: Text = "fp.bus.control.v1"
    control_bus_kind: Literal["spool", "file", "kinesis"] = "spool"
    control_bus_root: OptionalLocation = None
    control_bus_stream: OptionalName = None
    control_bus_region: OptionalRegion = None
    control_bus_endpoint_url: OptionalEndpoint = None
    kinesis_application_name: OptionalName = None
    kinesis_worker_id: OptionalName = None
    kinesis_state_dir: Location = ".local/kinesis"
    kinesis_dynamodb_endpoint_url: OptionalEndpoint = None
    kinesis_start_position: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"] = "TRIM_HORIZON"
    kinesis_start_timestamp: OptionalText = None
    kinesis_enhanced_fan_out: bool = False
    kinesis_timing: Literal["production", "fast"] = "production"
    engine_catalogue_path: Location
    gate_map_path: Location
    schema_root: Location
    engine_contracts_root: Location
    authority_store_dsn: Annotated[str, Field(min_length=1), AfterValidator(_dsn)]
    s3_endpoint_url: OptionalEndpoint = None
    s3_region: OptionalRegion = None
    s3_path_style: bool | None = None
    auth_mode: Literal["disabled", "allowlist"]
    auth_allowlist: Texts = Field(default_factory=list)
    reemit_allowlist: Texts = Field(default_factory=list)
    # Ten in an hour are more than a person needs for one run, and few enough that a loop is stopped at once.
    reemit_rate_limit_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    reemit_rate_limit_window_seconds: Annotated[int, Field(ge=1, le=31 * 86400)] = 3600
    evidence_events_queue_url: OptionalQueue = None
    evidence_watch: Literal["auto", "off"] = "auto"
    digest_reuse: Literal["version", "off"] = "version"
    # The bounds of numbers refuse typing errors; within them every value works. Leases are renewed three times in their
    # length, so below 2 s a pause of the machine loses them. ECS kills a task 120 s after it asked it to stop: a stop
    # may take 110 s.
    runner_workers: Annotated[int, Field(ge=1, le=256)] = 8
    hash_workers: Annotated[int | None, Field(ge=1, le=256)] = None
    lease_seconds: Annotated[int, Field(ge=2, le=3600)] = 30
    shutdown_seconds: Annotated[int, Field(ge=1, le=110)] = 20
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = 0.2
    health_listen: OptionalListen = None
    # Twice what a statement, a batch and a round of requests may take with all their tries; a loop does one at a time.
    health_stuck_seconds: Annotated[int, Field(ge=1, le=3600)] = 300

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("control_bus_topic")
    @classmethod
    def _topic_is_a_name(cls, value: str) -> str:
        if "/" in value or value.startswith(".") or value in ("requests", "consumed", "rejected"):
            raise ValueError("must be a plain name; it becomes a directory of the spool")
        return value

    @field_validator("kinesis_start_timestamp")
    @classmethod
    def _is_an_instant(cls, value: str | None) -> str | None:
        if value is not None:
            parse_instant(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Wiring":
        if self.bus_kind == "spool" and not self.control_bus_root:
            raise ValueError("control_bus_root is needed when control_bus_kind is 'spool'")
        if self.bus_kind == "kinesis" and not self.control_bus_stream:
            raise ValueError("control_bus_stream is needed when control_bus_kind is 'kinesis'")
        if (self.kinesis_start_position == "AT_TIMESTAMP") != (self.kinesis_start_timestamp is not None):
            raise ValueError(
                "kinesis_start_timestamp is needed with kinesis_start_position 'AT_TIMESTAMP', and only then"
            )
        if self.auth_mode == "allowlist" and not self.auth_allowlist:
            raise ValueError("auth_allowlist is empty, so auth_mode 'allowlist' would refuse everybody")
        return self

    def origin(self, key: str) -> str:
        """The environment variable that the value of a key comes from, or else ``key NAME``."""
        return self._origins.get(key, f"key {key}")

    @property
    def on_s3(self) -> bool:
        """True when the object store or an engine root lies on S3."""
        return any(root.startswith("s3://") for root in (self.object_store_root, *self.engine_roots))

    @property
    def uses_aws(self) -> bool:
        """True when anything of the profile needs credentials of AWS."""
        others = self.bus_kind == "kinesis" or self.engine_backend == "ecs" or bool(self.evidence_events_queue_url)
        return self.on_s3 or others

    @property
    def bus_kind(self) -> str:
        """``spool`` or ``kinesis``; ``file`` is the spool's older name."""
        return "spool" if self.control_bus_kind == "file" else self.control_bus_kind

    @property
    def kinesis_application(self) -> str:
        """Name of the consumer application and of its lease table in DynamoDB."""
        return self.kinesis_application_name or f"scenario-runner-{self.control_bus_stream}"

    @property
    def dynamodb_endpoint_url(self) -> str | None:
        """Endpoint of the DynamoDB that keeps leases and checkpoints; None for AWS.

        An emulator mostly serves both, so the endpoint of the stream stands for it, unless that comes from
        ``AWS_ENDPOINT_URL_KINESIS``, which is about Kinesis alone.
        """
        if self.kinesis_dynamodb_endpoint_url or self.origin("control_bus_endpoint_url") == "AWS_ENDPOINT_URL_KINESIS":
            return self.kinesis_dynamodb_endpoint_url
        return self.control_bus_endpoint_url

    @property
    def store_root(self) -> str:
        """The object-store root without the prefix of the ledger: SR adds it to every key."""
        scheme, separator, path = self.object_store_root.rpartition("://")
        root = posixpath.normpath(path)
        if root == PREFIX:
            root = "."
        return scheme + separator + (root.removesuffix("/" + PREFIX) or "/")

    @property
    def reemit_callers(self) -> frozenset[str] | None:
        """Who may have signals published again; None when everybody may.

        A ``reemit_allowlist`` holds whatever ``auth_mode`` says: a list that has no effect would be no protection.
        """
        if self.reemit_allowlist:
            return frozenset(self.reemit_allowlist)
        return frozenset(self.auth_allowlist) if self.auth_mode == "allowlist" else None

    @property
    def hash_threads(self) -> int:
        """Threads that hash at the same time; the number of cores unless set."""
        return self.hash_workers or os.cpu_count() or 1


def parse_wiring(document: object, source: str) -> Wiring:
    """Validate a parsed wiring document.

    Raises:
        ConfigurationError: names the profile and the keys.
    """
    if not isinstance(document, dict):
        raise ConfigurationError(source, "an object with the wiring keys is needed", _REMEDY)
    given = {key: value for key, value in document.items() if value is not None}
    try:
        return Wiring.model_validate(given)
    except ValidationError as error:
        from scenario_runner.contracts.validation import explain_validation  # noqa: PLC0415 - slow, and seldom needed

        raise ConfigurationError(source, explain_validation(error, quotes=False), _REMEDY) from error


def load_wiring(path: str, env: Mapping[str, str] | None = None) -> Wiring:
    """Load a wiring profile, completed from the environment (:mod:`scenario_runner.profiles.environment`).

    Args:
        path: The YAML file.
        env: Environment for ``${NAME}``; the process's own by default.

    Raises:
        ConfigurationError: names the file, the line or key, or the variable, and the remedy.
    """
    env = os.environ if env is None else env
    data = read_bytes(path)  # once: it may be a pipe
    document: Any = load_yaml(data, path, env=env)
    found = from_environment(document, env) if isinstance(document, dict) else {}
    if isinstance(document, dict) and document.get("engine_command"):
        refuse_options_of_environment(path, load_yaml(data, path).get("engine_command"), document["engine_command"])
    wiring = parse_wiring({**document, **{key: item.value for key, item in found.items()}} if found else document, path)
    wiring._origins.update({key: item.variable for key, item in found.items()})  # noqa: SLF001 - our own
    return wiring
