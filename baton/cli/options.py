"""Flags that are environment variables too, and the flags that several commands share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable

from baton import runs
from baton.client import DEFAULT_ADDRESS, Client
from baton.connection import Credentials


class Options:
    """Adds the flags of one command; `--http-port` of `up` is also BATON_UP_HTTP_PORT.

    A flag wins over the variable, which wins over the default. The variable's text is converted and
    checked as the flag's would be.
    """

    def __init__(self, parser: argparse.ArgumentParser, command: str) -> None:
        self._parser = parser
        self._section = command.upper()

    def value(
        self, flag: str, default: str, help_text: str, kind: Callable[[str], object] = str, metavar: str = ""
    ) -> None:
        """Add a flag with a value."""
        variable = self._variable(flag)
        told = f" (default {default})" if default else ""
        self._parser.add_argument(
            flag,
            default=os.environ.get(variable, default),
            type=kind,
            metavar=metavar or flag.rsplit("-", 1)[-1].upper(),
            help=f"{help_text}{told} [{variable}]",
        )

    def switch(self, flag: str, help_text: str) -> None:
        """Add a flag without a value; its variable is on for 1, true, yes, on."""
        variable = self._variable(flag)
        is_on = os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
        self._parser.add_argument(
            flag,
            action=argparse.BooleanOptionalAction,
            default=is_on,
            help=f"{help_text} [{variable}]",
        )

    def address(self) -> None:
        """Add --address, the gateway to talk to."""
        self._parser.add_argument(
            "--address",
            default=os.environ.get("BATON_ADDRESS", ""),
            metavar="HOST:PORT",
            help="the gateway (default: the cluster of the last `baton up`) [BATON_ADDRESS]",
        )
        self._parser.add_argument(
            "--api-key",
            default=os.environ.get("BATON_API_KEY", ""),
            metavar="KEY",
            help="key to show, as `baton keys create` printed it; better in the variable [BATON_API_KEY]",
        )
        self._parser.add_argument(
            "--ca",
            default=os.environ.get("BATON_CA", ""),
            metavar="FILE",
            help="PEM certificates to believe; with it the connection is TLS [BATON_CA]",
        )

    def sampling(self) -> None:
        """Add the flags that say how tokens are drawn."""
        self.value("--max-tokens", "256", "most tokens to generate", at_least(1))
        self.value("--temperature", "0", "softmax temperature, 0 to 2; 0 is greedy", float)
        self.value("--top-p", "1", "nucleus mass", float)
        self.value("--seed", "", "seed of the draws (default: a new one each time)", at_least(0))
        self.value("--timeout-s", "600", "deadline of a request, seconds", float)

    def _variable(self, flag: str) -> str:
        return f"BATON_{self._section}_{flag.removeprefix('--').replace('-', '_').upper()}"


def gateway_address(args: argparse.Namespace) -> str:
    """Return the address given, that of the cluster that is up, or the default."""
    if args.address:
        return str(args.address)
    cluster = runs.current()
    return cluster.gateway_address if cluster else DEFAULT_ADDRESS


def open_client(args: argparse.Namespace) -> Client:
    """Return a client of the gateway that the flags of `Options.address` name."""
    cluster = None if args.address else runs.current()
    ca = args.ca or (cluster.ca if cluster else "")
    return Client(gateway_address(args), Credentials(api_key=args.api_key, ca=ca))


def at_least(low: int) -> Callable[[str], int | None]:
    """Return a converter to a whole number of at least `low`; empty text is None."""

    def whole_number(text: str) -> int | None:
        if not text:
            return None
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
        return int(text)

    whole_number.__name__ = "whole number"  # argparse names it in its message
    return whole_number


def port(text: str) -> int:
    """Convert a port; 0 means a free one."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {number}")
    return number


def num_bytes(text: str) -> int:
    """Convert a size: a number, and perhaps K, M, G or T of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 536870912 or 512M, got {text!r}")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))
