"""``dead-letter redrive``: the bytes of refused records are judged anew, one letter or many at a bounded rate.

Each letter says what it would come to before anything is done. Of many nothing is done without ``--yes``. A command
that was broken off is given again: what was done is left out.
"""

import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import typer

from scenario_runner.authority.acts import ADMITTED, outcome_of
from scenario_runner.authority.base import Authority, RunReader
from scenario_runner.authority.values import COLLISION_CODE, Admitted
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.values import Letter
from scenario_runner.cli.acting import checked_actor, checked_reason
from scenario_runner.cli.console import (
    Exit,
    exit_on_error,
    print_err,
    print_fields,
    print_json,
    print_json_line,
    print_line,
)
from scenario_runner.cli.dead_letter import Options, found_letters, named_letter
from scenario_runner.cli.outputs.acting import REDRIVE
from scenario_runner.cli.read_only import existing_views
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import RequestRefused, UsageError, in_short
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.contracts.times import format_micros
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.intake.redrive import Redrive, Redriven, carry_out, judge, predict
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.compose import make_admission_policy, open_pack
from scenario_runner.service.production import load_to_write
from scenario_runner.service.redrive import open_for_redrive

_FOREVER: Final = sys.maxsize
_DONE: Final = (ADMITTED, Disposition.DUPLICATE.value, Disposition.IGNORED.value)
_FIELDS: Final = (
    "letter", "record_key", "outcome", "reason_code", "sentence", "detail", "run_id", "requested_by", "at_utc",
    "next_action",
)  # fmt: skip
_OF_AN_ACT: Final = (
    "record_key", "disposition", "outcome", "reason_code", "sentence", "detail", "repeated", "requested_by", "at_utc",
)  # fmt: skip
_NEXT: Final = {
    ADMITTED: "a daemon drives the run, or delivers the signal; `status` shows the run",
    Disposition.DUPLICATE.value: "the run of this request was there already; `status` shows it",
    Disposition.IGNORED.value: "the record is not for Scenario Runner; nothing is left to do",
}
_REFUSED: Final = (
    "it stays a dead letter: correct what the detail names in profile, policy or pack and redrive it again, or correct "
    "the request and submit it"
)


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """What was asked for.

    Attributes:
        letter: Which letter; empty for those of the filter.
        filter: Which letters, when none is named; of one letter its ``reason`` is the reason of the act.
        why: The reason of the act.
        most: At most so many letters.
        rate: Most letters a second; 0 for no bound.
        yes: Redrive many without asking.
    """

    letter: str
    filter: Options
    why: str
    requested_by: str | None
    most: int
    rate: int
    yes: bool
    dry_run: bool

    @property
    def reason(self) -> str:
        """Why, as it is put on record."""
        return checked_reason(self.why or (self.filter.reason if self.letter else ""), "--why", needed=False)

    def check_one(self) -> None:
        """Refuse filters beside a letter.

        Raises:
            UsageError: one of them is given.
        """
        others = self.filter
        if others.key or others.shard or others.since or others.until:
            raise UsageError("give one letter, or filters for many")


def run(wiring_path: str, policy_path: str, options: RedriveOptions, *, as_json: bool) -> None:
    """The command."""
    one = bool(options.letter)
    with exit_on_error(as_json=as_json and one):
        actor, reason = checked_actor(options.requested_by), options.reason
        wiring, policy = load_to_write(wiring_path), load_policy(policy_path)
        rules = make_admission_policy(wiring, policy, open_pack(wiring))
        with existing_views(wiring) as views:
            redriver = _Redriver(wiring, rules, views, actor, reason)
            counts = redriver.one(options, as_json=as_json) if one else redriver.many(options, as_json=as_json)
    raise typer.Exit(Exit.DONE if set(counts) <= set(_DONE) else Exit.NEGATIVE)


@dataclass(frozen=True, slots=True)
class _Redriver:
    wiring: Wiring
    rules: AdmissionPolicy
    views: Views | None
    actor: str
    reason: str

    def one(self, options: RedriveOptions, *, as_json: bool) -> Counter[str]:
        """Redrive the letter that is named, or say what it would come to.

        Raises:
            RequestRefused: its bytes are not kept whole.
            UsageError: there is no such letter, or filters are given too.
        """
        options.check_one()
        letter = named_letter(self.views, options.letter)
        assert self.views is not None
        document = self._predicted(self.views, letter, judge(self.views, letter, self.rules))
        if not as_json:
            _print_prediction(document)
        if not options.dry_run:
            with open_for_redrive(self.wiring, self.rules) as authority:
                document |= self._done(authority, letter)
        if as_json:
            print_json(document, REDRIVE)
        else:
            print_fields(document, _FIELDS)
        return Counter([_outcome_of(document)])

    def many(self, options: RedriveOptions, *, as_json: bool) -> Counter[str]:
        """Redrive the letters of a filter, the oldest first, and print a line for each.

        So of two letters with one key the earlier one gets it, as it would have on the control bus. Those whose redrive
        was not refused, or was the same judgement, are left out: the command can be given again.
        """
        dry_run = options.dry_run or not options.yes
        counts: Counter[str] = Counter()
        letters = self._selected(options, counts)
        opened = nullcontext() if dry_run or self.views is None else open_for_redrive(self.wiring, self.rules)
        with opened as authority:
            began = time.monotonic()
            for number, (letter, predicted) in enumerate(letters):
                document = predicted
                if authority is not None:
                    _hold_rate(number, options.rate, began)
                    document = predicted | self._done(authority, letter)
                counts[_outcome_of(document)] += 1
                _print_one_of_many(document, as_json=as_json)
        shown = (
            ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no letter is left to do"
        )
        print_err(shown + ("; nothing was done, --yes redrives them" if dry_run and not options.dry_run else ""))
        return counts

    def _selected(self, options: RedriveOptions, counts: Counter[str]) -> Iterator[tuple[Letter, Json]]:
        """Letters that are left to do, with what they would come to."""
        views, seen = self.views, set[str]()
        # Lists begin with the newest, or with the last key. Eight bytes a letter are kept of the whole list.
        found = found_letters(views, options.filter.filter(self.wiring), None, _FOREVER)
        for number in sorted(array("q", (item.number for item in found))):
            letter = named_letter(views, str(number))
            assert views is not None
            try:
                redrive = judge(views, letter, self.rules)
            except RequestRefused as refused:
                counts[refused.reason.value] += 1
                continue
            if redrive.settled or redrive.earlier is not None or redrive.letter in seen:
                continue
            if len(seen) == options.most:
                print_err(f"more letters are left: --max is {options.most}")
                return
            seen.add(redrive.letter)
            yield letter, self._predicted(views, letter, redrive)

    def _predicted(self, reader: RunReader, letter: Letter, redrive: Redrive) -> Json:
        """What a letter would come to, and the keys of what was done, empty."""
        admitted = predict(reader, redrive.record)
        document: Json = {
            "letter": redrive.letter, "number": letter.number, "predicted": _verdict(admitted),
            "pack_digest": self.rules.pack.digest, "policy_digest": self.rules.policy.content_digest,
            "run_id": admitted.run_id or None, "dry_run": True, "engine_run_root": redrive.engine_run_root or None,
            "note": _note(redrive),
            "earlier": redrive.earlier[0] if redrive.earlier else None,
        }  # fmt: skip
        return document | dict.fromkeys(_OF_AN_ACT) | {"next_action": _next(document["predicted"]["outcome"])}

    def _done(self, authority: Authority, letter: Letter) -> Json:
        return _carried_out(carry_out(authority, letter, self.rules, self.actor, self.reason))


def _carried_out(redriven: Redriven) -> Json:
    act = redriven.act
    return {
        "record_key": redriven.record_key, "disposition": _disposition(act.outcome), "dry_run": False,
        "repeated": redriven.repeated, "requested_by": act.actor, "at_utc": format_micros(act.at_us),
        **_outcome(act.outcome, act.detail), "next_action": _next(act.outcome),
    }  # fmt: skip


def _disposition(outcome: str) -> str:
    """The disposition of a record whose act has an outcome."""
    if outcome in set(Disposition):
        return outcome
    known = {ADMITTED: Disposition.ACCEPTED, COLLISION_CODE: Disposition.CONFLICT}
    return known.get(outcome, Disposition.REJECTED).value


def _verdict(admitted: Admitted) -> Json:
    return {
        "disposition": admitted.disposition.value,
        **_outcome(outcome_of(admitted.disposition, admitted.reason_code), admitted.detail),
    }


def _outcome(outcome: str, detail: str) -> Json:
    refused = outcome in set(Reason)
    return {
        "outcome": outcome,
        "reason_code": outcome if refused else None,
        "sentence": SENTENCES[Reason(outcome)] if refused else None,
        "detail": detail,
    }


def _outcome_of(document: Json) -> str:
    """The outcome of a letter, or the predicted one when nothing was done."""
    return str(document["outcome"] or document["predicted"]["outcome"])


def _next(outcome: str) -> str:
    return _NEXT.get(outcome, _REFUSED)


def _hold_rate(done: int, rate: int, began: float) -> None:
    """Wait until one more letter does not exceed the rate."""
    ahead = done / rate - (time.monotonic() - began) if rate else 0.0
    if ahead > 0:
        time.sleep(ahead)


def _print_prediction(document: Json) -> None:
    predicted = document["predicted"]
    if document["earlier"]:
        print_line(f"letter {document['number']} has come to this under this pack and policy: {document['earlier']}")
        return
    print_line(f"letter {document['number']} would be {predicted['disposition']}: {_said(predicted)}".rstrip(": "))
    if document["engine_run_root"]:
        print_line(f"its engine run root would be {document['engine_run_root']}")
    if document["note"]:
        print_line(document["note"])


def _note(redrive: Redrive) -> str | None:
    """What a person must know who redrives from another working directory than the daemon's."""
    if not redrive.relative_root:
        return None
    return (
        f"the request names the relative root {in_short(redrive.relative_root)}, which counts from the working "
        f"directory of this command ({os.getcwd()}): redrive it in the daemon's working directory"
    )


def _said(verdict: Json) -> str:
    return " ".join(filter(None, (verdict["reason_code"], verdict["detail"])))


def _print_one_of_many(document: Json, *, as_json: bool) -> None:
    """Columns: number, what it came or would come to, run id, letter, detail."""
    if as_json:
        print_json_line(document, REDRIVE)
        return
    verdict = document if document["outcome"] else document["predicted"]
    would = "" if document["outcome"] else "would be "
    text = (
        f"{document['number']:>8}  {would}{verdict['outcome']:24}  {document['run_id'] or '-':32}  {document['letter']}"
    )
    print_line("  ".join(filter(None, (text, verdict["detail"], document["note"]))))
