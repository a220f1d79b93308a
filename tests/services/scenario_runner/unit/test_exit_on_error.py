"""What ends a command: an error of SR by its own code, and everything else as a defect, which is no verdict."""

from __future__ import annotations

import pytest
import typer

from scenario_runner.cli.console import Exit, exit_on_error
from scenario_runner.contracts.errors import Unavailable

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("away"), Exit.UNAVAILABLE),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates"), Exit.DEFECT),
        (MemoryError(), Exit.UNAVAILABLE),
        (typer.Exit(Exit.WAITING), Exit.WAITING),
    ],
)
def test_whatever_no_handler_knows_ends_as_a_defect_and_lack_of_memory_as_an_outage(
    error: Exception, code: Exit, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, exit_on_error(as_json=False, logs=False):
        raise error
    assert ended.value.exit_code == code
    assert ("Traceback" in capsys.readouterr().err) is (code == Exit.DEFECT)
