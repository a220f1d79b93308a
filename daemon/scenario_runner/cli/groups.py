"""The top-level help: commands in sections."""

from typing import Any

from typer.core import TyperGroup
from typing_extensions import override


class Groups(TyperGroup):
    """The commands, by what a person wants to do."""

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
