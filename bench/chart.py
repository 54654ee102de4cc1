"""The chart of CPU per request, drawn without a library: it has to read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

WIDTH = 760
LEFT = 160
RIGHT = 150
ROW = 30
BAR = 18
TOP = 58

# A bar more than so many times the next shorter one is broken, so that the others can be told apart.
BREAK_FACTOR = 3.0

STYLE = """
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
    .title { font-size: 15px; font-weight: 600; }
    .small { font-size: 12px; fill: #59636e; }
    .ours { font-weight: 600; }
    .bar { fill: #8c959f; }
    .bar.ours { fill: #1a7f64; }
    .cut { stroke: #ffffff; stroke-width: 5; fill: none; }
    @media (prefers-color-scheme: dark) {
        text { fill: #f0f6fc; }
        .small { fill: #9198a1; }
        .bar { fill: #656c76; }
        .bar.ours { fill: #2ea88a; }
        .cut { stroke: #0d1117; }
    }
"""


def draw(title: str, subtitle: str, bars: Sequence[tuple[str, float, bool]]) -> str:
    """An SVG of horizontal bars, the shortest first; each is (name, value in µs, whether it is ours)."""
    ordered = sorted(bars, key=lambda bar: bar[1])
    limit = _limit([value for _, value, _ in ordered])
    room = WIDTH - LEFT - RIGHT
    height = TOP + ROW * len(ordered) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="22">{escape(title)}</text>',
        f'<text class="small" x="12" y="42">{escape(subtitle)}</text>',
    ]
    for number, (name, value, ours) in enumerate(ordered):
        y = TOP + ROW * number
        middle = y + ROW / 2
        baseline = f"{middle + 4.5:.1f}"
        broken = value > limit
        length = room if broken else max(2.0, room * 0.9 * value / limit)
        mark = " ours" if ours else ""
        place = f'x="{LEFT}" y="{middle - BAR / 2:.1f}" width="{length:.1f}" height="{BAR}"'
        parts += [
            f'<text class="{mark.strip()}" x="{LEFT - 10}" y="{baseline}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="bar{mark}" {place} rx="2"/>',
        ]
        if broken:
            x = LEFT + room * 0.95
            parts.append(
                f'<path class="cut" d="M{x + 5:.1f} {middle - BAR / 2 - 3:.1f} L{x - 3:.1f} {middle - 2:.1f} '
                f'L{x + 3:.1f} {middle + 2:.1f} L{x - 5:.1f} {middle + BAR / 2 + 3:.1f}"/>'
            )
        label = f"{value:,.0f} µs" + (" (bar is cut)" if broken else "")
        parts.append(f'<text class="{mark.strip()}" x="{LEFT + length + 8:.1f}" y="{baseline}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _limit(ascending: Sequence[float]) -> float:
    """The longest value that is drawn to scale."""
    for shorter, longer in pairwise(ascending):
        # Far apart at the short end is what the chart is there to show.
        if longer > BREAK_FACTOR * shorter and longer > ascending[-1] / BREAK_FACTOR:
            return shorter
    return ascending[-1]
