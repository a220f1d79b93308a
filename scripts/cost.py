#!/usr/bin/env python3
"""Print what a million runs cost, from a file of prices, workload and measured use; see :mod:`sr_tools.cost`."""

import sys

from sr_tools.cost import main

if __name__ == "__main__":
    sys.exit(main())
