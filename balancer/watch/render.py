"""A picture of a tally for a terminal: as many lines as fit, none of them wider than it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from balancer.watch.tally import HISTORY, RECENT, Host, Result, Tally
from balancer.watch.words import clock, milliseconds, span, times
from balancer.words import counted

# Pictures a second. Each costs several milliseconds of CPU time.
FRAMES = 4
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")
BARS = "▁▂▃▄▅▆▇█"
GONE = "bright_black"
# Cells: the longest name and bar that are drawn.
MAX_NAME = 24
MAX_BAR = 30
# Seconds from which on a stall is shown while it lasts.
STALL = 1.0


class HostRow(NamedTuple):
    """A host in the picture. ``seconds``: since its last answer."""

    name: str
    host: Host
    recent: int
    seconds: float
    silent: bool

    @property
    def colour(self) -> str:
        """Colour of the host, or of silence."""
        return GONE if self.silent else COLOURS[self.host.colour % len(COLOURS)]


def picture(title: str, tally: Tally, now: float, width: int = 80, height: int = 24) -> RenderableType:
    """Return the rotation, shares, latencies and failures, in ``height`` lines of ``width`` cells at most.

    ``now`` is the time on the clock of ``Result.ended``.
    """
    top = [Text(title, "bold"), _rotation(tally, width)]
    figures = _figures(tally, now)
    failures = _failures(tally)
    chart = _chart(tally, now, width)
    rows = _rows(tally, now)
    # Room for some hosts comes before the chart and the list of failures, these before room for all of them.
    room = height - len(top) - len(figures) - 1
    needed = min(len(rows) + 1, 4)
    failures = failures[: max(1 if failures else 0, room - needed - len(chart))]
    if room - len(failures) - len(chart) < needed:
        chart = []
    hosts = _hosts(rows, tally, width, room - len(failures) - len(chart))
    lines = [*top, *hosts, Text(), *chart, *figures, *failures]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return Group(*lines[:height])


async def drawing(console: Console, draw: Callable[[int, int], RenderableType]) -> None:
    """Fill the terminal with ``draw(width, height)``, ``FRAMES`` times a second; once cancelled, it is as before."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(draw(console.width, console.height), refresh=True)
            await asyncio.sleep(1 / FRAMES)


def _rotation(tally: Tally, width: int) -> Text:
    dots = Text()
    for name in list(tally.rotation)[-(width // 2) :]:
        host = tally.hosts.get(name)
        dots.append("● ", COLOURS[host.colour % len(COLOURS)] if host else GONE)
    return dots


def _rows(tally: Tally, now: float) -> list[HostRow]:
    """Return the hosts at work by name, then those that are silent, the latest first."""
    recent, silent = tally.recent(now), tally.silent(now)
    rows = [
        HostRow(name, host, recent[name], max(0.0, now - host.last), name in silent)
        for name, host in tally.hosts.items()
    ]
    at_work = sorted((row for row in rows if not row.silent), key=lambda row: row.name)
    return at_work + sorted((row for row in rows if row.silent), key=lambda row: row.seconds)


def _hosts(rows: list[HostRow], tally: Tally, width: int, room: int) -> list[Text]:
    """Return a line for each host where they fit, with silent ones as far as they do; otherwise several on a line."""
    if not rows or room < 2:
        return []
    at_work = sum(not row.silent for row in rows)
    if at_work > room - 1 - (len(rows) > at_work):
        return _grid(rows, width, room)
    shown = rows if len(rows) < room else rows[: room - 2]
    lines = _table(shown, tally, width)
    if len(shown) < len(rows):
        lines.append(Text(f"… and {len(rows) - len(shown)} more that are silent", GONE))
    return lines


def _table(rows: list[HostRow], tally: Tally, width: int) -> list[Text]:
    name_width = min(MAX_NAME, max(8, *(cell_len(row.name) for row in rows)))
    # Name, two shares with counts, and the last word take their width; bars take the rest.
    bar_width = max(0, min(MAX_BAR, width - name_width - 51))
    recent = max(1, sum(row.recent for row in rows))
    last = f"last {RECENT} s"
    head = f"{'worker':{name_width}} {last:>12}  {'':{bar_width}} {'in all':>9} {'share':>6}"
    lines = [Text(head, "bold")]
    most = max(1, *(row.recent for row in rows))
    for row in rows:
        name = Text(row.name, row.colour)
        name.truncate(name_width, overflow="ellipsis", pad=True)
        bar = "█" * round(bar_width * row.recent / most)
        line = Text.assemble(
            name,
            f" {row.recent:>5} {row.recent / recent:>6.1%} ",
            (f"{bar:{bar_width}}", row.colour),
            f" {row.host.count:>9} {row.host.count / tally.answered:>6.1%}",
            f"  {_word(row, tally)}",
        )
        if row.silent:
            line.stylize(GONE)
        lines.append(line)
    return lines


def _word(row: HostRow, tally: Tally) -> str:
    if row.silent:
        return f"last seen {clock(row.host.last_at)}"
    began = tally.began or 0.0
    age = row.host.last + row.seconds - row.host.first
    return "new" if age < RECENT and row.host.first > began + RECENT / 2 else ""


def _grid(rows: list[HostRow], width: int, room: int) -> list[Text]:
    """Return names and shares of the last seconds, several hosts on a line; the last place has the number left out."""
    name_width = min(14, max(cell_len(row.name) for row in rows))
    columns = max(1, (width + 2) // (name_width + 9))
    places = columns * (room - 1)
    shown = rows if len(rows) <= places else rows[: places - 1]
    recent = max(1, sum(row.recent for row in rows))
    at_work = sum(not row.silent for row in rows)
    gone = f", {len(rows) - at_work} silent" if at_work < len(rows) else ""
    lines = [Text(f"{counted(at_work, 'worker')}{gone}; shares of the last {RECENT} s", "bold")]
    cells = []
    for row in shown:
        name = Text(row.name, row.colour)
        name.truncate(name_width, overflow="ellipsis", pad=True)
        share = Text("silent", GONE) if row.silent else Text(f"{row.recent / recent:>6.1%}")
        cells.append(Text.assemble(name, " ", share, "  "))
    if len(shown) < len(rows):
        cells.append(Text(f"… {len(rows) - len(shown)} more", GONE))
    lines += [Text.assemble(*cells[start : start + columns]) for start in range(0, len(cells), columns)]
    for line in lines:
        line.rstrip()
    return lines


def _chart(tally: Tally, now: float, width: int) -> list[Text]:
    """Return a column for each of the last seconds; a second without an answer is a gap."""
    count = max(1, min(HISTORY, width - 18))
    seconds = tally.seconds(now, count)
    lines = []
    for name, values in (
        ("median", [second.median if second and second.answered else None for second in seconds]),
        ("worst", [second.worst if second and second.answered else None for second in seconds]),
    ):
        known = [value for value in values if value is not None]
        highest = max(known, default=0.0)
        # Steady values are drawn at half the height, so that slower ones stand out.
        full = max(highest, 2 * median(known)) if known else 0.0
        blocks = "".join(" " if value is None else _bar(value, full) for value in values)
        lines.append(Text.assemble(f"{name:7}", (blocks, "cyan"), f" ≤ {_ms(highest)}"))
    if any(second and second.failed for second in seconds):
        marks = "".join(
            " " if not second or not second.failed else str(second.failed) if second.failed < 10 else "+"
            for second in seconds
        )
        lines.append(Text.assemble(f"{'failed':7}", (marks, "red")))
    return lines


def _bar(value: float, full: float) -> str:
    return BARS[min(len(BARS) - 1, int(len(BARS) * value / full))] if full else BARS[0]


def _figures(tally: Tally, now: float) -> list[Text]:
    failed = f"{tally.failed} failed" + (f" ({tally.failed / tally.requests:.2%})" if tally.failed else "")
    stall, until = tally.longest_stall(now, 0.0)
    waits = Text(f"longest time without an answer {stall:.1f} s")
    if until and stall >= STALL:
        waits.append(f", until {clock(until)}")
    if (waiting := tally.stall(now)) >= STALL:
        waits.append(f"; none for {waiting:.1f} s now", "bold red")
    requests = f"{counted(tally.requests, 'request')}, {failed}, {tally.rate(now):.1f} a second"
    return [
        Text(requests, "red" if tally.failed else ""),
        Text(", ".join(f"{name} {_ms(seconds)}" for name, seconds in tally.figures().items())),
        waits,
    ]


def _failures(tally: Tally) -> list[Text]:
    """Return the kinds of failures, the most frequent first, then the latest failures, one by one."""
    kinds = sorted(tally.kinds.items(), key=lambda entry: -entry[1].count)
    lines = [
        Text(f"failed {times(kind.count)}, {span(kind.first_at, kind.last_at)}: {name}", "red")
        for name, kind in kinds[:3]
    ]
    if len(kinds) > 3:
        lines.append(Text(f"… and {len(kinds) - 3} more kinds", "red"))
    return lines + [_failure(failure) for failure in list(tally.last_failures)[-1:-4:-1]]


def _failure(result: Result) -> Text:
    return Text(f"  {clock(result.at)}  {result.failure}, after {_ms(result.seconds)}")


def _ms(seconds: float | None) -> str:
    return milliseconds(seconds) if seconds is None or seconds < 1 else f"{seconds:.2f} s"
