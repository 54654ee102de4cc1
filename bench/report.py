"""The figures for people: tables on the terminal and in RESULTS.md, and the chart.

``python -m bench.report`` makes RESULTS.md and the chart anew from results.json.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.candidates import BALANCER, BASELINE, COMPILED, OURS
from bench.chart import draw
from bench.memory import CROWD, HUGE, IDLE, SLOW
from bench.processes import ROOT

Results = dict[str, Any]

RESULTS_JSON = ROOT / "bench" / "results.json"
RESULTS_MD = ROOT / "bench" / "RESULTS.md"
CHART = ROOT / "docs" / "bench.svg"
CHARTED = "browser-32"
CHARTED_AS = "requests as browsers send them, no two alike, 32 connections"
# What the docs say of the figures, by file: between the marks, which stand at the ends of lines.
MARKS = " <!-- make bench writes from here -->\n", " <!-- to here -->\n"
SENTENCES = {
    ROOT / "README.md": (
        "Requests as browsers send them, no two alike, cost {browser-32[balancer]} µs of CPU time each "
        "({browser-32[balancer-compiled]} compiled; nginx with a fixed list of members {browser-32[nginx-keepalive]}, "
        "HAProxy {browser-32[haproxy]}, Traefik {browser-32[traefik]}, Caddy {browser-32[caddy]}); one request "
        "repeated, a best case, {get-32[balancer]} ({get-32[balancer-compiled]} compiled; nginx "
        "{get-32[nginx-keepalive]}): [performance](docs/performance/README.md)."
    ),
    ROOT / "README.pt-BR.md": (
        "Requisições como as dos navegadores, nenhuma igual a outra, custam {browser-32[balancer]} µs de CPU cada "
        "({browser-32[balancer-compiled]} compilado; o nginx com uma lista fixa, {browser-32[nginx-keepalive]}; "
        "HAProxy {browser-32[haproxy]}, Traefik {browser-32[traefik]}, Caddy {browser-32[caddy]}); uma requisição "
        "repetida, o melhor caso, {get-32[balancer]} ({get-32[balancer-compiled]} compilado; nginx "
        "{get-32[nginx-keepalive]}): [performance](docs/performance/README.md)."
    ),
}
TABLES = {
    ROOT / "docs" / "performance" / "README.md": (
        ["browser-32", "browser-256", "browser-small-32", "api-post-32", "proxied-32", "tls-32", "h2-32", "get-32"],
        "CPU time in µs for each request, and how many times nginx's; `get-32` is a best case, one request repeated, "
        "and [the bench](../../bench/README.md#loads) says what the others send.",
    )
}

HOW_TO_READ = f"""\
* Figures are medians over the rounds; *from-to* is the least and the most of the CPU time.
* CPU time is the candidate's own by the kernel's account: all its processes, user and system.
  *of {BASELINE}* is the ratio of the CPU times.
* *core %* is how much of its core the candidate used, *others %* how much anybody else did. Where the sum is well below
  100, the load generator and the members on the other core were the limit, and requests a second, p50 and p99 say
  little. Where others used much, the machine was busy, and all figures say less.
* p50 and p99 are those of a closed loop at full speed, not of a lightly loaded balancer.
* Peak memory is the sum over the candidate's processes; pages that they share count for each.
* Under *steady*, requests come at a rate of their own, and p50 and p99 count from when each was due; *from-to* is
  that of p99, and *of {BASELINE}* the ratio of p99. *no proxy* is the member alone, asked by the same generator. There,
  where the system lets, what is measured goes before all other processes, which would have half of a core otherwise.
* (!) marks a candidate with errors."""


def header(load: dict[str, Any]) -> list[str]:
    if "rate" in load:
        return ["", "p50 ms", "p99 ms", "from-to", f"of {BASELINE}", "requests/s", "core %", "others %", "errors"]
    relation = f"of {load.get('of', BASELINE)}"
    rate = "MiB/s" if load["unit"].endswith("MiB") else "requests/s"
    return ["", load["unit"], "from-to", relation, rate, "p50 ms", "p99 ms", "peak MiB", "core %", "others %", "errors"]


def rows(load: dict[str, Any]) -> list[list[str]]:
    """A row for each candidate; those with errors are marked."""
    found = []
    per_mib = load["unit"].endswith("MiB")
    for name, figures in load["candidates"].items():
        errors = ", ".join(f"{number} {kind}" for kind, number in figures["errors"].items())
        if "rate" in load:
            found.append(_steady_row(name, figures, errors))
            continue
        found.append(
            [
                f"{name} (!)" if errors else name,
                _short(figures["cpu"]),
                f"{_short(figures['cpu_min'])}-{_short(figures['cpu_max'])}",
                f"{figures['ratio']:.2f}" if figures["ratio"] else "",
                f"{figures['mib_per_second']:.0f}" if per_mib else f"{figures['requests_per_second']:.0f}",
                f"{figures['p50_ms']:.2f}",
                f"{figures['p99_ms']:.2f}",
                f"{figures['peak_mib']:.0f}",
                f"{figures['core_percent']:.0f}",
                f"{figures['foreign_percent']:.0f}",
                f"{errors} of {figures['requests']}" if errors else "0",
            ]
        )
    for name, reason in load["failures"].items():
        found.append([f"{name} (!)", *[""] * (len(header(load)) - 2), f"failed: {reason.splitlines()[0][:90]}"])
    return found


def _steady_row(name: str, figures: dict[str, Any], errors: str) -> list[str]:
    return [
        f"{name} (!)" if errors else name,
        f"{figures['p50_ms']:.2f}",
        f"{figures['p99_ms']:.2f}",
        f"{figures['p99_min_ms']:.2f}-{figures['p99_max_ms']:.2f}",
        f"{figures['p99_ratio']:.2f}" if figures["p99_ratio"] else "",
        f"{figures['requests_per_second']:.0f}",
        f"{figures['core_percent']:.0f}",
        f"{figures['foreign_percent']:.0f}",
        f"{errors} of {figures['requests']}" if errors else "0",
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plain_table(title: str, load: dict[str, Any]) -> str:
    table = [header(load), *rows(load)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    idle = [f"idle: {percent:5.2f} % of a core, {name}" for name, percent in load.get("idle_core_percent", {}).items()]
    left_out = [line] if (line := _left_out(load)) else []
    return "\n".join([f"{title}: {load['description']}", *lines, *left_out, *idle])


def _left_out(load: dict[str, Any]) -> str:
    reasons = [f"{name} ({reason})" for name, reason in load.get("left_out", {}).items()]
    return f"Left out: {', '.join(reasons)}." if reasons else ""


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [head, align, *body]]


def memory_lines(results: Results) -> list[str]:
    """A sentence for each measurement of memory."""
    lines = []
    for load, by_candidate in results["memory"].items():
        for name, run in by_candidate.items():
            if "failed" in run:
                lines.append(f"{name}, {load}: failed: {run['failed'].splitlines()[0]}")
            elif load == IDLE:
                lines.append(
                    f"{name}, {run['clients']} idle keep-alive clients: {run['kib_per_client']:.1f} KiB each "
                    f"(memory {run['before_kib']} KiB before, {run['during_kib']} with them, {run['after_kib']} after)"
                    + (f"; {run['load']}: {_beside(run)}" if "beside" in run else "")
                )
            elif load == SLOW:
                lines.append(
                    f"{name}, {run['clients']} clients that read 16 MiB answers at 64 KiB/s "
                    f"for {run['seconds']:.0f} s: "
                    f"{run['kib_per_client']:.1f} KiB each at the peak "
                    f"(memory {run['before_kib']} KiB before, {run['peak_kib']} at the peak, {run['after_kib']} after)"
                )
            elif load == HUGE:
                lines.append(
                    f"{name}, {run['mib']:.0f} MiB through one client at {run['mib'] / run['seconds']:.1f} MiB/s: "
                    f"grows by {run['growth_mib']:.1f} MiB "
                    f"(memory {run['before_kib']} KiB before, {run['peak_kib']} at the peak, {run['after_kib']} after)"
                )
            elif load == CROWD:
                fates = ", ".join(
                    f"{kind} {', '.join(f'{number} {fate}' for fate, number in found.items()) or 'none'}"
                    for kind, found in run["crowd"]["fates"].items()
                )
                lines.append(
                    f"{name}, {run['heads']} half-sent heads, {run['bodies']} slow bodies and {run['readers']} slow "
                    f"readers together for {run['seconds']} s; {run['load']}: {_beside(run)}; "
                    f"memory {run['before_kib']} KiB before, {run['peak_kib']} at the peak, "
                    f"{run['after_kib']} after they have left and requests went on for {run['after_seconds']} s; "
                    f"cut off were of the {fates}"
                )
    return lines


def _beside(run: dict[str, Any]) -> str:
    """What requests waited without others and beside them."""
    alone, beside = run["alone"], run["beside"]
    errors = ", ".join(f"{number} {kind}" for kind, number in beside["errors"].items())
    return (
        f"p50 {beside['p50_ms']:.2f} ms, p99 {beside['p99_ms']:.2f}, slowest {beside['max_ms']:.1f}, "
        f"{errors or 'no'} errors of {beside['requests']} "
        f"(without them p50 {alone['p50_ms']:.2f} ms, p99 {alone['p99_ms']:.2f}, slowest {alone['max_ms']:.1f}; "
        f"ratio of p99 {beside['p99_ms'] / alone['p99_ms']:.2f})"
    )


def markdown(results: Results) -> str:
    """RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Generated by `make bench` (see [README.md](README.md)) from what it measured, also in "
        "[results.json](results.json); do not edit.",
        "",
        f"{results['date']}; {results['rounds']} alternated rounds of {results['seconds']} s each.",
        "",
        *_markdown_table(["on", ""], list(results["machine"].items())),
        "",
        "| candidate | version | is |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {candidate['version']} | {candidate['what']} |"
            for name, candidate in results["candidates"].items()
        ),
        "",
        *HOW_TO_READ.splitlines(),
    ]
    for name, load in results["loads"].items():
        measured = f" Measured {load['measured']}." if "measured" in load else ""
        lines += ["", f"## {name}", "", f"{load['description']}.{measured}", ""]
        lines += _markdown_table(header(load), rows(load))
        if left_out := _left_out(load):
            lines += ["", left_out]
        if load.get("idle_core_percent"):
            idle = [[variant, f"{percent:.2f} %"] for variant, percent in load["idle_core_percent"].items()]
            lines += ["", *_markdown_table(["idle balancer with", "of a core"], idle)]
    if results["memory"]:
        lines += ["", "## Memory", "", *(f"* {line}" for line in memory_lines(results))]
    return "\n".join(lines) + "\n"


def chart(results: Results) -> str | None:
    """The SVG, if the load that it shows was run."""
    load = results["loads"].get(CHARTED)
    if not load or not load["candidates"]:
        return None
    return draw(
        "CPU time per proxied request, µs (less is better)",
        f"{CHARTED_AS}; one core; medians of {results['rounds']} alternated rounds; {results['date'][:10]}",
        [(name, load["candidates"][name]["cpu"], name in OURS) for name in _headlined(load)],
    )


def write(results: Results, results_json: Path, results_md: Path, svg: Path) -> None:
    results_json.parent.mkdir(parents=True, exist_ok=True)
    results_json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    results_md.write_text(markdown(results))
    drawn = chart(results)
    if drawn:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(drawn)


def publish(results: Results) -> None:
    """Write the results, the chart, and the tables of the docs."""
    write(results, RESULTS_JSON, RESULTS_MD, CHART)
    for path, sentence in SENTENCES.items():
        if said := _filled(sentence, results):
            path.write_text(between_marks(path.read_text(), said))
    for path, (loads, above) in TABLES.items():
        if CHARTED in results["loads"]:
            table = "\n".join(_headlines(results, loads))
            path.write_text(between_marks(path.read_text(), f"{above}\n\n{table}\n\n"))


def between_marks(text: str, said: str) -> str:
    """The text with that in place of what stands between the marks."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{said}{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def _filled(sentence: str, results: Results) -> str | None:
    """The sentence with CPU times, unless one was not measured."""
    times = {
        load: {name: f"{figures['cpu']:.0f}" for name, figures in measured["candidates"].items() if "cpu" in figures}
        for load, measured in results["loads"].items()
    }
    try:
        return textwrap.fill(sentence.format_map(times), 138, break_long_words=False, break_on_hyphens=False)
    except KeyError:
        return None


def _headlines(results: Results, loads: Sequence[str]) -> list[str]:
    run = [name for name in loads if name in results["loads"]]
    names = _headlined(results["loads"][CHARTED])
    body = [[name, *(_cell(results["loads"][load], name) for load in run)] for name in names]
    return _markdown_table(["", *run], body)


def _headlined(load: dict[str, Any]) -> list[str]:
    """Peers and the balancer, without what its features cost and without other checkouts."""
    return [name for name in load["candidates"] if name not in OURS or name in (BALANCER, COMPILED)]


def _cell(load: dict[str, Any], name: str) -> str:
    figures = load["candidates"].get(name)
    if figures is None:
        return "-"
    ratio = f" ({figures['ratio']:.2f})" if figures["ratio"] and name != BASELINE else ""
    return _short(figures["cpu"]) + ratio


def main() -> None:
    publish(json.loads(RESULTS_JSON.read_text()))


if __name__ == "__main__":
    main()
