"""What it costs a prefill worker that steps tell of their layers: `python -m bench.told_layers MODEL`.

One engine computes prompts and their first tokens, one prompt a step, held for another worker (steps tell,
see ADR 13) and not, in turns. The first tokens must be the same. MODEL may have random_weights.json in place
of weights.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time

from engine.build import build_engine
from engine.config import EngineConfig
from engine.events import BlocksFilling, RequestFailed, StepEvents, TokenSampled
from engine.request import Request
from engine.sampling_params import SamplingParams

TIMEOUT_S = 60.0


class Bench:
    """An engine, and what it said in the round under way."""

    def __init__(self, model: str, backend: str, length: int, kv_bytes: int) -> None:
        config = EngineConfig(
            model, "bench", backend=backend, max_step_tokens=length, kv_bytes=kv_bytes, prefix_cache=False
        )
        self.engine = build_engine(config, self._on_events).engine
        self.engine.start()
        self.tokens: dict[str, int] = {}
        self.num_told = 0
        self._wanted = 0
        self._held = False
        self._done = threading.Event()

    def run(self, prompts: list[list[int]], held: bool) -> tuple[float, list[int]]:
        """Compute prompts; seconds until the last first token, and the tokens."""
        self.tokens, self.num_told, self._wanted, self._held = {}, 0, len(prompts), held
        self._done.clear()
        sampling = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        requests = [
            Request(str(i), list(prompt), len(prompt), sampling, hold_blocks=held, max_new_tokens=1)
            for i, prompt in enumerate(prompts)
        ]
        start = time.perf_counter()
        for request in requests:
            self.engine.submit(request)
        if not self._done.wait(TIMEOUT_S):
            raise SystemExit("the engine gave no answer")
        seconds = time.perf_counter() - start
        while self.engine.stats().used_blocks:  # what is held goes back
            time.sleep(0.001)
        return seconds, [self.tokens[str(i)] for i in range(len(prompts))]

    def _on_events(self, step: StepEvents) -> None:
        for event in step.events:
            match event:
                case RequestFailed():
                    raise event.error
                case BlocksFilling():
                    self.num_told += 1
                case TokenSampled():
                    self.tokens[event.request_id] = event.token.token_id
                    if self._held:
                        self.engine.cancel(event.request_id)
                    if len(self.tokens) == self._wanted:
                        self._done.set()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--length", type=int, default=1024, help="of a prompt, tokens")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kv-gib", type=float, default=8.0)
    options = parser.parse_args()
    bench = Bench(options.model, options.backend, options.length, round(options.kv_gib * 2**30))
    rng = random.Random(options.length)
    prompts = [rng.choices(range(3, 250), k=options.length) for _ in range(options.prompts)]
    for held in (False, True, False, True):
        bench.run(prompts, held)  # loads kernels, makes graphs
    pairs = [(bench.run(prompts, False), bench.run(prompts, True)) for _ in range(options.rounds)]
    differ = sum(plain != told for (_, plain), (_, told) in pairs)
    seconds = [statistics.median(s for s, _ in side) for side in zip(*pairs, strict=True)]
    ratio = statistics.median(plain / told for (plain, _), (told, _) in pairs)
    plain_rate, told_rate = (options.prompts * options.length / s for s in seconds)
    print(
        f"{options.prompts} prompts of {options.length} tokens: {plain_rate:.0f} tokens/s; "
        f"held, {bench.num_told} told of: {told_rate:.0f} tokens/s; ratio {ratio:.3f}"
    )
    bench.engine.stop()
    print("FAILED: first tokens differ" if differ else "first tokens are the same")
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
