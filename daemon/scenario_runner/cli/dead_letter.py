"""``dead-letter list`` and ``dead-letter show``: records of the control bus that were refused, and their bytes.

The bytes come from outside. In every form but ``raw`` nothing of them reaches a terminal as a control character.
"""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.values import FOREVER_US, Letter, LetterFilter
from scenario_runner.cli.clock import Clock
from scenario_runner.cli.console import exit_on_error, print_fields, print_json, print_line
from scenario_runner.cli.lists import Form, Page, print_list
from scenario_runner.cli.outputs.looking import DEAD_LETTER_LIST, DEAD_LETTER_SHOW
from scenario_runner.cli.read_only import existing_views
from scenario_runner.cli.when import micros_of
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError, in_short
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.contracts.times import format_micros
from scenario_runner.intake.letters import letter_of, redrive_key, redrives_of
from scenario_runner.profiles.wiring import Wiring, load_wiring

#: Letters that are read at once; a detail may be 2,000 characters long.
_CHUNK: Final = 500
#: Bytes of a line of the hexadecimal form.
_HEX_LINE: Final = 16
_FIELDS: Final = (
    "number", "record_key", "disposition", "reason_code", "sentence", "detail", "kind", "message_id", "run_id",
    "received", "raw_size", "raw_sha256", "kept", "next_action",
)  # fmt: skip
#: Letters that are listed when more than one is meant.
_MOST_CANDIDATES: Final = 10
_NEXT: Final = {
    Disposition.REJECTED: "correct the request and submit it again, or correct profile, policy or pack and redrive the "
    "letter; no run was created",
    Disposition.CONFLICT: "submit the request with a new run_equivalence_key; the run that has this key is untouched",
}


class As(StrEnum):
    """How bytes are shown."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"
    HEX = "hex"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; None or empty when it was not."""

    reason: str = ""
    key: str = ""
    shard: str = ""
    since: str | None = None
    until: str | None = None
    after: str = ""
    limit: int = 100
    local: bool = False

    def filter(self, wiring: Wiring) -> LetterFilter:
        """The filter.

        Raises:
            UsageError: an option cannot be used, or contradicts another.
        """
        if self.key and self.shard:
            raise UsageError("--key and --shard are both about the record key; give one of them")
        for option, text in (("--reason", self.reason), ("--key", self.key), ("--shard", self.shard)):
            if text and not text.isprintable():
                raise UsageError(f"{option}: holds characters that are not printable")
        key = self.key
        if self.shard:
            if wiring.control_bus_stream is None:
                raise UsageError("--shard: the control bus of the profile is no stream; give --key")
            key = f"kinesis/{wiring.control_bus_stream}/{self.shard}/"
        return LetterFilter(self.reason, key, micros_of("--since", self.since, 0),
                            micros_of("--until", self.until, FOREVER_US))  # fmt: skip


def run_list(wiring_path: str, options: Options, *, as_json: bool, as_lines: bool) -> None:
    """The command ``dead-letter list``."""
    with exit_on_error(as_json=as_json or as_lines, logs=False):
        wiring = load_wiring(wiring_path)
        asked = options.filter(wiring)
        with existing_views(wiring) as views:
            before = named_letter(views, options.after) if options.after else None
            found = (shown_letter(item) for item in found_letters(views, asked, before, options.limit + 1))
            page = Page(found, options.limit, lambda item: str(item["number"]))
            form = Form.of(as_json=as_json, as_lines=as_lines)
            print_list(DEAD_LETTER_LIST, page, form, _line_with(Clock(local=options.local)))


def run_show(wiring_path: str, name: str, shown_as: str, *, local: bool, as_json: bool) -> None:
    """The command ``dead-letter show``."""
    with exit_on_error(as_json=as_json, logs=False):
        if shown_as not in set(As):
            raise UsageError(f"--as {shown_as!r} is not one of {', '.join(As)}")
        with existing_views(load_wiring(wiring_path)) as views:
            letter = named_letter(views, name)
            redrives = _redrives(views, letter)
        document = shown_letter(letter) | _contents(letter) | {"redrives": redrives}
        if as_json:
            print_json(document, DEAD_LETTER_SHOW)
        elif shown_as == As.RAW:
            _write_raw(letter)
        else:
            clock = Clock(local=local)
            print_fields(clock.readable(document), _FIELDS)
            for item in redrives:
                at = clock.moment(item["at_utc"])
                print_line(f"redriven by {item['requested_by']}: {item['outcome']}  {at}  {item['record_key']}")
            print_line("")
            for line in lines_of(letter.raw or b"", As(shown_as)):
                print_line(line)


def named_letter(views: Views | None, name: str) -> Letter:
    """A letter by its number, its record key, or the beginning of its record key.

    Raises:
        UsageError: there is none, or more than one.
    """
    letter = views.letter(name) if views is not None and name.isprintable() else None
    if letter is not None:
        return letter
    found: list[Letter] = []
    if views is not None and name.isprintable() and not name.isdecimal():
        found = views.list_letters(LetterFilter(record_key=name), None, _MOST_CANDIDATES + 1)
    if len(found) == 1:
        return named_letter(views, found[0].record_key)
    if found:
        many = f"{_MOST_CANDIDATES} or more" if len(found) > _MOST_CANDIDATES else str(len(found))
        shown = ", ".join(f"{item.number} {item.record_key}" for item in found[:_MOST_CANDIDATES])
        raise UsageError(f"the record keys of {many} dead letters begin with {name[:200]!r}; give one: {shown}")
    raise UsageError(
        f"no dead letter has the number or record key {name[:200]!r}; `dead-letter list` shows them. Of records that "
        "were IGNORED or accepted no bytes are kept"
    )


def found_letters(views: Views | None, asked: LetterFilter, before: Letter | None, most: int) -> Iterator[Letter]:
    """Letters without their bytes, read a page at a time."""
    while views is not None and most > 0:
        letters = views.list_letters(asked, before, min(most, _CHUNK))
        yield from letters
        most -= len(letters)
        if len(letters) < _CHUNK:
            return
        before = letters[-1]


def shown_letter(letter: Letter) -> Json:
    """A letter as it is listed."""
    code = letter.reason_code
    return {
        "number": letter.number,
        "record_key": letter.record_key,
        "disposition": letter.disposition.value,
        "reason_code": code,
        "sentence": SENTENCES[Reason(code)] if code in set(Reason) else "This release does not know this code.",
        "detail": letter.detail,
        "kind": letter.kind,
        "message_id": letter.message_id,
        "run_id": letter.run_id,
        "received_at_utc": format_micros(letter.received_us),
        "raw_sha256": letter.raw_sha256,
        "raw_size": letter.raw_size,
        "raw_removed_at_utc": None if letter.raw_removed_us is None else format_micros(letter.raw_removed_us),
    }


def _redrives(views: Views | None, letter: Letter) -> list[Json]:
    """What redrives of a letter came to."""
    name = letter_of(letter.record_key)
    acts = redrives_of(views, name) if views is not None else ()
    return [
        {
            "record_key": redrive_key(number, name), "at_utc": format_micros(act.at_us), "requested_by": act.actor,
            "reason": act.reason, "outcome": act.outcome, "detail": act.detail,
        }
        for number, act in enumerate(acts, 1)
    ]  # fmt: skip


def _line_with(clock: Clock) -> Callable[[Json], str]:
    """A letter as a line of text: number, time, reason, run id, record key, detail."""

    def line(item: Json) -> str:
        run_id, received = item["run_id"] or "-", clock.moment(item["received_at_utc"])
        text = f"{item['number']:>8}  {received:26}  {item['reason_code']:24}  {run_id:32}  "
        return f"{text}{item['record_key']}  {item['detail']}"

    return line


def _contents(letter: Letter) -> Json:
    """What is kept of the bytes, exactly (base64), and as text where it is text."""
    raw = letter.raw
    if raw is None:
        kept = "nothing" if letter.raw_removed_us is None else f"nothing: {_removed(letter)}"
        return {"kept": kept, "raw_base64": None, "raw_text": None, "next_action": _NEXT[letter.disposition]}
    kept = "all" if len(raw) == letter.raw_size else f"the first {len(raw)} of {letter.raw_size} bytes"
    try:
        text: str | None = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return {"kept": kept, "raw_base64": base64.b64encode(raw).decode(), "raw_text": text,
            "next_action": _NEXT[letter.disposition]}  # fmt: skip


def _removed(letter: Letter) -> str:
    """Why there are no bytes, when retention removed them."""
    when = format_micros(letter.raw_removed_us or 0)
    return f"retention removed the bytes at {when} (dead_letter_raw_days of the policy); their sha256 is known"


def lines_of(raw: bytes, shown_as: As) -> Iterator[str]:
    """Bytes as lines for a person. Whoever prints them escapes what is not printable.

    Raises:
        UsageError: they are not JSON, and that was insisted on.
    """
    if shown_as in (As.AUTO, As.JSON):
        try:
            document = json.loads(raw, object_pairs_hook=_pairs)
        except (ValueError, RecursionError) as error:
            if shown_as is As.JSON:
                raise UsageError(f"the bytes are not JSON ({in_short(error)}); use --as text or --as hex") from None
        else:
            yield from json.dumps(document, indent=2).splitlines()  # pure ASCII: what a text holds arrives escaped
            return
    text = None if shown_as is As.HEX else _text(raw, strict=shown_as is As.AUTO)
    yield from text.split("\n") if text is not None else _hex_lines(raw)


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. One that names a key twice is shown as text: half of it would be hidden."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a key twice")
    return found


def _text(raw: bytes, *, strict: bool) -> str | None:
    """Bytes as text; None when they are none and text was not insisted on."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None if strict else raw.decode("utf-8", "backslashreplace")


def _hex_lines(raw: bytes) -> Iterator[str]:
    """Offset, bytes, and the ASCII characters among them."""
    for offset in range(0, len(raw), _HEX_LINE):
        part = raw[offset : offset + _HEX_LINE]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)  # noqa: PLR2004 - printable ASCII
        yield f"{offset:08x}  {part.hex(' '):{3 * _HEX_LINE - 1}}  {shown}"


def _write_raw(letter: Letter) -> None:
    """Write the very bytes, for a file or another program.

    Raises:
        UsageError: they would go to a terminal, or there are none.
    """
    if letter.raw is None:
        raise UsageError("nothing is kept of the bytes" if letter.raw_removed_us is None else _removed(letter))
    if sys.stdout.isatty():
        raise UsageError("--as raw writes whatever the sender sent: redirect it into a file")
    sys.stdout.flush()
    sys.stdout.buffer.write(letter.raw)
    sys.stdout.buffer.flush()
