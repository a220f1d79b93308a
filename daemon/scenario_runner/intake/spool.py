"""Consuming the spool: claim by rename, read, judge, admit in one transaction, and only then move the files on.

A kill at any step leaves a file where it was dropped, claimed, or put away. What lies claimed is judged again by the
next start, or by another daemon after a while; its key is the same then, so nothing happens twice.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from scenario_runner.authority.base import Admission, Admitted, Authority
from scenario_runner.bus.spool import spool_store
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.intake import spool_files
from scenario_runner.intake.decode import Record
from scenario_runner.intake.judge import Rules, dead_letter, judge
from scenario_runner.intake.spool_files import QUIET_SECONDS, ClaimedFile, Contents, Folders, SpoolFiles
from scenario_runner.storage.anchored import AnchoredRoot, anchored

BATCH: Final = 128
TAKE_OVER_SECONDS: Final = 3.0
"""What another process has claimed and not put away for so long is judged here too; doing it twice does no harm."""
_LOOK_FOR_OTHERS_SECONDS: Final = 1.0
_LONGEST_COPY_SECONDS: Final = 60.0
"""A file that is still being written to after so long is judged as it is."""
_LOOK_AGAIN_SECONDS: Final = 0.25
_TRY_AGAIN_SECONDS: Final = 5.0
_INCOMPLETE: Final = (
    "If the file was still being written (an incomplete copy): write it under a hidden name, then rename it into "
    "requests/"
)
_REFUSED: Final = (Disposition.REJECTED, Disposition.CONFLICT)
_log = structlog.get_logger("intake")


@dataclass(frozen=True, slots=True)
class _Growing:
    """A claimed file that may still be being written to; times are of the monotonic clock."""

    stamp: tuple[int, int, int]
    first_seen: float
    changed: float
    due: float


@dataclass(frozen=True, slots=True)
class _Judged:
    """A claimed file whose bytes are judged."""

    file: ClaimedFile
    stamp: tuple[int, int, int]
    admission: Admission


class SpoolConsumer:
    """Consumes ``requests/*.json``.

    Args:
        root: The spool's root.
        authority: Where records are admitted.
        rules: What they are judged by.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        root: str | AnchoredRoot,
        authority: Authority,
        rules: Rules,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        spool = anchored(root)
        self._files = SpoolFiles(spool)
        self._store = spool_store(spool)
        self._authority, self._rules, self._monotonic = authority, rules, monotonic
        self._names: deque[str] = deque()
        self._claimed: dict[ClaimedFile, _Growing | None] = {}
        self._others: dict[str, float] = {}  # lots of other processes, and when they were first seen
        self._stuck: dict[str, float] = {}  # names that nobody can take, and when to try again
        self._said: set[str] = set()
        self._looked = 0.0

    def open(self) -> None:
        """See :class:`~scenario_runner.intake.base.Intake`: makes the folders, and finishes what was begun."""
        self._files.open()
        self._files.probe()
        self.sweep()
        with self._files.folders() as folders:
            self._take_over(folders, after=0.0)

    def close(self) -> None:
        """Nothing: what is claimed and not put away is judged again by the next start."""

    def step(self) -> int:
        """Claim and admit one batch; returns how many records were disposed of, or at least claimed.

        Raises:
            Unavailable: the authority or the spool does not answer; what was claimed stays so.
        """
        with self._files.folders() as folders:
            self._take_over(folders, TAKE_OVER_SECONDS)
            before = self._due()
            claimed = self._claim(folders, BATCH - len(before))
            judged, failures = self._judge_all(folders, [*before, *claimed])
            if judged:
                self._put_away(folders, judged, self._authority.admit([item.admission for item in judged]))
            if failures:
                raise failures[0]
        return max(len(judged), len(claimed))

    def empty(self) -> bool:
        """True when no request waits that can be taken, and none lies claimed."""
        with self._files.folders() as folders:
            names, _ = spool_files.dropped(folders)
            waiting = any(name not in self._stuck for name in names)
            return not waiting and not any(spool_files.claimed_lots(folders).values())

    def sweep(self) -> int:
        """Remove temporary files that killed processes left behind; returns how many."""
        with self._files.folders() as folders:
            return spool_files.sweep(folders) + self._store.sweep()

    # --- claiming

    def _due(self) -> list[ClaimedFile]:
        """Claimed files to judge now: those not admitted yet, and some that may be complete by now."""
        now = self._monotonic()
        pending = [file for file, growing in self._claimed.items() if growing is None]
        grown = [file for file, growing in self._claimed.items() if growing is not None and growing.due <= now]
        return [*pending, *grown[: BATCH // 2]][:BATCH]

    def _claim(self, folders: Folders, count: int) -> list[ClaimedFile]:
        if not self._names:
            self._list(folders)
        names = [self._names.popleft() for _ in range(min(count, len(self._names)))]
        if not names:
            return []
        claimed, refused = spool_files.claim(folders, names)
        self._claimed.update(dict.fromkeys(claimed))
        for name, error in refused.items():
            self._stuck[name] = self._monotonic() + _TRY_AGAIN_SECONDS
            why = spool_files.obstacle(folders, name) or f"{error.strerror}; check its owner and mode"
            self._say("a request cannot be taken; it is left where it lies, the others are served", name, why)
        return claimed

    def _list(self, folders: Folders) -> None:
        names, others = spool_files.dropped(folders)
        now = self._monotonic()
        self._stuck = {name: due for name in names if (due := self._stuck.get(name)) is not None}
        self._names.extend(name for name in names if self._stuck.get(name, now) <= now)
        self._said.intersection_update({*self._stuck, *others})
        unsaid = [name for name in others if name not in self._said]
        for name, why in spool_files.overlooked(folders, unsaid).items():
            self._say("a file in requests/ is not taken", name, why)

    def _say(self, event: str, name: str, why: str) -> None:
        """Once for each name, as long as it lies there."""
        if name not in self._said:
            self._said.add(name)
            _log.warning(event, file=_safe(name), detail=why)

    def _take_over(self, folders: Folders, after: float) -> None:
        """Judge what others claimed so long ago, and have not put away: they may be dead."""
        now = self._monotonic()
        if after and now - self._looked < _LOOK_FOR_OTHERS_SECONDS:
            return
        self._looked = now
        lots = spool_files.claimed_lots(folders)
        ours = {file.lot for file in self._claimed}
        self._others = {lot: self._others.get(lot, now) for lot in lots if lot not in ours}
        for lot, seen in self._others.items():
            if now - seen >= after:
                self._claimed.update(dict.fromkeys(ClaimedFile(lot, name) for name in lots[lot]))
                spool_files.leave_lots(folders, [] if lots[lot] else [lot])

    # --- judging

    def _judge_all(self, folders: Folders, files: list[ClaimedFile]) -> tuple[list[_Judged], list[OSError]]:
        """What the files ask for; a file that the file system fails to read is tried again by itself, later."""
        judged: list[_Judged] = []
        failures: list[OSError] = []
        for file in files:
            try:
                item = self._judge(folders, file)
            except OSError as error:
                now = self._monotonic()
                self._claimed[file] = _Growing((0, 0, 0), now, now, now + _TRY_AGAIN_SECONDS)
                failures.append(error)
            else:
                judged += [item] if item is not None else []
        return judged, failures

    def _judge(self, folders: Folders, file: ClaimedFile) -> _Judged | None:
        """What a claimed file asks for; None when it is gone, or may still be being written to."""
        contents = spool_files.read(folders, file)
        if contents is None:
            self._forget(folders, [file])
            return None
        admission = self._admission(_record(file, contents))
        if admission.reason_code in (Reason.RECORD_NOT_JSON, Reason.RECORD_UNREADABLE):
            growing = self._still_growing(file, contents)
            if growing is not None:
                self._claimed[file] = growing
                return None
        if admission.reason_code == Reason.RECORD_NOT_JSON:
            admission = replace(admission, detail=f"{admission.detail}. {_INCOMPLETE}")
        return _Judged(file, contents.stamp, admission)

    def _admission(self, record: Record) -> Admission:
        try:
            return judge(record, self._rules)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a record that breaks the judge must not block those after it
            _log.critical("a record broke the judge; it is kept as a dead letter", record=record.key, exc_info=error)
            return dead_letter(record.key, record.raw, record.size, error)

    def _still_growing(self, file: ClaimedFile, contents: Contents) -> _Growing | None:
        """How long to wait for the rest of a file; None when it is to be judged as it is."""
        now, before = self._monotonic(), self._claimed[file]
        if contents.quiet:
            return None
        if before is None:
            return _Growing(contents.stamp, now, now, now + _LOOK_AGAIN_SECONDS)
        changed = before.changed if before.stamp == contents.stamp else now
        if now - changed >= QUIET_SECONDS or now - before.first_seen >= _LONGEST_COPY_SECONDS:
            return None
        return _Growing(contents.stamp, before.first_seen, changed, now + _LOOK_AGAIN_SECONDS)

    # --- putting away

    def _put_away(self, folders: Folders, judged: list[_Judged], results: list[Admitted]) -> None:
        disposed = list(zip(judged, results, strict=True))
        self._explain([(item.file.name, result) for item, result in disposed if result.disposition in _REFUSED])
        self._forget(folders, [item.file for item, result in disposed if self._move(folders, item, result)])

    def _move(self, folders: Folders, item: _Judged, result: Admitted) -> bool:
        """Put an admitted file where its disposition says; false when it holds another record by now."""
        name = _safe(item.file.name)
        _log.info("record disposed of", record=name, run_id=result.run_id, disposition=result.disposition,
                  reason_code=result.reason_code, repeated=result.repeated)  # fmt: skip
        into = folders.rejected if result.disposition in _REFUSED else folders.consumed
        other_name = f"{name.removesuffix('.json')[:100]}.{_short(result.record_key, 16)}.json"
        return spool_files.put_away(folders, item.file, item.stamp, into, other_name)

    def _explain(self, refused: list[tuple[str, Admitted]]) -> None:
        """Write the reason files that stand beside refused requests."""
        if not refused:
            return
        for made in self._store.create_many([_reason_file(name, result) for name, result in refused]):
            if isinstance(made, Unavailable):
                raise made

    def _forget(self, folders: Folders, files: list[ClaimedFile]) -> None:
        for file in files:
            self._claimed.pop(file, None)
        ours = {file.lot for file in self._claimed}
        spool_files.leave_lots(folders, {file.lot for file in files} - ours)


def _record(file: ClaimedFile, contents: Contents) -> Record:
    """The same drop with the same bytes has the same key, however often it is judged; no other drop has it."""
    identity = f"{file.lot}/".encode() + os.fsencode(file.name) + b"\0" + contents.raw
    key = f"spool/{_safe(file.name)}#{hashlib.sha256(identity).hexdigest()[:32]}"
    return Record(key, contents.raw, contents.size, contents.unreadable)


def _reason_file(name: str, result: Admitted) -> tuple[str, bytes]:
    """Key and bytes of the file that says why a request was refused."""
    reason = Reason(result.reason_code)
    document = {
        "disposition": result.disposition.value,
        "reason_code": reason.value,
        "sentence": SENTENCES[reason],
        "detail": result.detail,
        "record": ascii(name)[1:-1],
        "record_key": result.record_key,
        "run_id": result.run_id,
    }
    return f"rejected/{_safe(name)}.{_short(result.record_key, 8)}.reason.json", canonical_bytes(document)


def _short(record_key: str, length: int) -> str:
    return hashlib.sha256(record_key.encode()).hexdigest()[:length]


def _safe(name: str) -> str:
    text = name.encode("utf-8", "backslashreplace").decode("ascii", "backslashreplace")
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in text)[:120]
