"""Starting to write a file out before its fsync is called (``sync_file_range`` of Linux, which Python does not offer).

The rule: this is a hint and promises nothing. Every file is still flushed by an fsync of its own, which also reports
what could not be written. When all files of a batch are on their way to the disk before the first fsync, the commit of
the journal that it causes takes the others along: one known world on ext4 with a journal made 1.7 to 2.3 times as many
runs/s (docs/adr/0041-flushes-of-a-batch.md).
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

#: SYNC_FILE_RANGE_WRITE of sync_file_range(2): start, and wait for nothing. Without a wait no error is taken from the
#: descriptor, so that the fsync still sees it.
_WRITE: Final = 2


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The C library's function; None where there is none."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


def start_writing_out(fd: int) -> None:
    """Start to write an open file out; where that is not offered, or fails, its fsync does all of it."""
    function = _sync_file_range()
    if function is not None:
        function(fd, 0, 0, _WRITE)
