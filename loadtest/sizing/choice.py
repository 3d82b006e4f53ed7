"""What the simulated gateways go by when they choose a worker."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# As services/gateway/routing.py weighs a missed prefix against a queue.
CACHED_WEIGHT = 12


def least(loads: npt.NDArray[np.float64], turn: int) -> int:
    """Return where the load is least; equal ones take turns."""
    ties = np.flatnonzero(loads <= loads.min())
    return int(ties[turn % len(ties)])
