"""Keeps the interpreter from pausing a process that serves."""

from __future__ import annotations

import gc
import sys

# Of a thread that computes while another one wants to run, such as the engine's when a step is over.
_SWITCH_S = 0.0005


def keep_pauses_short() -> None:
    """Call as soon as everything is loaded: it takes some 100 ms itself.

    A full collection looks at every object that there is: with torch loaded 80 to 100 ms, in which each
    stream stands still. What was made until now stays, so it is not looked at again.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
