"""Reading what a profile names without making any of it: a command that asks a question leaves nothing behind."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from scenario_runner.authority.connect import connect_views, sqlite_path
from scenario_runner.authority.views.base import Views
from scenario_runner.cli.console import log_to_stderr
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.profiles.wiring import Wiring

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority
    from scenario_runner.service.identity import NamedStore

T = TypeVar("T")


def never_started(wiring: Wiring) -> bool:
    """True when the profile's embedded authority does not exist yet: connecting to it would create it."""
    path = sqlite_path(wiring.authority_store_dsn)
    return path is not None and not os.path.exists(path)


def open_views(wiring: Wiring) -> Views:
    """Views on the profile's authority; one that an older release made is brought up to date first.

    Raises:
        ConfigurationError: the DSN is not valid, or a newer release made the database.
        Unavailable: the authority does not answer.
    """
    views = connect_views(wiring.authority_store_dsn, f"profile {wiring.profile_id}")
    if not views.outdated:
        return views
    views.close()
    with _authority(wiring):
        pass
    return connect_views(wiring.authority_store_dsn, f"profile {wiring.profile_id}")


@contextmanager
def existing_views(wiring: Wiring) -> Iterator[Views | None]:
    """Views on the profile's authority, closed at the end; None when no daemon ever started on it.

    Raises:
        ConfigurationError: the DSN is not valid, or a newer release made the database.
        Unavailable: the authority does not answer.
    """
    if never_started(wiring):
        yield None
        return
    views = open_views(wiring)
    try:
        yield views
    finally:
        views.close()


@contextmanager
def existing_authority(wiring: Wiring) -> Iterator["Authority | None"]:
    """The profile's authority, closed at the end; None when no daemon ever started on it.

    Raises:
        ConfigurationError: the DSN is not valid.
        Unavailable: the authority does not answer.
    """
    if never_started(wiring):
        yield None
        return
    with _authority(wiring) as authority:
        yield authority


@contextmanager
def _authority(wiring: Wiring) -> Iterator["Authority"]:
    log_to_stderr()
    from scenario_runner.service.compose import open_authority  # slow to import: not for a look

    authority = open_authority(wiring)
    try:
        yield authority
    finally:
        authority.close()


class KeptAuthority:
    """The profile's authority for many questions: opened at the first one, kept, and opened anew after it failed.

    Args:
        wiring: The profile.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._open: Views | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next question opens it again."""
        views, self._open = self._open, None
        if views is not None:
            views.close()

    def ask(self, question: Callable[[Views], T]) -> T | None:
        """Ask it something.

        Returns:
            The answer; None when no daemon ever started on it.

        Raises:
            ConfigurationError: the DSN is not valid.
            Unavailable: the authority does not answer.
        """
        if self._open is None:
            if never_started(self._wiring):
                return None
            self._open = open_views(self._wiring)
        try:
            return question(self._open)
        except Unavailable:
            self.close()
            raise


def require_marked(wiring: Wiring, item: "NamedStore") -> None:
    """Refuse a bare mount point; the authority is asked only about a store that has no identity.

    Producers may not be allowed into the private folder of the store, where its identity lies. That the folder is there
    is enough for them.

    Raises:
        Unavailable: the authority knows a store at this place, and this is not it.
    """
    from scenario_runner.service.identity import require_known
    from scenario_runner.storage.identity import HiddenMarkerError

    try:
        if item.store.identity():
            return
    except HiddenMarkerError:
        return
    with existing_authority(wiring) as authority:
        if authority is not None:
            require_known(item, authority)
