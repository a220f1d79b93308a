"""What housekeeping mends in the authority: leases of killed processes, and times that a wrong clock left."""

import structlog

from scenario_runner.authority.base import Authority
from scenario_runner.service.owner import is_dead

_log = structlog.get_logger("service")


def expire_dead_owners(authority: Authority) -> int:
    """Expire the leases of killed processes of this machine: their runs are driven at once, not after the lease."""
    dead = [owner for owner in authority.owners() if is_dead(owner)]
    for owner in dead:
        _log.info("expiring the leases of a dead process", owner=owner)
        authority.expire_owner(owner)
    return len(dead)


def pull_in_times(authority: Authority) -> int:
    """Make due what a clock that was set back would keep waiting for longer than anything is ever put off."""
    corrected = authority.pull_in_times()
    if corrected:
        _log.warning("the authority's clock was set back; what seemed due far ahead is due now", rows=corrected)
    return corrected
