"""`baton serve prefill`: a prefill worker process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.errors import InvalidRequestError
from services.common.config import parse_config
from services.prefill.config import PrefillConfig

DESCRIPTION = "Computes prompts and hands their KV blocks to decode workers."


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM; returns the exit status."""
    config = parse_config(
        PrefillConfig, "prefill", argv, description=DESCRIPTION, errors=(ValueError, InvalidRequestError)
    )
    # Imported after the flags are read, so that --help is quick.
    from services.prefill.worker import make_worker
    from services.worker.runtime import run_process

    return run_process("prefill", lambda: make_worker(config), config.server)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
