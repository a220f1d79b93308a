"""The top-level help: commands in sections."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup
from typing_extensions import override

from scenario_runner.contracts.errors import printable


@contextmanager
def _escaped() -> Iterator[None]:
    """Escape what a usage error quotes: it is the only text of a command that does not go through the console."""
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


class Groups(TyperGroup):
    """The commands, by what a person wants to do."""

    @override
    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _escaped():
            return super().make_context(*arguments, **named)

    @override
    def invoke(self, ctx: Any) -> Any:
        with _escaped():
            return super().invoke(ctx)

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        room = formatter.width - 6 - max(len(name) for name, _ in commands)
        for name, command in commands:
            section = getattr(command, "rich_help_panel", None)
            title = section if isinstance(section, str) else "Commands"
            sections.setdefault(title, []).append((name, command.get_short_help_str(room)))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
