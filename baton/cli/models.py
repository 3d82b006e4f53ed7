"""`baton models`: what the cluster serves; with --fetch, gets the default model into the cache."""

from __future__ import annotations

import argparse

from baton import models
from baton.cli.options import Options, open_client


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    options = Options(parser, "models")
    options.address()
    options.switch("--fetch", f"fetch {models.DEFAULT_MODEL} into the cache and print where it lies")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.fetch:
        print(models.fetch(progress=models.show_progress))
        return 0
    with open_client(args) as client:
        for model in client.models():
            print(
                f"{model.name}: context {model.context_length}, vocabulary {model.vocab_size}, "
                f"block {model.block_size} tokens"
            )
    return 0
