"""Lines that are read in bounded memory: numbers, sizes, ends, and pauses."""

import os
from pathlib import Path

import pytest

from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.cli import request_lines
from scenario_runner.cli.request_lines import Line, read_lines
from scenario_runner.contracts.errors import UsageError

pytestmark = pytest.mark.unit


def lines(path: Path, data: bytes) -> list[Line | None]:
    path.write_bytes(data)
    return list(read_lines(str(path)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one", [b"one"]),
        (b"one\n", [b"one"]),
        (b"one\r\n\ntwo", [b"one\r", b"", b"two"]),
    ],
)
def test_lines_have_numbers_and_do_not_depend_on_where_a_read_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, data: bytes, wanted: list[bytes]
) -> None:
    monkeypatch.setattr(request_lines, "_CHUNK", chunk)
    assert lines(tmp_path / "f", data) == [Line(number, raw, len(raw)) for number, raw in enumerate(wanted, 1)]


def test_of_a_line_that_is_too_large_the_begin_is_kept_and_its_size_is_known(tmp_path: Path) -> None:
    size = 3 * MAX_RECORD_BYTES
    large, after = lines(tmp_path / "f", b"x" * size + b"\nafter\n")
    assert large == Line(1, b"x" * (MAX_RECORD_BYTES + 1), size)
    assert after == Line(2, b"after", 5)


def test_a_pipe_in_which_nothing_is_left_gives_a_pause_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    found = read_lines(f"/dev/fd/{read}")
    os.write(write, b"one\ntw")
    assert [next(found), next(found)] == [Line(1, b"one", 3), None]
    os.write(write, b"o")
    assert next(found) is None
    os.close(write)
    assert list(found) == [Line(2, b"two", 3)]
    os.close(read)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        list(read_lines(str(tmp_path / name)))
