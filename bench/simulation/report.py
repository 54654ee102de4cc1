"""The figures of the simulation as tables in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

from bench.chart import STYLE
from bench.simulation.world import Figures

Results = Sequence[tuple[str, Mapping[str, Figures]]]

HEAD = (
    "| | share error | p50 ms | p99 ms | p99.9 ms | wasted attempts | queued | failed |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def table(figures: Mapping[str, Figures]) -> str:
    return "\n".join([HEAD, *(_row(label, figure) for label, figure in figures.items())])


def _row(label: str, figures: Figures) -> str:
    failed = ", ".join(f"{number:,} {token}" for token, number in figures.failed.items()) or "none"
    latencies = _ms(figures.p50), _ms(figures.p99), _ms(figures.p999)
    cells = [f"{figures.share_error:.1%}".replace("%", " %"), *latencies, f"{figures.wasted:,}", f"{figures.queued:,}"]
    return f"| {label} | {' | '.join(cells)} | {failed} |"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f}"


# The picture: rows of marks, in three panels beside each other.
WIDTH = 870
LABELS = 220
SHARE = LABELS + 10, 150
LATENCY = LABELS + 230, 280
WASTED = LABELS + 540, 60
ROW = 18
TOP = 92
# The latency panel is logarithmic, in seconds.
FROM, TO = 0.01, 100.0

MORE_STYLE = """
    .head { font-weight: 600; }
    .grid { stroke: #d1d9e0; stroke-width: 1; }
    .span { stroke: #1a7f64; stroke-width: 2; }
    .dot { fill: #1a7f64; }
    .open { fill: #ffffff; stroke: #1a7f64; stroke-width: 2; }
    @media (prefers-color-scheme: dark) {
        .grid { stroke: #3d444d; }
        .span { stroke: #2ea88a; }
        .dot { fill: #2ea88a; }
        .open { fill: #0d1117; stroke: #2ea88a; }
    }
"""


def draw(title: str, subtitle: tuple[str, str], results: Results) -> str:
    """An SVG of all figures, below two lines of words; it has to read on a light and on a dark page."""
    every = [figure for _, figures in results for figure in figures.values()]
    height = TOP + ROW * (len(every) + 2 * len(results)) + 12
    most_error = max(figure.share_error for figure in every) or 1.0
    most_wasted = max(figure.wasted for figure in every) or 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}{MORE_STYLE}</style>",
        f'<text class="title" x="12" y="22">{escape(title)}</text>',
        f'<text class="small" x="12" y="42">{escape(subtitle[0])}</text>',
        f'<text class="small" x="12" y="60">{escape(subtitle[1])}</text>',
        f'<text class="small" x="{SHARE[0]}" y="{TOP - 6}">share error</text>',
        f'<text class="small" x="{WASTED[0]}" y="{TOP - 6}">wasted attempts</text>',
    ]
    for seconds, words in ((0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (100.0, "100 s")):
        x = _x(seconds)
        parts += [
            f'<text class="small" x="{x:.1f}" y="{TOP - 6}" text-anchor="middle">{words}</text>',
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 12}"/>',
        ]
    y = TOP
    for name, figures in results:
        y += 2 * ROW
        parts.append(f'<text class="head" x="12" y="{y - 5}">{escape(name)}</text>')
        for label, figure in figures.items():
            y += ROW
            parts += _marks(label, figure, y - 5, most_error, most_wasted)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _marks(label: str, figures: Figures, y: float, most_error: float, most_wasted: int) -> list[str]:
    middle = y - 4.5
    parts = [f'<text class="small" x="{LABELS}" y="{y}" text-anchor="end">{escape(label)}</text>']
    for (left, room), part, words in (
        (SHARE, figures.share_error / most_error, f"{figures.share_error:.1%}".replace("%", " %")),
        (WASTED, figures.wasted / most_wasted, f"{figures.wasted:,}"),
    ):
        length = max(1.0, room * part)
        parts += [
            f'<rect class="bar ours" x="{left}" y="{middle - 5:.1f}" width="{length:.1f}" height="10"/>',
            f'<text class="small" x="{left + length + 5:.1f}" y="{y}">{words}</text>',
        ]
    low, mid, high = _x(figures.p50), _x(figures.p99), _x(figures.p999)
    return [
        *parts,
        f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<circle class="open" cx="{low:.1f}" cy="{middle:.1f}" r="3.5"/>',
        f'<circle class="dot" cx="{mid:.1f}" cy="{middle:.1f}" r="4"/>',
        f'<line class="span" x1="{high:.1f}" x2="{high:.1f}" y1="{middle - 5:.1f}" y2="{middle + 5:.1f}"/>',
    ]


def _x(seconds: float) -> float:
    """Where a latency stands in its panel."""
    left, room = LATENCY
    return left + room * log10(min(max(seconds, FROM), TO) / FROM) / log10(TO / FROM)
