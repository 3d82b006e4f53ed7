"""`loadtest compare`: two results side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.compare import compare, differing_settings
from loadtest.result import read_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("before", type=Path, help="a result's .json")
    parser.add_argument("after", type=Path, help="another's")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    before, after = read_json(args.before), read_json(args.after)
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in (str(before.get("name")), str(after.get("name")), "change"):
        table.add_column(title, justify="right")
    table.add_column("")
    for change in compare(before, after):
        style = "" if change.is_sure is False else "green" if change.is_better else "red"
        sure = {True: "", False: "may be chance", None: "no bounds"}[change.is_sure]
        table.add_row(
            f"{change.name}, {change.unit}",
            f"{change.before:.2f}",
            f"{change.after:.2f}",
            f"[{style}]{100 * change.ratio:+.1f} %[/]" if style else f"{100 * change.ratio:+.1f} %",
            f"[dim]{sure}[/]",
        )
    console.print(table)
    for name, old, new in differing_settings(before, after):
        console.print(f"differs: {name} {old} → {new}", style="yellow", highlight=False)
    return 0
