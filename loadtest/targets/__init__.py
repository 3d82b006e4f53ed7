"""What can be measured: OpenAI-compatible HTTP, and Baton's gRPC."""

from __future__ import annotations

from typing import Protocol

from loadtest.record import Call
from loadtest.scenario import Scenario

Wire = object
"""A call made ready to be sent ahead of its time; what it is, is the target's own affair."""


class Target(Protocol):
    """An endpoint, used from one event loop."""

    async def open(self) -> None:
        """Connect, and learn what has to be known before the first request.

        Raises:
            RequestFailed: the endpoint cannot be reached.
        """

    def prepare(self, call: Call) -> Wire:
        """Return the call as it will be sent, so that nothing is encoded when it is due."""

    async def answer(self, call: Call, wire: Wire) -> None:
        """Send a call and fill in its record until the answer's end; cancelling the task cancels it.

        Raises:
            RequestFailed: the server refused, failed, or broke off.
        """

    async def close(self) -> None:
        """Close all connections."""


def open_target(scenario: Scenario) -> Target:
    """Return the scenario's target, not connected yet."""
    if scenario.target.startswith("grpc://"):
        from loadtest.targets.baton_grpc import BatonGrpc

        return BatonGrpc(scenario)
    from loadtest.targets.openai_http import OpenAIHttp

    return OpenAIHttp(scenario)
