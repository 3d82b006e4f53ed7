"""A process that serves does not stop for the collector."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import gc, json, sys, time
import torch
from services.common.pauses import keep_pauses_short

def collect():
    begun = time.perf_counter()
    gc.collect()
    return time.perf_counter() - begun

before = min(collect() for _ in range(3))
keep_pauses_short()
print(json.dumps([before, min(collect() for _ in range(3)), sys.getswitchinterval()]))
"""


def test_a_full_collection_does_not_look_at_what_was_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before_s, after_s, switch_s = json.loads(done.stdout)
    assert after_s < before_s / 20
    assert switch_s < 0.001
