"""Shape of an error, in a module of its own: every command needs it, and most need no other shape."""

from typing import Final

from scenario_runner.cli.outputs.shapes import HEX32, TEXT, ListOf, OrNull, Shape

ERROR: Final = Shape({
    "error": Shape({
        "reason_code": TEXT, "sentence": TEXT, "detail": TEXT,
        "candidates": OrNull(ListOf(Shape({"run_id": HEX32, "run_equivalence_key": TEXT}))),
    }),
})  # fmt: skip
"""Printed instead of a command's document, or after its lines, when the command ends with an error."""
