#!/usr/bin/env python3
"""Delete each guard of the code once and name those that no test misses; see :mod:`sr_tools.guards`."""

import sys

from sr_tools.guards.command import main

if __name__ == "__main__":
    sys.exit(main())
