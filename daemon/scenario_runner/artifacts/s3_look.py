"""Whether anything stands at run roots on S3: one page of keys answers for all roots that lie in its range."""

import posixpath
from bisect import bisect_left
from collections.abc import Sequence

from scenario_runner.artifacts.base import RootsSeen
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.storage.s3_client import BadKeyError, S3Bucket, split_s3_uri


def look_at_prefixes(bucket: S3Bucket, roots: Sequence[str]) -> RootsSeen:
    """Look at the first of some roots and those behind it, in one request: all whose keys begin in its page of keys.

    Args:
        bucket: The bucket.
        roots: ``s3://`` URIs of run roots in it, at least one. What lies between them may be listed.
    """
    keys = {root: split_s3_uri(root)[1] for root in roots}
    own = _folder(keys[roots[0]])
    for folder in dict.fromkeys((posixpath.commonpath([_folder(key) for key in keys.values()]), own)):
        asked = {root: key for root, key in keys.items() if not folder or key.startswith(f"{folder}/")}
        try:
            seen = _seen(bucket, folder, asked)
        except BadKeyError:  # it may lie beside the roots, and outside of the first one's folder
            continue
        except Unavailable as failure:
            return RootsSeen(unknown=dict.fromkeys(asked, failure.detail))
        if seen.there or seen.absent:
            return seen
        break  # a page may end before the first root, behind which it began: a.5/ comes before a/
    return look_at_prefix(bucket, roots[0])


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _seen(bucket: S3Bucket, folder: str, asked: dict[str, str]) -> RootsSeen:
    first = min(asked.values(), key=_range)
    # "." comes just before "/", so the page has the marker of the first root's folder, where there is one.
    page, is_last = bucket.keys_after(folder, f"{first}.")
    names = frozenset(page)  # the client gives the marker of a folder without its slash
    there = frozenset(root for root, key in asked.items() if key in names or _holds(page, _range(key)))
    covered = asked if is_last else [root for root, key in asked.items() if _range(key) < page[-1]]
    return RootsSeen(there, frozenset(covered) - there)


def _range(key: str) -> str:
    """Where the keys below a root begin."""
    return f"{key}/"


def _holds(page: list[str], prefix: str) -> bool:
    """Whether a sorted page has a key with a prefix."""
    place = bisect_left(page, prefix)
    return place < len(page) and page[place].startswith(prefix)


def look_at_prefix(bucket: S3Bucket, root: str) -> RootsSeen:
    """Look at one root alone, which lists nothing beside it."""
    try:
        found = bucket.listing(split_s3_uri(root)[1], 0)
    except BadKeyError:
        found = None  # an examination says what is wrong with it
    except Unavailable as failure:
        return RootsSeen(unknown={root: failure.detail})
    return RootsSeen(absent=frozenset({root})) if found == [] else RootsSeen(there=frozenset({root}))
