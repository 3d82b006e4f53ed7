"""A grammar across the hand-off, over real gRPC and real transports."""

import json
from pathlib import Path

import grpc
import pytest

from baton.v1 import sampling_pb2
from tests.support.tiny_models import ids_of, text_of
from tests.support.workers import Pair, all_free, decode_worker, engine_config, eventually, prefill_worker

GRAMMAR = 'start: "{" pair (", " pair)* "}"\npair: NAME ": " NAME\nNAME: /"[a-z]{1,4}"/'
PROMPTS = [ids_of("give me json"), ids_of("x"), ids_of("a longer prompt, of more than two blocks of tokens")]


def constrained(seed: int, grammar: str = GRAMMAR, **fields: object) -> sampling_pb2.SamplingParams:
    params: dict[str, object] = {"max_tokens": 200, "temperature": 1.0, "seed": seed}
    lark = sampling_pb2.Grammar(lark=grammar)
    # The random model would seldom end by itself.
    return sampling_pb2.SamplingParams(
        **(params | fields), grammar=lark, logit_bias={ids_of("}")[0]: 100, 2: 100}
    )


async def test_the_state_crosses_in_commit(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        texts = set()
        for seed, prompt in enumerate(PROMPTS * 4):
            tokens, first, handed_over = await pair.generate(prompt, constrained(seed))
            assert handed_over is not None
            assert first.token_id == ids_of("{")[0]
            assert tokens[-1] == 2, "it ended by itself"
            assert isinstance(json.loads(text_of(tokens)), dict)
            texts.add(text_of(tokens))
        assert len(texts) > 1
        await all_free(prefill, decode)


async def test_an_answer_goes_on_from_the_tokens_of_a_lost_worker(tiny_model: Path) -> None:
    sampling = constrained(5)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        whole, _, _ = await pair.generate(PROMPTS[0], sampling)
        for num_emitted in range(1, len(whole) - 2):
            resumed, _, _ = await pair.generate(PROMPTS[0], sampling, emitted=whole[:num_emitted])
            assert resumed == whole[num_emitted:], num_emitted
        await all_free(prefill, decode)


async def test_a_state_that_differs_fails_the_transfer(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        other = constrained(1, 'start: "{" /[a-z]+/ "}"')
        reserved = await pair.reserve(PROMPTS[0], constrained(1), request_id="differs")
        call = pair.start_prefill(PROMPTS[0], other, reserved.target)
        async for _ in call:
            pass
        await eventually(lambda: bool(pair.failures))
        assert pair.failures == {"differs": "TRANSFER_FAILED"}
        await all_free(prefill, decode)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (sampling_pb2.Grammar(lark="start: nowhere"), "sampling.grammar: .*nowhere"),
        (sampling_pb2.Grammar(json_schema="{}"), "sampling.grammar: a worker takes lark alone"),
        (sampling_pb2.Grammar(), "sampling.grammar: a worker takes lark alone"),
    ],
)
async def test_what_cannot_be_compiled_is_refused_by_both(
    tiny_model: Path, grammar: sampling_pb2.Grammar, message: str
) -> None:
    sampling = sampling_pb2.SamplingParams(max_tokens=5, grammar=grammar)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=message) as refused:
            await pair.reserve(PROMPTS[0], sampling)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match=message) as refused:
            async for _ in pair.start_prefill(PROMPTS[0], sampling, None):
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await all_free(prefill, decode)
