"""Guards of a module of Python."""

import ast
from collections.abc import Iterator
from typing import Final

from sr_tools.guards.guard import Guard

CHECKS: Final = ("check", "_check", "confirm", "_confirm", "require", "_require", "probe")
"""How the names of functions begin that only check."""

Node = ast.expr | ast.stmt


def python_guards(source: bytes, file: str) -> list[Guard]:
    """Every guard of a module, in the order of its nodes."""
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return list(finder.guards())


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.names: list[str] = []
        self.found: list[tuple[str, Node, str, bytes, bytes]] = []

    def _span(self, node: Node) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset)

    def _text(self, node: Node) -> bytes:
        start, end = self._span(node)
        return self.source[start:end]

    def _add(self, kind: str, node: Node, replacement: bytes, text: bytes) -> None:
        guard = (".".join(self.names), node, kind, replacement, text)
        if guard not in self.found:  # a condition within a condition is visited twice
            self.found.append(guard)

    def _named(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    visit_FunctionDef = visit_ClassDef = visit_AsyncFunctionDef = _named  # noqa: N815 - names of the base class

    def visit_If(self, node: ast.If) -> None:
        """An early refusal: never true."""
        if isinstance(node.body[-1], ast.Raise | ast.Return | ast.Continue):
            test = self._text(node.test)
            last = self._text(node.body[-1])
            self._add("refusal", node.test, b"((" + test + b") and False)", b"if " + test + b": " + last)
        self._terms(node.test)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call that only checks, or a step of a lifecycle whose answer nobody needs: nothing."""
        call = node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name.startswith(CHECKS):
                self._add("check", node, b"None", self._text(node))
        elif isinstance(call, ast.Yield | ast.YieldFrom):
            self._add("step", node, b"None", self._text(node))
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """A condition that is returned."""
        if node.value is not None:
            self._terms(node.value)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """A filter: nothing is left out."""
        for condition in node.ifs:
            self._add("filter", condition, b"((" + self._text(condition) + b") or True)", self._text(condition))
            self._terms(condition)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """A condition of a loop."""
        self._terms(node.test)
        self.generic_visit(node)

    def _terms(self, condition: ast.expr) -> None:
        for node in ast.walk(condition):
            if not isinstance(node, ast.BoolOp):
                continue
            word = b" and " if isinstance(node.op, ast.And) else b" or "
            for dropped in node.values:
                rest = word.join(b"(" + self._text(value) + b")" for value in node.values if value is not dropped)
                self._add("term", node, b"(" + rest + b")", self._text(dropped) + b"   in   " + self._text(node))

    def guards(self) -> Iterator[Guard]:
        """Guards in the order of their lines."""
        seen: dict[tuple[str, str, str], int] = {}
        for function, node, kind, replacement, text in self.found:
            start, end = self._span(node)
            line = " ".join(text.decode().split())
            nth = seen[function, kind, line] = seen.get((function, kind, line), -1) + 1
            without = self.source[:start] + replacement + self.source[end:]
            yield Guard(self.file, function, node.lineno, kind, line, nth, without)
