#!/usr/bin/env python3
"""Turn LocalStack's log into sentences; reads standard input, writes standard output. See :mod:`sr_tools.narrative`."""

from sr_tools.narrative import main

if __name__ == "__main__":
    main()
