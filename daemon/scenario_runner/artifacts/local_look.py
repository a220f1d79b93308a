"""Whether anything stands at run roots on a file system: one listing of a folder answers for all roots in it.

The answer decides only whether an examination is worth while. So links are followed here, and nothing is opened.
"""

import errno
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
#: What stands in the way of a path, or is wrong with its name: an examination says so.
_FOR_AN_EXAMINATION: Final = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def look_at_folders(roots: Sequence[str], allowed: Mapping[str, str]) -> RootsSeen:
    """Look at the first of some run roots, and at others under the same allowed root.

    Those of its folder are looked at together. When the next ones lie in several folders, each is asked for.

    Args:
        roots: Normalised absolute paths, at least one.
        allowed: Allowed roots as they were given, and where each really is.
    """
    base = _allowed_base(roots[0], allowed)
    ours = [root for root in roots if _allowed_base(root, allowed) == base]
    if base is None:
        return RootsSeen(unknown={root: root_not_allowed(root, allowed).detail for root in ours})
    try:
        os.stat(os.path.join(allowed[base], "."))  # a mount that is away makes no root absent
    except OSError as error:
        return RootsSeen(unknown=dict.fromkeys(ours, f"{base} cannot be looked at: {in_short(error)}"))
    if roots[0] == base:
        return RootsSeen(there=frozenset({base}))
    return _seen({root: allowed[base] + root[len(base.rstrip("/")) :] for root in ours})


def _allowed_base(root: str, allowed: Mapping[str, str]) -> str | None:
    """The allowed root that a run root lies under, the longest of several."""
    bases = (given for given in allowed if root == given or root.startswith(given.rstrip("/") + "/"))
    return max(bases, key=len, default=None)


def _seen(places: Mapping[str, str]) -> RootsSeen:
    """What stands at roots, by where each is."""
    few = dict(islice(places.items(), _ASKED_AT_A_TIME))
    folders = {os.path.dirname(place) for place in few.values()}
    if len(folders) > 1:
        return _one_by_one(few)
    (folder,) = folders
    asked = {root: os.path.basename(place) for root, place in places.items() if os.path.dirname(place) == folder}
    names = _names(folder, _NAMES_FOR_A_ROOT * len(asked))
    if names is None:
        return _one_by_one(few)
    there = frozenset(root for root, name in asked.items() if name in names)
    return RootsSeen(there, frozenset(asked) - there)


def _names(folder: str, most: int) -> frozenset[str] | None:
    """Names in a folder; none in one that is not there, and None when there are more than ``most``, or no answer."""
    try:
        with os.scandir(folder) as scan:
            names = frozenset(entry.name for entry in islice(scan, most + 1))
    except FileNotFoundError:
        return frozenset()
    except OSError:
        return None  # asking for each root tells what it means for that one
    return names if len(names) <= most else None


def _one_by_one(places: Mapping[str, str]) -> RootsSeen:
    there, absent, unknown = set[str](), set[str](), dict[str, str]()
    for root, place in places.items():
        try:
            (there if _stands(place) else absent).add(root)
        except OSError as error:  # of this root: the others are not in its way
            unknown[root] = f"{root} cannot be looked at: {in_short(error)}"
    return RootsSeen(frozenset(there), frozenset(absent), unknown)


def _stands(path: str) -> bool:
    """Whether there is something to examine.

    Raises:
        OSError: it cannot be said.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _FOR_AN_EXAMINATION:
            raise
    return True
