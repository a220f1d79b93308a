"""Clients of boto3 for Kinesis, DynamoDB, ECS and IAM, and what their errors mean.

boto3 is imported when a client is first made. A client repeats nothing by itself: whoever calls it has a retry policy.
"""

from typing import Any, Final

from scenario_runner.contracts.errors import ConfigurationError, in_short, install_extra
from scenario_runner.storage.aws import sdk_client

#: Longer than a handshake within one region takes; a call that takes longer is tried again within the deadline.
_CONNECT_SECONDS: Final = 2.0
#: Longer than the service takes for its largest answer, 10 MB.
_READ_SECONDS: Final = 5.0
#: The relay, the intake and KCL's checks each use few connections at a time.
_CONNECTIONS: Final = 8
#: From this HTTP status on the service failed, not the request.
_SERVER_ERROR: Final = 500
_TRANSIENT: Final = frozenset(
    {
        "ProvisionedThroughputExceededException", "LimitExceededException", "ThrottlingException", "Throttling",
        "InternalFailure", "InternalFailureException", "ServiceUnavailable", "RequestLimitExceeded",
        "KMSThrottlingException", "RequestTimeout", "RequestTimeoutException", "ResourceInUseException",
    }
)  # fmt: skip


def client_of(
    service: str, region: str | None, endpoint_url: str | None, needed_by: str = "control_bus_kind 'kinesis'"
) -> Any:  # noqa: ANN401 - boto3 has no types
    """A boto3 client without retries of its own.

    Args:
        service: As boto3 calls it.
        region: Its region.
        endpoint_url: None for the service of AWS.
        needed_by: The setting that needs it, for a person.

    Raises:
        ConfigurationError: Boto3 is not installed, or nothing names a region.
    """
    try:
        from botocore.config import Config  # noqa: PLC0415 - slow to import, and an extra
    except ImportError as error:
        raise ConfigurationError(needed_by, "boto3 is not installed", install_extra("kinesis", "s3")) from error
    if not region:
        raise ConfigurationError(
            "key 'control_bus_region'", "no region is named", "set control_bus_region, SR_KINESIS_REGION or AWS_REGION"
        )
    config = Config(
        connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries={"total_max_attempts": 1},
        max_pool_connections=_CONNECTIONS,
    )  # fmt: skip
    return sdk_client(service, region, endpoint_url, config)


def failure_of(error: Exception) -> tuple[str, str, bool]:
    """A boto3 error as (code, sentence, whether the same call may succeed later)."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        transient = type(error).__module__.startswith(("botocore", "urllib3", "http")) or isinstance(error, OSError)
        permanent = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
        return type(error).__name__, f"{type(error).__name__}: {in_short(error)}", transient and not permanent
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    message = response.get("Error", {}).get("Message", "")
    return code, f"{code}: {message}", code in _TRANSIENT or status >= _SERVER_ERROR
