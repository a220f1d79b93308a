"""Renaming without replacing (``renameat2`` of Linux), which Python's ``os`` does not offer."""

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from typing import Final

#: RENAME_NOREPLACE of renameat2(2).
_NOREPLACE: Final = 1
_TAKEN_OR_NOT_OFFERED: Final = (errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    """The C library's function; None where there is none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def rename_new(source_fd: int, source: str, target_fd: int, target: str) -> bool:
    """Rename, relative to open folders, unless the target is there.

    Returns:
        False when nothing was renamed: the target is taken, or this file system cannot promise not to replace it.

    Raises:
        OSError: the source is not there, or it cannot be renamed.
    """
    function = _renameat2()
    if function is None:
        return False
    if function(source_fd, os.fsencode(source), target_fd, os.fsencode(target), _NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _TAKEN_OR_NOT_OFFERED:
        return False
    raise OSError(code, os.strerror(code), source)
