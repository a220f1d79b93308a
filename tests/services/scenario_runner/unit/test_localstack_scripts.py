"""The LocalStack scripts: they parse, they pin what they install, and the narrative log reads as sentences."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import streaming

from sr_tools import kinesis
from sr_tools.narrative import sentences

pytestmark = pytest.mark.unit

SCRIPTS = Path(__file__).resolve().parents[4] / "scripts"
SH, PS1 = (SCRIPTS / "localstack.sh").read_text("utf-8"), (SCRIPTS / "localstack.ps1").read_text("utf-8")


def test_the_shell_script_parses() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPTS / "localstack.sh")], check=False).returncode == 0
    assert (SCRIPTS / "localstack.sh").stat().st_mode & 0o111


def test_the_powershell_script_parses() -> None:
    import tree_sitter
    import tree_sitter_pwsh

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_pwsh.language()))
    assert not parser.parse(PS1.encode()).root_node.has_error
    assert parser.parse(b"function Broken { if ($x { }").root_node.has_error


@pytest.mark.parametrize("text", [SH, PS1], ids=["sh", "ps1"])
def test_both_scripts_pin_the_same_versions_and_offer_the_same_commands(text: str) -> None:
    pins = {"moto-ext==5.1.54", "pyopenssl==25.3.0", "cbor2<6", "cryptography<47", "joserfc<1.8", "ministack==1.5.33",
            "kinesis-local@0.5.2"}  # fmt: skip
    assert [pin for pin in pins if pin not in text] == []
    assert re.search(r"['=]4\.14\.0", text)
    assert "latest" not in text
    assert "sr-control-bus" in text
    for command in ("start", "stop", "status", "logs", "narrative", "raw"):
        assert command in text


def test_an_unknown_command_is_told_how_it_goes() -> None:
    done = subprocess.run([SCRIPTS / "localstack.sh", "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start|stop|status|logs" in done.stderr


def test_the_log_reads_as_sentences_about_streams_and_records() -> None:
    at = "2026-11-24T10:40:06.135  INFO --- [et.reactor-0] localstack.request.aws     : AWS"
    lines = [
        "Ready.",
        f"{at} kinesis.CreateStream => 200",
        f"{at} kinesis.PutRecords => 200",
        f"{at} kinesis.GetRecords => 200",
        f"{at} kinesis.GetRecords => 200",
        "2026-11-24T10:41:54.123  INFO --- [et.reactor-0] localstack.request.http    : POST / => 500",
        f"{at} kinesis.DescribeStreamSummary => 400 (ResourceNotFoundException)",
    ]
    assert list(sentences(lines)) == [
        "LocalStack is ready.",
        "10:40:06  A client created a stream.",
        "10:40:06  A producer put records on a stream.",
        "10:40:06  A consumer read records. (2 times)",
        "10:40:06  A client asked for the status of a stream, and was refused: ResourceNotFoundException.",
    ]


@pytest.mark.parametrize(
    ("named", "answering", "taken"),
    [
        ("http://named", {"http://named", "http://kinesis"}, "http://named"),
        ("", {"http://kinesis"}, "http://kinesis"),
        ("http://named", {"http://kinesis"}, "http://kinesis"),
        ("http://named", set(), "http://own"),
        ("", set(), "http://own"),
    ],
)
def test_leases_are_kept_where_a_dynamodb_answers_and_else_in_one_of_the_sessions_own(
    monkeypatch: pytest.MonkeyPatch, named: str, answering: set[str], taken: str
) -> None:
    monkeypatch.setenv("SR_KINESIS_DYNAMODB_ENDPOINT_URL", named)
    monkeypatch.setattr(streaming, "ENDPOINT", "http://kinesis")
    monkeypatch.setattr(kinesis, "serves_dynamodb", lambda url, region: url in answering)
    monkeypatch.setattr(kinesis, "own_dynamodb", lambda region: "http://own")
    assert streaming._dynamodb.__wrapped__() == taken
    assert os.environ["SR_KINESIS_DYNAMODB_ENDPOINT_URL"] == taken, "daemons inherit it"


def test_without_any_dynamodb_the_tests_that_need_it_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise kinesis.NoEndpointError("no DynamoDB for KCL's leases, none could be started: no pip")

    monkeypatch.setattr(streaming, "_dynamodb", none)
    with pytest.raises(pytest.skip.Exception, match="no DynamoDB for KCL's leases"):
        streaming.dynamodb()
