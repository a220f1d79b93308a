"""System calls of a real process, recorded by strace, and what a power loss would leave of the files that it made.

The model is that of POSIX and nothing more. What is written may reach the disk at any time. It must have reached it
only when an fsync of that very file, begun after the write, has returned. A name is an entry of its folder, and an
fsync of the folder makes it durable. So a file survives when its bytes were flushed before it got its name, and when
its name and those of the new folders above it were flushed.
"""

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

_RECORDED: Final = (
    "openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "syncfs", "linkat", "link", "rename", "renameat",
    "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "ftruncate",
)  # fmt: skip
_LINE: Final = re.compile(r"(\d+) +(.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>(?:\(deleted\))?)?(?: .*)?$", re.DOTALL)
_DESCRIPTOR: Final = re.compile(r"(?:\d+|AT_FDCWD)<(.*?)>(?:\(deleted\))?(?:, |$)")
_TEXT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NAMES: Final = ("link", "linkat", "rename", "renameat", "renameat2")
_WRITES: Final = ("write", "writev", "pwrite64", "ftruncate")
FLUSHES: Final = ("fsync", "fdatasync")
"""Calls that make one file or folder durable."""


@dataclass(frozen=True)
class Call:
    """One call that succeeded.

    Attributes:
        name: Of the call.
        began: Its place in the order of all beginnings and ends.
        ended: Likewise; equal to ``began`` when nothing happened in between.
        path: What its descriptor was open on; of a call with names, the name that it made.
        source: The file that got the name; empty for other calls.
        text: What was written, as strace shows it.
    """

    name: str
    began: int
    ended: int
    path: str
    source: str = ""
    text: str = ""

    @property
    def is_naming(self) -> bool:
        """Whether it gave a file a name."""
        return self.name in _NAMES


def need_strace() -> None:
    """Skip the test, saying so, where system calls cannot be recorded."""
    try:
        subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"system calls cannot be recorded: {error}; install strace, and allow it to trace")


def record(command: Sequence[str], file: Path) -> "Trace":
    """Run a command to its end, which must be a success, and record what it asked of the system."""
    tracer = ["strace", "-f", "-y", "-s", "5000", "-e", "signal=none", "-e", f"trace={','.join(_RECORDED)}"]
    done = subprocess.run([*tracer, "-o", str(file), *command], capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return Trace(list(_calls(file.read_text("utf-8", "replace").splitlines())))


def _calls(lines: Sequence[str]) -> Iterator[Call]:
    """Calls in the order of their ends."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        split = _LINE.match(line)
        if split is None:
            continue
        thread, text = split.groups()
        began = number
        if text.endswith(" <unfinished ...>"):
            begun[thread] = number, text.removesuffix(" <unfinished ...>")
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None:
            began, first = begun.pop(thread)
            text = first + resumed[1]
        call = _call(text, began, number)
        if call is not None:
            yield call


def _call(text: str, began: int, ended: int) -> Call | None:
    """One call; None where it failed, or is of no interest."""
    match = _CALL.match(text)
    if match is None or int(match[3]) < 0:
        return None
    name, arguments, opened = match[1], match[2], match[4]
    if name == "openat":
        return Call(name, began, ended, opened or "", text=arguments)
    descriptors = _DESCRIPTOR.findall(arguments)
    if name in (*_WRITES, *FLUSHES, "syncfs"):
        written = _TEXT.search(arguments)
        return Call(name, began, ended, descriptors[0], text=written[1] if written else "")
    texts = _TEXT.findall(arguments)
    # without a descriptor paths are absolute in what we look at
    folders = descriptors or [""] * len(texts)
    paths = [folder and f"{folder}/{path}" if not path.startswith("/") else path
             for folder, path in zip(folders, texts, strict=False)]  # fmt: skip
    if name in _NAMES:
        source = descriptors[0] if texts[0].startswith("/proc/self/fd/") else paths[0]
        return Call(name, began, ended, paths[1], source)
    return Call(name, began, ended, paths[0])


@dataclass(frozen=True)
class Trace:
    """Calls of a process in the order of their ends."""

    calls: list[Call]

    def without(self, dropped: Callable[[Call], bool]) -> "Trace":
        """The same without some calls: as if the code did not make them."""
        return replace(self, calls=[call for call in self.calls if not dropped(call)])

    @property
    def end(self) -> int:
        """A moment after all calls."""
        return self.calls[-1].ended + 1

    def first(self, name: str, path: str, text: str) -> Call:
        """The first call of a name on a file that has this text in what it writes."""
        return next(call for call in self.calls if call.name == name and call.path == path and text in call.text)

    def named(self, path: str) -> Call:
        """The call that gave a file its name; the last one, where it was replaced."""
        return [call for call in self.calls if call.is_naming and call.path == path][-1]

    def made(self, path: str, root: str) -> list[Call]:
        """The calls that made the folders above a file, as far as they lie below the root."""
        folders = [call for call in self.calls if call.name in ("mkdir", "mkdirat")]
        return [call for call in folders if path.startswith(f"{call.path}/") and call.path.startswith(f"{root}/")]

    def needed(self, path: str, root: str) -> list[str]:
        """What must be flushed for a file to survive: the file that got the name, and folders."""
        folders = [call.path for call in self.made(path, root)]
        return [self.named(path).source, *(folder.rpartition("/")[0] for folder in (path, *folders))]

    def is_flushed(self, path: str, after: int, before: int) -> bool:
        """Whether a flush of a file or folder began after one moment and had ended before the other."""
        return any(
            call.path == path and after < call.began and call.ended < before
            for call in self.calls
            if call.name in FLUSHES
        )

    def lost(self, path: str, before: int, root: str) -> list[str]:
        """What a power loss at a moment would take of a file that the process made.

        Args:
            path: The file.
            before: The moment.
            root: A folder above it that was there before the process began.

        Returns:
            What is not durable by then: the bytes, the name, or the names of folders. Empty when all is.
        """
        named = self.named(path)
        problems = [] if self._bytes_are_durable(named) else [f"the bytes of {path} are not durable before its name"]
        if not self.is_flushed(path.rpartition("/")[0], named.ended, before):
            problems.append(f"the name of {path} is not durable")
        problems += [
            f"the name of the folder {call.path} is not durable"
            for call in self.made(path, root)
            if not self.is_flushed(call.path.rpartition("/")[0], call.ended, before)
        ]
        return problems

    def _bytes_are_durable(self, named: Call) -> bool:
        """Whether all that was written to a file was flushed before it got its name."""
        opened = max(c.ended for c in self.calls
                     if c.name == "openat" and c.path == named.source and c.ended < named.began)  # fmt: skip
        written = [c.ended for c in self.calls
                   if c.name in _WRITES and c.path == named.source and opened < c.began < named.began]  # fmt: skip
        return bool(written) and self.is_flushed(named.source, max(written), named.began)
