"""One generator process. It reads lines of JSON from standard input and writes lines of JSON:

in    {"scenario", "which", "shares", "keep_answers"}    out   {"ready": true} or {"failed": message}
in    {"start_at"}  (time.monotonic)                     out   {"progress"} twice a second
in    "stop", or the end of input                        out   {"record"} for each request, {"health"}
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from dataclasses import asdict
from typing import IO

from loadtest.client import Clients
from loadtest.errors import LoadTestError
from loadtest.health import Health
from loadtest.record import Outcome
from loadtest.scenario import Scenario
from loadtest.targets import open_target

_PROGRESS_S = 0.5
_SWITCH_S = 0.0005  # the pacer's thread must not wait long for the loop's


async def generate(commands: IO[str], out: IO[str]) -> None:
    """Serve one run."""
    order = json.loads(await asyncio.to_thread(commands.readline))
    scenario = Scenario(**order["scenario"])
    target = open_target(scenario)
    try:
        await target.open()
        clients = Clients(scenario, target, order["which"], order["shares"], order["keep_answers"])
    except LoadTestError as error:
        await target.close()
        _say(out, {"failed": str(error)})
        return
    # A collection that looks at all that is loaded holds up tokens, and seems to be the server's doing.
    gc.collect()
    gc.freeze()
    _say(out, {"ready": True})
    line = await asyncio.to_thread(commands.readline)
    if line.startswith("{"):
        await _run(clients, json.loads(line)["start_at"], commands, out)
    await target.close()


async def _run(clients: Clients, start_at: float, commands: IO[str], out: IO[str]) -> None:
    loop = asyncio.get_running_loop()

    def watch() -> None:
        commands.readline()
        loop.call_soon_threadsafe(clients.stop)

    threading.Thread(target=watch, daemon=True).start()
    telling = asyncio.create_task(_tell(clients, out))
    await clients.run(start_at)
    telling.cancel()
    _say(out, {"progress": _progress(clients, 0)[0]})
    for record in clients.records:
        _say(out, {"record": record.to_json()})
    lags = [record.sent_s - record.planned_s for record in clients.records]
    _say(out, {"health": asdict(Health.of(clients.heartbeat, lags))})


async def _tell(clients: Clients, out: IO[str]) -> None:
    told = 0
    while True:
        await asyncio.sleep(_PROGRESS_S)
        progress, told = _progress(clients, told)
        _say(out, {"progress": progress})


def _progress(clients: Clients, told: int) -> tuple[dict[str, object], int]:
    """Return the counts so far, with the TTFTs that have become known since the first `told` records."""
    records = clients.records[:]
    outcomes = [record.outcome for record in records]
    counts: dict[str, object] = {
        "sent": clients.sent,
        "in_flight": clients.in_flight,
        **{outcome.value: outcomes.count(outcome) for outcome in Outcome},
        "tokens": sum(sum(record.token_counts) for record in records),
        "ttfts_s": [round(record.ttft_s, 4) for record in records[told:] if record.ttft_s is not None],
    }
    return counts, len(records)


def _say(out: IO[str], message: dict[str, object]) -> None:
    out.write(json.dumps(message, separators=(",", ":")) + "\n")
    out.flush()


def main() -> None:
    """Run on standard input and output."""
    sys.setswitchinterval(_SWITCH_S)
    try:
        import uvloop
    except ImportError:  # not on this system
        asyncio.run(generate(sys.stdin, sys.stdout))
    else:
        uvloop.run(generate(sys.stdin, sys.stdout))


if __name__ == "__main__":
    main()
