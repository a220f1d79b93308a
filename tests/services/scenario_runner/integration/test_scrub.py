"""``scrub``: published evidence is read again, and drift is told beside the run and never changes it."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import COMMAND, ForkedWorld

from scenario_runner.authority.connect import connect_authority
from scenario_runner.authority.scrubs import LAST_KEY, LastScrub, last_scrub
from scenario_runner.storage.modes import PRIVATE
from sr_tools.engine import make_run

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> ForkedWorld:
    """Three READY runs: two over one engine run, one over another."""
    made = ForkedWorld(tmp_path / "world")
    shared = made.make_run("shared", outputs=["outlet_catalogue"])["request"]
    made.drop(shared, "1.json")
    made.drop({**shared, "run_equivalence_key": "shared-2"}, "2.json")
    made.drop(made.make_run("own", outputs=["outlet_catalogue"], seed=7)["request"], "3.json")
    assert made.serve().returncode == 0
    return made


def scrubbed(world: ForkedWorld, *more: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """Exit code, findings and summary."""
    done = world.command("scrub", "--wiring", str(world.wiring), "--rate", "0", "--json", *more)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return done.returncode, lines[:-1], lines[-1].get("summary", lines[-1])


def outputs_of(world: ForkedWorld, key: str) -> list[Path]:
    """Files of the output of an engine run, by the key of its request."""
    with closing(sqlite3.connect(world.database)) as rows:
        (found,) = rows.execute("SELECT intent FROM runs WHERE run_equivalence_key = ?", (key,)).fetchall()
    root = Path(json.loads(found[0])["engine_run_root"])
    return [path for path in sorted(root.rglob("*")) if path.is_file() and "outlet_catalogue" in str(path)]


def run_ids(world: ForkedWorld) -> dict[str, str]:
    with closing(sqlite3.connect(world.database)) as rows:
        return dict(rows.execute("SELECT run_equivalence_key, run_id FROM runs").fetchall())


def everything_but_the_record(world: ForkedWorld) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(world.ledger.rglob("*"))
        if path.is_file() and "run_record" not in str(path) and ".private" not in str(path)
    }  # fmt: skip


def tamper(path: Path) -> None:
    """Change one byte, and neither size nor time: as a disk does."""
    data, info = path.read_bytes(), path.stat()
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def keys_in(world: ForkedWorld) -> list[str]:
    return sorted(run_ids(world))


def test_without_drift_it_exits_0_and_reads_shared_evidence_once(world: ForkedWorld) -> None:
    code, findings, summary = scrubbed(world)
    assert (code, findings, summary["outcome"]) == (0, [], "DONE")
    assert (summary["runs"], summary["evidence_read"]) == (3, 2)
    assert summary["bytes_read"] > 0


def test_drift_is_an_event_and_an_act_beside_the_run_and_nothing_else_of_it_changes(world: ForkedWorld) -> None:
    shared = [key for key in keys_in(world) if "shared" in key]
    before = everything_but_the_record(world)
    tamper(outputs_of(world, shared[0])[0])
    code, findings, summary = scrubbed(world, "--requested-by", "night")
    ids = run_ids(world)
    assert (code, summary["outcome"], summary["drifted"]) == (1, "DRIFT", 2)
    assert {item["run_id"] for item in findings} == {ids[key] for key in shared}
    assert {item["repeated"] for item in findings} == {False}
    assert all(any("re-hashes" in check["check"] for check in item["checks"]) for item in findings)
    assert world.serve().returncode == 0  # the relay brings the record up to date
    record = (world.ledger / f"run_record/{ids[shared[0]]}.jsonl").read_text("utf-8").splitlines()
    last = json.loads(record[-1])
    assert (last["event_kind"], last["details"]["requested_by"]) == ("EVIDENCE_DRIFTED", "night")
    assert last["details"]["state"] == "READY"
    assert last["details"]["checks"]
    assert everything_but_the_record(world) == before
    status = json.loads(world.command("status", ids[shared[0]], "--wiring", str(world.wiring), "--json").stdout)
    assert status["state"] == "READY"
    explained = json.loads(world.command("explain", ids[shared[0]], "--wiring", str(world.wiring), "--json").stdout)
    assert [(item["action"], item["actor"], item["outcome"]) for item in explained["actions"]] == [
        ("scrub", "night", "DRIFT")
    ]
    checked = world.command("ledger", "check", "--wiring", str(world.wiring), "--json")
    assert checked.returncode == 0, checked.stdout


def test_drift_names_the_parts_of_an_output_that_are_not_as_they_were(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    outputs = ["outlet_catalogue", "s3_candidate_set_1A", "s0_outlet_flags_1A", "iso_country_reference"]
    run = world.make_run("k", outputs=outputs, parts=3)
    world.drop(run["request"])
    assert world.serve().returncode == 0
    root = Path(run["engine_run_root"])
    files = {name: sorted(path for path in root.rglob("*") if path.is_file() and name in str(path)) for name in outputs}
    files["iso_country_reference"] = sorted(root.rglob("iso_country.parquet"))
    tamper(files["outlet_catalogue"][1])
    files["s3_candidate_set_1A"][0].unlink()
    added = files["s3_candidate_set_1A"][2].with_name("part-99999.parquet")
    shutil.copy2(files["s3_candidate_set_1A"][2], added)
    tamper(files["iso_country_reference"][0])
    for path in files["s0_outlet_flags_1A"]:  # so the evidence as a whole does not pass
        path.unlink()
    (finding,) = scrubbed(world)[1]
    found = {item["check"].split()[1]: item for item in finding["checks"] if item["check"].startswith("output ")}

    def parts(output: str) -> list[tuple[str, str, bool, bool]]:
        return [
            (part["path"], part["drift"], bool(part["expected"]), bool(part["actual"]))
            for part in found[output]["parts"] or []
        ]

    def path(file: Path) -> str:
        return file.relative_to(root).as_posix()

    assert parts("outlet_catalogue") == [(path(files["outlet_catalogue"][1]), "CHANGED", True, True)]
    assert found["outlet_catalogue"]["detail"] == f"a part differs: {path(files['outlet_catalogue'][1])} (CHANGED)"
    assert parts("s3_candidate_set_1A") == [
        (path(files["s3_candidate_set_1A"][0]), "MISSING", True, False), (path(added), "ADDED", False, True),
    ]  # fmt: skip
    assert "2 parts of 3 differ, the first: " in found["s3_candidate_set_1A"]["detail"]
    assert parts("iso_country_reference") == [(path(files["iso_country_reference"][0]), "CHANGED", True, True)]
    assert parts("s0_outlet_flags_1A") == []
    assert "s0_outlet_flags_1A" in found["s0_outlet_flags_1A"]["detail"]
    with closing(sqlite3.connect(world.database)) as rows:
        ((details,),) = rows.execute("SELECT details FROM run_events WHERE kind = 'EVIDENCE_DRIFTED'").fetchall()
    kept = {item["check"]: item.get("parts", []) for item in json.loads(details)["checks"]}
    assert kept["output outlet_catalogue re-hashes"] == found["outlet_catalogue"]["parts"]
    verified = json.loads(world.command("verify", run["run_id"], "--wiring", str(world.wiring), "--json").stdout)
    checked = {item["check"]: item["parts"] for item in verified["checks"]}
    assert checked["output s3_candidate_set_1A re-hashes"] == found["s3_candidate_set_1A"]["parts"]


def test_the_same_drift_is_put_on_record_once_and_another_one_a_day_later(world: ForkedWorld) -> None:
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    files = outputs_of(world, own)
    tamper(files[0])
    assert scrubbed(world)[1][0]["repeated"] is False
    assert scrubbed(world)[1][0]["repeated"] is True
    tamper(files[-1])
    code, findings, _ = scrubbed(world)
    assert (code, findings[0]["repeated"]) == (1, True), "another one of the same day: the record is bounded"
    with closing(sqlite3.connect(world.database)) as rows:
        rows.execute("UPDATE operator_actions SET at = at - 86400000000 WHERE outcome = 'DRIFT' AND subject = ?",
                     (run_ids(world)[own],))  # fmt: skip
        rows.commit()
    assert scrubbed(world)[1][0]["repeated"] is False
    with closing(sqlite3.connect(world.database)) as rows:
        (events,) = rows.execute("SELECT count(*) FROM run_events WHERE kind = 'EVIDENCE_DRIFTED'").fetchone()
    assert events == 2


def test_scrubs_at_the_same_time_put_a_drift_on_record_once(world: ForkedWorld) -> None:
    shared = [key for key in keys_in(world) if "shared" in key]
    tamper(outputs_of(world, shared[0])[0])
    command = [COMMAND, "scrub", "--wiring", str(world.wiring), "--rate", "0", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    lines = [line for process in running for line in process.communicate(timeout=120)[0].splitlines()]
    assert [process.returncode for process in running] == [1, 1, 1]
    findings = [item for line in lines if "summary" not in (item := json.loads(line))]
    assert sorted((item["run_id"], item["repeated"]) for item in findings) == sorted(
        (run_ids(world)[key], repeated) for key in shared for repeated in (False, True, True)
    )
    with closing(sqlite3.connect(world.database)) as rows:
        (events,) = rows.execute("SELECT count(*) FROM run_events WHERE kind = 'EVIDENCE_DRIFTED'").fetchone()
    assert (events, last_of(world).drifted) == (2, 2)


def test_what_is_gone_has_drifted_and_a_root_that_is_away_is_an_outage(world: ForkedWorld) -> None:
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    files = outputs_of(world, own)
    files[0].unlink()
    code, findings, _ = scrubbed(world)
    assert (code, [item["outcome"] for item in findings]) == (1, ["DRIFT"])
    away = world.runs.rename(world.root / "away")
    code, findings, summary = scrubbed(world)
    assert (code, summary["outcome"]) == (5, "UNREADABLE")
    assert {item["outcome"] for item in findings} == {"UNREADABLE"}
    away.rename(world.runs)


def test_documents_of_the_ledger_drift_too(world: ForkedWorld) -> None:
    ids = run_ids(world)
    views = [world.ledger / f"run_facts_view/{run_id}.json" for run_id in ids.values()]
    views[0].unlink()
    views[1].chmod(0o600)
    views[1].write_bytes(views[1].read_bytes() + b" ")
    receipts = sorted((world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    code, findings, summary = scrubbed(world)
    assert receipts
    assert (code, summary["drifted"], len(findings)) == (1, 2, 2)


def test_a_facts_view_is_compared_with_its_row_also_while_the_record_of_its_drift_is_owed(world: ForkedWorld) -> None:
    """A scrub put drift on record, and no daemon delivered it yet: that hides nothing from a check of the ledger."""
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    view = world.ledger / f"run_facts_view/{run_ids(world)[own]}.json"
    view.chmod(0o600)
    view.write_bytes(view.read_bytes() + b" ")
    assert scrubbed(world)[0] == 1
    checked = world.command("ledger", "check", "--wiring", str(world.wiring), "--json")
    *findings, last = [json.loads(line) for line in checked.stdout.splitlines()]
    assert (checked.returncode, last["summary"]["owed"]) == (1, 1)
    assert [(item["code"], item["run_id"]) for item in findings] == [("FACTS_VIEW_DRIFT", run_ids(world)[own])]


def test_a_scrub_of_some_runs_and_one_that_was_broken_off(world: ForkedWorld) -> None:
    code, _, summary = scrubbed(world, "--since", "2030-01-01")
    assert (code, summary["runs"], summary["since_utc"][:4]) == (0, 0, "2030")
    done = world.command("scrub", "--wiring", str(world.wiring), "--resume", summary["scrub_id"])
    assert done.returncode == 2
    assert b"no scrub" in done.stderr
    # As after a kill between two pages: the act says how far it came.
    with closing(sqlite3.connect(world.database)) as rows:
        (middle,) = rows.execute(
            "SELECT sent_us, outbox_id FROM outbox WHERE kind = 'READY' ORDER BY sent_us, outbox_id LIMIT 1 OFFSET 1"
        ).fetchall()
        progress = json.dumps({"cursor": list(middle), "runs": 2, "drifted": 1, "unreadable": 0})
        subject = json.dumps({"since_us": 0, "until_us": middle[0] + 10**12})
        rows.execute("UPDATE operator_actions SET outcome = 'ACCEPTED', detail = ?, subject = ? WHERE action_key = ?",
                     (progress, subject, f"cli/scrub/{summary['scrub_id']}"))  # fmt: skip
        rows.commit()
    code, findings, resumed = scrubbed(world, "--resume", summary["scrub_id"])
    assert (code, findings, resumed["runs"], resumed["drifted"]) == (1, [], 3, 1)


def last_of(world: ForkedWorld) -> LastScrub:
    authority = connect_authority(f"sqlite:///{world.database}", "test", PRIVATE)
    try:
        return last_scrub(authority.acts([LAST_KEY]).get(LAST_KEY))
    finally:
        authority.close()


def scrub_acts(world: ForkedWorld) -> list[tuple[str, str, dict[str, Any]]]:
    """Ids, outcomes and progress of the scrubs on record."""
    with closing(sqlite3.connect(world.database)) as rows:
        found = rows.execute(
            "SELECT action_key, outcome, detail FROM operator_actions WHERE action_key LIKE 'cli/scrub/%' ORDER BY at"
        ).fetchall()
    return [(key.rpartition("/")[2], outcome, json.loads(detail)) for key, outcome, detail in found]


def world_of_old_roots(tmp_path: Path, runs: int) -> tuple[ForkedWorld, Path]:
    """A run that comes first, some under another engine root, and a run after them."""
    world = ForkedWorld(tmp_path / "world")
    old = world.root / "old"
    old.mkdir()
    world.write_profiles(engine_roots=[str(world.runs), str(old)])
    world.drop(world.make_run("first", outputs=["outlet_catalogue"], seed=6)["request"], "0.json")
    assert world.serve().returncode == 0
    for number in range(runs):
        path = world.root / f"request-{number}.json"
        make_run(runs=old, run_key=f"old-{number}", request=path, outputs=["outlet_catalogue"], seed=100 + number)
        world.drop(json.loads(path.read_bytes()), f"{number + 1}.json")
    assert world.serve().returncode == 0
    world.drop(world.make_run("new", outputs=["outlet_catalogue"], seed=7)["request"], "9.json")
    assert world.serve().returncode == 0
    return world, old


def test_roots_that_are_not_allowed_any_more_end_no_scrub(tmp_path: Path) -> None:
    world, _ = world_of_old_roots(tmp_path, 5)
    tamper(outputs_of(world, "new")[0])
    world.write_profiles(engine_roots=[str(world.runs)])
    code, findings, summary = scrubbed(world)
    assert [item["outcome"] for item in findings] == ["UNREADABLE"] * 5 + ["DRIFT"]
    assert (code, summary["runs"], summary["drifted"], summary["unreadable"]) == (1, 2, 1, 5)


@pytest.mark.parametrize("drifted", ["new", "old-0"])
def test_what_cannot_be_read_for_good_keeps_only_its_own_drift_open(tmp_path: Path, drifted: str) -> None:
    world, old = world_of_old_roots(tmp_path, 1)
    target = outputs_of(world, drifted)[0]
    tamper(target)
    assert scrubbed(world)[0] == 1
    tamper(target)  # as it was
    world.write_profiles(engine_roots=[str(world.runs)])
    assert scrubbed(world)[0] == 5
    assert last_of(world).drifted == (1 if drifted == "old-0" else 0)
    world.write_profiles(engine_roots=[str(world.runs), str(old)])
    assert scrubbed(world)[0] == 0
    assert last_of(world).drifted == 0


def test_runs_over_the_same_evidence_that_does_not_answer_are_one_outage(tmp_path: Path) -> None:
    world, old = world_of_old_roots(tmp_path, 1)
    request = json.loads((world.root / "request-0.json").read_bytes())
    for number in range(5):
        world.drop({**request, "run_equivalence_key": f"again-{number}"}, f"again-{number}.json")
    assert world.serve().returncode == 0
    away = old.rename(world.root / "away")
    code, findings, summary = scrubbed(world)
    assert [item["outcome"] for item in findings] == ["UNREADABLE"] * 6
    assert (code, summary["runs"], summary["unreadable"]) == (5, 2, 6)
    away.rename(old)


def test_a_scrub_that_breaks_off_tells_its_drift_and_goes_on_past_what_does_not_answer(tmp_path: Path) -> None:
    world, old = world_of_old_roots(tmp_path, 5)
    tamper(outputs_of(world, "first")[0])
    tamper(outputs_of(world, "new")[0])
    away = old.rename(world.root / "away")
    code, findings, error = scrubbed(world)
    assert "error" in error
    assert (code, [item["outcome"] for item in findings]) == (1, ["DRIFT"] + ["UNREADABLE"] * 5)
    assert (last_of(world).drifted, last_of(world).ended_us) == (1, 0)
    ((scrub_id, outcome, progress),) = scrub_acts(world)
    assert (outcome, progress["runs"], progress["drifted"], progress["unreadable"]) == ("ACCEPTED", 1, 1, 5)
    code, findings, summary = scrubbed(world, "--resume", scrub_id)
    ids = run_ids(world)
    assert (code, [item["run_id"] for item in findings]) == (1, [ids["new"]])
    assert (summary["runs"], summary["drifted"], summary["unreadable"]) == (2, 2, 5)
    assert (last_of(world).drifted, last_of(world).ended_us) == (2, 0)
    away.rename(old)


def test_a_scrub_of_all_runs_takes_nothing_back_that_was_found_since_it_began(world: ForkedWorld) -> None:
    scrubbed(world)
    ((scrub_id, _, progress),) = scrub_acts(world)
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    with closing(sqlite3.connect(world.database)) as rows:  # as after a kill behind its last run
        rows.execute(
            "UPDATE operator_actions SET outcome = 'ACCEPTED' WHERE action_key = ?", (f"cli/scrub/{scrub_id}",)
        )
        rows.commit()
    assert progress["runs"] == 3
    tamper(outputs_of(world, own)[0])
    assert scrubbed(world, "--since", "1d")[0] == 1
    assert scrubbed(world, "--resume", scrub_id)[0] == 0
    assert last_of(world).drifted == 1
    assert last_of(world).ended_us > 0


def test_drift_of_a_run_that_a_correction_supersedes_is_counted_apart(world: ForkedWorld) -> None:
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    tamper(outputs_of(world, own)[0])
    assert scrubbed(world)[0] == 1
    request = world.make_run("correction", outputs=["outlet_catalogue"], seed=8)["request"]
    attributes = {
        "kind": "RUN_REQUEST", "supersedes_run_id": run_ids(world)[own], "supersession_purpose": "its evidence drifted",
    }  # fmt: skip
    envelope = {
        "topic": "fp.bus.control.v1", "message_id": "m1", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": attributes, "partition_key": "k", "payload": request,
    }  # fmt: skip
    world.drop(envelope, "9.json")
    assert world.serve().returncode == 0
    code, findings, summary = scrubbed(world)
    assert [(item["run_id"], item["outcome"]) for item in findings] == [(run_ids(world)[own], "DRIFT")]
    assert (code, summary["outcome"], summary["drifted"], summary["superseded"]) == (0, "DONE", 0, 1)
    assert last_of(world).drifted == 0


def test_a_scrub_that_is_killed_has_noted_each_run_that_took_long(world: ForkedWorld) -> None:
    rate = scrubbed(world)[2]["bytes_read"] / 2 / 4 / 1e6  # four seconds for each of two evidences
    command = [COMMAND, "scrub", "--wiring", str(world.wiring), "--rate", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if len(scrub_acts(world)) == 2 and scrub_acts(world)[-1][2]["runs"]:
                break
            time.sleep(0.1)
        process.kill()
    _, outcome, progress = scrub_acts(world)[-1]
    assert (outcome, 0 < progress["runs"] < 3) == ("ACCEPTED", True)


def test_a_rate_at_which_nothing_would_end_is_refused(world: ForkedWorld) -> None:
    for rate in ("1e-300", "0.0009", "-1", "nan"):
        done = world.command("scrub", "--wiring", str(world.wiring), "--rate", rate)
        assert (done.returncode, b"--rate" in done.stderr) == (2, True), done.stderr
    assert scrub_acts(world) == []


def test_an_empty_id_is_no_new_scrub(world: ForkedWorld) -> None:
    done = world.command("scrub", "--wiring", str(world.wiring), "--resume", "")
    assert done.returncode == 2
    assert scrub_acts(world) == []


def test_how_the_last_scrub_ended_is_kept_for_the_metrics(world: ForkedWorld) -> None:
    def last() -> LastScrub:
        return last_of(world)

    assert (last().ended_us, last().drifted) == (0, 0)
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    target = outputs_of(world, own)[0]
    kept = target.with_name("kept-elsewhere")
    shutil.copy2(target, world.root / kept.name)
    tamper(target)
    scrubbed(world, "--since", "1d")
    assert (last().ended_us, last().drifted) == (0, 1), "a scrub of some runs is no scrub of all"
    scrubbed(world, "--since", "2030-01-01")
    assert last().drifted == 1, "and one that finds nothing takes nothing back"
    target.chmod(0o644)
    target.write_bytes((world.root / kept.name).read_bytes())
    scrubbed(world)
    assert last().drifted == 0
    assert last().ended_us > 0


def test_before_the_first_start_there_is_nothing_to_scrub(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    done = world.command("scrub", "--wiring", str(world.wiring))
    assert done.returncode == 2
    assert not world.database.exists()


def test_a_rebuilt_authority_keeps_the_event(world: ForkedWorld) -> None:
    (own,) = [key for key in keys_in(world) if "shared" not in key]
    tamper(outputs_of(world, own)[0])
    assert scrubbed(world)[0] == 1
    assert world.serve().returncode == 0
    run_id = run_ids(world)[own]
    world.database.unlink()
    for name in ("-wal", "-shm"):
        Path(f"{world.database}{name}").unlink(missing_ok=True)
    profiles = ("--wiring", str(world.wiring), "--policy", str(world.policy))
    done = world.command("authority", "rebuild", *profiles, "--reason", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    explained = json.loads(world.command("explain", run_id, "--wiring", str(world.wiring), "--json").stdout)
    assert explained["events"][-1]["event_kind"] == "EVIDENCE_DRIFTED"
