"""What a soak asks of the daemon: a steady mix of requests, and what has to become of each."""

import json
import math
import random
import shutil
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sr_tools.bench.report import CheckFailedError, Json
from sr_tools.bench.world import TOPIC, World, run_id_of

#: Of a thousand requests so many are of each kind.
_MIX: Final = {
    "known": 820,  # a new key for the engine run that all share
    "own": 15,  # an engine run of its own
    "late": 10,  # an engine run of its own, which comes later
    "never": 15,  # an engine run that never comes
    "duplicate": 40,  # an earlier request once more
    "conflict": 10,  # an earlier key with another intent
    "refused": 30,  # no request
    "not_json": 10,  # no JSON
    "reemit": 50,  # a request to publish an earlier READY once more
}
#: Requests that duplicates, conflicts and re-emits refer to: the newest ones, so that this process does not grow.
_REMEMBERED: Final = 2000
#: At least so many requests lie between one and what refers to it: at 20 a second it is READY by then as a rule.
_BEFORE: Final = 100
#: Late evidence comes when this part of the evidence wait has passed.
_LATE_PART: Final = 0.3
#: Numbers of engine runs from here on are theirs.
_FILLING_NUMBERS: Final = 1_000_000_000
#: Seconds between two tries of a drop while the spool is away.
_AGAIN_SECONDS: Final = 0.2
#: Engine runs that fill the daemon's caches of evidence (20 and 15 MB) in the first fifth of half an hour: growth
#: after it is then none of theirs. A shorter soak has fewer in proportion.
_FILLING, _FILLING_MEMBERS, _FILLING_SECONDS = 80, 60, 1800.0
_WARM_UP_PART: Final = 0.2
_DISPOSITIONS: Final = "SELECT kind, disposition, count(*) FROM intake_records GROUP BY kind, disposition"
_SIGNALS: Final = "SELECT run_id, count(*) FROM outbox WHERE kind IN ('READY', 'TERMINAL') GROUP BY run_id"


@dataclass(frozen=True)
class _Hidden:
    """An engine run that lies elsewhere until its time has come."""

    due: float
    aside: Path
    place: Path


class Load:
    """Drops requests and knows what has to become of them.

    Attributes:
        dropped: How many of each kind.
        expected: State that each admitted run must end in, by run id.

    Args:
        world: Where.
        rate: Requests a second.
        evidence_wait: Seconds that runs of the world wait for evidence.
    """

    def __init__(self, world: World, rate: float, evidence_wait: float) -> None:
        self.dropped: Counter[str] = Counter()
        self.expected: dict[str, str] = {}
        self._world, self._rate, self._late = world, rate, evidence_wait * _LATE_PART
        self._random = random.Random(0)
        self._earlier: deque[tuple[str, Json]] = deque(maxlen=_REMEMBERED)
        self._hidden: deque[_Hidden] = deque()
        self._known = world.make_engine_run("known", 0)
        self._filling: deque[tuple[str, Json]] = deque()

    def prepare(self, seconds: float) -> None:
        """Make the engine runs that fill caches in the warm-up of a soak of so many seconds."""
        for number in range(math.ceil(_FILLING * min(1.0, seconds / _FILLING_SECONDS))):
            key = f"filling-{number}"
            made = self._world.make_engine_run(key, _FILLING_NUMBERS + number, members=_FILLING_MEMBERS)
            self._filling.append((key, made))

    def run(self, seconds: float) -> None:
        """Drop requests at the steady rate for that long; what the spool did not take in the meantime is made up."""
        began, filling = time.monotonic(), len(self._filling)
        while (passed := time.monotonic() - began) < seconds:
            if self._filling and filling - len(self._filling) < filling * passed / (seconds * _WARM_UP_PART):
                self._drop("filling", self.dropped.total())
            elif self.dropped.total() < passed * self._rate:
                (kind,) = self._random.choices(list(_MIX), list(_MIX.values()))
                self._drop(kind, self.dropped.total())
            else:
                time.sleep(0.5 / self._rate)
            self._show(time.monotonic())
        self._show(float("inf"))

    def _drop(self, kind: str, number: int) -> None:
        if kind in ("duplicate", "conflict", "reemit"):
            earlier = self._an_earlier()
            if earlier is not None:
                self._put(kind, f"{kind}-{number}", _again(kind, number, *earlier))
                return
            kind = "known"
        key = f"{kind}-{number}"
        if kind == "filling":
            key, request = self._filling.popleft()
            self._ask(kind, key, request)
        elif kind == "not_json":
            self._put(kind, key, f"no JSON {number}")
        elif kind == "refused":
            self._put(kind, key, {"run_equivalence_key": key})
        else:
            request = self._request(kind, key, number)
            self._earlier.append((key, request))
            self._ask(kind, key, request)

    def _ask(self, kind: str, key: str, request: Json) -> None:
        self.expected[run_id_of(key)] = "FAILED" if kind == "never" else "READY"
        self._put(kind, key, {**request, "run_equivalence_key": key})

    def _request(self, kind: str, key: str, number: int) -> Json:
        if kind == "known":
            return self._known
        if kind == "never":
            return {**self._known, "engine_run_root": str(self._world.runs / "never" / key)}
        made = self._world.make_engine_run(key, number + 1)
        if kind == "late":
            place = Path(made["engine_run_root"])
            aside = self._world.root / "hidden" / key
            aside.parent.mkdir(exist_ok=True)
            place.rename(aside)
            self._hidden.append(_Hidden(time.monotonic() + self._late, aside, place))
        return made

    def _an_earlier(self) -> tuple[str, Json] | None:
        """A request that was disposed of; None when the one that was chosen lies in the spool, or the spool is away.

        A spool has no order: a record that refers to another would else stand for the key.
        """
        old = len(self._earlier) - _BEFORE
        if old <= 0:
            return None
        key, request = self._earlier[self._random.randrange(old)]
        consumed = self._world.requests.with_name("consumed") / f"{key}.json"
        return (key, request) if consumed.exists() else None

    def _put(self, kind: str, name: str, record: Mapping[str, Any] | str) -> None:
        """Rename a record into the spool and count it; while the spool is away, try again."""
        data = record if isinstance(record, str) else json.dumps(record)
        temporary = self._world.requests / f".{name}.tmp"
        deadline = time.monotonic() + self._world.timeout
        while time.monotonic() < deadline:
            try:
                temporary.write_text(data, "utf-8")
                temporary.rename(self._world.requests / f"{name}.json")
            except FileNotFoundError:
                time.sleep(_AGAIN_SECONDS)
            else:
                self.dropped[kind] += 1
                return
        raise CheckFailedError(f"{self._world.requests} did not come back")

    def _show(self, now: float) -> None:
        while self._hidden and self._hidden[0].due <= now:
            hidden = self._hidden.popleft()
            shutil.move(hidden.aside, hidden.place)

    def check(self) -> None:
        """Each record has one disposition, each run its verdict, and each signal is on the bus once.

        Raises:
            CheckFailedError: Says what does not hold.
        """
        _require("states of runs", self.expected, dict(self._world.query("SELECT run_id, state FROM runs")))
        _require("dispositions", self._dispositions(), self._found())
        _require("signals of runs", dict.fromkeys(self.expected, 1), dict(self._world.query(_SIGNALS)))
        self._world.check([run_id for run_id, state in self.expected.items() if state == "READY"])
        owed = self._world.query("SELECT kind, count(*) FROM outbox WHERE sent_us IS NULL GROUP BY kind")
        _require("signals that are owed", {}, dict(owed))
        rows = self._world.query("SELECT message_id, emission FROM outbox")
        names = [f"{message}.json" if not emission else f"{message}.reemit-{emission}.json"
                 for message, emission in rows]  # fmt: skip
        _require("signals on the bus", dict(Counter(names)),
                 dict.fromkeys((path.name for path in self._world.signals.glob("*.json")), 1))  # fmt: skip

    def _dispositions(self) -> dict[str, int]:
        kinds = self.dropped
        return {
            "ACCEPTED": len(self.expected),
            "DUPLICATE": kinds["duplicate"],
            "CONFLICT": kinds["conflict"],
            "REJECTED": kinds["refused"] + kinds["not_json"],
            "REEMIT_REQUEST": kinds["reemit"],
        }

    def _found(self) -> dict[str, int]:
        """As :meth:`_dispositions`: a re-emit is accepted or refused, since its run may not be READY yet."""
        found = dict.fromkeys(self._dispositions(), 0)
        for kind, disposition, number in self._world.query(_DISPOSITIONS):
            name = kind if kind == "REEMIT_REQUEST" else disposition
            found[name] = found.get(name, 0) + number
        return found


def _again(kind: str, number: int, key: str, request: Json) -> Json:
    """A record that refers to an earlier request."""
    if kind == "duplicate":
        return {**request, "run_equivalence_key": key}
    if kind == "conflict":
        return {**request, "run_equivalence_key": key, "seed": int(request["seed"]) + 1}
    run_id = run_id_of(key)
    return {
        "topic": TOPIC,
        "message_id": f"soak-reemit-{number}",
        "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "REEMIT_REQUEST"},
        "partition_key": run_id,
        "payload": {"run_id": run_id, "reemit_kind": "BOTH", "reason": "soak", "requested_by": "bench"},
    }


def _require(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse what differs, with the first of it.

    Raises:
        CheckFailedError: They differ.
    """
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        some = ", ".join(f"{key}: {found.get(key)}, not {wanted.get(key)}" for key in wrong[:3])
        raise CheckFailedError(f"{what}: {len(wrong)} of {len(wanted)} are wrong; {some}")
