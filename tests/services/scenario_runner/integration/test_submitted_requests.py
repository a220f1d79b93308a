"""Searching a spool for a request that no daemon has disposed of: what counts as one, and what is said of the rest."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scenario_runner.bus.envelope import envelope
from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.intake import submitted
from scenario_runner.intake.submitted import Search, find_submitted

pytestmark = pytest.mark.integration

TOPIC = "fp.bus.control.v1"
REQUEST: dict[str, Any] = {"run_equivalence_key": "wanted"}
RUN = run_id_of("wanted")


@dataclass
class Spool:
    """A spool in which nobody works."""

    root: Path

    @property
    def requests(self) -> Path:
        return self.root / "requests"

    @property
    def claimed(self) -> Path:
        return Path(SpoolPaths(str(self.root)).claimed)

    def find(self) -> Search:
        return find_submitted(str(self.root), TOPIC, RUN)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "bus")
    SpoolPaths(str(made.root)).make()
    return made


def put(path: Path, document: Any = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    data = document if isinstance(document, bytes) else json.dumps(REQUEST if document is None else document).encode()
    path.write_bytes(data)
    return path


def enveloped(topic: str = TOPIC, kind: str = "RUN_REQUEST") -> bytes:
    return envelope(topic, "0" * 64, 1_700_000_000_000_000, {"kind": kind}, RUN, REQUEST)


def test_a_request_is_found_where_it_was_dropped_and_where_it_lies_claimed(spool: Spool) -> None:
    assert spool.find() == Search()
    put(spool.requests / "other.json", {"run_equivalence_key": "another"})
    assert spool.find() == Search()
    path = put(spool.requests / "one.json")
    os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    assert spool.find() == Search("one.json", 1_700_000_000_123_456)
    (spool.claimed / "lot").mkdir()
    path.rename(spool.claimed / "lot" / "one.json")
    assert spool.find().name == "one.json"


def test_a_spool_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert find_submitted(str(tmp_path / "nowhere"), TOPIC, RUN) == Search()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (enveloped(), True),
        (enveloped(topic="somebody.elses.v1"), False),
        (enveloped(kind="REEMIT_REQUEST"), False),
        (enveloped(kind="READY"), False),
        (json.dumps(REQUEST).encode().ljust(MAX_RECORD_BYTES), True),
        (json.dumps(REQUEST).encode().ljust(MAX_RECORD_BYTES + 1), False),
    ],
    ids=["in an envelope", "another topic", "another kind", "a signal of ours", "the largest record", "too large"],
)
def test_only_what_intake_would_take_for_a_request_of_the_run_is_one(spool: Spool, data: bytes, found: bool) -> None:
    put(spool.requests / "one.json", data)
    assert spool.find().name == ("one.json" if found else "")
    assert spool.find().complete


def test_what_is_no_file_of_a_requests_name_is_passed_over(spool: Spool, tmp_path: Path) -> None:
    put(spool.requests / ".one.json")
    put(spool.requests / "one.json.tmp")
    put(spool.claimed / "stray.json")
    (spool.requests / "link.json").symlink_to(put(tmp_path / "elsewhere.json"))
    os.mkfifo(spool.requests / "pipe.json")
    (spool.requests / "folder.json").mkdir()
    assert spool.find() == Search()


@pytest.mark.parametrize(("name", "bound"), [("_MOST_FILES", 3), ("_MOST_BYTES", 3 * len(json.dumps(REQUEST)))])
def test_a_search_is_bounded_and_says_so(spool: Spool, monkeypatch: pytest.MonkeyPatch, name: str, bound: int) -> None:
    monkeypatch.setattr(submitted, name, bound)
    same_length = {"run_equivalence_key": "others"}
    for number in range(3):
        put(spool.requests / f"{number}.json", same_length)
    assert spool.find() == Search()
    os.utime(put(spool.requests / "oldest.json"), (1, 1))
    found = spool.find()
    assert (found.name, found.complete) == ("", False)
    assert "more requests wait" in found.detail
    os.utime(spool.requests / "oldest.json")
    assert spool.find().name == "oldest.json", "the newest first"


@pytest.mark.parametrize("what", ["a file", "the folder"])
def test_what_cannot_be_read_is_told_and_the_rest_is_searched(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    put(spool.requests / "one.json")
    call = "open" if what == "a file" else "scandir"
    real = getattr(os, call)

    def denied(path: Any, *more: Any) -> Any:
        if str(path).endswith("one.json") or (call == "scandir" and str(path).endswith("requests")):
            raise PermissionError(13, "Permission denied")
        return real(path, *more)

    monkeypatch.setattr(os, call, denied)
    found = spool.find()
    assert (found.name, found.complete) == ("", False)
    assert "Permission denied" in found.detail
    put(spool.claimed / "lot" / "two.json")
    assert spool.find().name == "two.json"
