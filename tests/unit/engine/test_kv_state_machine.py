"""Hypothesis drives the block manager and checks ref counts and contents after every rule."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from engine.errors import OutOfBlocksError
from engine.kv.kv_manager import KVManager
from engine.request import Request
from tests.support.engine_builders import create_group, create_request
from tests.support.verifying_runner import VerifyingRunner, fingerprints

NUM_BLOCKS = 12
BLOCK_SIZES = (2, 4)
# Few different tokens and salts, so that prefixes are often equal.
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=20)


class KVMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        groups = tuple(create_group(size, f"group{size}") for size in BLOCK_SIZES)
        self.kv = KVManager(groups, NUM_BLOCKS)
        self.memory = VerifyingRunner(NUM_BLOCKS, BLOCK_SIZES)
        self.live: list[Request] = []

    @rule(target=requests, tokens=TOKENS, salt=st.sampled_from(["", "tenant"]), leave=st.integers(0, 1))
    def admit(self, tokens: list[int], salt: str, leave: int):
        request = create_request(tokens, cache_salt=salt)
        free = self.kv.num_free
        try:
            self.kv.admit(request, len(tokens) + 1, leave=leave, spare=1)
        except OutOfBlocksError:
            assert self.kv.num_free == free
            assert not request.block_ids
            return multiple()
        assert request.num_computed_tokens <= len(tokens) - leave
        self.live.append(request)
        return request

    @rule(request=requests, count=st.integers(1, 9))
    def compute(self, request: Request, count: int) -> None:
        start = request.num_computed_tokens
        if start == request.num_tokens:
            request.token_ids.append(request.num_tokens % 2)
        end = min(start + count, request.num_tokens)
        before = [list(ids) for ids in request.block_ids]
        try:
            copies = self.kv.grow(request, end)
        except OutOfBlocksError:
            assert request.block_ids == before
            return
        for copy in copies:
            self.memory.store[copy.group][copy.dst] = self.memory.store[copy.group][copy.src]
        known = fingerprints(request.token_ids[:end], request.cache_salt)
        for group, ids in enumerate(request.block_ids):
            self.memory._write(group, ids, start, known[start:])
        request.num_computed_tokens = end
        self.kv.register(request)

    @rule(request=requests)
    def adopt(self, request: Request) -> None:
        start = request.num_computed_tokens
        if start < request.num_tokens and len(request.block_ids[0]) * BLOCK_SIZES[0] >= request.num_tokens:
            assert self.kv.adopt(request, leave=1) == request.num_computed_tokens - start
            assert request.num_computed_tokens < request.num_tokens

    @rule(target=requests, parent=requests)
    def fork(self, parent: Request) -> Request:
        child = create_request(list(parent.token_ids), cache_salt=parent.cache_salt)
        self.kv.fork(parent, child)
        self.live.append(child)
        return child

    @rule(request=consumes(requests))
    def free(self, request: Request) -> None:
        self.kv.free(request)
        self.kv.forget(request)
        self.live.remove(request)
        for group, pool in enumerate(self.kv._pools):
            self.memory.poison(group, pool._blank)

    @invariant()
    def counts_agree(self) -> None:
        self.kv.check_invariants()

    @invariant()
    def everyone_reads_its_own(self) -> None:
        for request in self.live:
            computed = request.num_computed_tokens
            known = fingerprints(request.token_ids[:computed], request.cache_salt)
            for group, ids in enumerate(request.block_ids):
                assert self.memory.read(group, ids, computed) == known

    def teardown(self) -> None:
        for request in self.live:
            self.kv.free(request)
        assert self.kv.num_free == self.kv.num_blocks
        self.kv.check_invariants()


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
