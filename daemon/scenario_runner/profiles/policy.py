"""The policy profile: what is allowed, and how long to wait.

Its content digest is checked: a policy that was changed without a new digest is refused.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scenario_runner.contracts.canonical import Json, canonical_sha256
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.documents import PolicyRev
from scenario_runner.contracts.errors import ConfigurationError, SequenceError
from scenario_runner.contracts.plan import DEFAULT_BOUNDS, EvidenceBounds
from scenario_runner.contracts.strict_yaml import read_yaml
from scenario_runner.contracts.types import Hex64, Name, Positive, ShortText, UInt64
from scenario_runner.contracts.validation import explain_validation

_REMEDY: Final = "correct the policy, then set content_digest to what `scenario-runner policy digest FILE` prints"


#: A day at least: what expired at once would be gone before anybody could look at it. A century is for ever.
Days = Annotated[int, Field(ge=1, le=36_500)]


class Retention(BaseModel):
    """For how many days to keep what may be removed; what is not given is kept for ever (docs/adr/0029)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    intake_records_days: Days | None = None
    dead_letter_raw_days: Days | None = None
    outbox_sent_days: Days | None = None
    digest_reuse_days: Days | None = None
    spool_consumed_days: Days | None = None


class Policy(BaseModel):
    """A validated policy profile."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    policy_id: ShortText
    revision: ShortText | UInt64
    content_digest: Hex64
    reuse_policy: Literal["ALLOW", "DENY"]
    evidence_wait_seconds: Annotated[int, Field(ge=0, le=366 * 86400)]
    attempt_limit: Positive
    auto_invoke: Literal["at_deadline", "at_once"] = "at_deadline"
    traffic_output_ids: list[Name]
    max_output_bytes: Annotated[int, Field(ge=1, le=1 << 62)] = DEFAULT_BOUNDS.max_output_bytes
    max_output_files: Annotated[int, Field(ge=1, le=10_000_000)] = DEFAULT_BOUNDS.max_output_files
    max_look_seconds: Annotated[int, Field(ge=1, le=7 * 86400)] = DEFAULT_BOUNDS.max_look_seconds
    output_digest_source: Annotated[DigestSource, Field(strict=False)] = DigestSource.READ
    retention: Retention = Retention()

    def bounds(self) -> EvidenceBounds:
        """How large evidence may be, and how long an examination may take."""
        return EvidenceBounds(self.max_output_bytes, self.max_output_files, self.max_look_seconds)

    def rev(self) -> PolicyRev:
        """The policy revision that documents carry."""
        return PolicyRev(policy_id=self.policy_id, revision=self.revision, content_digest=self.content_digest)


def policy_digest(document: object, source: str) -> str:
    """hex64 over the canonical JSON of every key but ``content_digest``.

    Raises:
        ConfigurationError: the document is not an object, or holds what has no canonical JSON (a float).
    """
    if not isinstance(document, dict):
        raise ConfigurationError(source, "an object with the policy keys is needed", _REMEDY)
    content: Json = {key: value for key, value in document.items() if key != "content_digest"}
    try:
        return canonical_sha256(content)
    except SequenceError as error:
        raise ConfigurationError(source, error.detail, "use whole numbers and texts") from error


def read_policy(path: str, env: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
    """The parsed policy file, not yet validated."""
    return read_yaml(path, env=os.environ if env is None else env)


def load_policy(path: str, env: Mapping[str, str] | None = None) -> Policy:
    """Load a policy profile and check its content digest.

    Raises:
        ConfigurationError: names the file, the keys, and what the digest should be.
    """
    document = read_policy(path, env)
    actual = policy_digest(document, path)
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(path, explain_validation(error), _REMEDY) from error
    if policy.content_digest != actual:
        raise ConfigurationError(
            f"{path}, key 'content_digest'",
            f"says {policy.content_digest} but the content digests to {actual}",
            _REMEDY,
        )
    return policy
