"""Terms of the WHERE of named statements."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from sr_tools.guards.guard import Guard

_TOKEN: Final = re.compile(rb"--[^\n]*|'[^']*'|[A-Za-z_][A-Za-z_0-9]*|[()]|;")
_COMMENTS_BEHIND: Final = re.compile(rb"(\s|--[^\n]*\n)*\Z")
_NAME: Final = re.compile(rb"-- name: ([a-z_]+)")
_ENDS_WHERE: Final = frozenset(
    [b"ORDER", b"GROUP", b"LIMIT", b"RETURNING", b"UNION", b"WINDOW", b"FOR", b"ON", b";", b"WHERE"]
)


class Term(NamedTuple):
    """A term of a condition: of its ANDs, of its ORs, or the whole of it.

    Attributes:
        statement: Name of its statement.
        start: Its first byte.
        stop: The byte after its last.
        neutral: What decides nothing in its place, ``TRUE`` or ``FALSE``.
    """

    statement: str
    start: int
    stop: int
    neutral: bytes


def sql_guards(source: bytes, file: str) -> list[Guard]:
    """Every term of every WHERE of a file of named statements."""
    found, seen = [], dict[tuple[str, str], int]()
    for term in terms(source):
        text = " ".join(source[term.start : term.stop].decode().split())
        nth = seen[term.statement, text] = seen.get((term.statement, text), -1) + 1
        without = source[: term.start] + term.neutral + source[term.stop :]
        line = source.count(b"\n", 0, term.start) + 1
        found.append(Guard(file, term.statement, line, "term", text, nth, without))
    return found


def terms(source: bytes) -> Iterator[Term]:
    """The same as places in the file."""
    sql = _Conditions(source)
    for first, end in sql.conditions():
        stop = sql.tokens[end].start if end < len(sql.tokens) else len(source)
        yield from sql.terms(first, end, sql.tokens[first - 1].stop, stop, b"TRUE")


def innermost(source: bytes) -> Iterator[tuple[str, str]]:
    """Statement and text, on one line, of each term that has no term within it.

    Without one that has some there are none of these: a deletion of any term leaves fewer of them.
    """
    found = list(terms(source))
    for term in found:
        within = (other for other in found if term.start <= other.start and other.stop <= term.stop)
        if all(other is term for other in within):
            yield term.statement, " ".join(source[term.start : term.stop].decode().split())


class _Token(NamedTuple):
    """A word, parenthesis or semicolon, and how many parentheses are open around it."""

    word: bytes
    start: int
    stop: int
    depth: int


class _Conditions:
    """The tokens of a file, without comments and strings."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self.tokens: list[_Token] = []
        self._names: list[tuple[int, str]] = []
        depth = 0
        for found in _TOKEN.finditer(source):
            word = found[0]
            if named := _NAME.match(word):
                self._names.append((found.start(), named[1].decode()))
            if word.startswith((b"--", b"'")):
                continue
            depth -= word == b")"
            self.tokens.append(_Token(word, found.start(), found.end(), depth))
            depth += word == b"("

    def conditions(self) -> Iterator[tuple[int, int]]:
        """Tokens of the condition of each WHERE: the first, and the one after the last."""
        for index, token in enumerate(self.tokens):
            if token.word != b"WHERE":
                continue
            end = index + 1
            while end < len(self.tokens) and not self._ends(end, token.depth):
                end += 1
            yield index + 1, end

    def _ends(self, index: int, depth: int) -> bool:
        token = self.tokens[index]
        return token.depth < depth or (token.depth == depth and token.word in _ENDS_WHERE)

    def terms(self, first: int, end: int, start: int, stop: int, neutral: bytes) -> Iterator[Term]:
        """Terms of a condition, each before those within it.

        Args:
            first: First token of the condition.
            end: Token after its last.
            start: First byte.
            stop: Byte after the last.
            neutral: What stands for the whole of it.
        """
        depth = min((token.depth for token in self.tokens[first:end]), default=0)
        for word, decides_nothing in ((b"OR", b"FALSE"), (b"AND", b"TRUE")):
            cuts = [
                index
                for index in range(first, end)
                if self.tokens[index].word == word and self.tokens[index].depth == depth
            ]
            if cuts:
                firsts = [first, *(cut + 1 for cut in cuts)]
                ends = [*cuts, end]
                starts = [start, *(self.tokens[cut].stop for cut in cuts)]
                stops = [*(self.tokens[cut].start for cut in cuts), stop]
                for part in zip(firsts, ends, starts, stops, strict=True):
                    yield from self.terms(*part, decides_nothing)
                return
        text = self._source[start:stop]
        kept = _COMMENTS_BEHIND.sub(b"", text)  # "-- only" and "-- if TERM" are no part of the term
        start, stop = start + len(text) - len(text.lstrip()), stop - len(text) + len(kept)
        yield Term(self._statement_at(start), start, stop, neutral)
        if self._source[start : start + 1] == b"(" and self.tokens[end - 1].stop == stop:
            inner = list(self.terms(first + 1, end - 1, start + 1, stop - 1, neutral))
            yield from inner if len(inner) > 1 else ()

    def _statement_at(self, position: int) -> str:
        return next(name for start, name in reversed(self._names) if start < position)
