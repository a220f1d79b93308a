#!/usr/bin/env python3
"""Copy an engine run to S3, and let a run request name that place; see :mod:`sr_tools.upload`."""

import sys

from sr_tools.upload import main

if __name__ == "__main__":
    sys.exit(main())
