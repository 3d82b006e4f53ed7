"""Hypothesis drives the block manager and checks ref counts and contents after every rule.

Up to two steps are under way. A step takes a snapshot of its tables when it is launched,
and reads, copies and writes memory only when it ends, however much was freed and given
away in between; a reservation is written at once, as another process would.
"""

from collections import deque
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from engine.errors import OutOfBlocksError
from engine.kv.host_tier import HostSlots
from engine.kv.kv_manager import KVManager
from engine.request import Request
from engine.step import ScheduledRow
from tests.support.engine_builders import create_group, create_request
from tests.support.verifying_runner import POISON, VerifyingRunner, fingerprints

NUM_BLOCKS = 12
HOST_SLOTS = HostSlots(swap=9, cache=6)
BLOCK_SIZES = (2, 4)
MAX_UNDER_WAY = 2
# Few different tokens and salts, so that prefixes are often equal.
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=20)
SALTS = st.sampled_from(["", "tenant"])


class KVMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        groups = tuple(create_group(size, f"group{size}") for size in BLOCK_SIZES)
        self.kv = KVManager(groups, NUM_BLOCKS, host_slots=HOST_SLOTS)
        self.memory = VerifyingRunner(NUM_BLOCKS, BLOCK_SIZES, num_host_slots=HOST_SLOTS.total)
        self.live: list[Request] = []
        self.preempted: list[Request] = []
        self.step = self.over = 0
        self.saved: dict[str, int] = {}
        self.under_way: deque[tuple[int, Callable[[], None]]] = deque()
        # Of each request: the step after which so many tokens are there, in order.
        self.computed: dict[str, list[tuple[int, int]]] = {}

    @rule(target=requests, tokens=TOKENS, salt=SALTS)
    def admit(self, tokens: list[int], salt: str):
        return self._admit(create_request(tokens, cache_salt=salt), leave=1)

    @rule(target=requests, tokens=TOKENS, salt=SALTS)
    def reserve(self, tokens: list[int], salt: str):
        request = create_request(tokens, cache_salt=salt)
        admitted = self._admit(request, leave=0)
        if admitted is request:
            self.memory.fill(request, request.block_ids, request.num_computed_tokens)
            (_, ready), (since, cached) = self.computed[request.request_id]
            request.num_computed_tokens = len(tokens)
            # What comes from the host comes with a step; nobody commits before.
            entries = [(0, len(tokens))] if ready == cached else [(0, ready), (since, len(tokens))]
            self.computed[request.request_id] = entries
            self.kv.register(request, self._num_there(request))
        return admitted

    def _admit(self, request: Request, leave: int):
        free = self.kv.num_free
        try:
            self.kv.admit(request, request.num_tokens + 1, leave=leave, spare=1)
        except OutOfBlocksError:
            assert self.kv.num_free == free
            assert not request.block_ids
            return multiple()
        assert request.num_computed_tokens <= request.num_tokens - leave
        self.live.append(request)
        self.computed[request.request_id] = [
            (0, self.kv.num_ready_tokens(request)),
            (self.step + 1, request.num_computed_tokens),
        ]
        self._launch_moves()
        return request

    @rule(request=consumes(requests))
    def preempt(self, request: Request) -> None:
        computed = request.num_computed_tokens
        if self.kv.swap_out(request):
            self.saved[request.request_id] = computed
        else:
            self.kv.free(request)
        assert not request.block_ids
        self.live.remove(request)
        self.preempted.append(request)
        self._launch_moves()

    @precondition(lambda self: self.preempted)
    @rule(target=requests, index=st.integers(0, NUM_BLOCKS))
    def come_back(self, index: int):
        request = self.preempted[index % len(self.preempted)]
        if request.num_tokens == self.saved.get(request.request_id):
            request.token_ids.append(request.num_tokens % 2)
        admitted = self._admit(request, leave=1)
        if admitted is request:
            self.preempted.remove(request)
            saved = self.saved.pop(request.request_id, 0)
            assert request.num_computed_tokens >= saved
        return admitted

    @precondition(lambda self: self.preempted)
    @rule(index=st.integers(0, NUM_BLOCKS))
    def give_up(self, index: int) -> None:
        request = self.preempted.pop(index % len(self.preempted))
        self.saved.pop(request.request_id, None)
        self.kv.forget(request)

    @rule()
    def write_back(self) -> None:
        """A step without rows."""
        self.kv.write_back()
        self._launch([], lambda: None)

    def _launch_moves(self) -> None:
        """A scheduler launches what it decided on before anything else happens."""
        if self.kv.host.has_moves:
            self._launch([], lambda: None)

    def _launch(self, rows: list[ScheduledRow], run: Callable[[], None]) -> None:
        """Loads come before what a step computes, saves may come after it."""
        self.step += 1
        outs, ins = self.kv.begin_step(self.step, rows)

        def run_all() -> None:
            for group, slot, block_id in ins:
                self.memory.store[group][block_id] = self.memory.slots[group][slot]
            run()
            self.memory.save(outs)

        self.under_way.append((self.step, run_all))
        if len(self.under_way) > MAX_UNDER_WAY:
            self.end_step()

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
        request.num_computed_tokens = end
        step = self.step + 1
        # A copied block holds nothing before the step has made the copy.
        whole = min((start - start % BLOCK_SIZES[copy.group] for copy in copies), default=start)
        entries = [(since, min(until, whole)) for since, until in self.computed[request.request_id]]
        self.computed[request.request_id] = [*entries, (step, end)]
        tables = [list(ids) for ids in request.block_ids]
        known = fingerprints(request.token_ids[:end], request.cache_salt)

        def run() -> None:
            for copy in copies:
                self.memory.store[copy.group][copy.dst] = self.memory.store[copy.group][copy.src]
            for group, ids in enumerate(tables):
                assert self.memory.read(group, ids, start) == known[:start]
                self.memory._write(group, ids, start, known[start:])

        self._launch([ScheduledRow(request, start, end - start, sample=False)], run)

    @precondition(lambda self: self.under_way)
    @rule()
    def end_step(self) -> None:
        self.over, run = self.under_way.popleft()
        run()
        self.kv.end_step(self.over)
        for request in self.live:
            self.kv.register(request, self._num_there(request))

    @rule(request=requests)
    def adopt(self, request: Request) -> None:
        start = request.num_computed_tokens
        if start < request.num_tokens and len(request.block_ids[0]) * BLOCK_SIZES[0] >= request.num_tokens:
            assert self.kv.adopt(request, leave=1) == request.num_computed_tokens - start
            assert request.num_computed_tokens < request.num_tokens
            step, _ = self.computed[request.request_id][-1]
            self.computed[request.request_id].append((step, request.num_computed_tokens))

    @rule(target=requests, parent=requests)
    def fork(self, parent: Request) -> Request:
        child = create_request(list(parent.token_ids), cache_salt=parent.cache_salt)
        child.num_computed_tokens = parent.num_computed_tokens
        self.kv.fork(parent, child)
        self.live.append(child)
        self.computed[child.request_id] = list(self.computed[parent.request_id])
        return child

    @rule(request=consumes(requests))
    def free(self, request: Request) -> None:
        self.kv.free(request)
        self.kv.forget(request)
        self.live.remove(request)
        for group, pool in enumerate(self.kv._pools):
            self.memory.poison(group, pool._blank)
        for group, pools in enumerate(zip(self.kv.host._swap, self.kv.host.caches, strict=True)):
            for pool in pools:
                self.memory.slots[group][pool._blank] = POISON

    @invariant()
    def counts_agree(self) -> None:
        self.kv.check_invariants()

    @invariant()
    def everyone_reads_its_own(self) -> None:
        for request in self.live:
            num_there = self._num_there(request)
            known = fingerprints(request.token_ids[:num_there], request.cache_salt)
            for group, ids in enumerate(request.block_ids):
                assert self.memory.read(group, ids, num_there) == known

    def _num_there(self, request: Request) -> int:
        return max(end for step, end in self.computed[request.request_id] if step <= self.over)

    def teardown(self) -> None:
        for request in self.live:
            self.kv.free(request)
        for request in self.preempted:
            self.kv.forget(request)
        while self.under_way:
            self.over, run = self.under_way.popleft()
            run()
            self.kv.end_step(self.over)
        assert self.kv.num_free == self.kv.num_blocks
        assert all(pool.num_retiring == 0 for pool in self.kv._pools)
        self.kv.check_invariants()


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
