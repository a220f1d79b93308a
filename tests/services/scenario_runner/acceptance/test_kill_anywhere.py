"""SIGKILL at every crash point, then start again: the same READY signals as if nothing had happened.

Those of an engine's attempt are in ``test_kill_anywhere_with_engines``. Crash points that the embedded profile does not
have (re-emit, a stream's checkpoint) are not here. ``SR_CRASH_SWEEP=full`` kills at every durable call of the sweep
instead of every few.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crashing import (
    DURABLE,
    KILLED,
    NO_SUCH_POINT,
    STORE,
    Moment,
    Scenery,
    drained,
    evidence,
    holder_of,
    launch,
    log_of,
    make_load,
    start,
    until,
    until_up,
)
from invariants import Watch, check, paths_of, photograph
from support import World

pytestmark = pytest.mark.integration

INTAKE, AUTHORITY = "scenario_runner.intake.spool:", "scenario_runner.authority.sqlite:"
SPOOL = "scenario_runner.intake.spool_files:"
ROWS, LEDGER = AUTHORITY + "SqliteAuthority.", "scenario_runner.ledger.ledger:Ledger."
EXAMINE = "scenario_runner.evidence.examine:"
FILES, WRITTEN = "scenario_runner.storage.filesystem:", "scenario_runner.storage.written:"

POINTS: dict[str, Moment] = {
    "store probed": Moment(STORE + ".probe"),
    "schema migrated": Moment(AUTHORITY + "migrate"),
    "interface pack pinned": Moment(LEDGER + "write_pack"),
    "record claimed": Moment("os:rename", match="c-quarantined.json"),
    "claims made durable": Moment(SPOOL + "_make_durable"),
    "record read": Moment(SPOOL + "read", nth=4),
    "run row inserted": Moment(ROWS + "_admit_run", nth=2),
    "dead letter inserted": Moment(ROWS + "_admit_one", match="e-torn"),
    "intake rows committed": Moment(ROWS + "admit"),
    "reason files written": Moment(INTAKE + "SpoolConsumer._explain"),
    "record moved, the spool's checkpoint": Moment(INTAKE + "SpoolConsumer._move", nth=2),
    "record renamed into consumed": Moment("scenario_runner.storage.renames:rename_new", match="/consumed", nth=3),
    "record renamed into rejected": Moment("scenario_runner.storage.renames:rename_new", match="/rejected"),
    "lot of claims removed": Moment(SPOOL + "leave_lots"),
    "run claimed, before the commit": Moment(ROWS + "_claimed", nth=2),
    "runs claimed": Moment(ROWS + "claim", after_result=True),
    "plan objects written": Moment(LEDGER + "write_plans", match="run_id"),
    "second plan object linked": Moment("os:link", match="/run_plan/", nth=2),
    "gates measured": Moment(EXAMINE + "measure"),
    "fifth gate verified": Moment(EXAMINE + "_admit_gate", nth=5),
    "last gate verified": Moment(EXAMINE + "_admit_gate", nth=10),
    "middle of a hash": Moment("scenario_runner.runs.leases:Leases.check", nth=20),  # once per chunk
    "file of an output hashed": Moment(
        "scenario_runner.artifacts.local:LocalRunRoot._hash_file", match="arrival_events"
    ),
    "receipts written": Moment(LEDGER + "write_receipts", match="output_id"),
    "first bundle manifest linked": Moment("os:link", match="bundle_manifest.json"),
    "first receipt linked": Moment("os:link", match="instance_receipt.json"),
    "third receipt linked": Moment("os:link", match="instance_receipt.json", nth=3),
    "facts views written": Moment(LEDGER + "write_facts_views", match="FactsView"),
    "facts view, linked": Moment("os:link", match="/run_facts_view/", nth=2),
    "facts view, released by its writer": Moment(
        "scenario_runner.storage.written:Written.release", match="/run_facts_view/"
    ),
    "facts view, directory fsynced": Moment(FILES + "fsync_directory", match="/run_facts_view"),
    "outcome written, before the commit": Moment(ROWS + "_apply", nth=3),
    "signal added, before the commit": Moment(ROWS + "_add_signal", nth=3),
    "READY transaction committed": Moment(ROWS + "commit"),
    "projections claimed": Moment(ROWS + "claim_projections", after_result=True),
    "records projected": Moment(LEDGER + "_project_records"),
    "statuses projected": Moment(LEDGER + "_project_statuses"),
    "quarantine object linked": Moment("os:link", match="/quarantine/"),
    "ready_signal object linked": Moment("os:link", match="/ready_signal/"),
    "projections marked": Moment(ROWS + "mark_projected"),
    "signals claimed": Moment(ROWS + "claim_signals", after_result=True),
    "second signal linked": Moment("os:link", match="/fp.bus.control.v1/", nth=2),
    "publish returned": Moment("scenario_runner.bus.spool:SpoolPublisher.publish"),
    "sent marked": Moment(ROWS + "mark_sent"),
}
WAITING_POINTS: dict[str, Moment] = {
    "waiting runs woken": Moment(ROWS + "make_waiting_due"),
    "record replaced": Moment(STORE + ".replace", match="/run_record/"),
    "status replaced": Moment(STORE + ".replace", match="/run_status/"),
    "replacement renamed": Moment("os:rename", match="/run_record/"),
    "deadline decided": Moment(ROWS + "commit"),
}


@pytest.mark.parametrize(
    "target", sorted({*DURABLE, *(moment.at for moment in (*POINTS.values(), *WAITING_POINTS.values()))})
)
def test_each_call_at_which_a_daemon_is_killed_exists(target: str) -> None:
    holder, name = holder_of(target)
    assert callable(getattr(holder, name))


def settled_scenery(root: Path) -> Scenery:
    """READY with all gates, READY with an absent optional output, QUARANTINED, FAILED, and every refusal."""
    maker = World(root)
    small: dict[str, Any] = {"members": 3, "parts": 2}
    whole = maker.make_run("whole", seed=1, **small)
    partly = maker.make_run("partly", seed=2, outputs=["s3_candidate_set_1A", "rng_event_site_jitter_1B"],
                            skip_optional=True, **small)  # fmt: skip
    tiny: dict[str, Any] = {**small, "outputs": ["s3_candidate_set_1A"]}
    quarantined = maker.make_run("quarantined", seed=3, damage="flag_bit_off", **tiny)
    failed = maker.make_run("failed", seed=4, damage="flag_missing", **tiny)
    records = {
        "a-whole.json": whole["request"],
        "b-partly.json": partly["request"],
        "c-quarantined.json": quarantined["request"],
        "d-failed.json": failed["request"],
        "e-torn.json": b"{",
        "f-duplicate.json": {**whole["request"], "request_id": "again"},
        "g-conflict.json": {**whole["request"], "seed": 99},
    }
    return made_scenery(maker, records, {"evidence_wait_seconds": 0})


def made_scenery(maker: World, records: dict[str, Any], policy: dict[str, Any]) -> Scenery:
    encoded = {name: data if isinstance(data, bytes) else json.dumps(data).encode() for name, data in records.items()}
    return Scenery(maker.runs, encoded, policy, photograph([maker.runs]))


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenery, dict[str, Any]]:
    """The scenery, and what it comes to without any fault."""
    folder = tmp_path_factory.mktemp("settled")
    scenery = settled_scenery(folder / "maker")
    return scenery, fault_free(scenery, folder / "fault-free")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenery, dict[str, Any]]:
    """A READY run, a QUARANTINED one and a refused record: little enough to be killed at every durable call."""
    folder = tmp_path_factory.mktemp("small")
    maker = World(folder / "maker")
    options: dict[str, Any] = {"members": 3, "parts": 2, "outputs": ["s3_candidate_set_1A", "iso_country_reference"]}
    ready, bad = (
        maker.make_run("ready", seed=1, **options),
        maker.make_run("bad", seed=2, damage="flag_bit_off", **options),
    )
    records = {"a.json": ready["request"], "b.json": bad["request"], "c.json": b"{"}
    scenery = made_scenery(maker, records, {"evidence_wait_seconds": 0})
    return scenery, fault_free(scenery, folder / "fault-free")


def fault_free(scenery: Scenery, root: Path) -> dict[str, Any]:
    world = scenery.world(root)
    scenery.drop(world)
    drained(world)
    assert scenery.violations(world, killed=False) == []
    return evidence(world)


def crashed(world: World, moment: Moment, watch: Watch) -> list[str]:
    """Run until killed at the moment; what is wrong when it was not."""
    with launch(world, moment, "--until-idle") as daemon:
        code = daemon.wait(timeout=60)
    watch.look()
    if code == NO_SUCH_POINT or code != KILLED:
        return [f"{moment} was not reached (exit {code}): {log_of(world).read_text()[-2000:]}"]
    return []


def problems(
    scenery: Scenery,
    expected: dict[str, Any],
    root: Path,
    moments: Sequence[Moment],
    never: list[Moment] | None = None,
    *,
    fresh: bool = False,
) -> list[Any]:
    """Crash at each moment in turn, drain, and say what differs from a run without faults.

    A moment that never came is a problem, or is added to ``never`` when that is given.
    """
    world = scenery.world(root)
    scenery.drop(world, fresh=fresh)
    watch = Watch(paths_of(world))
    found: list[Any] = []
    for moment in moments:
        missed = crashed(world, moment, watch)
        if missed and never is not None:
            never.append(moment)
        else:
            found += missed
    drained(world)
    return [*found, *scenery.violations(world, watch), *differences(evidence(world), expected)]


def differences(actual: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    for key in sorted(set(actual) | set(expected)):
        if actual.get(key) != expected.get(key):
            yield f"{key}: {actual.get(key)} instead of {expected.get(key)}"


def each(cases: dict[str, Callable[[], list[Any]]]) -> dict[str, list[Any]]:
    """Run cases a few at a time; those with problems."""
    with ThreadPoolExecutor(3) as pool:
        results = dict(zip(cases, pool.map(lambda case: case(), cases.values()), strict=True))
    return {name: found for name, found in results.items() if found}


def sides(moment: Moment) -> list[Moment]:
    return [replace(moment, when=when) for when in (("after",) if moment.after_result else ("before", "after"))]


@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_killed_before_and_after(point: str, settled: tuple[Scenery, dict[str, Any]], tmp_path: Path) -> None:
    scenery, expected = settled
    cases = {
        side.when: lambda side=side: problems(scenery, expected, tmp_path / side.when, [side])
        for side in sides(POINTS[point])
    }
    assert each(cases) == {}


@pytest.mark.parametrize("point", WAITING_POINTS)
def test_a_daemon_killed_while_a_deadline_passes_before_and_after(point: str, tmp_path: Path) -> None:
    maker = World(tmp_path / "maker")
    waiting = maker.make_run("waiting", damage="flag_missing", members=3, parts=2, outputs=["s3_candidate_set_1A"])
    scenery = made_scenery(maker, {"a.json": waiting["request"]}, {"evidence_wait_seconds": 1})

    def case(moment: Moment) -> list[Any]:
        world = scenery.world(tmp_path / moment.when)
        scenery.drop(world)
        drained(world)
        plan, watch = world.document("run_plan", waiting["run_id"]), Watch(paths_of(world))
        until(lambda: now_utc() > plan["evidence_deadline_utc"], "the deadline passes")
        found: list[Any] = list(crashed(world, moment, watch))
        drained(world)
        status = world.document("run_status", waiting["run_id"])
        if (status["state"], status.get("reason_code")) != ("FAILED", "EVIDENCE_MISSING_DEADLINE"):
            found.append(status)
        return [*found, *scenery.violations(world, watch)]

    assert each({side.when: lambda side=side: case(side) for side in sides(WAITING_POINTS[point])}) == {}


def now_utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_daemon_killed_while_it_parks_a_run(when: str, tmp_path: Path) -> None:
    maker = World(tmp_path / "maker")
    waiting = maker.make_run("waiting", damage="flag_missing", members=3, parts=2, outputs=["s3_candidate_set_1A"])
    scenery = made_scenery(maker, {"a.json": waiting["request"]}, {})
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    watch = Watch(paths_of(world))
    assert crashed(world, Moment(ROWS + "commit", when), watch) == []
    drained(world)
    assert world.document("run_status", waiting["run_id"])["state"] == "WAITING_EVIDENCE"
    assert scenery.violations(world, watch) == []


@pytest.mark.parametrize("again", ["expire_owner", "commit"])
def test_a_daemon_killed_again_while_it_recovers(
    again: str, settled: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = settled
    first = Moment(ROWS + "commit", "before")
    cases = {  # with a fresh torn record, which every daemon in turn waits for
        side.when: lambda side=side: problems(scenery, expected, tmp_path / side.when, [first, side], fresh=True)
        for side in sides(Moment(ROWS + again))
    }
    assert each(cases) == {}


@pytest.mark.timeout(1200)  # the full sweep
def test_a_daemon_killed_at_the_k_th_durable_call(small: tuple[Scenery, dict[str, Any]], tmp_path: Path) -> None:
    scenery, expected = small
    counted = scenery.world(tmp_path / "counted")
    scenery.drop(counted)
    with launch(counted, Moment("durable"), "--until-idle", action="count", mark=tmp_path / "calls.json") as daemon:
        assert daemon.wait(timeout=60) == 0
    calls = len(json.loads((tmp_path / "calls.json").read_bytes()))
    assert calls > 50
    if os.environ.get("SR_CRASH_SWEEP") == "full":
        moments = [Moment("durable", when, nth) for nth in range(1, calls + 1) for when in ("before", "after")]
    else:
        numbers = range(calls // 24, calls, calls // 12)
        moments = [Moment("durable", ("before", "after")[number % 2], number) for number in numbers]
    never: list[Moment] = []
    cases = {
        f"{moment.when} {moment.nth} of {calls}": lambda moment=moment: problems(
            scenery, expected, tmp_path / f"{moment.when}-{moment.nth}", [moment], never
        )
        for moment in moments
    }
    assert each(cases) == {}
    assert len(never) <= len(moments) / 4, never  # how calls share an fsync or a commit differs a little


# ---------------------------------------------------------------- what a crash may leave behind


LINKED = {
    "/run_plan/": "run_plan",
    "/instance_receipts/": "seed=5",
    "/run_facts_view/": "run_facts_view",
    "/run_record/": "run_record",
    "/fp.bus.control.v1/": "fp.bus.control.v1",
}


@pytest.mark.parametrize("match", LINKED)
def test_a_name_that_a_killed_daemon_left_unsynced_is_made_durable_before_it_is_believed(
    match: str, tmp_path: Path
) -> None:
    world = World(tmp_path / "world")
    run = world.make_run("run", seed=5, members=3, parts=2, outputs=["s3_candidate_set_1A"])
    world.drop(run["request"])
    last = Moment("os:link", "after", match=match, nth=2 if "receipts" in match else 1)  # the receipt, not its manifest
    assert crashed(world, last, Watch(paths_of(world))) == []
    with launch(world, Moment("durable"), "--until-idle", action="count", mark=tmp_path / "calls.json") as daemon:
        assert daemon.wait(timeout=60) == 0
    calls = json.loads((tmp_path / "calls.json").read_bytes())
    assert any(call.startswith("fsync ") and call.endswith(f"/{LINKED[match]}") for call in calls)


def rivals(maker: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two runs of one scope whose outputs differ: only one of them can have its instance receipt."""
    scope: dict[str, Any] = {"manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64, "seed": 5}
    options = {**scope, "members": 3, "parts": 2, "outputs": ["s3_candidate_set_1A"]}
    return maker.make_run("first", data_seed=1, **options), maker.make_run("second", data_seed=2, **options)


def test_of_two_runs_of_one_scope_with_other_bytes_one_is_ready(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    first, second = rivals(world)
    world.drop(first["request"], "1.json")
    world.drop(second["request"], "2.json")
    drained(world)
    states = [world.document("run_status", run["run_id"])["state"] for run in (first, second)]
    assert sorted(states) == ["QUARANTINED", "READY"]
    assert check(paths_of(world)) == []


def test_a_run_killed_between_manifest_and_receipt_is_ready_before_its_rival(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    first, second = rivals(world)
    world.drop(first["request"], "1.json")
    assert crashed(world, Moment("os:link", match="instance_receipt.json"), Watch(paths_of(world))) == []
    world.drop(second["request"], "2.json")
    assert world.serve("--role", "intake").returncode == 0  # so that one batch holds both
    drained(world)
    states = [world.document("run_status", run["run_id"])["state"] for run in (first, second)]
    assert states == ["READY", "QUARANTINED"]


def test_a_run_killed_after_its_receipts_whose_evidence_then_breaks_keeps_the_invariants(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    run = world.make_run("run", members=3, parts=2, outputs=["s3_candidate_set_1A"])
    world.drop(run["request"])
    moment = Moment(LEDGER + "write_receipts", "after", match="output_id")
    assert crashed(world, moment, Watch(paths_of(world))) == []
    flag = next(Path(run["engine_run_root"]).rglob("_passed.flag"))
    flag.write_bytes(b"sha256_hex = " + b"0" * 64)
    drained(world)
    assert world.document("run_status", run["run_id"])["state"] == "QUARANTINED"
    assert check(paths_of(world), killed=True) == []


@pytest.mark.parametrize(
    "place",
    ["object-store/fraud-platform/sr/.private", "control-bus/.private"],
)
def test_temporary_files_of_a_killed_daemon_are_swept(place: str, tmp_path: Path) -> None:
    world = World(tmp_path / "world", {"lease_seconds": 2})
    left = world.root / place / "0123456789abcdef.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"torn")
    os.utime(left, (time.time() - 7200,) * 2)
    with start(world) as daemon:
        try:
            until(lambda: not left.exists(), f"{left} is swept", seconds=6)
        finally:
            daemon.kill()


# ---------------------------------------------------------------- from outside, at any moment


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenery, dict[str, Any]]:
    """Sixty requests and some duplicates, and what they come to without any fault."""
    folder = tmp_path_factory.mktemp("load")
    scenery = make_load(folder / "maker", worlds=6, keys=10)
    return scenery, fault_free(scenery, folder / "fault-free")


def progress(world: World) -> tuple[int, int, int]:
    """Grows with everything that is done: records put away, objects, signals."""
    folders = (world.bus / "consumed", world.ledger / "run_facts_view", world.signals_folder)
    consumed, views, signals = (len(os.listdir(folder)) if folder.is_dir() else 0 for folder in folders)
    return consumed, views, signals


@pytest.mark.parametrize("seed", [1, 2])
def test_a_daemon_killed_again_and_again_from_outside(
    seed: int, load: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = load
    chance = random.Random(seed)
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    watch = Watch(paths_of(world))
    for _ in range(8):
        before = progress(world)
        with start(world) as daemon:
            until(lambda before=before: progress(world) != before or all_published(world, expected), "the daemon works")
            time.sleep(chance.uniform(0, 0.12))
            daemon.kill()
        watch.look()
        if all_published(world, expected):
            break
    drained(world)
    assert scenery.violations(world, watch) == []
    assert list(differences(evidence(world), expected)) == []


def all_published(world: World, expected: dict[str, Any]) -> bool:
    return progress(world)[2] >= sum(key.startswith("READY ") for key in expected)


def test_daemons_of_one_role_each_killed_again_and_again_from_outside(
    load: tuple[Scenery, dict[str, Any]], tmp_path: Path
) -> None:
    scenery, expected = load
    chance = random.Random(3)
    world = scenery.world(tmp_path / "world")
    scenery.drop(world)
    watch = Watch(paths_of(world))
    roles = ("intake", "runner", "relay", "housekeeping")
    daemons = {role: start(world, "--role", role) for role in roles}
    try:
        for _ in range(8):
            before = progress(world)
            until(lambda before=before: progress(world) != before or all_published(world, expected), "some role works")
            time.sleep(chance.uniform(0, 0.05))
            role = chance.choice(roles)
            daemons[role].kill()
            daemons[role].wait()
            watch.look()
            daemons[role] = start(world, "--role", role)
        until(lambda: all_published(world, expected), "every READY is on the stream", seconds=60)
        until_up(*daemons.values())
    finally:
        for daemon in daemons.values():
            daemon.send_signal(signal.SIGTERM)
        codes = [daemon.wait(timeout=30) for daemon in daemons.values()]
    assert codes == [0] * len(roles), log_of(world).read_text()[-3000:]
    drained(world)
    assert scenery.violations(world, watch) == []
    assert list(differences(evidence(world), expected)) == []
