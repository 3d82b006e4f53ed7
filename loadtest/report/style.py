"""The one style sheet of the pages, for light and dark."""

from __future__ import annotations

from html import escape

_CSS = """
:root { color-scheme: light dark; --ground: #fbfaf7; --card: #ffffff; --ink: #1d2129; --soft: #69707d;
  --rule: #e6e4de; --c0: #0f6fc6; --c1: #d9622b; --c2: #2a8f5b; --c3: #8d5bd0; --c4: #b8860b; --c5: #c23b6b;
  --good: #1f7a4d; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --card: #1c1f25; --ink: #e8e9ec;
  --soft: #9aa1ad; --rule: #30343d; --c0: #5fb0f5; --c1: #f58f5c; --c2: #5fca93; --c3: #b795ec;
  --c4: #dcb14b;
  --c5: #ee7fa6; --good: #6bd39c; --bad: #ff8a80; --warn: #f0c36a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 36px 24px 56px; max-width: 1220px; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: 26px; letter-spacing: -0.01em; }
h2 { margin: 36px 0 12px; font-size: 17px; }
.sub, .note { color: var(--soft); } .sub { margin: 2px 0 22px; } .note { margin: 6px 4px 0;
  font-size: 12.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 10px; }
.tile, figure, .sheet { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 12px 16px; } .tile b { display: block; white-space: nowrap; font-size: 21px;
  font-weight: 600;
  line-height: 1.25;
  letter-spacing: -0.02em; } .tile span { color: var(--soft); font-size: 12.5px; }
.tile small { font-size: 14px; font-weight: 400; color: var(--soft); margin-left: 3px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.tiles + .plots, .plots + .sheet { margin-top: 16px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 16px 10px; } svg { width: 100%; height: auto; display: block; }
figcaption { font-weight: 600; margin-bottom: 6px; display: flex; flex-wrap: wrap; gap: 4px 16px;
  justify-content: space-between; }
.keys { font-weight: 400; font-size: 12.5px; color: var(--soft); display: flex; flex-wrap: wrap;
  gap: 0 12px; }
.key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; vertical-align: middle;
  margin-right: 5px; background: currentColor; }
.sheet { overflow-x: auto; padding: 4px 16px; } table { border-collapse: collapse; width: 100%; }
th, td { padding: 7px 10px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-variant-numeric: tabular-nums; } tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; }
th:first-child, td:first-child { text-align: left; }
td.range { color: var(--soft); } td.text { text-align: left; white-space: normal; }
.messages { list-style: none; margin: 18px 0 0; padding: 0; } .messages li { padding: 9px 14px;
  margin-top: 8px;
  border-left: 3px solid currentColor; background: var(--card); border-radius: 0 8px 8px 0; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .target { stroke: var(--soft);
  stroke-dasharray: 3 4; }
.tick, .name, .mark { fill: var(--soft); font-size: 11px; } .name { font-size: 11.5px; }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.band { fill: currentColor; opacity: 0.13; stroke: none; } .dot { fill: currentColor; }
.faint { opacity: 0.65; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .key i.c0 { color: var(--c0); }
footer { margin-top: 32px; color: var(--soft); font-size: 12.5px; }
@media print { body { padding: 0; } figure { break-inside: avoid; } }
"""

COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")


def page(title: str, body: str) -> str:
    """Return a whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>\n{body}\n</body></html>\n"
    )


def tile(name: str, value: str, unit: str = "", kind: str = "") -> str:
    """Return one figure, large."""
    return (
        f'<div class="tile"><span>{escape(name)}</span>'
        f'<b class="{kind}">{escape(value)}<small>{escape(unit)}</small></b></div>'
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table; the first column is text."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="sheet"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def messages(texts: list[str], kind: str) -> str:
    """Return warnings or failures, a line each."""
    if not texts:
        return ""
    return (
        '<ul class="messages">'
        + "".join(f'<li class="{kind}">{escape(text)}</li>' for text in texts)
        + "</ul>"
    )
