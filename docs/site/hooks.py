"""A MkDocs hook: Mermaid diagrams become SVG in the page while the site is built, so that no reader needs a script."""

import itertools
import re

_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
_numbers = itertools.count()


def draw(source: str) -> str:
    """A diagram as one line of HTML. Without mmdr it stays the code that it is on GitHub."""
    try:
        import mmdr  # noqa: PLC0415 - part of the extra [docs]
    except ImportError:
        return f"```text\n{source}```\n"
    svg = mmdr.render(source).svg().replace("merman", f"diagram-{next(_numbers)}")  # ids are unique in a page
    return '<figure style="width: 100%">' + re.sub(r"\s*\n\s*", " ", svg) + "</figure>\n"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the Markdown of each page."""
    return _DIAGRAM.sub(lambda found: draw(found[1]), markdown)
