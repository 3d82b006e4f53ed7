"""Runs one service as a child of the launcher: `python -m baton.child services.prefill.main --port 0 ...`.

Standard input is a pipe that the launcher holds open and never writes to. When the launcher is gone,
however it went, the pipe ends; the service then drains, and is ended if that takes too long.

Once the service has stopped, the process ends at once: it would take Python a second to take apart what
torch and numba have made, and nobody would use that.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time

ORPHAN_GRACE_S = 5.0


def main(argv: list[str]) -> int:
    """Run `main` of the module that is named first with the other arguments."""
    threading.Thread(target=_watch_parent, name="parent-watch", daemon=True).start()
    module, *flags = argv
    status: int = importlib.import_module(module).main(flags)
    return status


def _watch_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)
