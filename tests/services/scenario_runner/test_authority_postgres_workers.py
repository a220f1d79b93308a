"""What many workers do to one PostgreSQL at a time, what it cannot store, and what the work of one run reads of it."""

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from authority_support import LEASE, START, asking, claim_one, commit, disposed, event, hex32, new_run, retried, waiting
from postgres_support import Schema, given_dsn

from scenario_runner.authority.base import Authority
from scenario_runner.authority.statements import load_statements
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.states import Disposition

pytest_plugins = ("postgres_fixtures",)
pytestmark = pytest.mark.parity


def test_eight_processes_on_one_run_never_share_an_epoch(schema: Schema, authority: Authority) -> None:
    """Leases run out at once, so that every claim is a theft."""
    authority.admit([asking("k")])
    source = (
        "import sys\nfrom scenario_runner.authority.postgres import PostgresAuthority\n"
        f"authority = PostgresAuthority({schema.dsn!r}, 'p')\nclaimed = 0\n"
        "while claimed < 25:\n    claims = authority.claim('w' + sys.argv[1], 1, 0)\n"
        "    claimed += len(claims)\n    print(*[claim.epoch for claim in claims])\nauthority.close()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", source, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(8)
    ]
    epochs = [[int(text) for text in process.communicate(timeout=120)[0].split()] for process in running]
    assert sorted(epoch for found in epochs for epoch in found) == list(range(1, 201))
    assert all(found == sorted(found) for found in epochs)


def test_a_worker_that_holds_a_row_does_not_keep_others_from_claiming(schema: Schema, authority: Authority) -> None:
    authority.admit([asking("a"), asking("b")])
    with schema.admin.transaction():
        schema.query("SELECT 1 FROM runs WHERE run_id = %s FOR UPDATE", hex32("a"))
        assert [claim.run_id for claim in authority.claim("w1", 10, LEASE)] == [hex32("b")]
    assert [claim.run_id for claim in authority.claim("w1", 10, LEASE)] == [hex32("a")]


def test_batches_that_meet_in_any_order_wait_for_each_other_and_do_not_die(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    first, second = opened(schema.dsn), opened(schema.dsn)
    keys = [f"k{number}" for number in range(40)]

    def admit(authority: Authority, order: list[str], name: str) -> list[str]:
        return [item.disposition.value for turn in range(5) for item in authority.admit(
            [asking(f"{key} {turn}", f"{name} {key} {turn}") for key in order])]  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(admit, first, keys, "one"), pool.submit(admit, second, keys[::-1], "two")]
        answers = [future.result(60) for future in futures]
    assert sorted(answers[0] + answers[1]) == ["ACCEPTED"] * 200 + ["DUPLICATE"] * 200


REFUSE = """
    INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                                raw_sha256, raw_size)
    VALUES (%s, '', 'RUN_REQUEST', '', 'REJECTED', 'UNKNOWN_OUTPUT_ID', 'by other rules', 1, '', 1)"""
OTHERS_RUN = """
    INSERT INTO runs
    SELECT (jsonb_populate_record(r, jsonb_build_object('run_id', %s::text, 'run_equivalence_key', %s::text))).*
    FROM runs r WHERE r.run_id = %s"""


def admitted_behind(schema: Schema, authority: Authority, batch: list[Any], end: str) -> list[Any]:
    """Admit a batch that has to wait for the open transaction of another intake, and end that."""
    with psycopg.connect(schema.dsn, autocommit=True) as looking, ThreadPoolExecutor(1) as pool:
        admitting = pool.submit(authority.admit, batch)
        deadline = time.monotonic() + 10
        while not looking.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
            assert time.monotonic() < deadline, "nobody waits for the other intake"
            time.sleep(0.02)
        schema.query(end)
        return admitting.result(30)


@pytest.mark.parametrize("fingerprint", ["one", "two"])
def test_a_request_whose_run_another_intake_is_inserting_is_judged_when_that_run_is_seen(
    schema: Schema, authority: Authority, fingerprint: str
) -> None:
    authority.admit([asking("unrelated")])
    schema.query("BEGIN")
    schema.query(OTHERS_RUN, hex32("k"), "k", hex32("unrelated"))
    (answer,) = admitted_behind(schema, authority, [asking("k", fingerprint=fingerprint)], "COMMIT")
    assert answer.disposition.value == ("DUPLICATE" if fingerprint == "one" else "CONFLICT")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_no_run_stays_beside_a_record_that_an_intake_with_other_rules_refuses_at_the_same_time(
    schema: Schema, authority: Authority, end: str
) -> None:
    """A rolling deploy: both read the same record, and one of them knows an output that the other does not."""
    batch = [asking("before"), asking("k"), asking("k", "again"), asking("after")]
    schema.query("BEGIN")
    schema.query(REFUSE, batch[1].record_key)
    answers = admitted_behind(schema, authority, batch, end)
    found = [(item.disposition.value, item.repeated) for item in answers]
    if end == "ROLLBACK":
        assert found == [("ACCEPTED", False)] * 2 + [("DUPLICATE", False), ("ACCEPTED", False)]
    else:  # the other record that asks for the run is judged by itself
        assert found == [("ACCEPTED", False), ("REJECTED", True), ("ACCEPTED", False), ("ACCEPTED", False)]
        assert answers[1].detail == "by other rules"
    stray = """SELECT run_id FROM runs r WHERE NOT EXISTS
               (SELECT 1 FROM intake_records i WHERE i.run_id = r.run_id AND i.disposition = 'ACCEPTED')"""
    assert schema.query(stray) == []
    assert schema.query("SELECT count(*) FROM run_events") == [(12,)]


# --- what cannot be stored --------------------------------------------------------------------------------------------


def poisoned(**changes: Any) -> Any:
    return lambda: replace(asking("bad", "bad"), run=replace(new_run("bad"), **changes))


POISON: dict[str, Callable[[], Any]] = {
    "a NUL in the key": poisoned(run_equivalence_key="bad\x00key"),
    "half of a surrogate pair in the key": poisoned(run_equivalence_key="bad\ud800key"),
    "a NUL in the run id": lambda: replace(asking("bad", "bad"), run_id="bad\x00"),
    "a key that no index can hold": poisoned(run_equivalence_key="".join(secrets.token_hex(4000))),
    "a deadline after the end of time": poisoned(evidence_wait_us=2**63 - 1),
    "a wait that is no number of microseconds": poisoned(evidence_wait_us=2**70),
    "a size that no column can hold": lambda: replace(disposed("bad", Disposition.REJECTED), raw_size=2**64),
}


@pytest.mark.parametrize("kind", POISON)
def test_a_record_that_cannot_be_stored_is_refused_and_takes_no_other_along(
    schema: Schema, authority: Authority, kind: str
) -> None:
    batch = [asking("a"), asking("b"), POISON[kind](), asking("c"), disposed("d", Disposition.IGNORED)]
    answers = authority.admit(batch)
    assert [item.disposition.value for item in answers] == ["ACCEPTED", "ACCEPTED", "REJECTED", "ACCEPTED", "IGNORED"]
    assert [item.record_key for item in answers] == [record.record_key for record in batch]
    assert answers[2].detail.isprintable()
    assert answers[2].reason_code == "REQUEST_SCHEMA_INVALID"
    assert schema.query("SELECT raw FROM dead_letters") == [(batch[2].raw,)]
    assert [item.repeated for item in authority.admit(batch)] == [True] * 5, "it does not come back for ever"
    assert authority.run(hex32("bad")) is None


def test_texts_for_people_may_hold_anything(authority: Authority) -> None:
    hostile = "NUL \x00 half \udc80 pair \U0001f600 ünï"
    record = replace(disposed("r", Disposition.REJECTED, hex32("k")), detail=hostile, message_id=hostile, kind=hostile)
    assert authority.admit([record, asking("k")])[0].disposition is Disposition.REJECTED
    claim = claim_one(authority)
    commit(authority, retried(claim, 0, hostile))
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.last_error == "NUL \\x00 half \\udc80 pair \U0001f600 ünï"
    claim = claim_one(authority)
    commit(authority, waiting(claim, START, [event(detail="NUL \x00", key="\x01")]))
    assert authority.events(hex32("k"))[-1].details["detail"] == "NUL \x00"


def test_a_batch_with_something_of_our_own_that_has_no_canonical_form_is_a_defect(authority: Authority) -> None:
    with pytest.raises(SequenceError):
        authority.admit([asking("a"), poisoned(intent={"a float": 0.5})()])
    assert authority.run(hex32("a")) is None


# --- the work of one run ----------------------------------------------------------------------------------------------


def read_of(node: dict[str, Any]) -> int:
    """Rows that the scans of a plan read of tables: those they returned, and those they looked at in vain."""
    here = 0
    if "Relation Name" in node and node["Node Type"] != "ModifyTable":
        counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        here = sum(int(node.get(name, 0)) for name in counts) * node["Actual Loops"]
    elif node["Node Type"] == "Bitmap Index Scan":
        here = int(node["Actual Rows"]) * node["Actual Loops"]
    return here + sum(map(read_of, node.get("Plans", ())))


@pytest.fixture(scope="module", params=["with statistics", "without statistics"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Schema]:
    """3000 runs are due, half of them new; 3000 have ended and their signals are unsent. Each has an attempt."""
    made = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(made.dsn, "profile p").close()
    made.query("""
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                          updated_us, due_us, event_seq, projected_seq)
        SELECT md5(n::text), n, 'f', '{}', '{}',
               CASE n % 4 WHEN 1 THEN 'WAITING_EVIDENCE' WHEN 3 THEN 'PLANNED' ELSE 'READY' END, n, n, n,
               CASE n % 2 WHEN 0 THEN NULL ELSE n END, 5, CASE n % 4 WHEN 0 THEN 5 ELSE 0 END
        FROM generate_series(1, 6000) n""")
    made.query("""
        INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
        SELECT n, md5(n::text), 'READY', '', '{}', '{}', n, 5 FROM generate_series(2, 6000, 2) n""")
    made.query("""
        INSERT INTO engine_attempts
        SELECT md5(n::text), 1, n, 1, '', '', 0, 0, NULL, '', '', NULL, '', FALSE, 0, '', ''
        FROM generate_series(1, 6000) n""")
    if request.param == "with statistics":
        made.query("ANALYZE runs, outbox, engine_attempts")
    for setting in ("enable_seqscan = off", "plan_cache_mode = force_generic_plan", "jit = off"):
        made.query(f"SET {setting}")
    yield made
    made.drop()


ONE_RUN = sorted(name for name in load_statements("postgres") if name.endswith("_only"))


@pytest.mark.parametrize("number", [5999, 6000])
@pytest.mark.parametrize("name", [*ONE_RUN, "list_attempts", "attempts_of_runs"])
def test_the_work_of_one_run_is_found_among_thousands_without_reading_those(
    crowded: Schema, name: str, number: int
) -> None:
    run_id = crowded.query("SELECT md5(%s)", str(number))[0][0]
    values = {"only": run_id, "run_id": run_id, "run_ids": f"{{{run_id}}}", "owner": "w", "limit": 64, "most_new": 32,
              "lease_us": 9, "quiet_us": 9, "started": "{}", "root": "", "roots": "{/none}", "after": ""}  # fmt: skip
    text = load_statements("postgres")[name]
    names = dict.fromkeys(re.findall(r"%\(([a-z_]+)\)b", text))
    for position, parameter in enumerate(names, 1):
        text = text.replace(f"%({parameter})b", f"${position}")
    given = ", ".join(f"'{values[parameter]}'" for parameter in names)
    with crowded.admin.transaction(force_rollback=True):
        crowded.query(f"PREPARE one_run AS {text}")
        plan = crowded.query(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE one_run ({given})")[0][0][0]["Plan"]
    crowded.query("DEALLOCATE one_run")
    assert "Seq Scan" not in str(plan)
    assert read_of(plan) <= 20


@pytest.mark.parametrize(
    ("name", "given"),
    [("awaited_roots", {"roots": ["/none", "/others"]}), ("waiting_at", {"root": "/none", "after": "", "limit": 500})],
)
def test_a_root_where_no_run_waits_is_looked_up_without_reading_those_that_wait(
    crowded: Schema, name: str, given: dict[str, Any]
) -> None:
    text = load_statements("postgres")[name].replace(")b", ")s")
    with crowded.admin.cursor() as cursor:
        (plan,) = cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", given).fetchall()[0][0]  # type: ignore[call-overload]
    assert "Seq Scan" not in str(plan)
    assert read_of(plan["Plan"]) <= 2
