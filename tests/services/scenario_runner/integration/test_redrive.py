"""Letters that are judged anew, on both engines: as intake judges, once for each judgement, whatever fails."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import claim_one, commit, failed, waiting
from support import ForkedWorld

from scenario_runner.authority.acts import Arrival
from scenario_runner.bus.envelope import arrival_envelope, request_envelope
from scenario_runner.contracts.errors import RequestRefused, Unavailable
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.intake.decode import Message
from scenario_runner.intake.letters import letter_of, redrive_key
from scenario_runner.intake.redrive import carry_out, judge, predict
from scenario_runner.intake.validate import validate_message
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from views_support import Database

    from scenario_runner.authority.acts import ActionRow
    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Admission, Admitted
    from scenario_runner.authority.views.values import Letter
    from scenario_runner.intake.admission_policy import AdmissionPolicy

    Rules = Callable[..., AdmissionPolicy]

pytestmark = pytest.mark.integration

NOT_ENDED = Reason.SUPERSEDED_RUN_NOT_ENDED.value
KEY = "kinesis/stream/shardId-000000000001/4957"


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """Makes the rules of a profile whose allow-list and policy revision are these."""
    world = ForkedWorld(tmp_path / "profiles")

    def make(*invokers: str, revision: str = "v0", **wiring: Any) -> AdmissionPolicy:
        world.policy_changes = {"revision": revision}
        world.write_profiles(auth_mode="allowlist", auth_allowlist=list(invokers) or ["nobody"], **wiring)
        profile = load_wiring(str(world.wiring))
        return make_admission_policy(profile, load_policy(str(world.policy)), open_pack(profile))

    return make


def request(run_key: str, **changes: Any) -> bytes:
    return json.dumps({
        "run_equivalence_key": run_key, "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64, "seed": 7,
        "scenario": {"scenario_id": "base"}, "output_ids": ["arrival_events_5B"], "invoker": "nightly",
        "window": {"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00Z",
                   "window_tz": "UTC"},
        **changes,
    }).encode()  # fmt: skip


def refused(database: Database, rules: AdmissionPolicy, raw: bytes, key: str = KEY) -> Letter:
    """A letter: a record that came from the bus and was refused."""
    database.authority.admit([validate_message(Message(key, raw, len(raw)), rules)])
    letter = database.views.letter(key)
    assert letter is not None
    return letter


@pytest.fixture
def letter(database: Database, rules: Rules) -> Letter:
    with_root = request("k", engine_run_root=str(rules("x").engine_roots[0]) + "/r")
    return refused(database, rules("somebody"), with_root)


def test_it_is_judged_by_who_may_ask_today_and_never_by_who_redrives(
    database: Database,
    rules: Rules,
    letter: Letter,
) -> None:
    still = carry_out(database.authority, letter, rules("ops"), "ops", "again")
    assert (still.act.outcome, still.act.actor, still.record_key) == ("AUTH_DENIED", "ops", redrive_key(1, KEY))
    done = carry_out(database.authority, letter, rules("nightly"), "ops", "on the list now")
    assert (done.act.outcome, done.record_key, done.run_id) == ("ADMITTED", redrive_key(2, KEY), run_id_of("k"))
    assert database.authority.run(run_id_of("k")) is not None
    assert [act.outcome for act in database.authority.actions(KEY)] == ["AUTH_DENIED", "ADMITTED"]
    assert database.views.letter(KEY) == letter, "a letter never changes"


def test_a_judgement_is_carried_out_once_and_another_policy_is_another_judgement(
    database: Database,
    rules: Rules,
    letter: Letter,
) -> None:
    first = carry_out(database.authority, letter, rules("nightly"), "ann", "r")
    again = carry_out(database.authority, letter, rules("nightly", "more"), "bob", "r")
    assert again == replace(first, repeated=True)
    other = carry_out(database.authority, letter, rules("nightly", revision="v1"), "bob", "r")
    assert (other.act.outcome, other.record_key) == ("DUPLICATE", redrive_key(2, KEY))
    assert judge(database.views, letter, rules("nightly")).settled


def test_many_at_once_redrive_it_once(database: Database, rules: Rules, letter: Letter) -> None:
    chosen = rules("nightly")
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda n: carry_out(database.authority, letter, chosen, f"p{n}", "r"), range(6)))
    assert [item.repeated for item in done].count(False) == 1
    assert len({(item.record_key, item.act) for item in done}) == 1
    assert len(database.authority.actions(KEY)) == 1


def test_different_judgements_at_once_get_numbers_of_their_own(
    database: Database,
    rules: Rules,
    letter: Letter,
) -> None:
    made = [rules("nightly", revision=f"v{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda chosen: carry_out(database.authority, letter, chosen, "p", "r"), made))
    assert {item.record_key for item in done} == {redrive_key(number, KEY) for number in range(1, 5)}
    assert sorted(item.act.outcome for item in done) == ["ADMITTED", "DUPLICATE", "DUPLICATE", "DUPLICATE"]


def test_a_relative_root_counts_from_the_working_directory_of_whoever_redrives_and_the_prediction_says_so(
    database: Database,
    rules: Rules,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = str(rules("x").engine_roots[0])
    letter = refused(database, rules("somebody"), request("r", engine_run_root="deep/r"))
    absolute = refused(database, rules("somebody"), request("a", engine_run_root=f"file://{root}/r"), "bus/a")
    Path(root).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(root)
    here = judge(database.views, letter, rules("nightly"))
    assert (here.engine_run_root, here.relative_root) == (f"{root}/deep/r", "deep/r")
    there = judge(database.views, absolute, rules("nightly"))
    assert (there.engine_run_root, there.relative_root) == (f"{root}/r", "")
    assert judge(database.views, letter, rules("somebody")).relative_root == "", "it would be no run"


class Failing:
    """An authority whose admissions fail, before they are carried out or after."""

    def __init__(self, authority: Authority, *, after: bool) -> None:
        self._authority, self._after = authority, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._authority, name)

    def admit_for(self, action: ActionRow, record: Admission) -> Admitted | None:
        if self._after:
            self._authority.admit_for(action, record)
        raise Unavailable("the connection was lost")


@pytest.mark.parametrize("after", [False, True])
def test_when_the_answer_is_lost_the_same_call_says_what_came_of_it(
    database: Database,
    rules: Rules,
    letter: Letter,
    *,
    after: bool,
) -> None:
    failing: Any = Failing(database.authority, after=after)
    with pytest.raises(Unavailable):
        carry_out(failing, letter, rules("nightly"), "ann", "r")
    assert (database.authority.run(run_id_of("k")) is not None) is after
    done = carry_out(database.authority, letter, rules("nightly"), "ann", "r")
    assert (done.repeated, done.act.outcome) == (after, "ADMITTED")
    assert len(database.authority.actions(KEY)) == 1


@pytest.mark.parametrize(
    ("before", "disposition", "reason"),
    [
        ({}, Disposition.ACCEPTED, ""),
        ({"seed": 7}, Disposition.DUPLICATE, ""),
        ({"seed": 2**64 - 1}, Disposition.CONFLICT, "EQUIV_KEY_COLLISION"),
    ],
)
def test_a_prediction_is_what_comes_and_writes_nothing(
    database: Database,
    rules: Rules,
    letter: Letter,
    before: dict[str, Any],
    disposition: Disposition,
    reason: str,
) -> None:
    chosen = rules("nightly")
    if before:
        raw = request("k", engine_run_root=str(chosen.engine_roots[0]) + "/r", **before)
        database.authority.admit([validate_message(Message("first", raw, len(raw)), chosen)])
    rows = database.run("SELECT count(*) FROM intake_records")
    predicted = predict(database.views, judge(database.views, letter, chosen).record)
    assert (predicted.disposition, predicted.reason_code) == (disposition, reason)
    assert (database.run("SELECT count(*) FROM intake_records"), database.authority.actions(KEY)) == (rows, [])
    assert carry_out(database.authority, letter, chosen, "p", "r").act.outcome == (
        reason or ("ADMITTED" if disposition is Disposition.ACCEPTED else disposition.value)
    )


@pytest.mark.parametrize(
    "raw",
    [
        b'{"topic": "fp.bus.control.v1", "message_id": "m", "published_at_utc": "2026-01-01T00:00:00Z", "attributes": '
        b'{"kind": "REEMIT_REQUEST"}, "partition_key": "p", "payload": {"run_id": "' + b"0" * 32 +
        b'", "reemit_kind": "BOTH", "requested_by": "nightly", "reason": "\\u0000\\ud800"}}',
        b'{"run_equivalence_key": "\\u0000", "notes": "\\ud800"}',
        b"\x00\xff",
        b"[" * 100_000,
        b"",
    ],
    ids=["reemit", "unstorable", "binary", "deep", "empty"],
)  # fmt: skip
def test_hostile_bytes_are_refused_again_each_with_a_record_and_an_act(
    database: Database,
    rules: Rules,
    raw: bytes,
) -> None:
    found = refused(database, rules("nightly"), raw)
    predicted = predict(database.views, judge(database.views, found, rules("nightly")).record)
    done = carry_out(database.authority, found, rules("nightly"), "p\x00\ud800", "r\x00\ud800")
    assert done.act.outcome == predicted.reason_code == found.reason_code
    again = database.views.letter(done.record_key)
    assert again is not None
    assert (again.raw, again.disposition) == (raw, Disposition.REJECTED)
    assert carry_out(database.authority, again, rules("nightly"), "p", "r").repeated, "the same letter"


def test_bytes_that_are_not_those_that_came_are_not_judged(database: Database, rules: Rules, letter: Letter) -> None:
    for damaged in (
        replace(letter, raw=None), replace(letter, raw=b"{}"), replace(letter, raw_size=letter.raw_size + 1),
        replace(letter, raw=(letter.raw or b"")[:-1] + b" "), replace(letter, reason_code="RECORD_UNREADABLE"),
    ):  # fmt: skip
        with pytest.raises(RequestRefused) as caught:
            carry_out(database.authority, damaged, rules("nightly"), "p", "r")
        assert caught.value.reason is Reason.LETTER_BYTES_NOT_KEPT
    assert database.authority.actions(KEY) == []


def test_what_the_authority_refused_for_a_reason_that_passes_is_redriven_when_it_has_passed(
    database: Database,
    rules: Rules,
) -> None:
    chosen = rules("nightly")
    root = str(chosen.engine_roots[0]) + "/r"
    old = request("old", engine_run_root=root)
    database.authority.admit([validate_message(Message("bus/old", old, len(old)), chosen)])
    correction = request_envelope(
        chosen.topic, "m", 1_767_225_600_000_000, run_id_of("new"), json.loads(request("new", engine_run_root=root)),
        Supersession(run_id_of("old"), "late data", ""),
    )  # fmt: skip
    letter = refused(database, chosen, correction)
    for number in (1, 2):
        assert predict(database.views, judge(database.views, letter, chosen).record).reason_code == NOT_ENDED
        early = carry_out(database.authority, letter, chosen, "ops", "too early")
        assert (early.act.outcome, early.record_key) == (NOT_ENDED, redrive_key(number, KEY))
    commit(database.authority, failed(claim_one(database.authority)))
    assert predict(database.views, judge(database.views, letter, chosen).record).disposition is Disposition.ACCEPTED
    done = carry_out(database.authority, letter, chosen, "ops", "it has ended")
    assert (done.act.outcome, done.record_key, done.repeated) == ("ADMITTED", redrive_key(3, KEY), False)
    assert carry_out(database.authority, letter, chosen, "ops", "r") == replace(done, repeated=True)
    other = refused(database, chosen, correction.replace(b"late data", b"wrong data"), "bus/other")
    assert other.disposition is Disposition.CONFLICT
    assert predict(database.views, judge(database.views, other, chosen).record).disposition is Disposition.CONFLICT


@pytest.mark.parametrize("named", [False, True])
def test_the_prediction_of_an_arrival_says_whether_a_run_waits_there(
    database: Database,
    rules: Rules,
    *,
    named: bool,
) -> None:
    allowed = rules("nightly")
    root = str(allowed.engine_roots[0]) + "/r"
    payload = {"engine_run_root": root} | ({"run_id": run_id_of("k")} if named else {})
    said = arrival_envelope(allowed.topic, "m", 1_767_225_600_000_000, root, payload)
    letter = refused(database, replace(allowed, engine_roots=("/elsewhere",)), said)
    asked = request("k", engine_run_root=root)
    database.authority.admit([validate_message(Message("bus/k", asked, len(asked)), allowed)])
    claim = claim_one(database.authority)
    predicted = predict(database.views, judge(database.views, letter, allowed).record)
    assert (predicted.disposition, predicted.detail) == (Disposition.IGNORED, "no run waits for evidence there")
    commit(database.authority, waiting(claim, claim.deadline_us))
    elsewhere = replace(judge(database.views, letter, allowed).record, arrival=Arrival(root + "0"))
    assert predict(database.views, elsewhere).disposition is Disposition.IGNORED
    other = replace(judge(database.views, letter, allowed).record, arrival=Arrival(root, run_id_of("other")))
    assert predict(database.views, other).disposition is Disposition.IGNORED
    assert predict(database.views, judge(database.views, letter, allowed).record).disposition is Disposition.ACCEPTED
    assert carry_out(database.authority, letter, allowed, "ops", "r").act.outcome == "ADMITTED"


def test_a_letter_keeps_its_name_through_redrives() -> None:
    assert letter_of(redrive_key(12, KEY)) == letter_of(KEY) == KEY
    for odd in ("redrive/", "redrive/0/x", "redrive/x/y", "redrive/1/", "redrive/\u0661/x"):
        assert letter_of(odd) == odd
