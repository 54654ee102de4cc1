"""The drill's figures by phase, and its timeline as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bench.drill.load import Outcome
from bench.drill.readiness import Life, gap

COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#97bbf5", "#9c6b4e", "#6cc5b0")
LEFT, TOP, WIDTH, HEIGHT = 60, 40, 1100, 220


@dataclass(frozen=True)
class Span:
    """A phase as it was: readings of the monotonic clock in seconds."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Row:
    """One phase's figures. ``longest`` is the longest wait of a request in seconds, ``longest_get`` of a GET.

    ``gap``: the longest time in seconds when no worker was there.
    """

    name: str
    requests: int
    failures: Mapping[str, int]
    gap: float
    longest: float
    longest_get: float
    twice: int
    missing: int


def rows(
    spans: Sequence[Span], outcomes: Sequence[Outcome], recorded: Mapping[str, int], lives: Sequence[Life]
) -> list[Row]:
    """``recorded``: how often each POST's name came to a worker. A request belongs to the phase in which it began."""
    found = []
    for span in spans:
        mine = [outcome for outcome in outcomes if span.began <= outcome.began < span.ended]
        posts = [outcome for outcome in mine if outcome.name]
        found.append(
            Row(
                span.name,
                len(mine),
                Counter(f"{outcome.method} {outcome.failure}" for outcome in mine if outcome.failure),
                gap(lives, span.began, span.ended),
                max((outcome.seconds for outcome in mine), default=0.0),
                max((outcome.seconds for outcome in mine if outcome.method == "GET"), default=0.0),
                sum(recorded.get(post.name, 0) > 1 for post in posts),
                sum(not post.failure and not recorded.get(post.name) for post in posts),
            )
        )
    return found


def table(found: Sequence[Row]) -> list[str]:
    columns = f"{'gap':>8} {'longest':>8} {'GET':>8} {'twice':>5} {'missing':>7}"
    lines = [f"{'phase':24} {'requests':>8} {'failed':>6} {columns}"]
    for row in found:
        lines.append(
            f"{row.name:24} {row.requests:8} {sum(row.failures.values()):6} {row.gap:6.2f} s {row.longest:6.2f} s "
            f"{row.longest_get:6.2f} s {row.twice:5} {row.missing:7}"
        )
        lines += [f"{'':24} {count:8} times {kind}" for kind, count in row.failures.items()]
    return lines


def timeline(spans: Sequence[Span], outcomes: Sequence[Outcome]) -> str:
    """An SVG: answers a second by hostname, stacked; failures in red; the longest wait as a line."""
    begin, end = spans[0].began, max(span.ended for span in spans)
    seconds = int(end - begin) + 1
    names = list(
        dict.fromkeys(outcome.who for outcome in sorted(outcomes, key=lambda outcome: outcome.ended) if outcome.who)
    )
    answered: list[Counter[str]] = [Counter() for _ in range(seconds)]
    failed = [0] * seconds
    waits = [0.0] * seconds
    for outcome in outcomes:
        at = min(max(int(outcome.ended - begin), 0), seconds - 1)
        if outcome.failure:
            failed[at] += 1
        else:
            answered[at][outcome.who] += 1
        waits[at] = max(waits[at], outcome.seconds)
    most = max(max(sum(counts.values()) for counts in answered), 1)
    longest = max(*waits, 1.0)
    step = WIDTH / seconds
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {TOP + HEIGHT + 90}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        "<style>.t{fill:#333}.g{stroke:#999;stroke-width:.5}.w{stroke:#333}"
        "@media (prefers-color-scheme:dark){.t{fill:#ddd}.w{stroke:#ddd}}</style>",
    ]
    for at, counts in enumerate(answered):
        y = float(TOP + HEIGHT)
        for index, name in enumerate(names):
            if count := counts[name]:
                height = HEIGHT * count / most
                y -= height
                parts.append(
                    f'<rect x="{LEFT + at * step:.1f}" y="{y:.1f}" width="{step:.1f}" height="{height:.1f}" '
                    f'fill="{COLOURS[index % len(COLOURS)]}"/>'
                )
        if failed[at]:
            parts.append(
                f'<circle cx="{LEFT + (at + 0.5) * step:.1f}" cy="{TOP + HEIGHT + 8}" r="{min(6, 2 + failed[at])}" '
                f'fill="#d00"><title>{failed[at]} failed</title></circle>'
            )
    line = " ".join(
        f"{LEFT + (at + 0.5) * step:.1f},{TOP + HEIGHT - HEIGHT * wait / longest:.1f}" for at, wait in enumerate(waits)
    )
    parts.append(f'<polyline class="w" points="{line}" fill="none" stroke-width="1.2"/>')
    for number, span in enumerate(spans):
        x = LEFT + (span.began - begin) * step
        parts += [
            f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HEIGHT + 16}"/>',
            f'<text class="t" x="{x + 3:.1f}" y="{TOP + HEIGHT + 28 + 13 * (number % 4)}">{escape(span.name)}</text>',
        ]
    parts += [
        f'<text class="t" x="{LEFT}" y="{TOP - 22}">answers a second, a colour for each container; '
        "line: longest wait; red: failures</text>",
        f'<text class="t" x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{most}/s</text>',
        f'<text class="t" x="{LEFT + WIDTH + 6}" y="{TOP + 8}">{longest:.1f} s</text>',
        f'<text class="t" x="{LEFT - 6}" y="{TOP + HEIGHT}" text-anchor="end">0</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
