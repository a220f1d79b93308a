"""The engine's interface pack as validated data: output catalogue, gate map, path templates, gate closure."""
