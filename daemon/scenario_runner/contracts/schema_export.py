"""JSON Schemas (draft 2020-12) of the wire models. The files under ``config/`` are this, written down."""

from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.documents import BOUNDARY_DOCUMENTS, DOCUMENTS
from scenario_runner.contracts.types import WireModel

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
SR_FOLDER: Final = "platform/contracts/scenario_runner"
ENGINE_FOLDER: Final = "engine/interface_pack/contracts"

_ANY_OF: Final[dict[str, list[Json]]] = {
    "Partitions": [
        {"required": [key]} for key in ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
    ],
}
_ONE_OF: Final[dict[str, list[Json]]] = {
    "ScenarioBinding": [{"required": ["scenario_id"]}, {"required": ["scenario_set"]}],
}


class _AbsentNotNull(GenerateJsonSchema):
    """Optional fields are absent, never null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _tidy(schema: Any, model_name: str | None = None) -> Any:  # noqa: ANN401
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy: Json = {}
    for key, value in schema.items():
        if key == "$defs":
            tidy[key] = {name: _tidy(item, name) for name, item in value.items()}
        elif key == "properties":
            tidy[key] = {name: _tidy(item) for name, item in value.items()}
        elif key != "title":
            tidy[key] = _tidy(value)
    if "patternProperties" in tidy:
        tidy.setdefault("additionalProperties", False)
    if model_name in ("Partitions", "Locator"):
        tidy["anyOf"] = _ANY_OF["Partitions"]
    if model_name in _ONE_OF:
        tidy["oneOf"] = _ONE_OF[model_name]
    return tidy


def schema_of(name: str, model: type[WireModel]) -> Json:
    """The JSON Schema of one document."""
    generated = model.model_json_schema(schema_generator=_AbsentNotNull)
    body = _tidy(generated, model.__name__)
    definitions = body.pop("$defs", None)
    schema: Json = {"$schema": DRAFT, "$id": f"{name}.schema.yaml", "title": name, **body}
    if definitions:
        schema["$defs"] = definitions
    return schema


def all_schemas() -> dict[str, Json]:
    """Every schema by its path below ``config/``."""
    found = {f"{SR_FOLDER}/{name}.schema.yaml": schema_of(name, model) for name, model in DOCUMENTS.items()}
    found |= {
        f"{ENGINE_FOLDER}/{name}.schema.yaml": schema_of(name, model) for name, model in BOUNDARY_DOCUMENTS.items()
    }
    return found
