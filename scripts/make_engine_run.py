#!/usr/bin/env python3
"""Write a sealed engine run to verify against, for any interface pack; see :mod:`sr_tools.engine`.

Use it as a command, or load the file with importlib and call :func:`make_run`.
"""

import sys
from pathlib import Path

# Python puts this folder on the path when it runs the file, but not when importlib loads it. The folder goes last, so
# that no script in it hides a module of the program that loads this file.
sys.path.append(str(Path(__file__).resolve().parent))

from sr_tools.engine import *  # noqa: F403 - what a loader may use is listed in sr_tools.engine
from sr_tools.engine import main

if __name__ == "__main__":
    sys.exit(main())
