"""Consuming the spool: claim by rename, read, validate, admit in one transaction, and only then move the files on.

A kill at any step leaves a file where it was dropped, claimed, or in its final folder. What lies claimed is validated
again by the next start, or after a while by another daemon. The key of a claimed file stays the same, so the authority
knows it, and no request is admitted twice.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
from typing_extensions import override

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.bus.spool import spool_store
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import REFUSED
from scenario_runner.intake import spool_check, spool_files
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.intake.base import Intake, IntakeLag
from scenario_runner.intake.counting import count_admitted
from scenario_runner.intake.decode import Message
from scenario_runner.intake.spans import trace_admitted
from scenario_runner.intake.spool_files import QUIET_SECONDS, ClaimedFile, Contents, Folders, SpoolFiles
from scenario_runner.intake.validate import validate_message
from scenario_runner.storage.anchored import AnchoredRoot, anchored

BATCH: Final = 128
"""Files of one transaction: their renames and the commit share a few fsyncs, and none waits long for the others."""

TAKE_OVER_SECONDS: Final = 3.0
"""A batch of another process that lies claimed for so long is validated here too. Doing so twice does no harm, so a
short time is safe, and a killed daemon delays requests by no more than that."""

#: Listing the claims of other processes costs a system call each; a killed daemon is rare.
_LOTS_CHECK_SECONDS: Final = 1.0
#: A file that is still being written to after so long is validated as it is: its writer may never end.
_LONGEST_COPY_SECONDS: Final = 60.0
#: Between reads of a file that may be incomplete.
_REREAD_SECONDS: Final = 0.25
#: Before a file that the file system does not let us claim or read is tried again.
_RETRY_SECONDS: Final = 5.0
#: Files whose times are compared to find the oldest: a tenth of a second; others are left out.
_MOST_COMPARED: Final = 10_000
#: Names in ``rejected/`` and in keys stay below the 255 bytes of a file name with what is put before and after them.
_LONGEST_SAFE_NAME: Final = 120
#: The same for a name that a digest is appended to.
_LONGEST_STEM: Final = 100
_INCOMPLETE: Final = (
    "If the file was still being written (an incomplete copy): write it under a hidden name, then rename it into "
    "requests/"
)
_log = structlog.get_logger("intake")


@dataclass(frozen=True, slots=True)
class _Incomplete:
    """A claimed file that may still be being written to; times are of the monotonic clock.

    Attributes:
        stamp: Of the file when it was last read.
        first_read: When it was first read.
        changed: When it was last seen changed.
        due: When it is read again.
    """

    stamp: tuple[int, int, int]
    first_read: float
    changed: float
    due: float


@dataclass(frozen=True, slots=True)
class _Validated:
    """A claimed file and what its bytes request."""

    file: ClaimedFile
    stamp: tuple[int, int, int]
    admission: Admission


class SpoolConsumer(Intake):
    """Consumes ``requests/*.json``.

    Args:
        root: Root folder of the spool.
        authority: Where requests are admitted.
        admission: What requests are validated against.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        root: str | AnchoredRoot,
        authority: Authority,
        admission: AdmissionPolicy,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        spool = anchored(root)
        self._files = SpoolFiles(spool)
        self._store = spool_store(spool)
        self._authority, self._admission, self._monotonic = authority, admission, monotonic
        self._names: deque[str] = deque()  # listed and not claimed yet
        self._claimed: dict[ClaimedFile, _Incomplete | None] = {}
        self._others: dict[str, float] = {}  # lots of other processes, and when they were first seen
        self._unclaimable: dict[str, float] = {}  # names that cannot be claimed, and when to try again
        self._warned: set[str] = set()
        self._lots_checked = 0.0

    @override
    def open(self) -> None:
        self._files.open()
        spool_check.probe(self._files)
        self.sweep()
        with self._files.folders() as folders:
            self._adopt_abandoned(folders, after=0.0)

    @override
    def close(self) -> None:
        """Leave what is claimed and not acknowledged to the next start."""

    @override
    def step(self) -> int:
        with self._files.folders() as folders:
            self._adopt_abandoned(folders, TAKE_OVER_SECONDS)
            before = self._due()
            claimed = self._claim(folders, BATCH - len(before))
            validated, failures = self._validate_all(folders, [*before, *claimed])
            if validated:
                admissions = [item.admission for item in validated]
                admitted = self._authority.admit(admissions)
                count_admitted(admissions, admitted)
                trace_admitted(admissions, admitted)
                self._acknowledge(folders, validated, admitted)
            if failures:
                raise failures[0]
        # Claimed files count too: they were taken from the folder, so there may be more to do at once.
        return max(len(validated), len(claimed))

    @override
    def empty(self) -> bool:
        with self._files.folders() as folders:
            names, _ = spool_files.dropped(folders)
            waiting = any(name not in self._unclaimable for name in names)
            return not waiting and not any(spool_files.claimed_lots(folders).values())

    @override
    def lags(self) -> list[IntakeLag]:
        with self._files.folders() as folders:
            dropped = spool_files.oldest_drop(folders, _MOST_COMPARED)
        age = max(0.0, time.time() - dropped) if dropped is not None else 0.0
        return [IntakeLag("spool", age, age)]

    @override
    def sweep(self) -> int:
        with self._files.folders() as folders:
            return spool_check.remove_probes(folders) + self._store.sweep()

    # --- claiming

    def _due(self) -> list[ClaimedFile]:
        """Claimed files to validate now: those not admitted yet, and some that may be complete by now."""
        now = self._monotonic()
        pending = [file for file, incomplete in self._claimed.items() if incomplete is None]
        grown = [file for file, incomplete in self._claimed.items() if incomplete is not None and incomplete.due <= now]
        # At most half a batch: many files that never become complete must leave room for new ones.
        return [*pending, *grown[: BATCH // 2]][:BATCH]

    def _claim(self, folders: Folders, count: int) -> list[ClaimedFile]:
        if not self._names:
            self._list_requests(folders)
        names = [self._names.popleft() for _ in range(min(count, len(self._names)))]
        if not names:
            return []
        claimed, refused = spool_files.claim(folders, names)
        self._claimed.update(dict.fromkeys(claimed))
        for name, error in refused.items():
            self._unclaimable[name] = self._monotonic() + _RETRY_SECONDS
            why = spool_check.obstacle(folders, name) or f"{error.strerror}; check its owner and mode"
            self._warn_once("a request cannot be taken; it is left where it lies, the others are served", name, why)
        return claimed

    def _list_requests(self, folders: Folders) -> None:
        names, others = spool_files.dropped(folders)
        now = self._monotonic()
        self._unclaimable = {name: due for name in names if (due := self._unclaimable.get(name)) is not None}
        self._names.extend(name for name in names if self._unclaimable.get(name, now) <= now)
        self._warned.intersection_update({*self._unclaimable, *others})
        unknown = [name for name in others if name not in self._warned]
        for name, why in spool_check.overlooked(folders, unknown).items():
            self._warn_once("a file in requests/ is not taken", name, why)

    def _warn_once(self, event: str, name: str, why: str) -> None:
        """Warn of a file once, for as long as it lies there."""
        if name not in self._warned:
            self._warned.add(name)
            _log.warning(event, file=_safe(name), detail=why)

    def _adopt_abandoned(self, folders: Folders, after: float) -> None:
        """Claim what other processes claimed so many seconds ago and have not moved on: they may be dead."""
        now = self._monotonic()
        if after and now - self._lots_checked < _LOTS_CHECK_SECONDS:
            return
        self._lots_checked = now
        lots = spool_files.claimed_lots(folders)
        ours = {file.lot for file in self._claimed}
        self._others = {lot: self._others.get(lot, now) for lot in lots if lot not in ours}
        for lot, seen in self._others.items():
            if now - seen >= after:
                self._claimed.update(dict.fromkeys(ClaimedFile(lot, name) for name in lots[lot]))
                spool_files.leave_lots(folders, [] if lots[lot] else [lot])

    # --- validating

    def _validate_all(self, folders: Folders, files: list[ClaimedFile]) -> tuple[list[_Validated], list[OSError]]:
        """Validate files; one that the file system fails to read is tried again later, and does not fail the others."""
        validated: list[_Validated] = []
        failures: list[OSError] = []
        for file in files:
            try:
                item = self._validate(folders, file)
            except OSError as error:
                now = self._monotonic()
                self._claimed[file] = _Incomplete((0, 0, 0), now, now, now + _RETRY_SECONDS)
                failures.append(error)
            else:
                validated += [item] if item is not None else []
        return validated, failures

    def _validate(self, folders: Folders, file: ClaimedFile) -> _Validated | None:
        """Validate a claimed file; None when it is gone, or may still be being written to."""
        contents = spool_files.read(folders, file)
        if contents is None:
            self._forget(folders, [file])
            return None
        admission = validate_message(_message(file, contents), self._admission)
        if admission.reason_code in (Reason.RECORD_NOT_JSON, Reason.RECORD_UNREADABLE):
            incomplete = self._wait_for_rest(file, contents)
            if incomplete is not None:
                self._claimed[file] = incomplete
                return None
        if admission.reason_code == Reason.RECORD_NOT_JSON:
            admission = replace(admission, detail=f"{admission.detail}. {_INCOMPLETE}")
        return _Validated(file, contents.stamp, admission)

    def _wait_for_rest(self, file: ClaimedFile, contents: Contents) -> _Incomplete | None:
        """Until when to wait for the rest of a file; None when it counts as complete."""
        now, before = self._monotonic(), self._claimed[file]
        if contents.quiet:
            return None
        if before is None:
            return _Incomplete(contents.stamp, now, now, now + _REREAD_SECONDS)
        changed = before.changed if before.stamp == contents.stamp else now
        if now - changed >= QUIET_SECONDS or now - before.first_read >= _LONGEST_COPY_SECONDS:
            return None
        return _Incomplete(contents.stamp, before.first_read, changed, now + _REREAD_SECONDS)

    # --- acknowledging

    def _acknowledge(self, folders: Folders, validated: list[_Validated], results: list[Admitted]) -> None:
        """Move files whose disposition is committed out of the claims; reason files are written before."""
        disposed = list(zip(validated, results, strict=True))
        self._explain([(item.file.name, result) for item, result in disposed if result.disposition in REFUSED])
        self._forget(folders, [item.file for item, result in disposed if self._move(folders, item, result)])

    def _move(self, folders: Folders, item: _Validated, result: Admitted) -> bool:
        """Move a file to the folder of its disposition; false when it was changed, so that it holds another message."""
        name = _safe(item.file.name)
        _log.info("record disposed of", record=name, run_id=result.run_id, disposition=result.disposition,
                  reason_code=result.reason_code, repeated=result.repeated)  # fmt: skip
        into = folders.rejected if result.disposition in REFUSED else folders.consumed
        other_name = f"{name.removesuffix('.json')[:_LONGEST_STEM]}.{_short_digest(result.record_key, 16)}.json"
        return spool_files.move_unless_changed(folders, item.file, item.stamp, into, other_name)

    def _explain(self, refused: list[tuple[str, Admitted]]) -> None:
        """Write the reason files of refused requests."""
        if not refused:
            return
        for made in self._store.create_many([_reason_file(name, result) for name, result in refused]):
            if isinstance(made, Unavailable):
                raise made

    def _forget(self, folders: Folders, files: list[ClaimedFile]) -> None:
        """Drop files that are moved or gone from the claims, and remove lots that they leave empty."""
        for file in files:
            self._claimed.pop(file, None)
        ours = {file.lot for file in self._claimed}
        spool_files.leave_lots(folders, {file.lot for file in files} - ours)


def _message(file: ClaimedFile, contents: Contents) -> Message:
    """The message in a claimed file.

    Its key is derived from the claim and the bytes: the same drop with the same bytes has the same key whenever it is
    validated, and no other drop has it.
    """
    identity = f"{file.lot}/".encode() + os.fsencode(file.name) + b"\0" + contents.raw
    key = f"spool/{_safe(file.name)}#{hashlib.sha256(identity).hexdigest()[:32]}"
    return Message(key, contents.raw, contents.size, contents.unreadable)


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
    return f"rejected/{_safe(name)}.{_short_digest(result.record_key, 8)}.reason.json", canonical_bytes(document)


def _short_digest(record_key: str, length: int) -> str:
    return hashlib.sha256(record_key.encode()).hexdigest()[:length]


def _safe(name: str) -> str:
    """A file name in characters that neither a log nor a path can misread."""
    text = name.encode("utf-8", "backslashreplace").decode("ascii", "backslashreplace")
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in text)[:_LONGEST_SAFE_NAME]
