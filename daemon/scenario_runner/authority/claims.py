"""Claims: which of the due runs a runner takes. Pure; the statements ``claim_runs`` and ``claim_due`` take them.

A claim has two parts, and each takes the runs first that have been due for longest:

1. *new* runs, up to :func:`share_of_new`;
2. all that are due, new ones as well, until the claim is full.

A run is new while it is PLANNED and no runner has put it off: until its first claim, or, where it invokes its engine
first, until its launch. When the engine cannot be launched it is put off, and is new no more.

So a new run waits behind other new runs only, at half a claim each time, however many waiting runs one message or an
operator's act has made due at once. And each other run is taken after at most twice as many claims as in the plain
order, however many new runs come: the second part is that order. A claim that finds no runs for one part gives its
room to the other.
"""

from typing import Final

#: New runs get one place of so many: neither of the two kinds is more urgent, and half is the most that either can be
#: given before the other is slowed down more than twice.
_PLACES: Final = 2


def share_of_new(limit: int) -> int:
    """How many runs of a claim may be there because they are new; a claim of one run takes what is due longest."""
    return limit // _PLACES
