"""Checks of a spool: whether its intake can work in it, and which files in ``requests/`` no daemon takes."""

import os
import secrets
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from scenario_runner.contracts.errors import ConfigurationError, printable
from scenario_runner.intake import spool_files
from scenario_runner.intake.spool_files import Folders, SpoolFiles, folder_paths

#: A temporary name (hidden, ``.tmp``, ``.part`` ...) is its producer's business for so long; no copy of a request of
#: 1 MiB takes longer.
_FORGOTTEN_SECONDS: Final = 300.0
#: A probe takes milliseconds; one that is older was left by a killed process.
_STALE_SECONDS: Final = 3600.0
_PROBE: Final = "probe-"
_TEMPORARY: Final = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")


# ---------------------------------------------------------------- the folders


def probe(files: SpoolFiles) -> None:
    """Try what an intake needs, and leave nothing behind.

    Raises:
        ConfigurationError: A folder cannot be written to, or files cannot be renamed from one to the next.
        Unavailable: A folder is missing.
    """
    root = files.paths.root
    with files.folders() as folders:
        _check_writable(files, folders)
        for name, fd in (
            ("requests", folders.requests),
            ("consumed", folders.consumed),
            ("rejected", folders.rejected),
        ):
            _check_same_mount(root, name, fd, folders.claimed)
        _check_rename(files, folders)


def _check_writable(files: SpoolFiles, folders: Folders) -> None:
    fds = (folders.requests, folders.claimed, folders.consumed, folders.rejected)
    by_path = zip(folder_paths(files.paths), fds, strict=True)
    denied = [path for path, fd in by_path if not spool_files.may_rename_in(fd)]
    if denied:
        raise ConfigurationError(
            ", ".join(denied),
            f"the daemon's user (uid {os.geteuid()}) may not rename files in it",
            "make the user the owner of the folder, or give its group read, write and search permission",
        )


def _check_same_mount(root: str, name: str, fd: int, claimed: int) -> None:
    """Rename a file that does not exist: between two mounts the error is another one than that it is absent."""
    absent = f".{secrets.token_hex(8)}"
    try:
        os.rename(absent, absent, src_dir_fd=fd, dst_dir_fd=claimed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(
            os.path.join(root, name),
            f"files cannot be renamed between it and {root}: {error.strerror}",
            "put all folders of the spool on one file system, under one mount",
        ) from error


def _check_rename(files: SpoolFiles, folders: Folders) -> None:
    """Make, rename and remove a file within the private folder, and fsync every folder."""
    name = f"{_PROBE}{secrets.token_hex(8)}"
    made = os.path.join(files.paths.private, name)
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.rename(made, name, dst_dir_fd=folders.claimed)
        os.unlink(name, dir_fd=folders.claimed)
        for fd in (folders.requests, folders.claimed, folders.consumed, folders.rejected):
            os.fsync(fd)
    except FileNotFoundError:
        raise  # a folder went away meanwhile: an outage, which says nothing about the file system
    except OSError as error:
        raise ConfigurationError(
            files.paths.root,
            f"files cannot be renamed from folder to folder, or folders not made durable: {error.strerror}",
            "use a file system that can (ext4, xfs, btrfs, NFS)",
        ) from error


def remove_probes(folders: Folders) -> int:
    """Remove what probes of killed processes left; returns how many files."""
    left = [name for name in os.listdir(folders.claimed) if name.startswith(_PROBE)]
    stale = [name for name in left if _age(folders.claimed, name) > _STALE_SECONDS]
    for name in stale:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folders.claimed)
    return len(stale)


# ---------------------------------------------------------------- files that no daemon takes


def files_not_taken(files: SpoolFiles) -> dict[str, str]:
    """Names in ``requests/`` that no daemon of this user takes, each with a remedy.

    Raises:
        Unavailable: The spool is missing.
    """
    with files.folders() as folders:
        requests, others = spool_files.dropped(folders)
        stuck = {name: why for name in requests if (why := obstacle(folders, name))}
        return {printable(name): why for name, why in {**stuck, **overlooked(folders, others)}.items()}


def obstacle(folders: Folders, name: str) -> str:
    """What keeps a request in ``requests/`` from being claimed, with a remedy; empty when nothing is known."""
    try:
        info = os.stat(name, dir_fd=folders.requests, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    user, parent = os.geteuid(), os.fstat(folders.requests)
    if user == 0:
        return ""
    if parent.st_mode & stat.S_ISVTX and user not in (info.st_uid, parent.st_uid):
        return (
            f"requests/ is sticky and the file belongs to uid {info.st_uid}: remove the sticky bit (chmod -t), or make "
            f"the daemon's user (uid {user}) the owner of requests/"
        )
    # To rename a folder into another parent is to write to it: its entry ".." changes.
    if stat.S_ISDIR(info.st_mode) and not os.access(
        name, os.W_OK, dir_fd=folders.requests, effective_ids=os.access in os.supports_effective_ids
    ):
        return f"it is a folder of uid {info.st_uid} that the daemon's user (uid {user}) may not move: remove it"
    return ""


def overlooked(folders: Folders, names: Iterable[str]) -> dict[str, str]:
    """Of names that are not taken for requests, those that may have been meant as requests; each with a remedy."""
    found: dict[str, str] = {}
    for name in names:
        if name.startswith(".") or name.lower().endswith(_TEMPORARY):
            if _age(folders.requests, name) < _FORGOTTEN_SECONDS:
                continue
            found[name] = "it has a temporary name and nobody has renamed it; rename it to *.json, or remove it"
        else:
            found[name] = "only names that end in .json are taken; rename it to *.json, or move it away"
    return found


def _age(folder: int, name: str) -> float:
    """Seconds since a file was last written to; 0 when it is gone."""
    try:
        return time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0
