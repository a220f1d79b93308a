"""Every numeric constant of the code says why it has this number."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest
from support import REPO

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

CODE = REPO / "daemon/scenario_runner"


def is_number(node: ast.expr | None) -> bool:
    """Whether a value is a number, or is calculated from numbers alone."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    if isinstance(node, ast.Tuple):
        return bool(node.elts) and all(map(is_number, node.elts))
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def has_docstring(following: ast.stmt | None) -> bool:
    """Whether a text follows a constant."""
    value = following.value if isinstance(following, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def without_reason(text: str) -> Iterator[int]:
    """Lines of numeric constants that have no comment above or beside them and no docstring below."""
    lines, body = text.splitlines(), ast.parse(text).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and is_number(statement.value):
            above, beside = lines[statement.lineno - 2] if statement.lineno > 1 else "", lines[statement.lineno - 1]
            if not above.startswith("#") and "  # " not in beside and not has_docstring(following):
                yield statement.lineno


def test_the_search_finds_a_constant_without_a_reason() -> None:
    said = 'A = 1\n#: Why.\nB: Final = 2 * 3\nC = -4\n"""Why."""\nD = 5  # why\nE, F = 6, 7\nG = "text"\nH = True\n'
    assert list(without_reason(said)) == [1, 7]


def test_every_numeric_constant_says_why_it_has_this_number() -> None:
    found = [
        f"{path.relative_to(CODE)}:{line}"
        for path in sorted(CODE.rglob("*.py"))
        for line in without_reason(path.read_text("utf-8"))
    ]
    assert found == []
