"""Redrive: the bytes of a refused record are judged anew, as intake would judge them if they came today.

A letter is named by the record key under which its bytes came from the control bus. Its n-th redrive is the record
``redrive/{n}/{letter}``; when that is refused again it is the same letter, and not one more. The same judgement of a
letter under the same pack and policy is carried out once: the key of the act says which judgement it is. The number
is counted before the act, and both keys are unique. So of two people at once one is slower, counts again, and finds the
act of the other.
"""

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.acts import ADMITTED, ActionRow
from scenario_runner.authority.arrivals import NOBODY_WAITS, root_of
from scenario_runner.authority.base import Authority, RunReader
from scenario_runner.authority.reemits import decide, disposition_of, facts_now
from scenario_runner.authority.values import COLLISION_CODE, COLLISION_DETAIL, Admission, Admitted, NewRun
from scenario_runner.authority.views.values import Letter
from scenario_runner.contracts.canonical import canonical_sha256
from scenario_runner.contracts.errors import RequestRefused, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import FINAL_STATES, Disposition
from scenario_runner.contracts.supersession import Supersession, not_ended, not_found
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.intake.decode import Message, decode
from scenario_runner.intake.letters import ACTION, letter_of, redrive_key, redrives_of
from scenario_runner.intake.roots import is_absolute
from scenario_runner.intake.validate import validate_message

SETTLED: Final = (ADMITTED, Disposition.DUPLICATE.value)
"""Outcomes after which nothing of a letter is left to do."""
_FINAL: Final = (*SETTLED, COLLISION_CODE)
"""Outcomes of an admissible letter that do not change later."""
#: Tries of one act: each is lost to another redrive of the same letter, which are people.
_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class Redrive:
    """A letter as it would be judged now.

    Attributes:
        letter: Its record key.
        record: What would be admitted, under the key of the next redrive.
        act_key: Identity of the judgement.
        acts: The redrives that there were, in their order.
        relative_root: The engine run root as the request names it, where that depends on the working directory of who
            judges it; else empty.
    """

    letter: str
    record: Admission
    act_key: str
    acts: tuple[ActionRow, ...]
    relative_root: str = ""

    @property
    def engine_run_root(self) -> str:
        """Where the run that it asks for would have its evidence, or where evidence has come; empty for neither."""
        run, arrival = self.record.run, self.record.arrival
        if arrival is not None:
            return arrival.engine_run_root
        return root_of(run.intent, run.inputs) if run is not None else ""

    @property
    def earlier(self) -> tuple[str, ActionRow] | None:
        """Record key and act of the same judgement; None when it was not carried out yet."""
        for number, act in enumerate(self.acts, 1):
            if act.action_key == self.act_key:
                return redrive_key(number, self.letter), act
        return None

    @property
    def settled(self) -> bool:
        """True when an earlier redrive was not refused."""
        return any(act.outcome in SETTLED for act in self.acts)


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive came to.

    Attributes:
        record_key: The record that it made.
        act: The act on record, by whoever was first.
        run_id: The run that the bytes name; empty when they name none.
        repeated: True when the judgement had been carried out before.
    """

    record_key: str
    act: ActionRow
    run_id: str
    repeated: bool


def check_kept(letter: Letter) -> bytes:
    """The bytes of a letter.

    Raises:
        RequestRefused: ``LETTER_BYTES_NOT_KEPT``: they are not those that came from the control bus, so what they would
            be judged to says nothing about the request.
    """
    raw = letter.raw
    if raw is None:
        problem = "nothing of the bytes is kept"
    elif letter.reason_code == Reason.RECORD_UNREADABLE:
        problem = "the record could not be read when it came"
    elif len(raw) != letter.raw_size:
        problem = f"only the first {len(raw)} of {letter.raw_size} bytes are kept"
    elif hashlib.sha256(raw).hexdigest() != letter.raw_sha256:
        problem = "the bytes that are kept do not have the digest of those that came"
    else:
        return raw
    raise RequestRefused(
        f"letter {letter.number}: {problem}; the sender must send the request again", Reason.LETTER_BYTES_NOT_KEPT
    )


def judge(reader: RunReader, letter: Letter, admission: AdmissionPolicy) -> Redrive:
    """Judge a letter by the rules of today; nothing is written.

    Raises:
        RequestRefused: its bytes are not kept whole.
        Unavailable: the authority does not answer.
    """
    raw, name = check_kept(letter), letter_of(letter.record_key)
    acts = redrives_of(reader, name)
    message = Message(redrive_key(len(acts) + 1, name), raw, len(raw))
    record = validate_message(message, admission)
    relative = _relative_root(message, admission) if record.run is not None or record.arrival is not None else ""
    return Redrive(name, record, _act_key(name, record, admission, acts), acts, relative)


def _relative_root(message: Message, admission: AdmissionPolicy) -> str:
    named = decode(message, admission.topic, admission.record_limit).document.get("engine_run_root") or ""
    return "" if is_absolute(named) else str(named)


def _act_key(letter: str, record: Admission, admission: AdmissionPolicy, acts: Sequence[ActionRow]) -> str:
    """The identity of a judgement: the letter, the pack, the policy, and what the bytes come to under the profile.

    The last is there for the profile: who is put on the allow-list, or where an engine is configured, the same policy
    comes to another judgement, and the letter must not stay refused. What the rules admit, the authority may refuse for
    a reason that passes, such as a run that has not ended yet: after such a refusal the next redrive is another one.
    """
    outcomes = {act.action_key: act.outcome for act in acts}
    admissible = record.run is not None or (record.reemit is not None and not record.reemit.denied)
    for refused in itertools.count():
        key = _judgement(letter, record, admission, refused)
        if not admissible or key not in outcomes or outcomes[key] in _FINAL:
            return key
    raise AssertionError  # a count does not end


def _judgement(letter: str, record: Admission, admission: AdmissionPolicy, refused: int) -> str:
    """A key.

    Args:
        letter: The letter.
        record: What it is judged to be.
        admission: The rules.
        refused: How often the authority has refused it.
    """
    run = record.run
    judged = [
        record.disposition.value if record.disposition else "",
        record.reason_code,
        record.reemit.denied if record.reemit else "",
    ]
    judged += [run.fingerprint, run.plan_hash] if run else []
    judged += [str(refused)] if refused else []
    return f"redrive/{canonical_sha256([letter, admission.pack.digest, admission.policy.content_digest, judged])}"


def predict(reader: RunReader, record: Admission) -> Admitted:
    """The disposition that a record would get now; nothing is written. The rate limit of a re-emit is counted too."""
    disposition, reason, detail = record.disposition, record.reason_code, record.detail
    if record.run is not None:
        disposition, reason, detail = _predict_run(reader, record.run)
    elif record.reemit is not None:
        now_us = time.time_ns() // 1000
        decision = decide(record.reemit, facts_now(reader, record.reemit, now_us), now_us)
        disposition, reason = disposition_of(decision.outcome)
        detail = decision.detail
    elif record.arrival is not None and not reader.awaited(record.arrival):
        disposition, detail = Disposition.IGNORED, NOBODY_WAITS
    assert disposition is not None
    return Admitted(record.record_key, disposition, reason, detail, record.run_id, repeated=False)


def _predict_run(reader: RunReader, run: NewRun) -> tuple[Disposition, str, str]:
    known = reader.run(run.run_id)
    if known is None:
        return _predict_correction(reader, run.supersession)
    own = next((row.supersession for row in reader.supersessions(run.run_id) if row.new_run_id == run.run_id), None)
    same = (known.run_equivalence_key, known.intent, own) == (run.run_equivalence_key, run.intent, run.supersession)
    return (Disposition.DUPLICATE, "", "") if same else (Disposition.CONFLICT, COLLISION_CODE, COLLISION_DETAIL)


def _predict_correction(reader: RunReader, supersession: Supersession | None) -> tuple[Disposition, str, str]:
    """What comes of a run that is not known: the authority asks the same of the run that it corrects."""
    if supersession is None:
        return Disposition.ACCEPTED, "", ""
    old = reader.run(supersession.old_run_id)
    if old is not None and old.state in FINAL_STATES:
        return Disposition.ACCEPTED, "", ""
    reason, detail = not_ended(supersession) if old is not None else not_found(supersession)
    return Disposition.REJECTED, reason.value, detail


def carry_out(authority: Authority, letter: Letter, admission: AdmissionPolicy, actor: str, reason: str) -> Redriven:
    """Redrive a letter, or say what the same redrive came to before.

    Raises:
        RequestRefused: its bytes are not kept whole.
        Unavailable: the authority does not answer. Whether it was done says the same call later.
    """
    for _ in range(_TRIES):
        redrive = judge(authority, letter, admission)
        record = redrive.record
        if redrive.earlier is not None:
            return Redriven(*redrive.earlier, record.run_id, repeated=True)
        action = ActionRow(redrive.act_key, 0, actor, "cli", ACTION, redrive.letter, reason, "", "")
        if authority.admit_for(action, record) is not None:
            done = authority.acts([action.action_key])[action.action_key]
            return Redriven(record.record_key, done, record.run_id, repeated=False)
    raise Unavailable(f"others redrive the letter {letter.number} at the same time; ask again")
