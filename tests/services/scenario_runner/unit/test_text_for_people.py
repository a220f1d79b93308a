"""Text for people: times, widths, tones, progress; and that the longest explanation fits a screen in every state."""

from __future__ import annotations

import io
from typing import Any

import pytest
import structlog.testing

from scenario_runner.audit.cause import Cause, cause_of
from scenario_runner.cli.clock import Clock, duration
from scenario_runner.cli.console import rendered
from scenario_runner.cli.explain import answer
from scenario_runner.cli.progress import Progress
from scenario_runner.cli.text import Word, coloured, counted, folded, has_glyphs, shortened
from scenario_runner.contracts.times import format_micros, parse_instant, to_micros
from scenario_runner.evidence.examiner import LOG_HASHING_SECONDS, HashingLog

NOW = "2026-11-26T17:30:48.000000Z"
CLOCK = Clock(now_us=to_micros(parse_instant(NOW)))
PATH = "data/layer1/1A/validation/manifest_fingerprint=" + "a" * 64 + "/_passed.flag"


# --- times


@pytest.mark.parametrize(
    ("text", "moment", "deadline"),
    [
        ("2026-11-26T17:30:06.000000Z", "17:30:06 UTC (42 s ago)", "passed 42 s ago (17:30:06 UTC)"),
        ("2026-11-26T18:04:06Z", "18:04:06 UTC (in 33 min)", "in 33 min (18:04:06 UTC)"),
        ("2026-11-25T17:30:48Z", "2026-11-25 17:30:48 UTC (24 h ago)", "passed 24 h ago (2026-11-25 17:30:48 UTC)"),
        ("2026-12-06T17:30:48Z", "2026-12-06 17:30:48 UTC (in 10 d)", "in 10 d (2026-12-06 17:30:48 UTC)"),
        (NOW, "17:30:48 UTC (0 s ago)", "passed 0 s ago (17:30:48 UTC)"),
        ("when a daemon starts", "when a daemon starts", "when a daemon starts"),
    ],
)
def test_times(text: str, moment: str, deadline: str) -> None:
    assert CLOCK.moment(text) == moment
    assert CLOCK.deadline(text) == deadline


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- widths


def test_a_long_text_is_shortened_in_its_middle() -> None:
    assert shortened(PATH, 40) == "data/layer1/1A/val...aaaaaa/_passed.flag"
    assert len(shortened(PATH, 40)) == 40
    assert shortened("short", 40) == "short"


def test_a_text_is_folded_into_so_many_lines_and_no_word_is_longer_than_one() -> None:
    lines = folded(f"{PATH} is not there, " + "and more " * 100 + "the end", 60, 3)
    assert len(lines) == 3
    assert all(len(line) <= 60 for line in lines)
    assert lines[-1].endswith("the end")
    assert folded("", 60, 3) == []


def test_words_are_counted_in_their_order() -> None:
    assert counted(["PASS", "FAIL", "PASS"]) == "2 PASS, 1 FAIL"


# --- tones


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "colour", "glyph", "piped"),
    [
        ({"TERM": "xterm"}, True, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True, False),
        ({"TERM": "dumb"}, False, False, False),
        ({}, False, False, False),
        ({"TERM": "xterm", "FORCE_COLOR": "0"}, True, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, False, True),
        ({"TERM": "xterm", "FORCE_COLOR": "1", "NO_COLOR": "1"}, False, True, False),
    ],
)
def test_colour_and_glyph_need_a_terminal_or_a_wish(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colour: bool, glyph: bool, piped: bool
) -> None:
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (coloured(Terminal()), has_glyphs(Terminal()), coloured(io.StringIO())) == (colour, glyph, piped)


def test_what_comes_from_outside_is_escaped_before_it_gets_a_tone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    line = rendered(["\x1b[2J ", Word("READY", 10), " \u202ex", Word("READY\x1b[0m")], Terminal())
    assert line == "\\x1b[2J \x1b[32m✔ READY\x1b[0m    \\u202exREADY\\x1b[0m"


# --- the answer of explain

LONG = "x" * 5000
FINDING = {"reason_code": "EVIDENCE_CONFLICT", "detail": LONG, "expected": LONG, "actual": LONG, "path": PATH * 9}


def longest(state: str) -> dict[str, Any]:
    """An explanation in which everything is there and long."""
    document: dict[str, Any] = {
        "run_id": "a" * 32, "run_equivalence_key": "\x1b" * 500, "state": state, "reason_code": "R" * 64,
        "sentence": "sentence " * 14, "detail": f"{PATH} \x1b[2J " * 30, "updated_at_utc": "2026-01-01T00:00:00Z",
        "admitted_at_utc": "2026-01-01T00:00:00Z", "evidence_deadline_utc": "2026-12-01T00:00:00Z",
        "next_action": "do this and that " * 20, "engine_run_root": "/deep/" * 300, "strategy": "AUTO",
        "required_gates": ["g"] * 10, "intended_outputs": ["o"] * 10,
        "documents_owed": {"error": LONG, "tries": 7, "since_utc": NOW, "next_try": NOW, "next_action": LONG},
        "reemits": {"sent": 3, "owed": 1, "last_sent_at_utc": NOW},
        "infrastructure_retries": 3, "last_infrastructure_error": LONG,
        "attempts": [{"attempt_no": n, "outcome": "FAILED", "exit_code": 3, "stop_code": "S" * 99, "invoker": "ecs",
                      "reason_code": "ENGINE_EXIT_NONZERO", "stderr_tail": "line\n" * 50 + LONG} for n in (1, 2)],
        "gates": [{"gate_id": f"gate.{n}" + "g" * 100, "law": "sha256_bundle_digest", "outcome": outcome, **FINDING}
                  for n, outcome in enumerate(["CONFLICT"] * 5 + ["BLOCKED"] * 5)],
        "outputs": [{"output_id": "o" * 200, "outcome": "NOT_READ"}] * 10,
        "signals": [
            {"kind": "TERMINAL", "sent_at_utc": NOW, "emission": 0},
            *[{"kind": "TERMINAL_REEMIT", "sent_at_utc": None, "emission": 1}] * 3,
        ],
        "supersedes": {"run_id": "0" * 32, "purpose": LONG, "in_force": False},
        "superseded_by": [{"run_id": "1" * 32, "purpose": LONG}] * 3,
        "actions": [{"action": "reemit", "actor": LONG, "outcome": "ACCEPTED", "at_utc": NOW}] * 2,
        "records": [{"disposition": name, "record_key": LONG} for name in ("ACCEPTED", "DUPLICATE", "CONFLICT")],
    }  # fmt: skip
    if state in ("PLANNED", "EXECUTING", "VERIFYING", "WAITING_EVIDENCE"):
        document |= {"next_look_utc": NOW, "reason_code": "", "sentence": ""}
    return document


@pytest.mark.parametrize("columns", [60, 100, 200])
@pytest.mark.parametrize(
    "state",
    ["PLANNED", "EXECUTING", "VERIFYING", "WAITING_EVIDENCE", "READY", "FAILED", "QUARANTINED", "REJECTED",
     "SUBMITTED", "NOT_SEEN"],
)  # fmt: skip
def test_the_longest_explanation_fits_a_screen_in_every_state(state: str, columns: int) -> None:
    lines = [rendered(line, io.StringIO()) for line in answer(longest(state), CLOCK, columns).lines]
    assert lines[0].split()[:2] == ["state:", state]
    assert len(lines) <= 24
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"next_look": "rounds"}, "root looked at in rounds"),
        ({"next_look": "scheduled"}, "due "),
    ],
)
def test_a_run_that_is_not_examined_before_its_deadline_says_why(changes: dict[str, Any], said: str) -> None:
    deadline = "2026-01-01T09:30:00.000000Z"
    document = longest("WAITING_EVIDENCE") | {"gates": [], "outputs": [], "evidence_deadline_utc": deadline}
    sheet = answer(document | {"next_look_utc": deadline} | changes, CLOCK, 200)
    (times,) = [text for line in sheet.lines if "deadline" in (text := rendered(line, io.StringIO()))]
    assert times.split("; ")[-1].startswith(said)
    shown = CLOCK.readable(document | {"next_look_utc": deadline} | changes)
    assert (shown["due"] == said) is (changes["next_look"] == "rounds")


# --- the cause

GATES = [
    {"gate_id": "g1", "outcome": "MISSING", "missing": "p1", "law": "l"},
    {"gate_id": "g2", "outcome": "MISSING", "missing": "p2", "law": "l", "expected": "claimed"},
    {"gate_id": "g3", "outcome": "FAIL", "flag": "p3", "law": "l", "expected": "PASS", "actual": "FAIL"},
    {"gate_id": "g4", "outcome": "BLOCKED", "law": "l"},
]
ATTEMPT = {"attempt_no": 2, "outcome": "FAILED"}


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({"state": "READY", "gates": GATES}, Cause()),
        ({"state": "PLANNED"}, Cause()),
        ({"state": "WAITING_EVIDENCE", "gates": GATES[:2]},
         Cause("gate g1", "MISSING", "l", "p1", missing=("p1", "p2"), others=1)),
        ({"state": "FAILED", "gates": GATES}, Cause("gate g3", "FAIL", "l", "p3", "PASS", "FAIL")),
        ({"state": "QUARANTINED", "gates": GATES, "outputs": [{"output_id": "o", "outcome": "CONFLICT", "path": "p"}]},
         Cause("output o", "CONFLICT", "", "p")),
        ({"state": "QUARANTINED", "gates": GATES, "run_receipt": {"outcome": "CONFLICT", "path": "r"}},
         Cause("engine run receipt", "CONFLICT", "", "r")),
        ({"state": "QUARANTINED", "gates": GATES, "drift": {"object": "o", "expected": "e", "actual": "a"}},
         Cause("object", "DRIFT", "", "o", "e", "a")),
        ({"state": "FAILED", "attempts": [ATTEMPT]}, Cause("engine attempt 2", "FAILED")),
        ({"state": "FAILED", "attempts": [ATTEMPT], "gates": GATES},
         Cause("gate g3", "FAIL", "l", "p3", "PASS", "FAIL")),
        ({"state": "EXECUTING", "attempts": [ATTEMPT | {"outcome": "RUNNING"}]}, Cause()),
        ({"state": "REJECTED", "records": [{"record_key": "k", "disposition": "CONFLICT"}]},
         Cause("record k", "CONFLICT")),
    ],
)  # fmt: skip
def test_the_cause_is_the_finding_that_decided(document: dict[str, Any], cause: Cause) -> None:
    assert cause_of(document) == cause


# --- progress


def test_progress_is_shown_on_a_terminal_only_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        now[0] = 0.0
        with Progress("verified") as progress:
            progress(1, 4_000_000_000)
            assert stream.getvalue() == "", "a short command shows nothing"
            now[0] = 10.0
            progress(1_000_000_000, 4_000_000_000)
        text = "\r\x1b[Kverified 1.00 of 4.00 GB, 25 % (0.10 GB/s, 30 s left)\r\x1b[K"
        assert stream.getvalue() == (text if shown else "")


def test_a_long_examination_logs_how_far_it_has_come() -> None:
    log = HashingLog("run")
    with structlog.testing.capture_logs() as lines:
        log.note(LOG_HASHING_SECONDS - 1, 1, 9)
        log.note(LOG_HASHING_SECONDS + 1, 0, 0)
        log.note(LOG_HASHING_SECONDS + 2, 3, 9)
        log.note(LOG_HASHING_SECONDS + 3, 4, 9)
        log.note(2 * LOG_HASHING_SECONDS + 3, 8, 9)
    assert [(line["run_id"], line["bytes_done"], line["bytes_total"]) for line in lines] == [
        ("run", 3, 9),
        ("run", 8, 9),
    ]
    assert {line["log_level"] for line in lines} == {"info"}
    assert format_micros(CLOCK.now_us) == NOW
