"""Named SQL statements, one file per engine: no SQL text lives in Python."""

import re
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)
#: A line that is only a comment: it is for readers of the file, and is not sent.
_COMMENT: Final = re.compile(r"^ *--.*\n?", re.MULTILINE)
#: A line of the statement for the work of one run.
_ONLY: Final = re.compile(r"^(.*)  -- only\n", re.MULTILINE)
#: A line of the statement for a record that an operator's act asks for.
_BY: Final = re.compile(r"^(.*)  -- by\n", re.MULTILINE)


@cache
def load_statements(engine: str, folder: str = "sql", *, by: bool = False) -> dict[str, str]:
    """Statements by name for ``sqlite`` or ``postgres``, without comments.

    Args:
        engine: Name of the file.
        folder: ``sql`` for those of the authority, ``views`` for those of its views.
        by: With the lines that end in ``-- by``, which write the act of an operator who asks for a record.

    A statement with lines that end in ``-- only`` is two, NAME without and NAME_only with these lines.
    """
    return parse_statements(
        files("scenario_runner.authority").joinpath(folder, f"{engine}.sql").read_text(encoding="utf-8"), by=by
    )


def parse_statements(text: str, *, by: bool = False) -> dict[str, str]:
    """The statements of a file by name; see :func:`load_statements`."""
    parts = _NAME.split(text)[1:]
    statements = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        whole = _COMMENT.sub("", body).strip().rstrip(";")
        whole = _BY.sub(r"\1\n" if by else "", whole)
        statements[name] = _ONLY.sub("", whole)
        if statements[name] != whole:
            statements[f"{name}_only"] = _ONLY.sub(r"\1\n", whole)
    return statements


def load_migrations(engine: str) -> list[tuple[int, str, str]]:
    """(number, name, text) of every migration, in order."""
    folder = files("scenario_runner.authority").joinpath("migrations", engine)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name[:4]), name.removesuffix(".sql"), folder.joinpath(name).read_text("utf-8")) for name in names]
