"""What a look at the evidence may be shared by, and what it notices when it looks again."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scenario_runner.artifacts.budget import BATCH_SHARE, ReadBudget, TooMuchToReadError
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.contracts.errors import EvidenceChanged
from scenario_runner.interface_pack.loader import build_pack
from scenario_runner.runs.evaluation import EvaluationMemory, used_tokens

pytestmark = pytest.mark.integration

TOKENS = {"manifest_fingerprint": "m", "parameter_hash": "p", "seed": "1", "scenario_id": "A", "run_id": "r"}


def pack_with(scope: str) -> Any:
    gate = {
        "gate_id": "g", "scope": scope, "passed_flag_path_template": "g/_passed.flag", "bundle_root_template": "g/",
        "verification_method": {"kind": "sha256_bundle_digest", "digest_field": "sha256_hex", "ordering": "ascii_lex"},
        "authorizes_outputs": ["out"],
    }  # fmt: skip
    output = {"output_id": "out", "path_template": "out/x.json", "scope": "scope_global"}
    return build_pack({"outputs": [output]}, {"gates": [gate]})


@pytest.mark.parametrize(
    ("scope", "name"), [("fingerprint_scenario_id", "scenario_id"), ("fingerprint_run_id", "run_id")]
)
def test_runs_that_differ_in_what_a_flag_may_name_do_not_share_a_look(scope: str, name: str) -> None:
    """No path holds the value, but the verdict may depend on it."""
    first = used_tokens(pack_with(scope), TOKENS, ["g"], ["out"])
    other = used_tokens(pack_with(scope), {**TOKENS, name: "B"}, ["g"], ["out"])
    assert first != other
    assert used_tokens(pack_with("fingerprint"), {**TOKENS, name: "B"}, ["g"], ["out"]) == used_tokens(
        pack_with("fingerprint"), TOKENS, ["g"], ["out"]
    )


@pytest.mark.parametrize("what", ["a folder", "a link", "nothing"])
def test_whatever_stands_in_the_place_of_a_file_that_was_read_is_a_change(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    file = run / "flag"
    file.write_bytes(b"x")
    artifacts = LocalArtifacts([str(tmp_path)], 1, None)
    root = artifacts.open(str(run), ReadBudget())
    assert root.read("flag", 10) == b"x"
    snapshot = root.snapshot()
    root.confirm(snapshot)
    file.unlink()
    if what == "a folder":
        file.mkdir()
    elif what == "a link":
        file.symlink_to("elsewhere")
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)
    root.close()
    artifacts.close()


def test_a_batch_does_not_wait_for_a_look_that_the_long_lane_has_begun_and_the_long_lane_does() -> None:
    memory = EvaluationMemory()
    with memory.alone("run", ReadBudget()):
        with pytest.raises(TooMuchToReadError), memory.alone("run", ReadBudget(share=BATCH_SHARE)):
            pass
        with memory.alone("another run", ReadBudget(share=BATCH_SHARE)):
            pass
        pool = ThreadPoolExecutor(1)
        waiting = pool.submit(_look_alone, memory)
        time.sleep(0.05)
        assert not waiting.done()
    assert waiting.result(10) == "looked"
    pool.shutdown()
    with memory.alone("run", ReadBudget(share=BATCH_SHARE)):
        pass


def _look_alone(memory: EvaluationMemory) -> str:
    with memory.alone("run", ReadBudget()):
        return "looked"
