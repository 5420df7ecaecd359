"""Ends a process group and removes its folder as soon as the process that started this one is gone, however it ended.

Run as `python -I -S warden.py GROUP FOLDER`. Standard input is a pipe that its parent alone holds: the kernel closes it
even where the parent is killed and can do nothing more itself.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

_TRIES = 10  # what is killed may still finish a write: its folder is emptied until it stays away
_PAUSE = 0.05  # seconds


def main() -> None:
    """Wait, kill, remove."""
    group, folder = int(sys.argv[1]), sys.argv[2]
    sys.stdin.buffer.read()
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(group, signal.SIGKILL)
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            break
        time.sleep(_PAUSE)


if __name__ == "__main__":
    main()
