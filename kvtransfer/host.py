"""Who can share memory with this process."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

SHM_DIR = Path("/dev/shm")


def pid_namespace() -> int:
    """Name this process's PID namespace by its inode; 0 where the kernel has none."""
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0


def host_id() -> str:
    """Name this machine and its shared-memory mount.

    Equal in two processes exactly if a file in `SHM_DIR` is the same file to both:
    one boot of one kernel, one mount (containers have their own unless told to share).
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else socket.gethostname()
    mount = os.stat(SHM_DIR).st_dev if SHM_DIR.is_dir() else 0
    return hashlib.sha256(f"{machine}/{mount}".encode()).hexdigest()[:16]
