"""Whether anything stands at run roots on a file system: one listing of a folder answers for all roots in it.

The answer decides only whether an examination is worth while. So links are followed here, and nothing is opened.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from scenario_runner.artifacts.base import RootsSeen, root_not_allowed
from scenario_runner.contracts.errors import in_short

#: A folder is listed while that costs less than asking for each root: a name costs an eighth of a question.
_NAMES_FOR_A_ROOT: Final = 8
#: Roots that are asked for one by one at a time: a millisecond.
_ASKED_AT_A_TIME: Final = 256


def look_at_folders(roots: Sequence[str], allowed: Mapping[str, str]) -> RootsSeen:
    """Look at the first of some run roots, and at all of them that lie in its folder.

    Args:
        roots: Normalised absolute paths, at least one.
        allowed: Allowed roots as they were given, and where each really is.
    """
    base = _allowed_base(roots[0], allowed)
    if base is None:
        return RootsSeen(unknown={roots[0]: root_not_allowed(roots[0], allowed).detail})
    folder = os.path.dirname(roots[0])
    asked = [root for root in roots if os.path.dirname(root) == folder and _allowed_base(root, allowed) == base]
    try:
        os.stat(os.path.join(allowed[base], "."))  # a mount that is away makes no root absent
        if roots[0] == base:
            return RootsSeen(there=frozenset({base}))
        return _seen(asked, allowed[base] + folder[len(base.rstrip("/")) :])
    except OSError as error:
        return RootsSeen(unknown=dict.fromkeys(asked, f"{folder} cannot be looked at: {in_short(error)}"))


def _allowed_base(root: str, allowed: Mapping[str, str]) -> str | None:
    """The allowed root that a run root lies under, the longest of several."""
    bases = (given for given in allowed if root == given or root.startswith(given.rstrip("/") + "/"))
    return max(bases, key=len, default=None)


def _seen(roots: list[str], folder: str) -> RootsSeen:
    """What stands at roots of one folder.

    Raises:
        OSError: it cannot be said.
    """
    names = _names(folder, _NAMES_FOR_A_ROOT * len(roots))
    if names is not None:
        there = frozenset(root for root in roots if os.path.basename(root) in names)
        return RootsSeen(there, frozenset(roots) - there)
    few = roots[:_ASKED_AT_A_TIME]
    there = frozenset(root for root in few if _stands(os.path.join(folder, os.path.basename(root))))
    return RootsSeen(there, frozenset(few) - there)


def _names(folder: str, most: int) -> frozenset[str] | None:
    """Names in a folder; none in one that is not there, and None when there are more than ``most``."""
    try:
        with os.scandir(folder) as scan:
            names = frozenset(entry.name for entry in islice(scan, most + 1))
    except FileNotFoundError:
        return frozenset()
    except NotADirectoryError:
        return None  # an examination says what stands in the way
    return names if len(names) <= most else None


def _stands(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        pass
    return True
