"""Interface packs that tests make: one output and one gate, changed as asked."""

from typing import Any

from hypothesis import settings

from scenario_runner.interface_pack.loader import build_pack
from scenario_runner.interface_pack.model import InterfacePack

Json = dict[str, Any]
many = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def output(output_id: str = "out", **changes: Any) -> Json:
    entry: Json = {
        "output_id": output_id,
        "path_template": f"data/{output_id}/seed={{seed}}/part-*.parquet",
        "partitions": ["seed"],
        "scope": "scope_seed",
        "read_requires_gates": [],
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def gate(gate_id: str = "gate.a", **changes: Any) -> Json:
    base = f"data/{gate_id}/manifest_fingerprint={{manifest_fingerprint}}"
    entry: Json = {
        "gate_id": gate_id,
        "scope": "fingerprint",
        "bundle_root_template": base + "/",
        "index_path_template": base + "/index.json",
        "passed_flag_path_template": base + "/_passed.flag",
        "verification_method": {
            "kind": "sha256_index_json_ascii_lex_raw_bytes",
            "digest_field": "sha256_hex",
            "ordering": "ascii_lex",
            "exclude_filenames": ["_passed.flag"],
        },
        "authorizes_outputs": ["out"],
        "upstream_gate_dependencies": [],
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def method(**changes: Any) -> Json:
    entry = gate()["verification_method"] | changes
    return {key: value for key, value in entry.items() if value is not ...}


def pack(outputs: list[Any] | None = None, gates: list[Any] | None = None) -> InterfacePack:
    return build_pack(
        {"outputs": [output()] if outputs is None else outputs}, {"gates": [gate()] if gates is None else gates}
    )
