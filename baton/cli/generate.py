"""`baton generate`: one answer to standard output, the figures to standard error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from baton.cli.figures import Stopwatch, summary
from baton.cli.options import Options, open_client
from baton.generation import Event, GenerateOptions
from baton.v1.inference_pb2 import Delta, Finished


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("prompt", help="the question; - reads standard input")
    options = Options(parser, "generate")
    options.address()
    options.value("--model", "", "model to ask; empty: the only one", metavar="NAME")
    options.value("--system", "", "system prompt", metavar="TEXT")
    options.sampling()
    options.switch("--raw", "take the prompt as plain text, without the chat template")
    options.switch("--quiet", "print no figures")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with open_client(args) as client:
        if args.raw:
            events = client.generate(prompt, timeout_s=args.timeout_s, **sampling_options(args))
        else:
            turns = [{"role": "system", "content": args.system}] if args.system else []
            turns.append({"role": "user", "content": prompt})
            events = client.chat(turns, timeout_s=args.timeout_s, **sampling_options(args))
        _, figures = print_stream(events)
    if not args.quiet:
        print(*figures, sep="\n", file=sys.stderr)
    return 0


def sampling_options(args: argparse.Namespace) -> GenerateOptions:
    """Return the options that the shared flags give."""
    options = GenerateOptions(
        model=args.model, max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p
    )
    if args.seed is not None:
        options["seed"] = args.seed
    return options


def print_stream(events: Iterator[Event]) -> tuple[str, list[str]]:
    """Print the text of a stream as it comes; return it whole, and the lines with its figures."""
    watch = Stopwatch()
    parts: list[str] = []
    figures: list[str] = []
    for event in events:
        watch.see(event)
        if isinstance(event, Delta):
            parts.append(event.text)
            print(event.text, end="", flush=True)
        elif isinstance(event, Finished):
            figures = summary(event, watch)
    print(flush=True)
    return "".join(parts), figures
