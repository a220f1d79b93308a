"""Field types shared by the wire models. Each carries the pattern or bounds that its JSON Schema shows."""

from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from scenario_runner.contracts.canonical import UINT64_MAX
from scenario_runner.contracts.times import PATTERN, format_instant, parse_instant

#: Characters of a run equivalence key: a wire fact of version 0 (docs/contracts.md).
KEY_MAX_LENGTH: Final = 512
#: Characters of every other name: likewise. Names become segments of paths, which hold 255 bytes.
NAME_MAX_LENGTH: Final = 128
NAME_PATTERN: Final = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
SCENARIO_PATTERN: Final = r"^[A-Za-z0-9_:+@~-]+(\.[A-Za-z0-9_:+@~-]+)*$"
TEXT_PATTERN: Final = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$"
"""No control characters (C0, DEL, C1), no line separators, and nothing that turns the direction of the text around."""
ZONE_PATTERN: Final = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"


def _instant(value: object) -> object:
    return parse_instant(value) if isinstance(value, str) else value


Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", min_length=32, max_length=32)]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
UInt64 = Annotated[int, Field(ge=0, le=UINT64_MAX)]
Positive = Annotated[int, Field(ge=1, le=UINT64_MAX)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=NAME_MAX_LENGTH)]
ScenarioId = Annotated[str, StringConstraints(pattern=SCENARIO_PATTERN, min_length=1, max_length=128)]
Key = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, min_length=1, max_length=KEY_MAX_LENGTH)]
ShortText = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, min_length=1, max_length=256)]
Ref = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, min_length=1, max_length=2048)]
TextOrEmpty = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, max_length=256)]
RefOrEmpty = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, max_length=2048)]
Notes = Annotated[str, StringConstraints(max_length=4096)]
ZoneName = Annotated[str, StringConstraints(pattern=ZONE_PATTERN, min_length=1, max_length=64)]
ReasonText = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$", min_length=1, max_length=64)]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(format_instant, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": PATTERN, "maxLength": 35}),
]
"""An RFC 3339 time with offset, cut to microseconds; an aware UTC ``datetime`` in Python."""


class WireModel(BaseModel):
    """Base of every wire model: strict types, frozen, no unknown fields, absent rather than null."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _absent_not_null(cls, value: object) -> object:
        if isinstance(value, dict):
            for key, item in value.items():
                if item is None and (key in cls.model_fields or cls.model_config.get("extra") == "forbid"):
                    raise ValueError(f"{key!r} is null; leave the field out instead")
        return value

    def wire(self) -> dict[str, Any]:
        """The document as plain JSON values; absent fields are left out."""
        return self.model_dump(mode="json", exclude_none=True)
