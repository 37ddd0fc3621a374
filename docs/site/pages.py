"""Pages of the site that are made of the code: the start, findings, Python, command line, HTTP.

A hook of MkDocs. Nothing is written into the folder of the sources.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer.main
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from mld_core.cli.main import app

ROOT = Path(__file__).resolve().parents[2]

MODULES = (
    *("ml_debugger.lightning", "ml_debugger.huggingface", "ml_debugger.mmengine", "ml_debugger.accelerate"),
    *("ml_debugger.fabric", "ml_debugger.torch", "ml_debugger.ultralytics", "ml_debugger.openpcdet"),
    *("ml_debugger.evaluator", "ml_debugger.records", "ml_debugger.review"),
)
"""What users import, in the order in which they meet it; Keras has an environment of its own."""

TASKS = ("classification", "detection", "detection3d")
SEVERITIES = {1: "information", 2: "worth a look", 3: "act when you can", 4: "act now", 5: "blocks a release"}

HALVES = (
    "Another draw of the same data may say otherwise, so it is asked again of halves of the split: the share "
    "of halves that say the same stands beside it as `code_membership`, and below 0.9 no severity above 3 is "
    "shown."
)

_SAID: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("findings.yml").read_text("utf-8"))
_LIST = re.compile(r"\s*([-*]|\d+\.)\s")
_FENCE = re.compile(r"\s*```")
_ELSEWHERE = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the made pages."""
    made = {
        "index.md": _at_home((ROOT / "README.md").read_text("utf-8")),
        "contributing.md": _at_home((ROOT / "CONTRIBUTING.md").read_text("utf-8")),
        "changelog.md": _at_home((ROOT / "CHANGELOG.md").read_text("utf-8")),
        "api.md": _api(),
        "cli.md": _cli(),
        "http.md": _http(),
        **dict(_findings()),
    }
    for name, text in made.items():
        # The pages of single findings hang under their list, which names them all: not in the menu.
        single = name.startswith("findings/") and name != "findings/index.md"
        place = InclusionLevel.NOT_IN_NAV if single else InclusionLevel.UNDEFINED
        files.append(File.generated(config, name, content=text, inclusion=place))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What GitHub reads as a list is one here: Python-Markdown wants an empty line before it."""
    out: list[str] = []
    fenced, listed = False, False
    for line in markdown.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        starts = not fenced and _LIST.match(line) is not None
        if starts and not listed and out and out[-1].strip():
            out.append("")
        listed = not fenced and (starts or (listed and (not line.strip() or line.startswith(" "))))
        out.append(line)
    return "\n".join(out) + "\n"


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """A page loads nothing from elsewhere.

    Raises:
        PluginError: it would.
    """
    strange = _ELSEWHERE.search(output)
    if strange:
        raise PluginError(f"{page.file.src_uri} asks another origin: {strange[0]}")
    return output


def _at_home(text: str) -> str:
    """A page from the top of the repository: its links lead into the site."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\]\((CONTRIBUTING|CHANGELOG)\.md", lambda found: f"]({found[1].lower()}.md", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#|images/|(?:[a-z_-]+/)?[a-z_]+\.md)[^)]+\)", r"\1", text)


def _api() -> str:
    shared = "The arguments that all wrappers share, and `ml_debugger.keras`, are in [Usage](usage.md)."
    parts = ["# Python", "", shared]
    for name in MODULES:
        source = (ROOT / "integrations" / Path(*name.split("."))).with_suffix(".py")
        text = source if source.is_file() else source.with_suffix("") / "__init__.py"
        members = re.search(r"__all__ = (\[.*?\])", text.read_text("utf-8"), re.DOTALL)
        assert members is not None, name
        public = json.loads(re.sub(r",\s*\]", "]", members[1]))
        parts += ["", f"::: {name}", "    options:", f"      members: {json.dumps(public)}"]
        if name.endswith(("evaluator", "records", "review")):  # they give what the core defines
            parts += ["      show_if_no_docstring: true"]
            parts += [part for one in public for part in _origin(name, one)]
    return "\n".join(parts) + "\n"


def _origin(module: str, name: str) -> Iterator[str]:
    """What a module hands on stands under its own path."""
    found = getattr(importlib.import_module(module), name)
    if found.__module__ != module and not issubclass(type(found), type(None)):
        yield ""
        yield f"::: {found.__module__}.{found.__qualname__}"
        yield "    options:"
        yield "      heading_level: 3"
        yield "      show_root_full_path: false"
        yield "      force_inspection: false"  # the core's signatures stand where they are defined


def _cli() -> str:
    root = typer.main.get_command(app)
    parts = ["# Command line", "", "What `mld COMMAND --help` prints."]
    for name, command in _commands(root, "mld"):
        context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100)
        parts += ["", f"## {name}", "", "```text", command.get_help(context).strip(), "```"]
    return "\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for part, inner in sorted(getattr(command, "commands", {}).items()):
        if not inner.hidden:
            yield from _commands(inner, f"{name} {part}")


def _http() -> str:
    """The routes of the service, from the document that its clients are tested against."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text("utf-8"))
    parts = ["# HTTP", "", "The routes of `mld serve`; [the whole document](openapi.json) is OpenAPI.", ""]
    parts += ["| route | | answers |", "|---|---|---|"]
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            codes = ", ".join(sorted(one.get("responses", {})))
            said = (one.get("description") or one.get("summary") or "").split("\n\n")[0].replace("\n", " ")
            parts.append(f"| `{method.upper()} {path}` | {said.replace('|', ' ')} | {codes} |")
    return "\n".join(parts) + "\n"


def _findings() -> Iterator[tuple[str, str]]:
    """A page for each diagnosis, from the registry, and the list of them."""
    listed = ["# Findings", "", "What a code on a sample or a box means, and what to do.", ""]
    for task in TASKS:
        listed += [f"## {task}", "", "| code | | severity |", "|---|---|---|"]
        for one in importlib.import_module(f"mld_core.evaluation.{task}.diagnoses").DIAGNOSES:
            page = f"{task}-{one.code}.md"
            listed.append(f"| [{one.code}]({page}) | {one.title} | {one.severity} |")
            yield f"findings/{page}", _finding(task, one)
        listed.append("")
    yield "findings/index.md", "\n".join(listed)


def _finding(task: str, one: Any) -> str:
    said = _SAID[one.code]
    grave = f"Of {task}. Severity {one.severity} of 5: {SEVERITIES[one.severity]}."
    parts = [f"# {one.code}: {one.title}", "", grave]
    picture = ROOT / "docs" / "images" / "findings" / f"{one.code}.webp"
    if picture.is_file():
        words = f"{one.title}: the first ones of a real run, as `mld ui` shows them"
        parts += ["", f"![{words}](../images/findings/{picture.name})", "", f"*{words}.*"]
    else:
        parts += ["", "*No picture: no unit of the runs that these pictures come from has it.*"]
    parts += ["", "## When", "", f"{one.when[:1].upper()}{one.when[1:]}."]
    parts += ["", "## Why it matters", "", said["why"]]
    parts += ["", "## What to do", "", one.action]
    parts += ["", "## How it can be wrong", "", said["wrong"]]
    needs = ", ".join(f"`{name}`" for name in one.needs)
    if needs:
        without = "without it the summary says that it cannot tell."
        parts += ["", "## What must be recorded", "", f"{needs}; {without}"]
    if one.varies:
        parts += ["", "## How sure", "", HALVES]
    parts += ["", "[How it is computed](../evaluation.md), [all findings](index.md)."]
    return "\n".join(parts) + "\n"
