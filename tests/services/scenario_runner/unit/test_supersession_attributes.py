"""What a request says of the run that it corrects."""

import subprocess
import sys

import pytest

from scenario_runner.contracts import supersession
from scenario_runner.contracts.documents import SupersessionAttributes

pytestmark = pytest.mark.unit


def test_the_attributes_are_those_of_the_document() -> None:
    assert tuple(SupersessionAttributes.model_fields) == supersession._ATTRIBUTES


def test_a_look_up_does_not_load_the_models_of_documents() -> None:
    text = "import scenario_runner.cli.status, sys; sys.exit('scenario_runner.contracts.documents' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0
