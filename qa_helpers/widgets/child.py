"""`python -m qa_helpers.widgets.child …` is `python -m qa_helpers …`, but ends when its standard input is closed.

The system closes it when the process that holds its other end is gone, however that ended: so no training goes on
behind a notebook whose kernel was restarted or killed.
"""

import os
import runpy
import sys
import threading

ORPHANED = 3  # the exit code


def end_with_input() -> None:
    """Wait until standard input ends, and then end this process."""
    while os.read(0, 1024):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    sys.argv[0] = "qa_helpers"
    runpy.run_module("qa_helpers", run_name="__main__", alter_sys=True)
