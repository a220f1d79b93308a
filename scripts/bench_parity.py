#!/usr/bin/env python3
"""Measure the installed ``scenario-runner`` on S3 and Postgres against its targets; see :mod:`sr_tools.bench`."""

import sys

from sr_tools.bench.on_parity.command import main

if __name__ == "__main__":
    sys.exit(main())
