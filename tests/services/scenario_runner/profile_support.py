"""The smallest wiring profile that is valid."""

from typing import Any

VALID: dict[str, Any] = {
    "profile_id": "test",
    "object_store_root": "/tmp/store",
    "authority_store_dsn": "sqlite:////tmp/authority.db",
    "control_bus_root": "/tmp/bus",
    "engine_catalogue_path": "catalogue.yaml",
    "gate_map_path": "gates.yaml",
    "engine_contracts_root": "contracts",
    "schema_root": "schemas",
    "auth_mode": "disabled",
}
