"""`baton keys create|list|revoke`: the API keys of a gateway's --keys-file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from baton.cli.options import Options, at_least
from baton.errors import BatonError
from services.common.keys import KeyRing, Limits, changing, create_key, revoked

ACTIONS = ("create", "list", "revoke")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("action", choices=ACTIONS, help="what to do; gateways notice within a second")
    parser.add_argument("key_id", nargs="?", default="", metavar="ID", help="of the key to revoke")
    options = Options(parser, "keys")
    options.value("--file", "", "file of hashes that gateways get as --keys-file", metavar="FILE")
    options.value("--tenant", "", "whose key it is; keys of one tenant share cached prompts (default: alone)")
    options.switch("--shares-cache", "its prompts may use the cache that all such keys have in common")
    options.switch("--sees-cluster", "it may look at workers, metrics and who asks what how often")
    options.value("--max-requests", "0", "requests at once; 0: no limit", at_least(0))
    options.value("--max-tokens", "0", "tokens of prompts and expected answers at once", at_least(0))
    options.value("--requests-per-minute", "0", "requests begun", at_least(0))
    options.value("--tokens-per-minute", "0", "tokens of prompts and answers", at_least(0))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.file:
        raise BatonError("--file (or BATON_KEYS_FILE): must name the file of keys")
    path = Path(args.file).expanduser()
    try:
        if args.action == "create":
            _create(path, args)
        elif args.action == "list":
            _list(path)
        else:
            _revoke(path, args.key_id)
    except (OSError, ValueError) as error:
        raise BatonError(str(error)) from error
    return 0


def _create(path: Path, args: argparse.Namespace) -> None:
    limits = Limits(args.max_requests, args.max_tokens, args.requests_per_minute, args.tokens_per_minute)
    text, key = create_key(
        args.tenant, limits, shares_cache=args.shares_cache, sees_cluster=args.sees_cluster
    )
    with changing(path) as ring:
        ring.keys[key.key_id] = key
    print(text)
    print(f"key {key.key_id} of tenant {key.tenant}; it is shown this once", file=sys.stderr)


def _list(path: Path) -> None:
    print(f"{'id':12}  {'tenant':20}  {'created':25}  state")
    for key in KeyRing.read(path).keys.values():
        state = f"revoked {key.revoked}" if key.revoked else "valid"
        print(f"{key.key_id:12}  {key.tenant:20}  {key.created:25}  {state}")


def _revoke(path: Path, key_id: str) -> None:
    with changing(path) as ring:
        if key_id not in ring.keys:
            raise BatonError(f"{path}: there is no key {key_id!r}")
        ring.keys[key_id] = revoked(ring.keys[key_id])
    print(f"key {key_id} is revoked")
