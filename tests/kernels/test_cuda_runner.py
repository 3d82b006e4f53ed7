"""The CUDA runner step by step: graphs, tokens that the host does not know yet, copies of blocks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.backends.cuda.backend import CudaBackend
from engine.config import EngineConfig
from engine.errors import SamplingError
from engine.models.build import build_transformer
from engine.models.load import open_model
from engine.request import Request
from engine.runner.cuda.runner import CudaRunner
from engine.sampling_params import SamplingParams
from engine.step import BlockCopy, SampledToken, ScheduledRow, SchedulerOutput
from tests.support.model_steps import create_group
from tests.support.tiny_families import create_family

BLOCK = 16
MAX_RUNNING = 256


class Runner:
    """A CudaRunner over a poisoned pool, and what the tests need to drive it."""

    def __init__(self, directory: Path, *, graphs: bool = True) -> None:
        config = EngineConfig(
            str(directory), "tiny", backend="cuda", block_size=BLOCK, graphs=graphs, max_running=MAX_RUNNING
        ).resolved()
        files = open_model(str(directory))
        self.backend = CudaBackend(torch.bfloat16)
        model = build_transformer(files.architecture, files.source, self.backend, 512)
        self.pool = self.backend.allocate_pool(
            create_group(files.architecture, BLOCK, "bfloat16"), 3000, None
        )
        self.pool.blocks.fill_(float("nan"))
        self.runner = CudaRunner(
            config, files.architecture.eos_token_ids, model, self.backend, self.pool, 512
        )
        self._next_block = 0
        self._step = 0

    def request(self, tokens: list[int], name: str = "", blocks: int = 10) -> Request:
        ids = list(range(self._next_block, self._next_block + blocks))
        self._next_block += blocks
        sampling = SamplingParams(temperature=0.0)
        return Request(name or f"r{ids[0]}", list(tokens), len(tokens), sampling, block_ids=[ids])

    def step(self, *rows: ScheduledRow, copies: tuple[BlockCopy, ...] = ()) -> list[int]:
        """Run a step; the sampled tokens in the order of the rows."""
        self._step += 1
        result = self.runner.launch(SchedulerOutput(self._step, rows, copies)).wait()
        return [result.sampled[row.request.request_id].token_id for row in rows if row.sample]

    def logits(self, rows: int) -> torch.Tensor:
        """What the last step drew from."""
        torch.cuda.synchronize()
        return self.backend._logits[: rows * 97].view(rows, 97).clone()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner")
    create_family("mistral-window", path, head_dim=64)
    return path


def random_tokens(length: int) -> list[int]:
    return torch.randint(3, 97, (length,)).tolist()


def decode_row(request: Request, pending: bool = False) -> ScheduledRow:
    start = len(request.token_ids) - (0 if pending else 1)
    return ScheduledRow(request, start, 1, sample=True, pending=pending)


def prompt_row(request: Request) -> ScheduledRow:
    return ScheduledRow(request, 0, len(request.token_ids), sample=True)


@pytest.mark.parametrize("rows", [1, 3, 33, 100])
def test_a_replayed_graph_gives_the_same_bits(directory: Path, rows: int) -> None:
    runner = Runner(directory)
    requests = [runner.request(random_tokens(5 + index)) for index in range(rows)]
    for start in range(0, rows, 20):
        some = requests[start : start + 20]
        for request, token in zip(some, runner.step(*map(prompt_row, some)), strict=True):
            request.token_ids.append(token)
    eager = runner.step(*map(decode_row, requests))
    wanted = runner.logits(rows)
    assert not wanted.isnan().any()
    for _ in range(3):  # captured, then replayed
        assert runner.step(*map(decode_row, requests)) == eager
        assert torch.equal(runner.logits(rows), wanted)


def test_graphs_follow_what_changes(directory: Path) -> None:
    """Other requests, other blocks, other lengths, fewer rows: a graph of the same size must not care."""
    with_graphs, without = Runner(directory), Runner(directory, graphs=False)
    answers = []
    for runner in (with_graphs, without):
        torch.manual_seed(3)
        requests = [runner.request(random_tokens(3 + 7 * index)) for index in range(14)]
        drawn = []
        for request in requests:
            request.token_ids += runner.step(prompt_row(request))
        for step in range(30):
            rows = [request for index, request in enumerate(requests) if (index + step) % 5 or step % 3]
            tokens = runner.step(*map(decode_row, rows))
            for request, token in zip(rows, tokens, strict=True):
                request.token_ids.append(token)
            drawn.append(tokens)
        answers.append([request.token_ids for request in requests])
        assert not runner.logits(len(rows)).isnan().any()
    differing = sum(a != b for a, b in zip(*answers, strict=True))
    assert differing <= 2, "more than near-ties in products of other sizes can explain"


def chunk_row(request: Request, start: int, num_tokens: int) -> ScheduledRow:
    return ScheduledRow(request, start, num_tokens, start + num_tokens == len(request.token_ids))


@pytest.mark.parametrize("decodes", [0, 1, 30, 200])
@pytest.mark.parametrize("chunks", [(5,), (1, 90, 16), (300,)])
def test_a_replayed_graph_of_chunks_gives_the_same_bits(
    directory: Path, decodes: int, chunks: tuple[int, ...]
) -> None:
    """Chunks in the middle of prompts and at their ends, beside requests that decode."""
    runner = Runner(directory)
    requests = [runner.request(random_tokens(3 + index % 40)) for index in range(decodes)]
    for start in range(0, decodes, 20):
        some = requests[start : start + 20]
        for request, token in zip(some, runner.step(*map(prompt_row, some)), strict=True):
            request.token_ids.append(token)
    rows = [decode_row(request) for request in requests]
    for index, length in enumerate(chunks):
        request = runner.request(random_tokens(40 + length + index % 2), blocks=25)
        runner.step(chunk_row(request, 0, 40))
        rows.append(chunk_row(request, 40, length))
    count = sum(row.sample for row in rows)
    eager = runner.step(*rows)
    wanted = runner.logits(count)
    assert not wanted.isnan().any()
    for _ in range(3):  # captured, then replayed
        assert runner.step(*rows) == eager
        assert torch.equal(runner.logits(count), wanted)


def test_graphs_are_captured_anew_when_an_address_in_them_is_gone(directory: Path) -> None:
    """As when rows share so many prefixes that attention_decode needs larger buffers."""
    runner = Runner(directory)
    requests = [runner.request(random_tokens(30)) for _ in range(3)]
    for request, token in zip(requests, runner.step(*map(prompt_row, requests)), strict=True):
        request.token_ids.append(token)
    wanted = runner.step(*map(decode_row, requests))
    for factor in (2, 4):
        runner.runner._attention.reserve(1, 3000 * BLOCK * factor)
        for _ in range(3):
            assert runner.step(*map(decode_row, requests)) == wanted
        assert len(runner.runner._graphs._graphs) == 1


@pytest.mark.parametrize("prepared", [False, True], ids=["as they come", "after idle time"])
def test_graphs_follow_steps_that_mix(directory: Path, prepared: bool) -> None:
    """Prompts come in chunks of all lengths while others decode, as with no graph at all."""
    answers, steps, stand_ins = [], 0, 0
    for graphs in (True, False):
        runner = Runner(directory, graphs=graphs)
        while prepared and runner.runner.prepare():
            pass
        torch.manual_seed(5)
        draw = random.Random(5)
        waiting = [runner.request(random_tokens(draw.randint(1, 180)), f"m{n}", blocks=16) for n in range(60)]
        lengths = {request.request_id: len(request.token_ids) for request in waiting}
        done: dict[str, int] = {request.request_id: 0 for request in waiting}
        running: list[Request] = []
        while waiting or any(len(r.token_ids) < lengths[r.request_id] + 8 for r in running):
            running += [waiting.pop() for _ in range(min(len(waiting), draw.randint(0, 3)))]
            decodes = [
                r
                for r in running
                if done[r.request_id] and len(r.token_ids) < lengths[r.request_id] + 8
                and done[r.request_id] >= lengths[r.request_id]
            ]  # fmt: skip
            rows = [decode_row(request) for request in decodes]
            for request in running:
                left = lengths[request.request_id] - done[request.request_id]
                if left > 0 and draw.random() < 0.7:
                    taken = min(left, draw.choice((1, 2, 17, 64, 200)))
                    rows.append(chunk_row(request, done[request.request_id], taken))
                    done[request.request_id] += taken
            rows.sort(key=lambda row: row.num_tokens > 1)
            if not rows:
                continue
            steps += 1
            tokens = runner.step(*rows)
            for row, token in zip([row for row in rows if row.sample], tokens, strict=True):
                row.request.token_ids.append(token)
        assert not runner.pool.blocks[runner._next_block :].isfinite().any(), "a block of nobody was written"
        answers.append({r.request_id: r.token_ids[lengths[r.request_id] :] for r in running})
        assert set(map(len, answers[-1].values())) == {8}
        if runner.runner._graphs is not None:
            stand_ins = sum(runner.runner._graphs._num_stand_ins.values())
    assert steps > 60
    assert not prepared or stand_ins > 20, "larger shapes stood in for those that had not come yet"
    differing = sum(answers[0][name] != answers[1][name] for name in answers[0])
    assert differing <= 6, "more than near-ties in products of other sizes can explain"


def test_a_token_that_the_host_does_not_know_is_taken_on_the_device(directory: Path) -> None:
    runner = Runner(directory)
    prompts = [random_tokens(n) for n in (9, 20, 31)]
    known = [runner.request(prompt) for prompt in prompts]
    wanted = [[token] for token in runner.step(*map(prompt_row, known))]
    for _ in range(6):
        for request, tokens in zip(known, wanted, strict=True):
            request.token_ids.append(tokens[-1])
        for tokens, token in zip(wanted, runner.step(*map(decode_row, known)), strict=True):
            tokens.append(token)
    blind = [runner.request(prompt) for prompt in prompts]
    pending = [runner.runner.launch(SchedulerOutput(100, tuple(map(prompt_row, blind))))]
    for step in range(6):
        rows = tuple(ScheduledRow(request, len(request.token_ids) + step, 1, True, True) for request in blind)
        pending.append(runner.runner.launch(SchedulerOutput(101 + step, rows)))
    results = [step.wait().sampled for step in pending]
    for request, tokens in zip(blind, wanted, strict=True):
        assert [result[request.request_id].token_id for result in results] == tokens


def test_copies_come_before_the_step(directory: Path) -> None:
    """Copy-on-write: a child that shares all but its last block answers as its parent."""
    runner = Runner(directory)
    parent = runner.request(random_tokens(40))
    parent.token_ids += runner.step(prompt_row(parent))
    child = runner.request(parent.token_ids)
    child.block_ids[0][:2] = parent.block_ids[0][:2]
    copies = (
        BlockCopy(0, parent.block_ids[0][2], child.block_ids[0][3]),
        BlockCopy(0, child.block_ids[0][3], child.block_ids[0][2]),
    )
    both = runner.step(decode_row(parent), decode_row(child), copies=copies)
    assert both[0] == both[1]
    logits = runner.logits(2)
    assert torch.equal(logits[0], logits[1])


def test_alone_equals_among_others_in_attention(directory: Path) -> None:
    """A row's bits do not depend on which others stand beside it in a step of the same size."""
    runner = Runner(directory)
    requests = [runner.request(random_tokens(4 + index % 90)) for index in range(MAX_RUNNING)]
    for start in range(0, MAX_RUNNING, 20):
        some = requests[start : start + 20]
        for request, token in zip(some, runner.step(*map(prompt_row, some)), strict=True):
            request.token_ids.append(token)
    runner.step(*map(decode_row, requests))
    together = runner.logits(MAX_RUNNING)
    for seed in range(3):
        order = torch.randperm(MAX_RUNNING, generator=torch.Generator().manual_seed(seed)).tolist()
        runner.step(*(decode_row(requests[index]) for index in order))
        assert torch.equal(runner.logits(MAX_RUNNING), together[order])


class Ladder:
    """Stands where a grammar's state does: the n-th token of an answer must be 10 + n or 20 + n."""

    def allow(self, answer: list[int], words: np.ndarray) -> None:
        words[:] = 0
        for token in (10 + len(answer), 20 + len(answer)):
            words[token >> 5] |= np.int32(1 << (token & 31))


def test_only_allowed_tokens_are_drawn(directory: Path) -> None:
    runner = Runner(directory)
    bound, free = runner.request(random_tokens(9)), runner.request(random_tokens(9))
    twin = runner.request(free.token_ids)
    bound.grammar = Ladder()
    wanted = []
    for _ in range(6):
        rows = [prompt_row(r) if len(r.token_ids) == 9 else decode_row(r) for r in (bound, free)]
        for request, token in zip((bound, free), runner.step(*rows), strict=True):
            request.token_ids.append(token)
        wanted.append({10 + len(wanted), 20 + len(wanted)})
    assert all(token in allowed for token, allowed in zip(bound.token_ids[9:], wanted, strict=True))
    twin.token_ids += runner.step(prompt_row(twin))
    assert twin.token_ids[9] == free.token_ids[9]


def test_a_launch_that_raises_leaves_nothing_running(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks are given to others at once; and the next step is as if it had never been."""
    prompt = random_tokens(20)
    untouched = Runner(directory)
    wanted = untouched.step(prompt_row(untouched.request(prompt)))
    runner = Runner(directory)

    def broken(*_: object) -> None:
        torch.cuda._sleep(400_000_000)  # type: ignore[no-untyped-call]
        raise RuntimeError("no draw")

    with monkeypatch.context() as patch:
        patch.setattr(runner.runner._sampler, "draw", broken)
        with pytest.raises(RuntimeError, match="no draw"):
            runner.step(prompt_row(runner.request(random_tokens(50))))
    assert runner.runner._stream.query()
    assert runner.step(prompt_row(runner.request(prompt))) == wanted


def test_a_row_of_nonsense_costs_itself_alone(directory: Path) -> None:
    """One step ahead, too: the row behind it takes a token that is none."""
    runner = Runner(directory)
    prompts = [random_tokens(n) for n in (40, 33, 21)]
    requests = [runner.request(prompt) for prompt in prompts]
    for request, token in zip(requests, runner.step(*map(prompt_row, requests)), strict=True):
        request.token_ids.append(token)
    twins = [runner.request(prompt) for prompt in prompts]
    for twin, token in zip(twins, runner.step(*map(prompt_row, twins)), strict=True):
        twin.token_ids.append(token)
    wanted = []
    for _ in range(2):
        wanted.append(runner.step(*map(decode_row, twins)))
        for twin, token in zip(twins, wanted[-1], strict=True):
            twin.token_ids.append(token)
    runner.pool.blocks[requests[1].block_ids[0][2]] = float("nan")  # positions 32 on: in every window
    torch.cuda.synchronize()
    steps = [
        runner.runner.launch(SchedulerOutput(100 + step, tuple(decode_row_at(r, step) for r in requests)))
        for step in range(2)
    ]
    for step, tokens in zip(steps, wanted, strict=True):
        drawn = step.wait().sampled
        assert isinstance(drawn[requests[1].request_id], SamplingError)
        for index in (0, 2):
            token = drawn[requests[index].request_id]
            assert isinstance(token, SampledToken)
            assert token.token_id == tokens[index]


def decode_row_at(request: Request, step: int) -> ScheduledRow:
    """The row of `step` steps ahead; its token is known if that is 0."""
    return ScheduledRow(request, len(request.token_ids) - 1 + step, 1, sample=True, pending=step > 0)
