"""Files in /dev/shm that are locked while their owner lives.

The kernel drops the lock when the owner dies, however it dies. Unlike a process id, a lock
is never reused and means the same in every PID namespace that shares the mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import secrets
import threading
import weakref
from pathlib import Path

from kvtransfer.errors import SharedMemoryError
from kvtransfer.host import SHM_DIR

PREFIX = "baton-"
_DOORBELL = ".bell"
_NAME = re.compile(rf"{PREFIX}[A-Za-z0-9_.-]{{1,80}}")


class LockedFile:
    """A new file, locked until `close` or the end of the process; then unlinked.

    Attributes:
        name: file name in `SHM_DIR`.
        fd: open for reading and writing; owned by this object.
    """

    def __init__(self, hint: str) -> None:
        """Create the file; first removes what dead owners left behind.

        Args:
            hint: for people who list the directory; cut to 24 safe characters.
        Raises:
            SharedMemoryError: the directory is missing or not writable.
        """
        sweep_stale()
        safe = re.sub(r"[^A-Za-z0-9_.]", "_", hint)[:24] or "file"
        self.name, self.fd = _create_locked(safe)
        # At exit too; a forked child shares the object but not the ownership.
        self._finalizer = weakref.finalize(self, _remove, os.getpid(), self.name, self.fd)

    def close(self) -> None:
        """Unlink and unlock; idempotent."""
        self._finalizer()


def owner_is_alive(name: str) -> bool:
    """Tell whether the process that made a file still holds it.

    Raises:
        SharedMemoryError: the name cannot be one of ours.
    """
    try:
        fd = os.open(path_of(name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unreadable is not dead: leave it to the lease
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class OwnerWatch:
    """Asks again and again whether the owner of a file lives, at one system call each."""

    def __init__(self, name: str) -> None:
        """Open the file; a missing one has a dead owner.

        Raises:
            SharedMemoryError: the name cannot be one of ours.
        """
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path_of(name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._file = io.FileIO(fd, "r+")

    def lives(self) -> bool:
        """Tell whether the owner holds the file; False for ever after once it did not. Any thread."""
        with self._lock:
            if self._file is None:
                return False
            try:
                fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            self._drop()
            return False

    def close(self) -> None:
        """Close the file; the owner counts as dead from now on. Idempotent."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()  # which unlocks it too
            self._file = None


def path_of(name: str) -> Path:
    """Path of a file by its name, which may come from the wire.

    Raises:
        SharedMemoryError: the name cannot be one of ours.
    """
    if not is_valid_name(name):
        raise SharedMemoryError(f"{name[:100]!r} is not the name of a shared-memory file of Baton")
    return SHM_DIR / name


def doorbell_of(name: str) -> Path:
    """Path of the socket that goes with a file; see `path_of`."""
    path = path_of(name)
    return path.with_name(path.name + _DOORBELL)


def is_valid_name(name: str) -> bool:
    """Tell whether a name can be one of ours; others may point anywhere."""
    return _NAME.fullmatch(name) is not None


def sweep_stale() -> list[str]:
    """Unlink files whose owners are dead, and the sockets that went with them.

    Returns:
        The names removed.
    """
    removed = []
    for path in SHM_DIR.glob(PREFIX + "*"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or just gone
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path.name)
        except OSError:
            pass  # its owner is alive
        finally:
            os.close(fd)
    for path in SHM_DIR.glob(f"{PREFIX}*{_DOORBELL}"):
        if not path.with_name(path.name.removesuffix(_DOORBELL)).exists():
            with contextlib.suppress(OSError):  # another user's
                path.unlink(missing_ok=True)
                removed.append(path.name)
    return removed


def _create_locked(hint: str) -> tuple[str, int]:
    while True:
        name = f"{PREFIX}{hint}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            fd = os.open(SHM_DIR / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise SharedMemoryError(f"cannot create {SHM_DIR / name}: {error.strerror}") from error
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return name, fd
        os.close(fd)  # a sweep came between creating and locking


def _remove(owner_pid: int, name: str, fd: int) -> None:
    if os.getpid() != owner_pid:
        return
    (SHM_DIR / name).unlink(missing_ok=True)
    os.close(fd)
