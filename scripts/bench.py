#!/usr/bin/env python3
"""Measure the installed ``scenario-runner`` on files and SQLite against its targets; see :mod:`sr_tools.bench`."""

import sys

from sr_tools.bench.on_files.command import main

if __name__ == "__main__":
    sys.exit(main())
