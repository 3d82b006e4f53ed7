"""A co-located worker: its steps hold a token of every stream and, while prompts wait, chunks of them.

A step with chunks costs the larger of the two kinds' fixed parts, and what its rows and its chunks cost. With
no prompt waiting it jumps from change to change as a decode worker does.
"""

from __future__ import annotations

from loadtest.sizing.decode import DecodeWorker
from loadtest.sizing.job import Job
from loadtest.sizing.prefill import PrefillWorker
from loadtest.sizing.profile import Profile


class BothWorker:
    """One worker. Whatever changes what it does next says when that is; `version` grows with it, and an
    event of an older version is void. `computing_s` counts the time of steps with chunks.

    Args:
        slowed: another worker on its machine works all the time.
    """

    def __init__(self, profile: Profile, *, slowed: bool) -> None:
        self._profile = profile
        self._fixed_s = max(profile.prefill_step_s, profile.decode_step_s)
        self._mixed_end_s: float | None = None
        self._slowdown = profile.prefill_slowdown if slowed else 1.0
        self.decode = DecodeWorker(profile)
        self.decode.slow(profile.decode_slowdown if slowed else 1.0, 0.0)
        self.prefill = PrefillWorker(profile)
        self.version = 0
        self.computing_s = 0.0

    def step_end_s(self, now_s: float) -> float:
        """Return when the step under way ends. Idle: now."""
        return self.decode.step_end_s(now_s) if self._mixed_end_s is None else self._mixed_end_s

    def add(self, job: Job, now_s: float) -> float | None:
        """Queue a prompt; returns when the next change is, None: as it was said before."""
        self.prefill.add(job)
        if self._mixed_end_s is not None:
            return None
        if not self.decode.num_rows:
            return self.begin(now_s)
        self.version += 1
        return self.decode.step_end_s(now_s)

    def end(self, now_s: float) -> tuple[list[Job], list[Job]]:
        """End what ends now; returns the prompts that are complete, and the requests that are."""
        if self._mixed_end_s is None:
            return [], self.decode.advance(now_s)
        self._mixed_end_s = None
        computed = self.prefill.end_step()
        for job in computed:
            if job.output_tokens > 1:
                self.decode.join(job, now_s)
        return computed, self.decode.step(now_s)

    def begin(self, now_s: float) -> float | None:
        """Begin what comes next, between two steps; returns when it changes, None: there is nothing to do."""
        self.version += 1
        rows = self.decode.num_rows
        chunks_s = self.prefill.cut(self._profile.max_step_tokens - rows)
        if chunks_s is None:
            return self.decode.next_end_s()
        seconds = self._slowdown * (self._fixed_s + chunks_s + self.decode.rows_s)
        self.computing_s += seconds
        self._mixed_end_s = now_s + seconds
        return self._mixed_end_s
