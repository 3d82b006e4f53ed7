"""`baton serve vault`: a process that owns KV memory and weights for the workers of one GPU."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from services.common.config import parse_config
from services.common.logs import setup_logs
from services.vault.config import VaultConfig

DESCRIPTION = "Owns the KV pool and the weights of one GPU; workers attach to it (--vault)."


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM; returns the exit status."""
    config = parse_config(VaultConfig, "vault", argv, description=DESCRIPTION)
    setup_logs("vault", config.log_level)
    # Imported after the flags are read, so that --help is quick.
    from services.vault.vault import run

    try:
        return asyncio.run(run(config))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
