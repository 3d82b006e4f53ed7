"""Two engines on one pool: what decode reserved, prefill computes in place."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from engine.errors import BlocksWithdrawnError, InvalidRequestError
from engine.request import GivenBlocks, Request
from engine.scheduler.scheduler import Scheduler
from engine.validation import Limits
from tests.support.engine_builders import (
    CONTEXT_LENGTH,
    EOS,
    VOCAB_SIZE,
    create_config,
    create_group,
    create_request,
)
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import VerifyingRunner, expected_tokens

PREFILL_BLOCKS, DECODE_BLOCKS = 3, 29


def make_pair(max_step_tokens: int = 8) -> tuple[EngineDriver, EngineDriver]:
    runner = VerifyingRunner(PREFILL_BLOCKS + DECODE_BLOCKS)
    config = create_config(max_step_tokens=max_step_tokens)

    def make(num_blocks: int, first_block: int) -> EngineDriver:
        scheduler = Scheduler(
            config, (create_group(),), num_blocks, CONTEXT_LENGTH, EOS, first_block=first_block
        )
        return EngineDriver(scheduler, runner)

    return make(PREFILL_BLOCKS, 0), make(DECODE_BLOCKS, PREFILL_BLOCKS)


def given_request(
    tokens: Sequence[int], name: str, decode: EngineDriver, writable: Callable[[], bool] = lambda: True
) -> Request:
    """What a prefill worker makes of a reservation."""
    grant = decode.granted[name]
    request = create_request(tokens, name, hold_blocks=True)
    request.given = GivenBlocks(grant.block_ids, grant.num_cached_tokens, writable)
    return request


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 17, 33, 64])
def test_prefill_computes_where_decode_reads(length: int) -> None:
    prefill, decode = make_pair()
    for name, cached in (("first", 0), ("again", (length - 1) // 4 * 4)):
        request = create_request(list(range(length)), name, max_tokens=6)
        wanted = expected_tokens(request, 6)
        decode.reserve(request)
        decode.step()
        assert decode.granted[name].num_cached_tokens == cached
        assert min(decode.granted[name].block_ids[0]) >= PREFILL_BLOCKS
        prefill.submit(given_request(range(length), name, decode))
        prefill.run()
        assert prefill.runner.num_tokens_run[name] == length - cached
        assert prefill.filled[name] == list(decode.granted[name].block_ids[0][: -(-length // 4)])
        assert prefill.scheduler.stats().used_blocks == 0
        (first,) = prefill.tokens[name]
        prefill.scheduler.cancel(name)
        prefill.step()
        decode.scheduler.commit_reservation(name, first)
        decode.run()
        assert [first, *decode.tokens[name]] == wanted
    assert prefill.scheduler.block_journal.read(0, 0, 100).stored == ()
    assert decode.scheduler.stats().used_blocks == 0


def test_own_and_given_blocks_run_side_by_side() -> None:
    prefill, decode = make_pair()
    decode.reserve(create_request(list(range(40)), "given"))
    decode.step()
    own = create_request(11, "own", hold_blocks=True)
    prefill.submit(given_request(range(40), "given", decode), own)
    prefill.run()
    assert set(prefill.tokens) == {"given", "own"}
    assert prefill.scheduler.stats().used_blocks == 3
    assert max(own.block_ids[0]) < PREFILL_BLOCKS


def test_withdrawn_blocks_are_not_written() -> None:
    prefill, decode = make_pair()
    decode.reserve(create_request(list(range(40)), "a"))
    decode.step()
    answers = iter([True, True, False])
    prefill.submit(given_request(range(40), "a", decode, lambda: next(answers)))
    prefill.run()
    assert prefill.runner.num_tokens_run["a"] == 16
    assert isinstance(prefill.failed["a"], BlocksWithdrawnError)
    assert "a" in prefill.ended


def test_given_blocks_must_fit() -> None:
    limits = Limits(VOCAB_SIZE, CONTEXT_LENGTH, (create_group(),), PREFILL_BLOCKS)
    request = create_request(40, hold_blocks=True)
    request.given = GivenBlocks((tuple(range(10)),), 36, lambda: True)
    limits.check(request)
    bad = (
        (dataclasses.replace(request.given, block_ids=(tuple(range(9)),)), True),
        (dataclasses.replace(request.given, num_computed_tokens=40), True),
        (dataclasses.replace(request.given, num_computed_tokens=3), True),
        (request.given, False),
    )
    for given, hold_blocks in bad:
        request.given, request.hold_blocks = given, hold_blocks
        with pytest.raises(InvalidRequestError, match="given: "):
            limits.check(request)
