"""The counts that limits are held against, in memory that all processes of one gateway share.

    header   number of accounts
    account  name | two buckets: level, filled at, units a minute | a process each: requests, tokens in flight

Each process writes what it has in flight to a place of its own, so that whoever starts the
processes can clear the place of one that died: nothing it held is counted for ever. A bucket
is everybody's. A lock on the file guards all of it for the microseconds that a request's
admission and its end take; the kernel takes the lock from a process that dies.

A gateway of one process has the same in memory of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator

from services.common.errors import BatonError, ErrorReason

MAX_ACCOUNTS = 1 << 14
_CELL_BYTES = 8
_NAME_BYTES = 32
_BUCKETS = 2
_BUCKET_CELLS = 3
_HEADER_CELLS = 1
_FIXED_CELLS = _NAME_BYTES // _CELL_BYTES + _BUCKETS * _BUCKET_CELLS


class Ledger:
    """The accounts of one gateway, as one of its processes sees them.

    Args:
        fd: memory from `create`; None: it is this process's alone.
        num_processes: that share it.
        index: of this one.
    """

    def __init__(self, fd: int | None = None, num_processes: int = 1, index: int = 0) -> None:
        self._fd = fd
        self._num_processes = num_processes
        self._index = index
        self._account_cells = _FIXED_CELLS + 2 * num_processes
        self._memory = mmap.mmap(-1 if fd is None else fd, _num_bytes(num_processes))
        self._counts = memoryview(self._memory).cast("q")
        self._levels = memoryview(self._memory).cast("d")
        self._accounts: dict[str, Account] = {}

    @staticmethod
    def create(num_processes: int) -> int:
        """Return a file descriptor of new memory, which processes may inherit; nothing of it is on a disk."""
        fd = os.memfd_create("baton-limits")
        os.truncate(fd, _num_bytes(num_processes))
        return fd

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the other processes out."""
        if self._fd is None:
            yield
            return
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def account(self, name: str) -> Account:
        """Return an account; the first who asks opens it. Call it under the lock.

        Args:
            name: at most 32 bytes of UTF-8.
        Raises:
            BatonError: QUEUE_FULL: there are too many.
        """
        account = self._accounts.get(name)
        if account is None:
            start = _HEADER_CELLS + self._find(name) * self._account_cells
            account = self._accounts[name] = Account(
                self._counts[start + _FIXED_CELLS : start + self._account_cells],
                self._levels[start + _FIXED_CELLS - _BUCKETS * _BUCKET_CELLS : start + _FIXED_CELLS],
                self._index,
            )
        return account

    def clear(self, index: int) -> None:
        """Forget what a process that died had in flight."""
        with self.locked():
            for number in range(self._counts[0]):
                start = _HEADER_CELLS + number * self._account_cells + _FIXED_CELLS + 2 * index
                self._counts[start] = self._counts[start + 1] = 0

    def _find(self, name: str) -> int:
        """Return the number of an account, a new one if there is none of this name."""
        wanted = name.encode().ljust(_NAME_BYTES, b"\0")
        assert len(wanted) == _NAME_BYTES, f"{name!r} is too long"
        size = self._account_cells * _CELL_BYTES
        count = self._counts[0]
        for number in range(count):
            start = _HEADER_CELLS * _CELL_BYTES + number * size
            if self._memory[start : start + _NAME_BYTES] == wanted:
                return number
        if count == MAX_ACCOUNTS:
            raise BatonError(
                ErrorReason.QUEUE_FULL,
                f"limits are kept of at most {MAX_ACCOUNTS} keys until the gateway restarts",
            )
        start = _HEADER_CELLS * _CELL_BYTES + count * size
        self._memory[start : start + _NAME_BYTES] = wanted
        self._counts[0] = count + 1
        return count


class Account:
    """What one key, or all together, have in flight and have used lately.

    Args:
        counts: int64[2 P]: requests and tokens in flight of each process.
        levels: float64[6]: two buckets.
        index: of this process.
    """

    def __init__(self, counts: memoryview[int], levels: memoryview[float], index: int) -> None:
        self._counts = counts
        self._levels = levels
        self._own = 2 * index

    @property
    def own_requests(self) -> int:
        """Requests in flight in this process."""
        return self._counts[self._own]

    @property
    def requests(self) -> int:
        """Requests in flight in all processes."""
        return sum(self._counts[::2])

    @property
    def tokens(self) -> int:
        """Their tokens."""
        return sum(self._counts[1::2])

    def add(self, requests: int, tokens: int) -> None:
        """Count what begins in this process; negative numbers: what ends."""
        self._counts[self._own] += requests
        self._counts[self._own + 1] += tokens

    def bucket(self, number: int) -> memoryview[float]:
        """Return the cells of a bucket: level, time of the last filling, units a minute; zeros at first."""
        return self._levels[number * _BUCKET_CELLS : (number + 1) * _BUCKET_CELLS]


def _num_bytes(num_processes: int) -> int:
    return _CELL_BYTES * (_HEADER_CELLS + MAX_ACCOUNTS * (_FIXED_CELLS + 2 * num_processes))
