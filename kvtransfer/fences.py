"""Keeps blocks from being used again while an old writer may still write into them.

Needed for transports that write directly. A fence falls when the writer answered STOP, when
its lease ran out (it counts a shorter one, see `outbound`), or when its process is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtransfer.links import Route
from kvtransfer.locked_file import owner_is_alive

_STOP_AGAIN_S = 0.2


@dataclass(slots=True)
class Fence:
    """One writer that must not write any more.

    Attributes:
        transfer_id, epoch: what it wrote for.
        route: its link.
        liveness: name of its liveness file.
        deadline: when its lease is out, on the receiver's clock, seconds.
        stop_at: when to tell it (again), likewise.
        settle_s: how long its writes may go on after its process died, seconds.
        dead: its process was seen dead.
    """

    transfer_id: str
    epoch: int
    route: Route
    liveness: str
    deadline: float
    stop_at: float
    settle_s: float = 0.0
    dead: bool = False


class Fences:
    """The fences of a receiver; used on its loop only."""

    def __init__(self, send_stop: Callable[[Fence], None]) -> None:
        self._send_stop = send_stop
        self._fences: dict[str, dict[int, Fence]] = {}
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._fences)

    def stands(self, transfer_id: str) -> bool:
        """Tell whether an old writer of a transfer may still write."""
        return transfer_id in self._fences

    def put_up(self, fence: Fence) -> None:
        """Fence a writer off, and tell it to stop."""
        self._fences.setdefault(fence.transfer_id, {})[fence.epoch] = fence
        self._send_stop(fence)

    def when_clear(self, transfer_id: str, callback: Callable[[], None]) -> None:
        """Call back once no fence of a transfer stands; at once if none does."""
        if self.stands(transfer_id):
            self._waiting.setdefault(transfer_id, []).append(callback)
        else:
            callback()

    def stopped(self, transfer_id: str, epoch: int, route: Route) -> bool:
        """Take a writer's word that it stopped; False if nobody waited for it."""
        fence = self._fences.get(transfer_id, {}).get(epoch)
        if fence is None or fence.route != route:
            return False
        self._take_down(fence)
        return True

    def tick(self, now: float) -> None:
        """Take down the fences of writers whose lease is out or whose process is dead."""
        for fence in [fence for epochs in self._fences.values() for fence in epochs.values()]:
            if not fence.dead and not owner_is_alive(fence.liveness):
                fence.dead = True
                fence.deadline = min(fence.deadline, now + fence.settle_s)
            if now >= fence.deadline:
                self._take_down(fence)
            elif not fence.dead and now >= fence.stop_at:
                fence.stop_at = now + _STOP_AGAIN_S
                self._send_stop(fence)

    def _take_down(self, fence: Fence) -> None:
        epochs = self._fences[fence.transfer_id]
        del epochs[fence.epoch]
        if not epochs:
            del self._fences[fence.transfer_id]
            for callback in self._waiting.pop(fence.transfer_id, []):
                callback()
