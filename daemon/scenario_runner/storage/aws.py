"""AWS credentials for S3, Kinesis, DynamoDB and ECS, found and renewed in one place, and the rest of AWS's environment.

Of the ``AWS_*`` variables SR honours a closed list: credentials, region and endpoints. Every other one is
removed from the environment of the process before the first client is made, so that no setting that SR did not check
reaches a client or a child process; :func:`foreign_variables` names them.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from scenario_runner.contracts.errors import ConfigurationError, Unavailable, install_extra, one_line

HONOURED: Final = frozenset(
    {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
        "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE",
        "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_STS_REGIONAL_ENDPOINTS",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_V1_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_METADATA_SERVICE_TIMEOUT",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS", "AWS_EXECUTION_ENV",
        "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_ECS",
        "AWS_ENDPOINT_URL_STS", "AWS_CA_BUNDLE",
    }
)  # fmt: skip
_CLIENT_KEEPS: Final = timedelta(seconds=300)
"""The native client asks the provider again for credentials that expire sooner than this."""
_ASK_EVERY: Final = timedelta(seconds=10)
"""How often it therefore asks: a changed credentials file is noticed within this time."""
_VARIABLES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_QUOTES: Final = ("'", '"')
_log = structlog.get_logger("aws")


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key. ``token`` is empty for a long-lived one."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(repr=False)


def foreign_variables(env: Mapping[str, str]) -> list[str]:
    """Names of the ``AWS_*`` variables that SR does not honour, sorted."""
    return sorted(name for name in env if name.startswith("AWS_") and name not in HONOURED)


def drop_foreign_variables() -> None:
    """Take what SR does not honour, and an empty token, out of the environment of this process and its children."""
    names = foreign_variables(os.environ)
    if names:
        _log.warning("AWS variables that SR does not honour are ignored", variables=names)
    for name in names:
        os.environ.pop(name, None)
    if os.environ.get(_VARIABLES[2]) == "":
        os.environ.pop(_VARIABLES[2])  # the native client would send it


def keys_of(env: Mapping[str, str]) -> Keys | None:
    """The access key that the environment names; None when it names none. A token that is empty means none.

    Raises:
        ConfigurationError: half a key, or a value that was read wrongly from a file. The value is never shown.
    """
    names = _VARIABLES
    access_key, secret_key, token = (env.get(name, "") for name in names)
    if not access_key and not secret_key:
        return None
    for name, value, other in ((names[0], access_key, names[1]), (names[1], secret_key, names[0])):
        if not value:
            raise ConfigurationError(
                f"environment variable {name}", f"is not set and {other} is", f"set {name}, or unset {other}"
            )
    for name in names:
        _check(f"environment variable {name}", env.get(name, ""), f"set {name} to the bare value")
    return Keys(access_key, secret_key, token)


def _check(place: str, value: str, remedy: str) -> None:
    if "\r" in value:
        problem = "holds a carriage return: the file it comes from has CRLF line ends"
    elif value != value.strip() or not value.isprintable():
        problem = "holds white space around the value, or control characters"
    elif value.startswith(_QUOTES) or value.endswith(_QUOTES):
        problem = "holds quotes that are part of the value (docker --env-file keeps them)"
    elif not value.isascii():
        problem = "holds characters beyond ASCII"
    else:
        return
    raise ConfigurationError(place, problem, remedy)


class Credentials:
    """Where access keys come from: the environment, else the AWS SDK's default chain.

    A role's keys are renewed by the SDK. The SDK reads a shared credentials or configuration file once; here it is read
    again when it has changed. Every thread may call the methods.

    Raises:
        ConfigurationError: the environment, or the file, holds no valid key.
        Unavailable: nothing names a key.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamps: tuple[object, ...] = ()
        self._session: Any = None
        self._found: Any = None
        self.static = keys_of(os.environ)
        self.current()

    def current(self) -> Keys:
        """The keys to use now."""
        if self.static is not None:
            return self.static
        with self._lock:
            self._refresh()
            frozen = _frozen(self._found)
        place = f"the credentials of the AWS SDK ({self._found.method})"
        for value in (frozen.access_key, frozen.secret_key, frozen.token or ""):
            _check(place, value, "correct the credentials file, or whatever provides them")
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")

    @property
    def source(self) -> str:
        """Where the keys come from, for a person."""
        return "the environment" if self.static else f"the AWS SDK's chain ({self._found.method})"

    def region(self) -> str:
        """The region that the AWS configuration file names; empty when it names none."""
        return "" if self._session is None else str(self._session.get_config_variable("region") or "")

    def _refresh(self) -> None:
        """Ask the SDK's chain again when one of its files has changed; keep the last answer when it finds nothing."""
        stamps = self._stamps_of_files()
        if self._found is not None and stamps == self._stamps:
            return
        try:
            session, found = _ask_the_sdk()
        except (Unavailable, ConfigurationError):
            if self._found is None:
                raise
            return  # the file is being written at this moment
        self._session, self._found = session, found
        self._stamps = stamps or self._stamps_of_files()

    def _stamps_of_files(self) -> tuple[object, ...]:
        if self._session is None:
            return ()
        names = (self._session.get_config_variable(name) for name in ("credentials_file", "config_file"))
        return tuple(_stamp(os.path.expanduser(name)) for name in names if name)


def _stamp(path: str) -> object:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _frozen(found: Any) -> Any:  # noqa: ANN401 - untyped
    """The keys of this moment; those of a role are renewed when they are about to end."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        return found.get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(f"the AWS credentials ({found.method}) could not be renewed: {error}") from error


def _ask_the_sdk() -> tuple[Any, Any]:
    """A session of the SDK and the credentials that its chain finds."""
    try:
        import botocore.session  # noqa: PLC0415 - slow to import, rarely needed
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "AWS credentials", "the AWS SDK is not installed", install_extra("s3", "kinesis")
        ) from error
    session, why = botocore.session.Session(), "nothing names any"
    try:
        found = session.get_credentials()
    except (BotoCoreError, ValueError) as error:
        found, why = None, one_line(str(error))
    if found is None:
        raise Unavailable(
            f"no AWS credentials were found ({why}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a "
            "role"
        )
    return session, found


def native_options(credentials: Credentials) -> dict[str, Any]:
    """Credentials as the native S3 client takes them: fixed keys as they are, all others from a provider.

    A provider costs every request some 30 us.
    """
    if credentials.static is not None:
        keys = credentials.static
        token = {"session_token": keys.token} if keys.token else {}
        return {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key, **token}

    def provide() -> dict[str, object]:
        keys = credentials.current()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token or None,
            "expires_at": datetime.now(UTC) + _CLIENT_KEEPS + _ASK_EVERY,
        }

    return {"credential_provider": provide}


def sdk_client(service: str, region: str, endpoint_url: str | None, config: Any) -> Any:  # noqa: ANN401 - untyped
    """A boto3 client that signs with :class:`Credentials` and ignores the endpoints of the SDK's files.

    Args:
        service: As boto3 calls it.
        region: Its region.
        endpoint_url: None for the service of AWS.
        config: A ``botocore.config.Config``.
    """
    import boto3  # noqa: PLC0415 - 0.3 s that only users of a stream pay
    import botocore.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.credentials import Credentials as SdkCredentials  # noqa: PLC0415
    from botocore.credentials import ReadOnlyCredentials  # noqa: PLC0415

    drop_foreign_variables()
    credentials = Credentials()

    class Current(SdkCredentials):  # type: ignore[misc]
        """Signs every request with the keys of that moment."""

        def get_frozen_credentials(self) -> Any:  # noqa: ANN401
            keys = credentials.current()
            return ReadOnlyCredentials(keys.access_key, keys.secret_key, keys.token or None)

    class Chain:
        """Replaces the session's default chain."""

        def load_credentials(self) -> Any:  # noqa: ANN401
            keys = credentials.current()
            return Current(keys.access_key, keys.secret_key, keys.token or None)

    session = botocore.session.Session()
    session.register_component("credential_provider", Chain())
    return boto3.Session(botocore_session=session).client(
        service, region_name=region, endpoint_url=endpoint_url,
        config=config.merge(Config(ignore_configured_endpoint_urls=True)),
    )  # fmt: skip
