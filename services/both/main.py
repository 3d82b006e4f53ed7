"""`baton serve both`: a co-located worker process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.errors import InvalidRequestError
from services.common.config import parse_config
from services.decode.config import DecodeConfig

DESCRIPTION = "Computes prompts and generates their tokens on one engine: nothing is handed over."


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM; returns the exit status."""
    config = parse_config(
        DecodeConfig, "both", argv, description=DESCRIPTION, errors=(ValueError, InvalidRequestError)
    )
    # Imported after the flags are read, so that --help is quick.
    from services.both.worker import make_worker
    from services.worker.runtime import run_process

    return run_process("both", lambda: make_worker(config), config.server)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
