"""Whether the generator kept up: if not, it measured itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BEAT_S = 0.05
MOST_LAG_S = 0.010
MOST_CPU = 0.85


class Heartbeat:
    """Measures how long the event loop makes a timer wait, and the CPU time of this process.

    Attributes:
        stalls_s: lateness of each beat.
    """

    def __init__(self) -> None:
        self.stalls_s: list[float] = []
        self.cpu_s = 0.0
        self.wall_s = 0.0

    async def beat(self) -> None:
        """Beat until cancelled."""
        cpu, wall = time.process_time(), time.monotonic()
        while True:
            before = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self.stalls_s.append(max(0.0, time.monotonic() - before - _BEAT_S))
            self.cpu_s, self.wall_s = time.process_time() - cpu, time.monotonic() - wall


@dataclass(frozen=True, slots=True)
class Health:
    """How well one generator process kept up.

    Attributes:
        cpu_share: of one core.
        lag_p99_s: from a request's planned time until it was sent.
        stall_p99_s: that its event loop made a timer wait.
    """

    cpu_share: float
    lag_p99_s: float
    stall_p99_s: float

    @classmethod
    def of(cls, heartbeat: Heartbeat, lags_s: Sequence[float]) -> Health:
        """Return the health that a heartbeat and the requests' lags show."""
        return cls(
            cpu_share=heartbeat.cpu_s / heartbeat.wall_s if heartbeat.wall_s else 0.0,
            lag_p99_s=float(np.percentile(lags_s, 99)) if lags_s else 0.0,
            stall_p99_s=float(np.percentile(heartbeat.stalls_s, 99)) if heartbeat.stalls_s else 0.0,
        )


def warnings(healths: Sequence[Health]) -> list[str]:
    """Return what to tell the user about generators that were the bottleneck."""
    found = []
    for which, health in enumerate(healths):
        signs = []
        if health.cpu_share > MOST_CPU:
            signs.append(f"used {100 * health.cpu_share:.0f} % of a core")
        if health.lag_p99_s > MOST_LAG_S:
            signs.append(f"sent {1000 * health.lag_p99_s:.1f} ms late (p99)")
        if health.stall_p99_s > MOST_LAG_S:
            signs.append(f"read {1000 * health.stall_p99_s:.1f} ms late (p99)")
        if signs:
            found.append(
                f"generator {which} may be the bottleneck: it {' and '.join(signs)}; the latencies "
                "include this. Use more --processes, or a machine that is not the server's."
            )
    return found
