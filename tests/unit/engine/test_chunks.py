from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.chunks import cut_chunks
from tests.support.engine_builders import create_request


def cut(lengths, budget, max_chunk=1000, unit=4, shortest_first=False):
    requests = [create_request(length) for length in lengths]
    chunks = cut_chunks(requests, budget, max_chunk, unit, shortest_first)
    return [(requests.index(request), num_tokens) for request, num_tokens in chunks]


def test_by_age_the_first_takes_what_it_can() -> None:
    assert cut([100, 10], 64) == [(0, 64)]


def test_shortest_first_lets_a_short_prompt_pass() -> None:
    assert cut([100, 10], 64, shortest_first=True) == [(1, 10), (0, 52)]


def test_equal_prompts_go_by_age_in_both_turns() -> None:
    assert cut([40, 40], 64, shortest_first=True) == cut([40, 40], 64) == [(0, 40), (1, 24)]


def test_the_chunk_limit_leaves_budget_for_others() -> None:
    assert cut([100, 100], 64, max_chunk=32) == [(0, 32), (1, 32)]


def test_cuts_fall_on_whole_blocks() -> None:
    assert cut([100], 63) == [(0, 60)]
    request = create_request(100)
    request.num_computed_tokens = 7
    assert cut_chunks([request], 63, 1000, 4, False) == [(request, 61)]


def test_crumbs_are_used_only_if_nothing_else_runs() -> None:
    assert cut([100], 3) == [(0, 3)]
    assert cut([61, 100], 64) == [(0, 61)]
    assert cut([61, 2], 64) == [(0, 61), (1, 2)]


def test_chunks_smaller_than_a_block_are_allowed() -> None:
    assert cut([100, 100], 7, max_chunk=3) == [(0, 3), (1, 3)]


def test_an_answer_that_is_computed_again_runs_one_token_a_step() -> None:
    """From the prompt's end on, wherever that lies in a block, and beside other chunks."""
    request, other = create_request(10), create_request(100)
    request.token_ids += [1, 2, 3]
    run = []
    while request.num_uncomputed_tokens:
        (mine, num_tokens), *_ = cut_chunks([request, other], 64, 1000, 4, False, answers_by_one=True)
        assert mine is request
        run.append(num_tokens)
        request.num_computed_tokens += num_tokens
    assert run == [10, 1, 1, 1]
    request.num_computed_tokens = 11
    chunks = cut_chunks([other, request], 64, 40, 4, False, answers_by_one=True)
    assert chunks == [(other, 40), (request, 1)]


def test_a_more_urgent_class_goes_before_a_shorter_prompt() -> None:
    long, short = create_request(100, priority=0), create_request(5, priority=1)
    assert cut_chunks([long, short], 64, 1000, 4, shortest_first=True) == [(long, 64)]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 59)), min_size=1, max_size=8),
    st.integers(1, 80),
    st.integers(1, 40),
    st.sampled_from([1, 4, 16]),
    st.booleans(),
)
def test_budget_and_limits_hold(lengths, budget, max_chunk, unit, shortest_first) -> None:
    requests = []
    for length, computed in lengths:
        request = create_request(length)
        request.num_computed_tokens = min(computed, length - 1)
        requests.append(request)
    chunks = cut_chunks(requests, budget, max_chunk, unit, shortest_first)
    assert chunks, "a step with prompts runs at least one"
    assert len({request.request_id for request, _ in chunks}) == len(chunks)
    assert sum(n for _, n in chunks) <= budget
    for request, n in chunks:
        assert 1 <= n <= min(max_chunk, request.num_uncomputed_tokens)
