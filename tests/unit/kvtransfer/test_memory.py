"""Shared-memory files, liveness, the write gate and fences; no sockets."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from kvtransfer.copier import WriteGate
from kvtransfer.errors import InvalidTransferError, SharedMemoryError
from kvtransfer.fences import Fence, Fences
from kvtransfer.host import SHM_DIR, host_id
from kvtransfer.locked_file import LockedFile, OwnerWatch, owner_is_alive, path_of, sweep_stale
from kvtransfer.region import DeviceMemory, Region
from kvtransfer.shared_memory import SharedMemoryWriter, allocate_shared, attach_shared


def test_shared_memory_is_zeroed_named_and_gone_after_close() -> None:
    shared = allocate_shared("a pool/../x", 10_000)
    assert len(shared.memory) == 10_000
    assert not any(shared.memory)
    path = path_of(shared.name)
    assert path.exists()
    assert path.stat().st_mode & 0o777 == 0o600
    shared.close()
    shared.close()
    assert not path.exists()


def test_closing_leaves_views_valid() -> None:
    shared = allocate_shared("test", 4096)
    view = np.frombuffer(shared.memory, dtype=np.uint8)
    shared.close()
    view[:] = 3
    assert view.sum() == 3 * 4096


def test_too_much_shared_memory_names_both_sizes() -> None:
    before = set(SHM_DIR.glob("baton-huge*"))
    with pytest.raises(SharedMemoryError, match=f"{1 << 46} bytes .*has [0-9]+ free of [0-9]+"):
        allocate_shared("huge", 1 << 46)
    with pytest.raises(SharedMemoryError, match="at least 1"):
        allocate_shared("huge", 0)
    assert set(SHM_DIR.glob("baton-huge*")) == before


def test_a_forked_child_does_not_unlink_its_parents_memory() -> None:
    script = (
        "import os, sys\n"
        "from kvtransfer.shared_memory import allocate_shared\n"
        "shared = allocate_shared('fork', 100)\n"
        "if os.fork() == 0: sys.exit()\n"
        "os.wait()\n"
        "print(os.path.exists('/dev/shm/' + shared.name), shared.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    existed, name = done.stdout.split()
    assert existed == "True"
    assert not (SHM_DIR / name).exists()  # but its own exit does, without close()


def test_liveness_is_the_lock_not_the_file() -> None:
    file = LockedFile("test")
    assert owner_is_alive(file.name)
    assert file.name not in sweep_stale()
    assert owner_is_alive(file.name)
    file.close()
    assert not owner_is_alive(file.name)
    stale = SHM_DIR / "baton-test-stale"
    stale.write_bytes(b"left behind")
    assert not owner_is_alive(stale.name)
    assert stale.name in sweep_stale()
    assert not stale.exists()


@pytest.mark.parametrize(
    "name", ["", "x", "baton-", "baton-a/b", "../baton-a", "baton-" + "a" * 81, "baton-a\n"]
)
def test_names_from_the_wire_cannot_point_elsewhere(name: str) -> None:
    with pytest.raises(SharedMemoryError, match="not the name"):
        path_of(name)


def test_a_link_is_not_followed() -> None:
    link = SHM_DIR / "baton-test-link"
    link.symlink_to("/etc/passwd")
    try:
        facts = Region("g", 1, 1, "cpu", "f", memoryview(b"x"), link.name).facts
        with pytest.raises(SharedMemoryError, match="cannot open"):
            attach_shared(facts)
    finally:
        link.unlink()


def test_a_writer_sees_the_owners_blocks() -> None:
    shared = allocate_shared("test", 4 * 5000)
    region = Region("g", 5000, 4, "cpu", "f", shared.memory, shared.name)
    source = np.random.default_rng(0).integers(0, 256, (3, 5000), dtype=np.uint8)
    own = Region("g", 5000, 3, "cpu", "f", memoryview(source.reshape(-1)))
    writer = SharedMemoryWriter([own], [region.facts])
    assert writer.write(0, [2, 3], [1, 0]) == 10_000
    blocks = region.blocks()
    assert np.array_equal(blocks[2], source[1])
    assert np.array_equal(blocks[3], source[0])
    assert not blocks[:2].any()
    assert writer.write(0, [0, 1], [2, 0], range(1000, 1500)) == 1000
    assert np.array_equal(blocks[:2, 1000:1500], source[[2, 0], 1000:1500])
    assert not blocks[:2, :1000].any()
    assert not blocks[:2, 1500:].any()
    writer.close()
    del blocks
    shared.close()


def test_regions_check_their_sizes() -> None:
    for block_bytes, num_blocks, memory in ((0, 1, b""), (1, 0, b""), (3, 3, b"12345678")):
        with pytest.raises(InvalidTransferError, match="region"):
            Region("g", block_bytes, num_blocks, "cpu", "f", memoryview(memory))
    with pytest.raises(InvalidTransferError, match="contiguous"):
        Region("g", 2, 2, "cpu", "f", memoryview(bytearray(8))[::2])
    gpu = DeviceMemory(4096, 8, 0)
    assert Region("g", 2, 2, "cuda:x", "f", gpu).facts.export is None
    with pytest.raises(InvalidTransferError, match="8 bytes given, 9"):
        Region("g", 3, 3, "cuda:x", "f", gpu)
    for device, memory in (("cpu", gpu), ("cuda:x", memoryview(bytes(4)))):
        with pytest.raises(InvalidTransferError, match=r"region\.device"):
            Region("g", 2, 2, device, "f", memory)


def test_the_host_has_one_name() -> None:
    assert host_id() == host_id()
    assert len(host_id()) == 16


class RecordingWriter:
    batch_blocks = 2

    def __init__(self) -> None:
        self.written: list[tuple[int, list[int], list[int]]] = []
        self.entered, self.leave = threading.Event(), threading.Event()
        self.leave.set()

    def piece_blocks(self, num_blocks: int) -> int:
        return num_blocks

    def write(
        self,
        group: int,
        target_block_ids: Sequence[int],
        source_block_ids: Sequence[int],
        part: range | None = None,
    ) -> int:
        self.entered.set()
        assert self.leave.wait(5)
        self.written.append((group, [*target_block_ids], [*source_block_ids]))
        return 10 * len(source_block_ids)

    def close(self) -> None:
        pass


def test_the_gate_opens_with_the_grant_and_closes_at_the_deadline() -> None:
    now, writer = [10.0], RecordingWriter()
    gate = WriteGate(writer, lambda: now[0], lambda: True)
    assert gate.write(0, [1], [2]) is None
    gate.deadline = 11.0
    assert gate.write(0, [1], [2]) == 10
    now[0] = 11.0
    assert gate.write(0, [3], [4]) is None
    gate.deadline = 12.0
    assert gate.is_open
    assert gate.write(0, [5, 1], [6, 2]) == 20
    gate.close()
    assert not gate.is_open
    assert gate.write(0, [7], [8]) is None
    assert writer.written == [(0, [1], [2]), (0, [5, 1], [6, 2])]


def test_closing_the_gate_waits_for_the_block_being_copied() -> None:
    writer = RecordingWriter()
    gate = WriteGate(writer, lambda: 0.0, lambda: True)
    gate.deadline = 1.0
    writer.leave.clear()
    copy = threading.Thread(target=gate.write, args=(0, [1], [2]))
    copy.start()
    assert writer.entered.wait(5)
    close = threading.Thread(target=gate.close)
    close.start()
    close.join(0.05)
    assert close.is_alive()
    writer.leave.set()
    close.join(5)
    copy.join(5)
    assert writer.written == [(0, [1], [2])]


def test_the_gate_closes_when_the_receiver_dies() -> None:
    writer, receiver = RecordingWriter(), LockedFile("test")
    watch = OwnerWatch(receiver.name)
    gate = WriteGate(writer, lambda: 0.0, watch.lives)
    gate.deadline = 1.0
    assert gate.write(0, [1], [2]) == 10
    receiver.close()
    assert gate.write(0, [3], [4]) is None
    assert not watch.lives()
    watch.close()
    assert writer.written == [(0, [1], [2])]


def test_watching_keeps_nothing_alive() -> None:
    code = (
        "from kvtransfer.locked_file import LockedFile\n"
        "import os, sys\n"
        "file = LockedFile('watched')\n"
        "print(file.name, flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(0)\n"  # leaves the file behind
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        watch = OwnerWatch(owner.stdout.readline().strip())
        assert watch.lives()
        assert watch.lives()
    assert not watch.lives()
    assert not OwnerWatch("baton-watched-1-00000000").lives()
    assert any(name.startswith("baton-watched-") for name in sweep_stale())


def test_in_one_pool_only_blocks_that_change_their_ids_move() -> None:
    shared = allocate_shared("test", 4 * 10)
    region = Region("g", 10, 4, "cpu", "f", shared.memory, shared.name)
    blocks = region.blocks()
    blocks[:] = [[1], [2], [3], [4]]
    writer = SharedMemoryWriter([region], [region.facts])
    assert writer.write(0, [0, 1], [0, 1]) == 0
    assert writer.write(0, [2, 3], [2, 0]) == 10
    assert blocks[:, 0].tolist() == [1, 2, 3, 1]
    writer.close()
    private = Region("g", 10, 4, "cpu", "f", memoryview(bytearray(40)))
    assert not private.facts.is_same_memory(private.facts)
    del blocks
    shared.close()


def test_a_fence_falls_by_answer_by_lease_or_by_death() -> None:
    sent: list[int] = []
    fences = Fences(lambda fence: sent.append(fence.epoch))
    alive = LockedFile("test")
    done: list[str] = []
    fences.when_clear("t", lambda: done.append("none stood"))
    for epoch in (1, 2, 3):
        fences.put_up(Fence("t", epoch, b"route", alive.name, deadline=10.0 * epoch, stop_at=0.0))
    fences.when_clear("t", lambda: done.append("all fell"))
    fences.when_clear("other", lambda: done.append("another's"))
    assert sent == [1, 2, 3]
    assert done == ["none stood", "another's"]
    fences.tick(0.1)
    assert sent == [1, 2, 3, 1, 2, 3]
    assert not fences.stopped("t", 1, b"someone else")
    assert fences.stopped("t", 1, b"route")
    assert not fences.stopped("t", 1, b"route")
    fences.tick(20.0)  # epoch 2 by its lease
    assert fences.stands("t")
    alive.close()
    fences.tick(20.0)  # epoch 3 by its process
    assert not fences
    assert done == ["none stood", "another's", "all fell"]


def test_a_dead_gpu_writers_copies_may_settle() -> None:
    sent: list[int] = []
    fences = Fences(lambda fence: sent.append(fence.epoch))
    alive = LockedFile("test")
    fences.put_up(Fence("t", 1, b"route", alive.name, deadline=50.0, stop_at=10.0, settle_s=0.25))
    fences.put_up(Fence("u", 2, b"route", alive.name, deadline=12.1, stop_at=10.0, settle_s=0.25))
    fences.tick(11.0)
    alive.close()
    fences.tick(12.0)
    assert sent == [1, 2, 1, 2]  # the dead are told nothing
    assert fences.stands("t")
    fences.tick(12.1)
    assert fences.stands("t")
    assert not fences.stands("u")
    fences.tick(12.25)
    assert not fences
