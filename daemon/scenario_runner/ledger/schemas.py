"""The JSON Schemas on disk, compiled once; what SR writes must satisfy what others were promised."""

import os
from collections.abc import Iterable
from typing import Any, Final

import jsonschema_rs

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.documents import BOUNDARY_DOCUMENTS, DOCUMENTS
from scenario_runner.contracts.errors import ConfigurationError, LedgerDrift, SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.strict_yaml import read_yaml

_REMEDY: Final = "restore the file with `scenario-runner contracts export DIRECTORY`, or correct the profile"


class Schemas:
    """Validators by schema name.

    Args:
        schema_root: Folder of SR's own ``NAME.schema.yaml`` files.
        engine_contracts_root: Folder of the engine's boundary schemas.

    Raises:
        ConfigurationError: a file is missing or is not a schema.
    """

    def __init__(self, schema_root: str, engine_contracts_root: str) -> None:
        self._validators: dict[str, Any] = {
            **_compile(schema_root, DOCUMENTS),
            **_compile(engine_contracts_root, BOUNDARY_DOCUMENTS),
        }

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
        detail = f"{name} at {'/'.join(str(step) for step in error.instance_path) or 'top'}: {error.message[:300]}"
        part = error.instance_path[0] if error.instance_path else ""
        if part == "locators":
            raise LedgerDrift(detail, Reason.LOCATOR_SCHEMA_INVALID)
        if part in ("gate_receipts", "instance_receipts"):
            raise LedgerDrift(detail, Reason.RECEIPT_SCHEMA_INVALID)
        raise SequenceError(detail)


def _compile(root: str, names: Iterable[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        path = os.path.join(root, f"{name}.schema.yaml")
        document = read_yaml(path)
        try:
            found[name] = jsonschema_rs.validator_for(document, validate_formats=True)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise ConfigurationError(path, f"is not a JSON Schema: {str(error)[:200]}", _REMEDY) from error
    return found
