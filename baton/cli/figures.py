"""What one answer cost, as the last message of its stream tells, and as it looked from here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from baton.v1.inference_pb2 import Delta, Finished, Handoff
from baton.v1.sampling_pb2 import FinishReason


@dataclass(slots=True)
class Stopwatch:
    """Times one stream at the client, seconds from its start."""

    _start: float = field(default_factory=time.perf_counter)
    first_token_s: float | None = None
    end_s: float = 0.0

    def see(self, event: object) -> None:
        """Note an event of the stream."""
        self.end_s = time.perf_counter() - self._start
        if self.first_token_s is None and isinstance(event, Delta) and event.token_ids:
            self.first_token_s = self.end_s


def summary(finished: Finished, watch: Stopwatch) -> list[str]:
    """Return the figures of an answer, a line each subject."""
    usage, handoff = finished.usage, finished.handoff
    reason = FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_").lower()
    ttft_s = watch.first_token_s if watch.first_token_s is not None else watch.end_s
    decode_s = watch.end_s - ttft_s
    gaps = max(usage.completion_tokens - 1, 0)
    tpot = f"TPOT {1000 * decode_s / gaps:.1f} ms" if gaps else "TPOT –"
    rate = f"{usage.completion_tokens / watch.end_s:.1f} tokens/s" if watch.end_s else ""
    lines = [
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
        f"{usage.completion_tokens} generated, ended by {reason}",
        f"TTFT {1000 * ttft_s:.1f} ms, {tpot}, {rate}",
    ]
    if finished.HasField("handoff"):
        retries = f", {handoff.retries} retries" if handoff.retries else ""
        lines.append(_handed_over(handoff) + retries)
    return lines


def _handed_over(handoff: Handoff) -> str:
    if handoff.prefill_worker == handoff.decode_worker:
        return f"prompt and answer computed by {handoff.decode_worker}: no KV blocks handed over"
    return (
        f"{handoff.blocks} KV blocks ({size(handoff.bytes)}) handed over from "
        f"{handoff.prefill_worker} to {handoff.decode_worker} by {handoff.transport}, "
        f"{handoff.skipped_blocks} already there, {1000 * handoff.exposed_s:.1f} ms exposed"
    )


def size(num_bytes: float) -> str:
    """Return a size with a unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
