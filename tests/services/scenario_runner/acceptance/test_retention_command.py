"""``retention`` with the installed command: what goes, what stays, what it says, and that nothing else notices."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from crashing import until
from support import COMMAND, ForkedWorld

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}
MONTH = {"intake_records_days": 30, "dead_letter_raw_days": 30, "outbox_sent_days": 30, "digest_reuse_days": 30}
KINDS = ["intake_records", "dead_letter_raw", "outbox_sent", "digest_reuse", "spool_consumed"]
KEYS = {
    "kind", "keep_days", "before_utc", "expired", "more", "oldest_utc", "removed", "outcome", "action_key",
    "longest_batch_ms", "note",
}  # fmt: skip


class Scene:
    """A READY run whose signal was published again, and a refused record; everything is 40 days old."""

    def __init__(self, root: Path, days: int = 40) -> None:
        self.world = ForkedWorld(root, policy_changes={"retention": MONTH})
        made = self.world.make_run("ready", **SMALL)
        self.run_id, self.asked = str(made["run_id"]), made["request"]
        self.world.drop(self.asked, "ready.json")
        self.world.drop(self.asked | {"run_equivalence_key": "refused", "seed": "seven"}, "refused.json")
        self.serve()
        self.command("reemit", self.run_id, "--reason", "lost", policy=False)
        self.age(days)

    def serve(self) -> None:
        served = self.world.serve("--log-level", "error")
        assert served.returncode == 0, served.stderr.decode()

    def sql(self, text: str, *values: object) -> Sequence[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.world.database, isolation_level=None)) as connection:
            return connection.execute(text, values).fetchall()

    def age(self, days: int) -> None:
        shift = days * 86_400 * 1_000_000
        self.sql("UPDATE intake_records SET received_us = received_us - ?", shift)
        self.sql("UPDATE outbox SET sent_us = sent_us - ?", shift)

    def command(self, *arguments: str, policy: bool = True, text: bool = False) -> subprocess.CompletedProcess[bytes]:
        profiles = ["--wiring", str(self.world.wiring), *(["--policy", str(self.world.policy)] if policy else [])]
        return self.world.command(*arguments, *profiles, *([] if text else ["--json"]))

    def retention(self, *arguments: str) -> dict[str, Any]:
        done = self.command("retention", *arguments)
        assert done.returncode == 0, done.stderr.decode()
        document = dict(json.loads(done.stdout))
        assert [item["kind"] for item in document["kinds"]] == KINDS
        assert all(set(item) == KEYS for item in document["kinds"]), "keys are always there"
        return document

    def rows(self) -> dict[str, int]:
        return {
            table: self.sql(f"SELECT count(*) FROM {table}")[0][0]
            for table in ("intake_records", "dead_letters", "outbox", "digest_reuse", "operator_actions", "runs")
        }


def by_kind(document: dict[str, Any], key: str) -> list[Any]:
    return [item[key] for item in document["kinds"]]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "world")


def test_plan_says_what_has_expired_of_which_kind_and_changes_nothing(scene: Scene) -> None:
    before = scene.rows()
    document = scene.retention("plan")
    assert (document["policy_id"], document["policy_revision"]) == ("test_policy", "v0")
    assert (document["dry_run"], document["complete"]) == (True, None)
    assert by_kind(document, "expired") == [1, 1, 2, 0, None]
    assert by_kind(document, "more") == [False, False, False, False, None]
    assert by_kind(document, "keep_days") == [30, 30, 30, 30, None]
    assert document["kinds"][0]["oldest_utc"] < document["kinds"][0]["before_utc"]
    assert scene.retention("run", "--dry-run") | {"kinds": 0} == document | {"kinds": 0}
    assert scene.rows() == before
    shown = scene.command("retention", "plan", text=True).stdout.decode().splitlines()
    assert shown[0].startswith("intake_records    1 expired, the oldest of ")
    assert shown[4] == "spool_consumed    kept for ever"


def test_run_removes_it_and_every_kind_is_an_act_on_record(scene: Scene) -> None:
    document = scene.retention("run", "--reason", "monthly", "--requested-by", "ops")
    assert by_kind(document, "removed") == [1, 1, 2, 0, None]
    assert by_kind(document, "outcome") == ["DONE"] * 4 + [None]
    assert document["complete"] is True
    acts = scene.sql(
        "SELECT subject, actor, via, reason, outcome, detail, action_key FROM operator_actions "
        "WHERE action = 'retention' ORDER BY action_id"
    )
    assert [act[0] for act in acts] == KINDS[:4]
    assert {act[1:5] for act in acts} == {("ops", "cli", "monthly", "DONE")}
    assert [act[5].split(", older than ")[0] for act in acts] == [
        "1 rows removed", "1 dead letters emptied", "2 rows removed", "0 rows removed",
    ]  # fmt: skip
    assert [act[6] for act in acts] == by_kind(document, "action_key")[:4]
    assert by_kind(scene.retention("run"), "removed") == [0, 0, 0, 0, None]


def test_the_run_is_what_it_was_and_a_careful_reader_finds_all_of_it(scene: Scene) -> None:
    documents = {
        path: path.read_bytes() for path in scene.world.ledger.rglob("*.json*") if ".private" not in path.parts
    }
    scene.retention("run")
    for command in ("status", "explain", "verify"):
        done = scene.command(command, scene.run_id, policy=False)
        assert done.returncode == 0, (command, done.stderr)
    assert all(path.read_bytes() == data for path, data in documents.items())


def test_a_request_that_comes_again_after_its_record_has_gone_is_a_duplicate(scene: Scene) -> None:
    scene.retention("run")
    scene.world.drop(scene.asked, "ready.json")
    scene.serve()
    assert scene.sql("SELECT disposition FROM intake_records WHERE run_id = ?", scene.run_id) == [("DUPLICATE",)]
    assert len(scene.world.signals("READY")) == 1


def test_a_signal_that_is_published_once_more_gets_a_number_of_its_own(scene: Scene) -> None:
    scene.retention("run")
    answer = json.loads(scene.command("reemit", scene.run_id, "--reason", "lost again", policy=False).stdout)
    assert (answer["outcome"], answer["emission"]) == ("PUBLISHED", 2)
    names = sorted(path.name.split(".", 1)[1] for path in scene.world.signals_folder.glob("*.reemit-*.json"))
    assert names == ["reemit-1.json", "reemit-2.json"]


def test_a_dead_letter_says_that_its_bytes_were_removed_and_keeps_the_rest(scene: Scene) -> None:
    (before,) = json.loads(scene.command("dead-letter", "list", policy=False).stdout)["dead_letters"]
    scene.retention("run")
    shown = json.loads(scene.command("dead-letter", "show", str(before["number"]), policy=False).stdout)
    assert shown["raw_removed_at_utc"] is not None
    assert before["raw_removed_at_utc"] is None
    same = set(before) - {"raw_removed_at_utc"}
    assert {key: shown[key] for key in same} == {key: before[key] for key in same}
    assert (shown["raw_base64"], shown["raw_text"]) == (None, None)
    assert shown["kept"].startswith("nothing: retention removed the bytes at ")
    raw = scene.world.command(
        "dead-letter", "show", str(before["number"]), "--as", "raw", "--wiring", str(scene.world.wiring)
    )
    assert raw.returncode == 2
    assert b"retention removed the bytes" in raw.stderr


def test_what_is_younger_than_the_policy_says_stays(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "world", days=29)
    before = scene.rows()
    assert by_kind(scene.retention("run"), "removed") == [0, 0, 0, 0, None]
    assert scene.rows() == before | {"operator_actions": before["operator_actions"] + 4}


def test_without_a_retention_in_the_policy_everything_is_kept_for_ever(scene: Scene) -> None:
    scene.world.policy_changes.clear()
    scene.world.write_profiles()
    before = scene.rows()
    document = scene.retention("run")
    assert by_kind(document, "keep_days") == [None] * 5
    assert document["complete"] is True
    assert scene.rows() == before


def test_consumed_files_of_the_spool_stay_while_they_are_young(scene: Scene) -> None:
    scene.world.policy_changes["retention"] = {"spool_consumed_days": 1}
    scene.world.write_profiles()
    assert by_kind(scene.retention("plan"), "expired") == [None, None, None, None, 0]
    assert by_kind(scene.retention("run"), "outcome") == [None, None, None, None, "DONE"]
    assert [path.name for path in (scene.world.bus / "consumed").iterdir()] == ["ready.json"]


def test_a_profile_that_was_never_started_has_nothing_and_gets_nothing(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world", policy_changes={"retention": MONTH})
    before = sorted(world.root.rglob("*"))
    for command in ("plan", "run"):
        done = world.command(
            "retention", command, "--wiring", str(world.wiring), "--policy", str(world.policy), "--json"
        )
        assert by_kind(json.loads(done.stdout), "expired") == [0, 0, 0, 0, None]
    assert sorted(world.root.rglob("*")) == before


@pytest.mark.parametrize("option", ["--reason", "--requested-by"])
def test_a_text_that_no_act_can_keep_is_refused(scene: Scene, option: str) -> None:
    for text in ("bell\x07", "x" * 257):
        done = scene.command("retention", "run", option, text)
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["detail"].startswith(f"{option}: ")
    assert scene.rows()["intake_records"] == 2


def test_no_batch_begins_after_max_seconds(scene: Scene) -> None:
    document = scene.retention("run", "--max-seconds", "0")
    assert by_kind(document, "outcome") == ["NOT_BEGUN"] * 4 + [None]
    assert document["complete"] is False
    assert scene.rows()["intake_records"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_between_two_batches_and_the_next_one_goes_on(scene: Scene, number: int) -> None:
    scene.sql(
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 2000) "
        "INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, "
        "received_us, raw_sha256, raw_size) SELECT 'old/' || n, '', '', '', 'IGNORED', '', '', n, '', 1 FROM s"
    )
    profiles = ["--wiring", str(scene.world.wiring), "--policy", str(scene.world.policy)]
    process = subprocess.Popen(
        [COMMAND, "retention", "run", *profiles, "--batch", "10", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(lambda: 0 < scene.rows()["intake_records"] < 1990, "rows go")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, b"stopping" in err) == (0, True), err
    first = json.loads(out)
    assert first["complete"] is False
    assert first["kinds"][0]["outcome"] == "STOPPED"
    left = scene.rows()["intake_records"]
    assert first["kinds"][0]["removed"] + left == 2002, "the act counts what has gone"
    assert scene.retention("run")["kinds"][0]["removed"] == left - 1
