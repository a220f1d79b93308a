"""The wiring profile: where everything is. Unknown keys, duplicates and bad values refuse start-up.

``${NAME}`` and ``${NAME:-default}`` expand from the environment; relative paths are relative to the working
directory.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from scenario_runner.contracts.documents import explain_validation
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.refs import PREFIX
from scenario_runner.contracts.strict_yaml import read_yaml
from scenario_runner.contracts.times import parse_instant

_REMEDY: Final = "correct the wiring profile; README.md lists every key"
_KINESIS_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
KINESIS_OVERRIDES: Final = {
    "SR_KINESIS_ENDPOINT_URL": "control_bus_endpoint_url",
    "SR_KINESIS_STREAM": "control_bus_stream",
    "SR_KINESIS_REGION": "control_bus_region",
    "SR_KINESIS_DYNAMODB_ENDPOINT_URL": "kinesis_dynamodb_endpoint_url",
}
"""Environment variables that override a profile whose control bus is a stream."""


def _as_list(value: object) -> object:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _blank(value: object) -> object:
    return None if value == "" else value


Text = Annotated[str, Field(min_length=1)]
OptionalText = Annotated[str | None, BeforeValidator(_blank)]
Texts = Annotated[list[str], BeforeValidator(_as_list)]


class Wiring(BaseModel):
    """A validated wiring profile; see README.md for the meaning of every key."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    profile_id: Text
    object_store_root: Text
    control_bus_topic: Text = "fp.bus.control.v1"
    control_bus_kind: Literal["spool", "file", "kinesis"] = "spool"
    control_bus_root: OptionalText = None
    control_bus_stream: OptionalText = None
    control_bus_region: OptionalText = None
    control_bus_endpoint_url: OptionalText = None
    kinesis_application_name: OptionalText = None
    kinesis_worker_id: OptionalText = None
    kinesis_state_dir: Text = ".local/kinesis"
    kinesis_dynamodb_endpoint_url: OptionalText = None
    kinesis_start_position: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"] = "TRIM_HORIZON"
    kinesis_start_timestamp: OptionalText = None
    kinesis_enhanced_fan_out: bool = False
    kinesis_timing: Literal["production", "fast"] = "production"
    engine_catalogue_path: Text
    gate_map_path: Text
    schema_root: Text
    engine_contracts_root: Text
    engine_roots: Texts = []
    engine_command: Annotated[list[str] | None, BeforeValidator(_blank)] = None
    engine_command_cwd: OptionalText = None
    engine_command_timeout_seconds: Annotated[int, Field(ge=1, le=7 * 86400)] = 3600
    authority_store_dsn: Text
    s3_endpoint_url: OptionalText = None
    s3_region: OptionalText = None
    s3_path_style: bool | None = None
    auth_mode: Literal["disabled", "allowlist"]
    auth_allowlist: Texts = []
    reemit_allowlist: Texts = []
    reemit_rate_limit_max: Annotated[int, Field(ge=1)] = 3
    reemit_rate_limit_window_seconds: Annotated[int, Field(ge=1)] = 3600
    digest_reuse: Literal["version", "off"] = "version"
    runner_workers: Annotated[int, Field(ge=1, le=256)] = 8
    hash_workers: Annotated[int | None, Field(ge=1, le=256)] = None
    lease_seconds: Annotated[int, Field(ge=2, le=3600)] = 30
    shutdown_seconds: Annotated[int, Field(ge=1, le=110)] = 20
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = 0.2

    @field_validator("profile_id", "object_store_root", "control_bus_topic", "authority_store_dsn")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if value != value.strip() or not value.isprintable():
            raise ValueError("must be one line without surrounding white space")
        return value

    @field_validator("auth_allowlist", "reemit_allowlist", "engine_roots")
    @classmethod
    def _no_blank_entries(cls, value: list[str]) -> list[str]:
        if any(not item.strip() or not item.isprintable() for item in value):
            raise ValueError("an entry is blank")
        return value

    @field_validator("control_bus_topic")
    @classmethod
    def _topic_is_a_name(cls, value: str) -> str:
        if "/" in value or value.startswith(".") or value in ("requests", "consumed", "rejected"):
            raise ValueError("must be a plain name; it becomes a directory of the spool")
        return value

    @field_validator("kinesis_application_name", "kinesis_worker_id")
    @classmethod
    def _is_a_kinesis_name(cls, value: str | None) -> str | None:
        if value is not None and not _KINESIS_NAME.fullmatch(value):
            raise ValueError("must be letters, digits, '.', '_' and '-', at most 128 of them")
        return value

    @field_validator("kinesis_start_timestamp")
    @classmethod
    def _is_a_moment(cls, value: str | None) -> str | None:
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

    @property
    def bus_kind(self) -> str:
        """``spool`` or ``kinesis``; ``file`` is the spool's older name."""
        return "spool" if self.control_bus_kind == "file" else self.control_bus_kind

    @property
    def kinesis_application(self) -> str:
        """Name of the consumer application: its lease table in DynamoDB is called so."""
        return self.kinesis_application_name or f"scenario-runner-{self.control_bus_stream}"

    @property
    def dynamodb_endpoint_url(self) -> str | None:
        """Where leases and checkpoints are kept; None for the service's own address."""
        return self.kinesis_dynamodb_endpoint_url or self.control_bus_endpoint_url

    @property
    def store_root(self) -> str:
        """The object-store root without the ledger prefix, which SR adds itself."""
        scheme, separator, path = self.object_store_root.rpartition("://")
        root = posixpath.normpath(path)
        if root == PREFIX:
            root = "."
        return scheme + separator + (root.removesuffix("/" + PREFIX) or "/")

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
        raise ConfigurationError(source, explain_validation(error), _REMEDY) from error


def load_wiring(path: str, env: Mapping[str, str] | None = None) -> Wiring:
    """Load a wiring profile.

    Args:
        path: The YAML file.
        env: Environment for ``${NAME}``; the process's own by default.

    Raises:
        ConfigurationError: names the file, the line or key, and the remedy.
    """
    document: Any = read_yaml(path, env=os.environ if env is None else env)
    return parse_wiring(_with_overrides(document, os.environ if env is None else env), path)


def _with_overrides(document: object, env: Mapping[str, str]) -> object:
    """A document of the kind ``kinesis`` with what the environment says about the stream, whatever the file says."""
    if not isinstance(document, dict) or document.get("control_bus_kind") != "kinesis":
        return document
    return document | {key: env[name] for name, key in KINESIS_OVERRIDES.items() if env.get(name)}
