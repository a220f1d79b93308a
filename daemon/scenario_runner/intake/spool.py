"""Consuming the spool: read, judge, admit in one transaction, and only then move the files away.

A kill between the commit and the move delivers the record again; its key is known then and nothing happens twice.
"""

import errno
import hashlib
import os
import secrets
import stat
import time
from collections import deque
from typing import Final

import structlog

from scenario_runner.authority.base import Admitted, Authority
from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths, spool_store
from scenario_runner.contracts.canonical import canonical_bytes, sha256_hex
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.intake.decode import Record
from scenario_runner.intake.judge import Rules, judge
from scenario_runner.storage.anchored import AnchoredRoot, anchored

BATCH: Final = 128
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TAKEN: Final = ".taken"
_TAKEN_SECONDS: Final = 2.0
_REFUSED: Final = (Disposition.REJECTED, Disposition.CONFLICT)
_log = structlog.get_logger("intake")


class SpoolConsumer:
    """Consumes ``requests/*.json``.

    Args:
        root: The spool's root.
        authority: Where records are admitted.
        rules: What they are judged by.
    """

    def __init__(self, root: str | AnchoredRoot, authority: Authority, rules: Rules) -> None:
        self._root = anchored(root)
        self._paths = SpoolPaths(self._root.path)
        self._store = spool_store(self._root)
        self._authority, self._rules = authority, rules
        self._names: deque[str] = deque()

    def open(self) -> None:
        """See :class:`~scenario_runner.intake.base.Intake`: makes the folders, and finishes what was begun."""
        self._paths.make(self._root)
        self.sweep()

    def close(self) -> None:
        """Nothing: a file is put away in the step that read it."""

    def step(self) -> int:
        """Admit one batch; returns how many records were disposed of.

        Raises:
            Unavailable: the authority or the spool does not answer; nothing was moved.
        """
        self._root.proven()
        if not self._names:
            self._names.extend(self._waiting())
        names = [self._names.popleft() for _ in range(min(BATCH, len(self._names)))]
        found = [(name, record) for name in names if (record := self._read(name)) is not None]
        if not found:
            return 0
        try:
            admitted = self._authority.admit([judge(record, self._rules) for _, record in found])
        except Unavailable:
            self._names.clear()
            raise
        for (name, record), result in zip(found, admitted, strict=True):
            self._put_away(name, record, result)
        return len(found)

    def empty(self) -> bool:
        """True when no request waits in the spool."""
        self._root.proven()
        return not self._names and not self._waiting()

    def _waiting(self) -> list[str]:
        try:
            names = os.listdir(self._paths.requests)
        except OSError as error:
            raise Unavailable(f"cannot list {self._paths.requests}: {error.strerror}") from error
        return sorted(name for name in names if name.endswith(".json") and not name.startswith("."))

    def _read(self, name: str) -> Record | None:
        path = os.path.join(self._paths.requests, name)
        try:
            fd = os.open(path, _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE):
                raise Unavailable(f"cannot read {path}: {error.strerror}") from error
            return self._unreadable(name, path, error.strerror or "cannot be opened")
        try:
            return self._read_open(fd, name, path)
        except FileNotFoundError:
            return None  # another intake process has put it away
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _read_open(self, fd: int, name: str, path: str) -> Record | None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return self._unreadable(name, path, "it is not a regular file")
        raw = b""
        while len(raw) < min(info.st_size, MAX_RECORD_BYTES):
            chunk = os.read(fd, MAX_RECORD_BYTES - len(raw))
            if not chunk:
                break
            raw += chunk
        if not os.path.samestat(info, os.lstat(path)):
            return None  # it was replaced meanwhile: for the next look
        if info.st_nlink > 1 and self._half_moved(name, info) and self._authority.disposed(sha256_hex(raw)):
            self._take_away(name, info)
            return None
        return Record(_record_key(name, info, raw), raw, info.st_size, inode=info.st_ino)

    def _half_moved(self, name: str, info: os.stat_result) -> bool:
        """True when a killed process had given the file its new name and not yet taken the old one."""
        for folder in (self._paths.consumed, self._paths.rejected):
            for target in _targets(name, info):
                try:
                    if os.path.samestat(info, os.lstat(os.path.join(folder, target))):
                        return True
                except OSError:
                    continue
        return False

    def _unreadable(self, name: str, path: str, why: str) -> Record | None:
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return None
        return Record(_record_key(name, info, b""), b"", 0, f"{name}: {why}", info.st_ino)

    def _put_away(self, name: str, record: Record, result: Admitted) -> None:
        refused = result.disposition in _REFUSED
        folder = self._paths.rejected if refused else self._paths.consumed
        _log.info("record disposed of", record=name, run_id=result.run_id, disposition=result.disposition,
                  reason_code=result.reason_code, repeated=result.repeated)  # fmt: skip
        try:
            if refused:
                self._explain(name, result)
            self._move(name, folder, record)
        except FileNotFoundError:
            return  # another intake process moved it
        except OSError as error:
            raise Unavailable(f"cannot move {name} to {folder}: {error.strerror}") from error

    def _move(self, name: str, folder: str, record: Record) -> None:
        """Move the admitted file, and no other that was dropped under its name since, overwriting nothing."""
        source = os.path.join(self._paths.requests, name)
        info = os.lstat(source)
        if info.st_ino != record.inode:  # it was replaced: a record of its own, for the next look
            self._keep(folder, name, record)
            return
        for target in _targets(name, info):
            path = os.path.join(folder, target)
            if stat.S_ISDIR(info.st_mode):
                if not os.path.lexists(path):
                    os.rename(source, path)
                    return
                continue
            try:
                os.link(source, path, follow_symlinks=False)
            except FileExistsError:
                if not os.path.samestat(info, os.lstat(path)):
                    continue  # another file; else another process is moving this one
            if os.lstat(path).st_ino != record.inode:  # the same, between the look and the link
                os.unlink(path)
                self._keep(folder, name, record)
                return
            self._take_away(name, info)
            return
        raise FileExistsError(errno.EEXIST, "both names for it are taken", source)

    def _keep(self, folder: str, name: str, record: Record) -> None:
        """Keep the bytes of an admitted record whose file was overwritten before it could be put away."""
        suffix = hashlib.sha256(record.key.encode()).hexdigest()[:16]
        self._store.create(
            f"{os.path.basename(folder)}/{_safe(name.removesuffix('.json'))[:100]}.{suffix}.json", record.raw
        )

    def _take_away(self, name: str, info: os.stat_result) -> None:
        """Remove a request that has its new name; what was dropped in its place meanwhile is put back."""
        source = os.path.join(self._paths.requests, name)
        taken = os.path.join(self._paths.private, f"{secrets.token_hex(8)}{_TAKEN}")
        os.rename(source, taken)
        if os.lstat(taken).st_ino == info.st_ino:
            os.unlink(taken)
        else:
            self._put_back(taken)

    def _put_back(self, taken: str) -> None:
        token = os.path.basename(taken).removesuffix(_TAKEN)
        os.rename(taken, os.path.join(self._paths.requests, f"put-back-{token}.json"))

    def _recover(self) -> None:
        """Finish what a killed process had begun to take away."""
        for name in os.listdir(self._paths.private):
            path = os.path.join(self._paths.private, name)
            if not name.endswith(_TAKEN) or time.time() - (info := os.lstat(path)).st_ctime <= _TAKEN_SECONDS:
                continue
            if info.st_nlink > 1:
                os.unlink(path)
            else:
                self._put_back(path)

    def sweep(self) -> int:
        """Finish and remove what killed processes left behind; returns how many temporary files were removed."""
        try:
            self._recover()
        except FileNotFoundError:
            return 0  # another process was quicker
        except OSError as error:
            raise Unavailable(f"cannot recover {self._paths.private}: {error.strerror}") from error
        return self._store.sweep()

    def _explain(self, name: str, result: Admitted) -> None:
        """Write the reason file that stands beside a refused request."""
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
        suffix = hashlib.sha256(result.record_key.encode()).hexdigest()[:8]
        self._store.create(f"rejected/{_safe(name)}.{suffix}.reason.json", canonical_bytes(document))


def _safe(name: str) -> str:
    text = name.encode("utf-8", "backslashreplace").decode("ascii", "backslashreplace")
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in text)[:120]


def _record_key(name: str, info: os.stat_result, raw: bytes) -> str:
    """The same drop has the same key, however often it is delivered; dropping the file again makes another record."""
    identity = (os.fsencode(name), info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, raw)
    return f"spool/{_safe(name)}#{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}"


def _targets(name: str, info: os.stat_result) -> tuple[str, str]:
    """Names for a file that is put away: its own, or one that no other file has."""
    return name, f"{_safe(name.removesuffix('.json'))[:100]}.{info.st_ino}.{info.st_mtime_ns}.json"
