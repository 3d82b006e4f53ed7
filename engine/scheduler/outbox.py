"""What the scheduler has to tell: events to the engine's owner, ended ids to owner and runner."""

from __future__ import annotations

from engine.events import Event


class Outbox:
    """Keeps things in order until they are taken.

    Attributes:
        events: since the last `take_events`.
        dropped_ids: requests whose state the runner may drop with the next step.
        ended_ids: requests that hold nothing any more, since the last `take_ended`.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.dropped_ids: list[str] = []
        self.ended_ids: list[str] = []

    def take_events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        events, self.events = self.events, []
        return events

    def take_dropped(self) -> tuple[str, ...]:
        """Return what the runner is to drop."""
        dropped, self.dropped_ids = tuple(self.dropped_ids), []
        return dropped

    def take_ended(self) -> list[str]:
        """Return the ids of requests that ended, holding nothing, since the last call."""
        ended, self.ended_ids = self.ended_ids, []
        return ended
