"""The commands of docs/runbook.md are run, each in a situation of the kind that it is for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support import COMMAND, REPO, World, help_of, need_posix
from test_health import HANGS, serving, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}
Situation = dict[str, str]
"""What the commands of a situation find in their environment."""


class Block(NamedTuple):
    """Commands of the runbook, the situation that they are for, and a word that they show there."""

    situation: str
    word: str
    lines: tuple[str, ...]


def blocks() -> list[Block]:
    text = (REPO / "docs/runbook.md").read_text("utf-8")
    found = re.findall(r"^<!-- world: ([\w-]+); shows (\S+(?: \S+)*) -->\n```sh\n(.*?)^```$", text, re.DOTALL | re.M)
    return [Block(situation, word, tuple(lines.splitlines())) for situation, word, lines in found]


def ask(world: World, *, damage: str = "", **changes: Any) -> Situation:
    made = world.make_run("asked", **SMALL, **({"damage": damage} if damage else {}))
    world.drop(made["request"] | changes)
    return {"RUN_ID": made["run_id"], "KEY": "asked"}


def drained(world: World, *, damage: str = "", roles: tuple[str, ...] = ("all",), **changes: Any) -> Situation:
    found = ask(world, damage=damage, **changes)
    for role in roles:
        assert world.serve("--role", role).returncode == 0
    return found


# --- situations -------------------------------------------------------------------------------------------------------


def calm(world: World, stack: ExitStack) -> Situation:
    ask(world)
    served = stack.enter_context(serving(world))
    until(lambda: served.check("/readyz")[0] == 200)
    return {"URL": served.url}


def stuck(world: World, stack: ExitStack) -> Situation:
    served = stack.enter_context(serving(world, [sys.executable, "-c", HANGS]))
    until(lambda: served.check("/healthz")[0] == 503 and served.check("/readyz")[0] == 200)
    return {"URL": served.url}


def store_gone(world: World, stack: ExitStack) -> Situation:
    found = drained(world)
    served = stack.enter_context(serving(world))
    until(lambda: served.check("/readyz")[0] == 200)
    world.store.rename(world.root / "elsewhere")
    until(lambda: served.check("/readyz")[0] == 503)
    return found | {"URL": served.url, "LOG": str(served.log)}


def nobody(world: World, stack: ExitStack) -> Situation:
    assert world.serve().returncode == 0
    return ask(world)


def no_intake(world: World, stack: ExitStack) -> Situation:
    served = stack.enter_context(serving(world, None, "--role", "runner"))
    until(lambda: served.check("/readyz")[0] == 200)
    return ask(world)


def refused(world: World, stack: ExitStack) -> Situation:
    world.wiring_changes |= {"auth_mode": "allowlist", "auth_allowlist": ["someone"]}
    world.write_profiles()
    return drained(world, invoker="nightly") | letter_of(world)


def bad_form(world: World, stack: ExitStack) -> Situation:
    return drained(world, seed="42") | letter_of(world)


def collision(world: World, stack: ExitStack) -> Situation:
    found = drained(world)
    other = world.make_run("another", **SMALL)["request"]
    world.drop(other | {"run_equivalence_key": found["KEY"], "seed": other["seed"] + 1}, "other.json")
    assert world.serve().returncode == 0
    return found | letter_of(world)


def letter_of(world: World) -> Situation:
    listed = world.command("dead-letter", "list", "--wiring", str(world.wiring), "--json").stdout
    (letter,) = json.loads(listed)["dead_letters"]
    return {"LETTER": str(letter["number"])}


def late(world: World, stack: ExitStack) -> Situation:
    world.policy_changes |= {"evidence_wait_seconds": 1}
    world.write_profiles()
    found = ask(world, damage="flag_missing")
    until(lambda: (world.serve(), world.query("status", found["RUN_ID"])[0])[1] == 1)
    return found


def foreign(world: World, stack: ExitStack) -> Situation:
    found = drained(world, roles=("intake", "runner"))
    place = world.ledger / "run_status" / f"{found['RUN_ID']}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("see the wiki")
    assert world.serve().returncode == 5
    return found


def facts_gone(world: World, stack: ExitStack) -> Situation:
    found = drained(world)
    (world.ledger / "run_facts_view" / f"{found['RUN_ID']}.json").unlink()
    return found


def postponed(world: World, stack: ExitStack) -> Situation:
    found = drained(world, roles=("intake",))
    shutil.rmtree(world.runs)
    assert world.serve().returncode == 5
    return found


def engine_failed(world: World, stack: ExitStack) -> Situation:
    if sys.platform != "linux":
        pytest.skip("an engine that is a process of the host needs Linux")
    world.wiring_changes |= {
        "engine_command": ["/bin/sh", "-c", "echo no licence >&2; exit 3"],
        "engine_attempts_dir": str(world.root / "attempts"),
        "engine_run_root_template": f"{world.runs}/made/{{run_id}}",
    }
    world.write_profiles()
    made = world.make_run("asked", **SMALL)
    request = {key: value for key, value in made["request"].items() if key != "engine_run_root"}
    world.drop(request | {"requested_strategy": "FORCE_INVOKE"})
    assert world.serve().returncode == 0
    return {"RUN_ID": made["run_id"]}


def bad_profile(world: World, stack: ExitStack) -> Situation:
    world.write_profiles(engine_rots=["/data"])
    return {}


SITUATIONS: dict[str, Callable[[World, ExitStack], Situation]] = {
    "calm": calm,
    "stuck": stuck,
    "store-gone": store_gone,
    "nobody": nobody,
    "no-intake": no_intake,
    "refused": refused,
    "bad-form": bad_form,
    "collision": collision,
    "late": late,
    "foreign": foreign,
    "facts-gone": facts_gone,
    "postponed": postponed,
    "engine-failed": engine_failed,
    "bad-profile": bad_profile,
    "due": lambda world, _: drained(world, roles=("intake",)),
    "not-relayed": lambda world, _: drained(world, roles=("intake", "runner")),
    "ready": lambda world, _: drained(world),
    "waiting": lambda world, _: drained(world, damage="flag_missing"),
    "failed": lambda world, _: drained(world, damage="flag_says_fail"),
    "quarantined": lambda world, _: drained(world, damage="flag_bit_off"),
}


@pytest.fixture(scope="module")
def environment_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Path, Situation]]]:
    """Makes a situation when it is first asked for; returns its folder and its variables."""
    need_posix()
    made: dict[str, tuple[Path, Situation]] = {}
    with ExitStack() as stack:

        def find(name: str) -> tuple[Path, Situation]:
            if name not in made:
                world = World(tmp_path_factory.mktemp(name) / "world")
                profiles = {"SR_WIRING": str(world.wiring), "SR_POLICY": str(world.policy)}
                made[name] = world.root, {**profiles, **SITUATIONS[name](world, stack)}
            return made[name]

        yield find


def test_every_command_of_the_runbook_belongs_to_a_situation_and_every_situation_is_shown() -> None:
    text = (REPO / "docs/runbook.md").read_text("utf-8")
    assert len(blocks()) == text.count("\n```sh\n") - 1, "all but the variables at the top"
    assert {block.situation for block in blocks()} == set(SITUATIONS)


def mentioned() -> list[tuple[str, ...]]:
    """Commands with options that stand in a sentence of the runbook."""
    text = (REPO / "docs/runbook.md").read_text("utf-8")
    return sorted({tuple(span.split()) for span in re.findall(r"`([a-z][a-z-]+ [^`\n]*--[^`\n]+)`", text)})


@pytest.mark.parametrize("words", [words for words in mentioned() if words[0] != "aws"], ids=" ".join)
def test_every_command_that_the_runbook_mentions_exists_with_its_options(words: tuple[str, ...]) -> None:
    names = [word for word in words[:2] if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
    shown = help_of(*names)
    assert all(word in shown for word in words if word.startswith("--"))


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"{block.situation}-{block.word}")
def test_the_commands_of_the_runbook_show_what_is_wrong(
    block: Block, environment_of: Callable[[str], tuple[Path, Situation]]
) -> None:
    folder, situation = environment_of(block.situation)
    path = f"{os.path.dirname(COMMAND)}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SR_")}
    shown = ""
    for line in block.lines:
        wanted = re.findall(r"# exit (\d)$", line)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=folder, env={**kept, "PATH": path, **situation},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == int(wanted[0] if wanted else 0), f"{line}\n{done.stdout}{done.stderr}"
        shown += done.stdout + done.stderr
    assert block.word in shown, shown
