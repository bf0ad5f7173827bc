"""`oxherd rotate`, killed with SIGKILL when it is about to save that a stage is over: what it did is done, unsaved."""

from __future__ import annotations

import os
import signal
import sys

from oxherd.cli import main
from oxherd.ops.rotate_state import StateFile

save = StateFile.save


def dying(file, progress):
    if progress.stage == os.environ["DIE_BEFORE"]:
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, progress)


StateFile.save = dying
sys.argv[0] = "oxherd"
main()
