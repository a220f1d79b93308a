"""A prefix of a bucket as folders and files, with as few requests as possible.

A small run root is listed once, and every answer comes from that listing. Of a large one the folders in question are
listed, and where those are large too, single objects are requested.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, NoReturn

from scenario_runner.artifacts.base import MAX_FILES, Kind
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.listing import BAD_NAME, Listing, too_many
from scenario_runner.contracts.errors import EvidenceMissing, EvidenceRefused, Unavailable
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.storage.s3_client import BadKeyError, Listed, S3Bucket

Files = dict[tuple[str, Listed], bool]
"""Empty objects by bucket, and whether each is a file rather than the marker of a folder."""

WHOLE_LISTING: Final = 2000
"""A folder with at most so many objects is listed whole when one of them is in question: two requests, where one object
costs two as well."""


def _refuse(path: str, what: str) -> NoReturn:
    raise EvidenceRefused(f"{path} {what}", path=path)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A listing of everything below a folder: paths relative to the run root, sorted, and the object at each."""

    paths: list[str]
    entries: dict[str, Listed]

    def below(self, folder: str) -> list[str]:
        """Paths below a folder inside of this one."""
        if not folder:
            return self.paths
        start = bisect_left(self.paths, f"{folder}/")
        end = bisect_left(self.paths, f"{folder}0", start)  # "0" follows "/"
        return self.paths[start:end]


class S3Tree:
    """A run root as it is found now.

    Args:
        bucket: The bucket.
        prefix: Key prefix of the run root, without slashes at its ends; may be empty.
        files: ETags and times of empty objects known to be files, not folder markers: shared by all examinations.
        budget: Charged for every request and every object listed.
    """

    def __init__(self, bucket: S3Bucket, prefix: str, files: Files, budget: ReadBudget) -> None:
        self._bucket, self._prefix, self._files, self._budget = bucket, prefix, files, budget
        self._max_entries = max(MAX_FILES, budget.bounds.max_output_files)
        self._folders: dict[str, _Folder] = {}
        self._too_large: set[str] = set()

    def key(self, path: str) -> str:
        """Key of a path."""
        return f"{self._prefix}/{path}" if self._prefix and path else path or self._prefix

    def exists(self) -> bool:
        """True when anything lies below the run root."""
        folder = self._small_listing("")
        return folder is None or bool(folder.paths)

    def _charge_page(self, entries: int) -> None:
        self._budget.entries(entries)
        self._budget.beat()  # a request takes so long that every one may end the examination

    def _charge_request(self) -> None:
        self._budget.operations()
        self._budget.beat()

    # --- listings

    def _list(self, folder: str, limit: int) -> _Folder | None:
        found = self._bucket.listing(self.key(folder), limit, self._charge_page)
        if found is None:
            return None
        skip = len(self._prefix) + 1 if self._prefix else 0
        entries: dict[str, Listed] = {}
        for item in found:
            path = item.key[skip:]
            kept = entries.get(path)  # a file and a folder marker of one name
            entries[path] = item if kept is None or item.size else kept
        return _Folder(sorted(entries), entries)

    def _covering(self, folder: str) -> _Folder | None:
        """A listing that was made and covers a folder."""
        if (whole := self._folders.get("")) is not None:
            return whole
        while True:
            if folder in self._folders:
                return self._folders[folder]
            if not folder:
                return None
            folder = folder.rpartition("/")[0]

    def _small_listing(self, folder: str) -> _Folder | None:
        """A listing that covers a folder, made now if it is small enough, the run root's if possible."""
        if (covering := self._covering(folder)) is not None:
            return covering
        for candidate in dict.fromkeys(("", folder)):
            if self._covering(folder) is None and candidate not in self._too_large:
                try:
                    found = self._list(candidate, WHOLE_LISTING)
                except BadKeyError:
                    found = None  # the bad key may be outside of the folders in question
                if found is None:
                    self._too_large.add(candidate)
                else:
                    self._folders[candidate] = found
        return self._covering(folder)

    def _whole(self, folder: str) -> _Folder:
        """A listing that covers a folder, however many objects it holds up to the bound."""
        covering = self._small_listing(folder)
        if covering is not None:
            return covering
        try:
            found = self._list(folder, self._max_entries)
        except BadKeyError as error:
            _refuse(folder, f"holds a key that is not a normalised path: {error}")
        if found is None:
            raise too_many(folder, f"more than {self._max_entries}", self._budget.bounds.max_output_files)
        self._folders[folder] = found
        return found

    # --- answers

    def entry(self, path: str) -> Listed:
        """The object at a path.

        Raises:
            EvidenceMissing: there is none.
            EvidenceRefused: a folder stands there.
        """
        kind, found = self._stat(path)
        if kind is Kind.DIRECTORY:
            _refuse(path, "is a directory; a regular file is needed")
        if found is None:
            raise EvidenceMissing(f"{path} is not there", path=path)
        if not found.etag:
            raise Unavailable(f"the server gives no ETag for {self._bucket.uri(found.key)}; it cannot be pinned")
        return found

    def kind(self, path: str) -> Kind:
        """What stands at a path."""
        return self._stat(path)[0]

    def _stat(self, path: str) -> tuple[Kind, Listed | None]:
        covering = self._small_listing(path.rpartition("/")[0])
        if covering is None:
            return self._request_stat(path)
        found = covering.entries.get(path)
        is_folder = bool(covering.below(path))
        if found is not None and not self._is_file(found):
            found, is_folder = None, True
        return self._kind_of(path, found, is_folder=is_folder)

    def _request_stat(self, path: str) -> tuple[Kind, Listed | None]:
        """Request one object of a folder that is too large to list."""
        self._charge_request()
        found = self._bucket.head(self.key(path))
        try:
            below = self._bucket.listing(self.key(path), 0) is None
        except BadKeyError as error:
            _refuse(path, f"holds a key that is not a normalised path: {error}")
        return self._kind_of(path, found, is_folder=below)

    @staticmethod
    def _kind_of(path: str, found: Listed | None, *, is_folder: bool) -> tuple[Kind, Listed | None]:
        if found is not None and is_folder:
            _refuse(path, "is an object and a folder at the same time")
        if found is not None:
            return Kind.FILE, found
        return (Kind.DIRECTORY if is_folder else Kind.ABSENT), None

    def _is_file(self, found: Listed) -> bool:
        """False for the empty object that marks a folder, which a listing does not tell from an empty file."""
        if found.size:
            return True
        known = self._bucket.name, found
        if known not in self._files:
            self._charge_request()
            self._files[known] = self._bucket.head(found.key) is not None
        return self._files[known]

    def listing(self, folder: str) -> Listing:
        """Names in a folder; empty when nothing is there.

        Raises:
            EvidenceRefused: too many objects, or a key that is not a normalised path.
        """
        whole = self._whole(folder)
        skip = len(folder) + 1 if folder else 0
        names: dict[str, bool] = {}
        for path in whole.below(folder):
            rest = path[skip:]
            self._check(folder, rest)
            name, slash, _ = rest.partition("/")
            is_folder = bool(slash) or not self._is_file(whole.entries[path])
            if names.setdefault(name, is_folder) is not is_folder:
                _refuse(f"{folder}/{name}", "is an object and a folder at the same time")
        return tuple(sorted(names.items()))

    @staticmethod
    def _check(folder: str, rest: str) -> None:
        try:
            check_relative_posix(rest)
        except ValueError as error:
            _refuse(folder, f"holds a key that is not a normalised path: {error}")
        if BAD_NAME.search(rest):
            _refuse(folder, f"holds the name {rest!r}, which cannot be listed")
