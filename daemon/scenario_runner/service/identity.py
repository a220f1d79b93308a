"""Whether the stores of a profile are those that its authority knows, settled before anything is written to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from scenario_runner.authority.base import Authority
from scenario_runner.bus.spool import spool_store
from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.storage.anchored import AnchoredRoot
from scenario_runner.storage.base import ObjectStore
from scenario_runner.storage.identity import another_store, new_identity

_log = structlog.get_logger("service")


@dataclass(frozen=True, slots=True)
class NamedStore:
    """A store of a profile.

    Attributes:
        kind: ``object_store`` or ``spool``.
        where: Its root: an absolute path, or ``s3://bucket/prefix``.
    """

    kind: str
    where: str
    store: ObjectStore

    @property
    def title(self) -> str:
        """What it is and where, for a person."""
        return f"the {self.kind.replace('_', ' ')} {self.where}"

    @property
    def name(self) -> str:
        """Under which the authority knows it; two profiles on one authority may have stores in different places."""
        return f"{self.kind}/{self.where}"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a store, and what is there: ids, empty where there is none."""

    known: str
    found: str

    @property
    def other(self) -> bool:
        """True when something else is there than what is known."""
        return bool(self.known) and self.known != self.found


@dataclass(frozen=True, slots=True)
class Adoption:
    """What adopting a store came to: the ids that the authority knew before and knows now."""

    store: NamedStore
    old: str
    new: str


def named_spool(spool: AnchoredRoot) -> NamedStore:
    """A spool as a store of its profile."""
    return NamedStore("spool", spool.path, spool_store(spool))


def named_stores(store: ObjectStore, spool: AnchoredRoot | None) -> list[NamedStore]:
    """The stores of a profile: its object store, and its spool where it has one."""
    named = [NamedStore("object_store", store.where, store)]
    return named if spool is None else [*named, named_spool(spool)]


def standing(item: NamedStore, authority: Authority) -> Standing:
    """Look at both sides, writing nothing.

    Raises:
        Unavailable: one of them cannot be looked at.
    """
    return Standing(authority.identity(item.name, ""), item.store.identity())


def require_known(item: NamedStore, authority: Authority) -> str:
    """Refuse a store that is not the known one, writing nothing to it; from then on it is proven with every use.

    Returns:
        Its id; empty when neither side knows one yet.

    Raises:
        Unavailable: another store is there, or none.
    """
    seen = standing(item, authority)
    if seen.other:
        raise another_store(item.title, seen.known, seen.found)
    if seen.known:
        item.store.expect(seen.known)
    return seen.known


def settle_identities(items: Sequence[NamedStore], authority: Authority) -> None:
    """Make sure that every store is the known one; on the first start, leave an identity on both sides.

    The marker is left first: a process that is killed in between finds it there the next time, and the authority
    learns it then. An authority that is new beside stores in use learns theirs likewise.

    Raises:
        Unavailable: another store is there, or none.
    """
    new = [item for item in items if not require_known(item, authority)]
    for item in new:  # once no store is refused: a refusal leaves nothing behind in the others
        identity = _leave_identity(item)
        known = authority.identity(item.name, identity)
        if known != identity:
            raise another_store(item.title, known, identity)
        item.store.expect(identity)
        _log.info("the authority knows a store from now on", store=item.kind, where=item.where, identity=identity)


def adopt(item: NamedStore, authority: Authority) -> Adoption:
    """Make what is there the known store: an operator's act, after a store was really replaced.

    A store without an identity gets a new one, so that daemons that still expect the old one do not go on with it.

    Raises:
        Unavailable: there is nothing to adopt, or it cannot be reached.
    """
    seen = standing(item, authority)
    if not seen.other:
        return Adoption(item, seen.known, seen.known)
    item.store.read(refs.pack_ref("0" * 64), 0)  # a folder or bucket that is not there was not replaced
    identity = seen.found or _leave_identity(item)
    authority.adopt_identity(item.name, identity)
    return Adoption(item, seen.known, identity)


def _leave_identity(item: NamedStore) -> str:
    identity = item.store.leave_identity(new_identity())
    if not identity:
        raise Unavailable(f"the identity that was left in {item.title} is not there any more")
    return identity
