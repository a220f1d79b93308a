"""Driving runs: the lifecycle of one, the effects of many, the leases under which they are driven."""
