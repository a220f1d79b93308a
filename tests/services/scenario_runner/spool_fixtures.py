"""Fixtures of a spool with its intake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from spool_support import Spool
from support import World

from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    world = World(tmp_path_factory.mktemp("rules"))
    wiring = load_wiring(str(world.wiring))
    made = make_admission_policy(wiring, load_policy(str(world.policy)), open_pack(wiring))
    object.__setattr__(made, "engine_roots", ["/"])
    return made


@pytest.fixture
def spool(world: World, rules: Any) -> Iterator[Spool]:
    made = Spool(world, rules)
    yield made
    made.authority.close()
