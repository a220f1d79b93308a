"""Many letters redriven with the installed command: predicted, oldest first, bounded, and given again."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from test_operator_acts import SMALL, Scene

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture
def several(tmp_path: Path) -> Scene:
    """Six requests of somebody who is not on the allow-list, and one that is no JSON."""
    scene = Scene(tmp_path / "world", auth_mode="allowlist", auth_allowlist=["someone"])
    made = scene.world.make_run("k0", **SMALL)
    for number in range(6):
        request = made["request"] | {"run_equivalence_key": f"k{number}", "invoker": "nightly"}
        scene.world.drop(request, f"k{number}.json")
    scene.world.drop(b"[]", "bad.json")
    scene.drain()
    scene.world.write_profiles(auth_allowlist=["nightly"])
    return scene


def test_many_are_predicted_and_nothing_is_done_without_yes(several: Scene) -> None:
    code, lines, said = several.many("--reason", "AUTH_DENIED")
    assert (code, len(lines)) == (0, 6)
    assert {(item["predicted"]["outcome"], item["outcome"], item["dry_run"]) for item in lines} == {
        ("ADMITTED", None, True)
    }
    assert "--yes" in said
    assert several.actions() == []
    assert several.many("--dry-run", "--yes")[0] == 1, "one of them would be refused again"
    assert several.actions() == []


def test_many_are_redriven_at_most_so_many_at_a_time_and_the_next_command_goes_on(several: Scene) -> None:
    arguments = ("--reason", "AUTH_DENIED", "--max", "4", "--yes", "--rate", "0", "--why", "list corrected")
    code, lines, said = several.many(*arguments)
    assert (code, [item["outcome"] for item in lines]) == (0, ["ADMITTED"] * 4)
    assert "more letters are left" in said
    code, lines, said = several.many(*arguments)
    assert (code, len(lines)) == (0, 2)
    assert "more letters are left" not in said
    assert several.many(*arguments)[0:2] == (0, [])
    assert {(action, reason, outcome) for action, _, _, reason, outcome in several.actions()} == {
        ("redrive", "list corrected", "ADMITTED")
    }
    several.drain()
    assert len([item for item in several.world.signals("READY") if item]) == 6


def test_of_two_letters_with_one_key_the_earlier_one_gets_it_as_on_the_bus(several: Scene) -> None:
    made = json.loads(next((several.world.root / "requests-made").glob("*.json")).read_bytes())
    for number in range(2):
        request = made | {"run_equivalence_key": "same", "invoker": "someone else", "notes": str(number)}
        several.world.drop(request | {"seed": number}, f"same{number}.json")
        several.drain()
    several.world.write_profiles(auth_allowlist=["nightly", "someone else"])
    _, predicted, _ = several.many("--reason", "AUTH_DENIED")
    assert [item["number"] for item in predicted] == sorted(item["number"] for item in predicted)
    _, lines, _ = several.many("--reason", "AUTH_DENIED", "--max", "7", "--yes")
    assert [item["outcome"] for item in lines] == ["ADMITTED"] * 7
    _, (later,), _ = several.many("--key", "spool/", "--yes", "--reason", "AUTH_DENIED")
    assert later["outcome"] == "EQUIV_KEY_COLLISION"
    assert later["number"] > lines[-1]["number"]


def test_a_relative_root_is_shown_as_it_is_resolved(several: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made = several.world.make_run("rel", **SMALL)["request"]
    root = os.path.relpath(made["engine_run_root"], several.world.runs)
    several.world.drop(made | {"invoker": "nobody", "engine_run_root": root}, "rel.json")
    several.drain()
    several.world.write_profiles(auth_allowlist=["nobody"])
    monkeypatch.chdir(several.world.runs)
    key = several.letters()[0]["record_key"]
    _, document = several.redrive(key, "--dry-run")
    assert (document["predicted"]["outcome"], document["engine_run_root"]) == ("ADMITTED", made["engine_run_root"])
    assert root in document["note"]
    text = several.do("dead-letter", "redrive", key, "--policy", str(several.world.policy), "--dry-run").stdout.decode()
    assert made["engine_run_root"] in text
    assert "the daemon's working directory" in text
    _, (line,), _ = several.many("--key", key)
    assert (line["engine_run_root"], line["note"]) == (document["engine_run_root"], document["note"])


def test_many_with_one_that_is_refused_again_exit_with_one_and_do_not_grow(several: Scene) -> None:
    for _ in range(2):
        code, lines, _ = several.many("--yes", "--reason", "RECORD_NOT_JSON")
    assert (code, lines) == (0, []), "the same judgement is not repeated"
    assert [item["reason_code"] for item in several.letters()].count("RECORD_NOT_JSON") == 2


def test_the_rate_is_held(several: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from scenario_runner.cli import redrive

    slept: list[float] = []
    monkeypatch.setattr(redrive.time, "sleep", slept.append)
    monkeypatch.setattr(redrive.time, "monotonic", lambda: 100.0)
    for number in range(3):
        redrive._hold_rate(number, 10, 100.0)
    redrive._hold_rate(5, 0, 100.0)
    assert slept == [0.1, 0.2]
