"""Whether the stores of a profile are those that its authority knows: checked before anything is written to them."""

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
        """What it is and where, for messages."""
        return f"the {self.kind.replace('_', ' ')} {self.where}"

    @property
    def name(self) -> str:
        """Name under which the authority knows it; profiles that share an authority may have stores in other places."""
        return f"{self.kind}/{self.where}"


@dataclass(frozen=True, slots=True)
class IdentityState:
    """The identity of a store on both sides.

    Attributes:
        known: The id that the authority knows; empty when it knows none.
        found: The id in the store; empty when it has none.
    """

    known: str
    found: str

    @property
    def differs(self) -> bool:
        """True when the authority knows a store and another one is there."""
        return bool(self.known) and self.known != self.found


@dataclass(frozen=True, slots=True)
class Adoption:
    """The result of adopting a store: the ids that the authority knew before and knows now."""

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


def read_identity(item: NamedStore, authority: Authority) -> IdentityState:
    """Read the identity of a store on both sides; nothing is written.

    Raises:
        Unavailable: one of them cannot be read.
    """
    return IdentityState(authority.identity(item.name, ""), item.store.identity())


def require_known(item: NamedStore, authority: Authority) -> str:
    """Refuse a store that is not the known one, and write nothing to it. From then on every use of it is checked again.

    Returns:
        Its id; empty when neither side knows one yet.

    Raises:
        Unavailable: another store is there, or none.
    """
    state = read_identity(item, authority)
    if state.differs:
        raise another_store(item.title, state.known, state.found)
    if state.known:
        item.store.expect(state.known)
    return state.known


def establish_identities(items: Sequence[NamedStore], authority: Authority) -> None:
    """Require that every store is the known one; at the first start, leave an identity on both sides.

    The marker in the store is written first: a process that is killed before the authority learns it finds the marker
    the next time. A new authority beside stores in use learns their identities in the same way.

    Raises:
        Unavailable: another store is there, or none.
    """
    new = [item for item in items if not require_known(item, authority)]
    for item in new:  # only after no store was refused: a refusal leaves no marker in the others
        identity = _leave_identity(item)
        known = authority.identity(item.name, identity)
        if known != identity:
            raise another_store(item.title, known, identity)
        item.store.expect(identity)
        _log.info("the authority knows a store from now on", store=item.kind, where=item.where, identity=identity)


def adopt(item: NamedStore, authority: Authority) -> Adoption:
    """Make what is there the known store, because an operator confirms that it was really replaced.

    A store without an identity gets a new one: daemons that still expect the old one then stop using it.

    Raises:
        Unavailable: there is nothing to adopt, or it cannot be reached.
    """
    state = read_identity(item, authority)
    if not state.differs:
        return Adoption(item, state.known, state.known)
    item.store.read(refs.pack_ref("0" * 64), 0)  # raises where there is no folder or bucket: nothing was replaced
    identity = state.found or _leave_identity(item)
    authority.adopt_identity(item.name, identity)
    return Adoption(item, state.known, identity)


def _leave_identity(item: NamedStore) -> str:
    identity = item.store.leave_identity(new_identity())
    if not identity:
        raise Unavailable(f"the identity that was left in {item.title} is not there any more")
    return identity
