"""The JSON Schemas on disk, compiled once; what SR writes must satisfy what others were promised."""

import os
from typing import Any, Final

import jsonschema_rs

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.documents import BOUNDARY_DOCUMENTS, DOCUMENTS, OWN_DOCUMENTS
from scenario_runner.contracts.errors import ConfigurationError, LedgerDrift, SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.schema_export import schema_of
from scenario_runner.contracts.sentences import of_json_schema
from scenario_runner.ledger.schema_files import SchemaFiles, tree_of

_REMEDY: Final = "restore the file with `scenario-runner contracts export DIRECTORY`, or correct the profile"


class Schemas:
    """Validators by schema name.

    Args:
        schema_root: Folder of SR's own ``NAME.schema.yaml`` files.
        engine_contracts_root: Folder of the engine's boundary schemas.

    Attributes:
        from_package: Names of the documents that the folders lack and that only SR knows: their schemas come from the
            package.

    Raises:
        ConfigurationError: a file is missing, is not a schema, or holds a reference that must not be followed.
    """

    def __init__(self, schema_root: str, engine_contracts_root: str) -> None:
        files = SchemaFiles([tree_of(schema_root), tree_of(engine_contracts_root)])
        self.from_package: list[str] = []
        self._validators: dict[str, Any] = {}
        for root, documents in ((schema_root, DOCUMENTS), (engine_contracts_root, BOUNDARY_DOCUMENTS)):
            for name, model in documents.items():
                path = os.path.join(root, f"{name}.schema.yaml")
                if name in OWN_DOCUMENTS and os.path.isdir(root) and not os.path.lexists(path):
                    self.from_package.append(name)
                    self._validators[name] = _compiled(schema_of(name, model), path)
                else:
                    self._validators[name] = _compiled(files.bundle(path), path)

    def check(self, name: str, document: Json) -> None:
        """Check a document of our own before it is written.

        Raises:
            LedgerDrift: ``LOCATOR_SCHEMA_INVALID`` or ``RECEIPT_SCHEMA_INVALID``: what was found cannot be expressed.
            SequenceError: any other document; a defect of SR.
        """
        validator = self._validators[name]
        if validator.is_valid(document):
            return
        error = next(iter(validator.iter_errors(document)))
        detail = of_json_schema(name, error)
        part = error.instance_path[0] if error.instance_path else ""
        if part == "locators":
            raise LedgerDrift(detail, Reason.LOCATOR_SCHEMA_INVALID)
        if part in ("gate_receipts", "instance_receipts"):
            raise LedgerDrift(detail, Reason.RECEIPT_SCHEMA_INVALID)
        raise SequenceError(detail)


def _compiled(schema: Json, path: str) -> Any:  # noqa: ANN401 - an untyped library
    try:
        return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise ConfigurationError(path, f"is not a JSON Schema: {str(error)[:200]}", _REMEDY) from error
