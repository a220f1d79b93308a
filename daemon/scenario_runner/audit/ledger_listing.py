"""What lies in the ledger by run, in the order of the run ids and in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Final

from scenario_runner.contracts import refs
from scenario_runner.contracts.ids import HEX32
from scenario_runner.storage.base import ListedObject, ObjectStore

#: Folders with one object for each run, and how its name ends.
RUN_FOLDERS: Final = {
    "run_record": ".jsonl",
    "run_plan": ".json",
    "run_status": ".json",
    "run_facts_view": ".json",
    "ready_signal": ".json",
    "quarantine": ".json",
    "supersession": ".json",
}


@dataclass(frozen=True, slots=True)
class ListedRun:
    """The objects of a run.

    Attributes:
        objects: By the name of their folder.
        foreign: Objects in these folders that no run can have; then ``run_id`` is empty.
    """

    run_id: str
    objects: dict[str, ListedObject]
    foreign: tuple[ListedObject, ...] = ()


def listed_runs(store: ObjectStore) -> Iterator[ListedRun]:
    """Runs that have at least one object, in the order of their ids; foreign objects in between, as they are met.

    Raises:
        Unavailable: the store does not answer.
    """
    # Two items that are compared are of two folders, so objects never are.
    for _, group in groupby(merge(*(_named(store, folder) for folder in RUN_FOLDERS)), itemgetter(0)):
        run_id, objects, foreign = "", dict[str, ListedObject](), list[ListedObject]()
        for _, folder, found, item in group:
            if found:
                run_id = found
                objects[folder] = item
            else:
                foreign.append(item)
        if run_id:
            yield ListedRun(run_id, objects)
        if foreign:
            yield ListedRun("", {}, tuple(foreign))


def _named(store: ObjectStore, folder: str) -> Iterator[tuple[str, str, str, ListedObject]]:
    """(stem of the name, folder, run id or nothing, object), in the order of the stems.

    All names of a folder have one length when they are ours, so their order is that of the run ids.
    """
    prefix, ending, is_id = f"{refs.PREFIX}/{folder}", RUN_FOLDERS[folder], HEX32.fullmatch
    start = len(prefix) + 1
    end = start + 32
    for item in store.list_objects(prefix):
        key = item.key
        stem = key[start:end]
        yield stem, folder, stem if key[end:] == ending and is_id(stem) is not None else "", item
