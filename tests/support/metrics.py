"""Metrics as a scrape brings them, and what promtool's ``check metrics`` would say of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from math import inf, isnan

import httpx
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from starlette.applications import Starlette
from starlette.routing import Route

from balancer.admin.metric_specs import METRICS
from balancer.admin.prometheus import metrics_endpoint
from balancer.process.sockets import listen
from balancer.types import Address
from tests.support.mounting import make_listener
from tests.support.wire import Running

Series = tuple[str, frozenset[tuple[str, str]]]

# What promtool takes for no base unit, or for one that is abbreviated.
NO_BASE_UNITS = re.compile(
    r"_(ms|us|ns|s|sec|secs|milliseconds|microseconds|minutes|hours|days|kb|mb|gb|kilobytes|megabytes|bits|percent)(_|$)"
)
SUFFIXES = {
    "histogram": ("_bucket", "_count", "_sum"),
    "summary": ("", "_count", "_sum"),
    "counter": ("_total",),
    "info": ("_info",),
}


def values(families: Iterable[Metric]) -> dict[Series, float]:
    """Every series with its value. A series that comes twice is an error."""
    found: dict[Series, float] = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


class Scrape:
    """What one scrape brought."""

    def __init__(self, text: str) -> None:
        self.text = text
        openmetrics = text.endswith("# EOF\n")
        parse: Callable[[str], Iterable[Metric]] = parse_openmetrics if openmetrics else parse_plain
        self.families = list(parse(text))
        self.values = values(self.families)

    def __len__(self) -> int:
        return len(self.values)

    def get(self, name: str, **labels: str) -> float:
        """The value of a series; 0 where there is none."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def sum(self, name: str, **labels: str) -> float:
        """Of all series that have these labels among theirs."""
        wanted = labels.items()
        return sum(value for (it, has), value in self.values.items() if it == name and wanted <= has)

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label has."""
        return {value for (it, has), _ in self.values.items() if it == name for key, value in has if key == label}


def lint(text: str) -> list[str]:  # noqa: C901 - one case for each rule of the format
    """What is wrong with the names, types and help of a scrape in the text format, line by line."""
    problems = []
    helps = re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    names = [name for name, _ in helps]
    problems += [f"{it}: HELP comes twice" for it in names if names.count(it) > 1]
    problems += [f"{name}: no help" for name, words in helps if not words.strip()]
    problems += [f"{it}: HELP or TYPE is missing" for it in types.keys() ^ set(names)]
    for name, kind in types.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            problems.append(f"{name}: only lower case, digits and underscores")
        if "__" in name:
            problems.append(f"{name}: two underscores in a row")
        if (kind == "counter") != name.endswith("_total"):
            problems.append(f"{name}: a counter, and nothing else, ends in _total")
        if name.endswith(("_count", "_sum", "_bucket")) or (name.endswith("_info") and kind != "gauge"):
            problems.append(f"{name}: the ending belongs to another type")
        if kind in ("untyped", "unknown"):
            problems.append(f"{name}: no type")
        if re.search(r"_(counter|gauge|histogram|summary|metric)(_|$)", name):
            problems.append(f"{name}: the type is in the name")
        if NO_BASE_UNITS.search(name):
            problems.append(f"{name}: not a base unit")
    for name, has, value in re.findall(r"^([^#{ ]+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        kind = types.get(name) or types.get(re.sub(r"_(bucket|count|sum)$", "", name))
        if kind is None:
            problems.append(f"{name}: a series without TYPE")
        for label in re.findall(r'(?:^|",)([^=]+)=', has):
            reserved = (label == "le" and kind != "histogram") or (label == "quantile" and kind != "summary")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", label) or label in ("job", "instance") or reserved:
                problems.append(f"{name}: label {label}")
        if kind == "counter" and not 0 <= float(value) < inf:
            problems.append(f"{name}: {value}")
        if isnan(float(value)):
            problems.append(f"{name}: not a number")
    return problems + _histograms(text)


def _histograms(text: str) -> list[str]:
    """Buckets grow, and the last holds all."""
    problems = []
    for family in parse_plain(text):
        if family.type != "histogram":
            continue
        series: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
        counts: dict[frozenset[tuple[str, str]], float] = {}
        for sample in family.samples:
            rest = frozenset(it for it in sample.labels.items() if it[0] != "le")
            if sample.name.endswith("_bucket"):
                series.setdefault(rest, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[rest] = sample.value
        for rest, buckets in series.items():
            numbers = [number for _, number in sorted(buckets)]
            if numbers != sorted(numbers) or max(buckets)[0] != inf or numbers[-1] != counts[rest]:
                problems.append(f"{family.name}: buckets {buckets}, count {counts[rest]}")
    return problems


def known() -> dict[str, frozenset[str]]:
    """The labels of every series that METRICS promise, by its full name."""
    found = {}
    for it in METRICS:
        base = it.name.removesuffix("_total") if it.kind == "counter" else it.name.removesuffix("_info")
        for suffix in SUFFIXES.get(it.kind, ("",)):
            if (it.kind, suffix) != ("summary", ""):
                found[base + suffix] = frozenset(it.labels) | ({"le"} if suffix == "_bucket" else set())
    return found


@asynccontextmanager
async def admin(*pools: Running) -> AsyncIterator[Callable[[], Awaitable[Scrape]]]:
    """An admin listener for these balancers; what it gives scrapes it over its socket."""
    sock = listen("ADMIN", Address("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/metrics"
    app = Starlette(routes=[Route("/metrics", metrics_endpoint(lambda: [it.balancer for it in pools]))])
    listener = make_listener(app, keepalive=5, drain_limit=1)
    serving = asyncio.create_task(listener.serve(sockets=[sock]))

    async def scrape() -> Scrape:
        response = await client.get(url)
        assert response.status_code == 200
        return Scrape(response.text)

    try:
        async with httpx.AsyncClient() as client:
            yield scrape
    finally:
        listener.stop()
        await serving
