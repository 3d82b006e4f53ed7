"""`baton chat`: a conversation. Ctrl-C stops the answer, Ctrl-D (or Ctrl-C at the prompt) the program."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Generator
from types import FrameType

from baton.cli.generate import sampling_options
from baton.cli.options import Options, open_client
from baton.errors import RequestError
from baton.generation import Event
from baton.v1.inference_pb2 import Delta

HELP = "/reset forgets the conversation, /exit ends the program, Ctrl-C stops an answer"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    options = Options(parser, "chat")
    options.address()
    options.value("--model", "", "model to ask; empty: the only one", metavar="NAME")
    options.value("--system", "", "system prompt", metavar="TEXT")
    options.sampling()


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() editing and history)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    turns = list(opening)
    if sys.stdin.isatty():
        print(HELP)
    with open_client(args) as client:
        while (line := _read_line()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit":
                    break
                case "/reset":
                    turns = list(opening)
                    continue
            turns.append({"role": "user", "content": line})
            try:
                events = client.chat(turns, timeout_s=args.timeout_s, **sampling_options(args))
                turns.append({"role": "assistant", "content": _print_answer(events)})
            except RequestError as error:
                turns.pop()
                print(f"baton: {error}", file=sys.stderr)
    return 0


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _print_answer(events: Generator[Event, None, None]) -> str:
    """Print an answer as it comes; return what came of it, also when Ctrl-C stopped it."""
    parts: list[str] = []
    with contextlib.suppress(KeyboardInterrupt), _ctrl_c() as has_come, contextlib.closing(events):
        for event in events:
            if has_come():
                break
            if isinstance(event, Delta):
                parts.append(event.text)
                print(event.text, end="", flush=True)
    print(flush=True)
    return "".join(parts)


@contextlib.contextmanager
def _ctrl_c() -> Generator[Callable[[], bool], None, None]:
    """Say whether Ctrl-C has come; its KeyboardInterrupt is lost if a destructor or a callback runs."""
    has_come = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: has_come
    finally:
        signal.signal(signal.SIGINT, before)
