"""Draws the comparison as an SVG: two panels of bars. `python -m benchmarks.chart RESULTS.json CHART.svg`.

The drawing has a background of its own, which a media query makes dark, so it can be read on any page.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from html import escape
from pathlib import Path

WIDTH, LABELS, VALUES = 760, 290, 100  # pixels: the drawing, the names on the left, the figures on the right
MARGIN = 16
ROW, BAR, HEAD = 24, 16, 54

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 15px } .note { font-size: 12px; fill: #57606a }
.card { fill: #ffffff }
.ours { fill: #0969da } .limit { fill: #9aa4af } .peer { fill: #d4853a } .name-ours { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9aa4af } .card { fill: #161b22 }
  .ours { fill: #4d9bf5 } .limit { fill: #6e7781 } .peer { fill: #e0954d }
}
"""

PANELS = (
    ("connecting beside the peers, 2 clients", "connect per request, 2 clients", "A connection a request, 2 clients"),
    ("keep-alive beside the peers, 2 clients", "keep-alive, 2 clients", "One connection kept, 2 clients"),
)


def bars(results: list[dict[str, object]], peers: str, limit: str) -> list[tuple[str, float]]:
    """The contestants and their medians, highest first; bare C is scaled to the run in which the peers were."""
    by_title = {result["title"]: result["figures"] for result in results}
    medians = {name: statistics.median(figures) for name, figures in by_title.get(peers, {}).items()}  # type: ignore[attr-defined]
    beside = by_title.get(limit, {})
    if "bare C" in beside and "ipcsrv" in medians:  # type: ignore[operator]
        ratios = [c / ours for c, ours in zip(beside["bare C"], beside["ipcsrv"])]  # type: ignore[index]
        medians["bare C (the limit)"] = medians["ipcsrv"] * statistics.median(ratios)
    return sorted(medians.items(), key=lambda item: -item[1])


def panel(title: str, rows: list[tuple[str, float]], top: int) -> list[str]:
    """One set of bars, from `top` downwards."""
    longest = max((value for _, value in rows), default=1.0)
    note = f"requests per second, on {os.cpu_count()} cores; longer is better"
    lines = [f'<text class="title" x="0" y="{top + 16}">{escape(title)}</text>',
             f'<text class="note" x="0" y="{top + 36}">{note}</text>']
    for number, (name, value) in enumerate(rows):
        y = top + HEAD + number * ROW
        kind = "ours" if name.startswith("ipcsrv") else "limit" if name.startswith("bare C") else "peer"
        length = max(1.0, value / longest * (WIDTH - LABELS - VALUES))
        own = ' class="name-ours"' if kind == "ours" else ""
        lines += [
            f'<text{own} x="{LABELS - 10}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
            f'<text{own} x="{LABELS + length + 8:.1f}" y="{y + 12}">{value:,.0f}</text>',
        ]
    return lines


def svg(document: dict[str, object]) -> str:
    """The whole drawing."""
    top, body = 0, []
    for peers, limit, title in PANELS:
        rows = bars(document["results"], peers, limit)  # type: ignore[arg-type]
        if rows:
            body += panel(title, rows, top)
            top += HEAD + len(rows) * ROW + 24
    return drawing("Requests per second of ipcsrv, its Python peers and a bare C loop", body, top)


def drawing(label: str, body: list[str], height: int) -> str:
    """Return the panels on a background, as a whole SVG."""
    width, height = WIDTH + 2 * MARGIN, height + MARGIN
    size = f'viewBox="{-MARGIN} {-MARGIN} {width} {height}" width="{width}" height="{height}"'
    card = f'<rect class="card" x="{-MARGIN}" y="{-MARGIN}" width="{width}" height="{height}" rx="8"/>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">',
        f"<title>{label}</title>", f"<style>{STYLE}</style>", card, *body, "</svg>", "",
    ])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(svg(json.loads(Path(sys.argv[1]).read_text())), encoding="utf-8")
