"""The engine's keys of a wiring profile: what is needed together, and what does not go together.

What the keys say about a command and about roots is checked by the rooms that use them
(:mod:`scenario_runner.service.engine`).
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, model_validator

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.profiles.fields import (
    Arguments,
    Location,
    Locations,
    OptionalEndpoint,
    OptionalLocation,
    OptionalRegion,
    OptionalResource,
    Resources,
    Texts,
)

_OF_SUBPROCESS: Final = ("engine_command_cwd", "engine_env_allowlist", "engine_attempts_dir")
_NEEDED_OF_ECS: Final = (
    "engine_ecs_cluster", "engine_ecs_task_definition", "engine_ecs_container", "engine_ecs_region",
)  # fmt: skip
_OF_ECS: Final = (
    *_NEEDED_OF_ECS, "engine_ecs_endpoint_url", "engine_ecs_launch_type", "engine_ecs_subnets",
    "engine_ecs_security_groups", "engine_ecs_assign_public_ip",
)  # fmt: skip
_OF_BOTH: Final = (
    "engine_invoker", "engine_command_timeout_seconds", "engine_launch_retries", "engine_run_root_template",
)  # fmt: skip
#: A week: the folders of attempts are kept for so long, and no engine of the platform runs for a tenth of it.
_LONGEST_SECONDS: Final = 7 * 86400


class EngineKeys(BaseModel):
    """Keys that say how the engine is invoked; see docs/configuration.md for the meaning of every key."""

    engine_roots: Locations = []
    engine_invoker: Literal["subprocess", "ecs"] | None = None
    engine_command: Arguments = []
    engine_command_timeout_seconds: Annotated[int, Field(ge=1, le=_LONGEST_SECONDS)] = 3600
    engine_launch_retries: Annotated[int, Field(ge=0, le=100)] = 2
    engine_run_root_template: OptionalLocation = None
    engine_command_cwd: OptionalLocation = None
    engine_env_allowlist: Texts = []
    engine_attempts_dir: Location = ".local/engine"
    engine_ecs_cluster: OptionalResource = None
    engine_ecs_task_definition: OptionalResource = None
    engine_ecs_container: OptionalResource = None
    engine_ecs_region: OptionalRegion = None
    engine_ecs_endpoint_url: OptionalEndpoint = None
    engine_ecs_launch_type: Literal["FARGATE", "EC2", "EXTERNAL"] | None = None
    engine_ecs_subnets: Resources = []
    engine_ecs_security_groups: Resources = []
    engine_ecs_assign_public_ip: bool = False

    @property
    def engine_backend(self) -> Literal["", "subprocess", "ecs"]:
        """Name of the backend that invokes the engine; empty when no engine is configured."""
        return (self.engine_invoker or "subprocess") if self.engine_command else ""

    @model_validator(mode="after")
    def _engine_is_whole(self) -> "EngineKeys":
        if not self.engine_command:
            if given := self._given(*_OF_BOTH, *_OF_SUBPROCESS, *_OF_ECS):
                raise ValueError(f"engine_command is needed with {given}")
            return self
        if not self.engine_roots:
            raise ValueError("engine_roots is needed with engine_command: engines write their runs under them")
        if self.engine_backend == "ecs":
            self._check_ecs()
        else:
            self._check_subprocess()
        return self

    def _given(self, *keys: str) -> str:
        """Those of the keys whose value is not the default, for a person; empty when there is none.

        Whether a key was written is not known after a profile has been passed on to another process.
        """
        fields = type(self).model_fields
        return ", ".join(key for key in keys if getattr(self, key) != fields[key].default)

    def _check_subprocess(self) -> None:
        if given := self._given(*_OF_ECS):
            raise ValueError(f"engine_invoker 'subprocess' does not use {given}")
        program = self.engine_command[0]
        if "/" in program and not program.startswith("/") and self.engine_command_cwd is None:
            raise ValueError(
                "engine_command names its program by a relative path, and without engine_command_cwd the engine's "
                "working directory is a folder of the attempt: write the path out, or set engine_command_cwd"
            )

    def _check_ecs(self) -> None:
        if given := self._given(*_OF_SUBPROCESS):
            raise ValueError(f"engine_invoker 'ecs' does not use {given}")
        if missing := [key for key in _NEEDED_OF_ECS if getattr(self, key) is None]:
            raise ValueError(f"engine_invoker 'ecs' needs {', '.join(missing)}")
        if self.engine_ecs_subnets:
            return
        if given := self._given("engine_ecs_security_groups", "engine_ecs_assign_public_ip"):
            raise ValueError(f"engine_ecs_subnets is needed with {given}")
        if self.engine_ecs_launch_type == "FARGATE":
            raise ValueError("engine_ecs_subnets is needed with engine_ecs_launch_type 'FARGATE'")


def refuse_options_of_environment(source: str, written: Any, read: Any) -> None:  # noqa: ANN401 - parsed YAML
    """Refuse a command in which a variable of the environment makes an option of an argument.

    Args:
        source: The profile.
        written: ``engine_command`` as the file has it.
        read: ``engine_command`` after the environment was read.

    Raises:
        ConfigurationError: Names the item.
    """
    if not isinstance(written, list) or not isinstance(read, list):
        return
    for number, (before, after) in enumerate(zip(written, read, strict=False)):
        if isinstance(after, str) and after.startswith("-") and not str(before).startswith("-"):
            raise ConfigurationError(
                f"{source}, key 'engine_command', item {number}", "a variable of the environment makes an option of it",
                "write the option into the profile, as in '--name=${VALUE}'",
            )  # fmt: skip
