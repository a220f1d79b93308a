#!/usr/bin/env python3
"""Measure the stream consumer, with the real KCL between; see :mod:`sr_tools.bench`."""

import sys

from sr_tools.bench.on_kinesis.command import main

if __name__ == "__main__":
    sys.exit(main())
