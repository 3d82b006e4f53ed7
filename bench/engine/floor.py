"""The least time that a workload takes: its bytes and operations at the machine's ceilings.

A step costs

    max(weights / read rate, operations of its products / product rate)
    + keys and values that decoding rows read / read rate
    + operations of the prompts' attention / attention rate

with no time for anything else: no launch, no sampling, no norm, no hand-off. The steps are those of an
ideal schedule under the engine's own limits: every decoding row runs, prompts get the rest of the budget.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bench.engine.workloads import Workload
from engine.kv.layout import DTYPE_BYTES
from engine.models.architecture import Architecture
from engine.models.checkpoint import EMBEDDING, LM_HEAD, expected_shapes


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a machine can do.

    Attributes:
        read_bytes_s: bytes read from memory a second.
        product_flops: operations a second of large matrix products.
        attention_flops: operations a second of a prompt's attention.
        sustained_flops: as product_flops, after a second of them; 0: not measured. No floor is made of it: it
            tells what the power limit leaves.
    """

    read_bytes_s: float
    product_flops: float
    attention_flops: float
    sustained_flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model needs.

    Attributes:
        weight_bytes: read in each step: all but the embedding.
        layer_flops: products of all layers, a token.
        head_flops: logits, a sampled token.
        kv_bytes: keys and values, a token of context.
        attention_flops: a pair of query and key, over all layers.
    """

    weight_bytes: int
    layer_flops: int
    head_flops: int
    kv_bytes: int
    attention_flops: int


def model_costs(architecture: Architecture, dtype: str) -> Costs:
    """Count what one model needs."""
    shapes = expected_shapes(architecture)
    head = architecture.vocab_size * architecture.hidden_size
    layers = sum(
        shape[0] * shape[1]
        for name, shape in shapes.items()
        if len(shape) == 2 and name not in (EMBEDDING, LM_HEAD)
    )
    size = DTYPE_BYTES[dtype]
    return Costs(
        weight_bytes=(layers + head) * size,
        layer_flops=2 * layers,
        head_flops=2 * head,
        kv_bytes=2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_dim * size,
        attention_flops=4 * architecture.num_layers * architecture.num_heads * architecture.head_dim,
    )


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes.

    Attributes:
        tokens: of decoding rows and of chunks.
        sampled: rows of logits.
        read_tokens: sum of the context lengths of the decoding rows.
        pairs: of query and key in the chunks' attention.
    """

    tokens: int
    sampled: int
    read_tokens: int
    pairs: int


def floor_by_part(work: StepWork, costs: Costs, ceilings: Ceilings) -> dict[str, float]:
    """Return the seconds of one step, by part."""
    products = (work.tokens * costs.layer_flops + work.sampled * costs.head_flops) / ceilings.product_flops
    return {
        "products": max(costs.weight_bytes / ceilings.read_bytes_s, products),
        "attention_decode": work.read_tokens * costs.kv_bytes / ceilings.read_bytes_s,
        "attention_prefill": work.pairs * costs.attention_flops / ceilings.attention_flops,
    }


@dataclass(slots=True)
class _Row:
    prompt_left: int
    out_left: int
    context: int = 0


def floor_seconds(
    workload: Workload, costs: Costs, ceilings: Ceilings, max_running: int, max_step_tokens: int
) -> float:
    """Add up the steps of an ideal schedule."""
    waiting = deque(_Row(num_in, num_out) for num_in, num_out in workload.sizes)
    running: list[_Row] = []
    seconds = 0.0
    while waiting or running:
        while waiting and len(running) < max_running:
            running.append(waiting.popleft())
        seconds += _step(running, costs, ceilings, max_step_tokens)
        running = [row for row in running if row.out_left]
    return seconds


def _step(running: list[_Row], costs: Costs, ceilings: Ceilings, max_step_tokens: int) -> float:
    decoding = [row for row in running if not row.prompt_left]
    tokens, sampled = len(decoding), len(decoding)
    read_tokens, pairs = 0, 0
    for row in decoding:
        row.context += 1
        row.out_left -= 1
        read_tokens += row.context
    for row in running:
        chunk = min(row.prompt_left, max_step_tokens - tokens)
        if chunk <= 0:
            continue
        tokens += chunk
        pairs += chunk * row.context + chunk * (chunk + 1) // 2
        row.context += chunk
        row.prompt_left -= chunk
        if not row.prompt_left:
            row.out_left -= 1
            sampled += 1
    return sum(floor_by_part(StepWork(tokens, sampled, read_tokens, pairs), costs, ceilings).values())
