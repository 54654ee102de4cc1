"""Write what the reference takes from the code: ``python -m docs.site.reference``.

Settings come from their table, commands from the argument parsers, the admin API from its OpenAPI file. The generated
part of a page stands between two marks, and a test holds it against this module.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from balancer.cli.main import _parser
from balancer.config.display import flag, show, variable
from balancer.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- generated -->\n", "<!-- end of what is generated -->\n"


def settings() -> Iterator[str]:
    """The table of settings, in the order of their fields."""
    yield "| variable | default | accepted | meaning |"
    yield "| --- | --- | --- | --- |"
    for field in fields(Settings):
        kind = field.metadata["kind"]
        meaning = field.metadata["meaning"]
        yield f"| `{variable(field.name)}` | {show(field.default, kind)} | {kind.accepts} | {meaning} |"


def commands() -> Iterator[str]:
    """A section for each command with its arguments; flags that are settings are left to their own page."""
    ours = {flag(field.name) for field in fields(Settings)}
    (group,) = (it for it in _parser()._actions if isinstance(it, argparse._SubParsersAction))
    for choice in group._choices_actions:
        yield f"## balancer {choice.dest}\n"
        text = choice.help or ""
        yield f"{text[:1].upper()}{text[1:]}.\n"
        arguments = [it for it in group.choices[choice.dest]._actions if it.dest != "help"]
        if ours <= {name for it in arguments for name in it.option_strings}:
            yield "Flags: every [setting](settings.md).\n"
            continue
        yield "| argument | meaning |"
        yield "| --- | --- |"
        for argument in arguments:
            yield f"| `{' '.join(argument.option_strings) or argument.metavar}` | {argument.help or 'required'} |"
        yield ""


def admin_api() -> Iterator[str]:
    """The operations of the OpenAPI file with their statuses."""
    yield "| request | what it is for | answers |"
    yield "| --- | --- | --- |"
    paths = json.loads((ROOT / "balancer" / "admin" / "openapi.json").read_text())["paths"]
    for path, item in paths.items():
        for method in ("get", "post"):
            if operation := item.get(method):
                answers = "; ".join(
                    f"{status}: {it['description'].rstrip('.')}" for status, it in operation["responses"].items()
                )
                yield f"| `{method.upper()} {path}` | {operation['summary']} | {answers} |"


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "settings.md": settings,
    "cli.md": commands,
    "admin-api.md": admin_api,
}


def page(name: str) -> tuple[Path, str]:
    """The path of a page and its text with the generated part as the code has it now."""
    path = ROOT / "docs" / "reference" / name
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return path, f"{before}{BEGIN}\n{chr(10).join(PAGES[name]()).strip()}\n\n{END}{after}"


if __name__ == "__main__":
    for name in PAGES:
        path, text = page(name)
        path.write_text(text)
