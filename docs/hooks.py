"""What `mkdocs build` adds to the pages: text that would go stale if it were written down, files from elsewhere.

A line `<!-- command line -->` becomes the help of every command, `<!-- house -->` the contracts of pyproject.toml.
"""

import logging
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LENT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # pages that stand outside this folder
PICTURES = ("diagrams/generation.svg", "diagrams/debugger.svg", "diagrams/token_on_gpu.svg")
OUTSIDE = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"')

log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Lend the site what stands elsewhere in the repository; its links are then those of this folder."""
    for name, home in LENT.items():
        text = ROOT.joinpath(home).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    for name in PICTURES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is generated."""
    for marker, generate in (("<!-- command line -->", command_line), ("<!-- house -->", house)):
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load something from the network."""
    for address in OUTSIDE.findall(output):
        log.warning("%s loads %s, but the site must work without a network", page.file.src_uri, address)
    return output


def command_line() -> str:
    """The help of every command, as it prints it."""
    from phases.cli.app import app

    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    return "\n".join(_help(name) for name in ("", *names))


def _help(command: str) -> str:
    words = ["phasewalk", *([command] if command else []), "--help"]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'phasewalk'; from phases.cli import main; main()"]
    done = subprocess.run([*program, *words[1:]], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    title = f"## phasewalk {command}".rstrip()
    return "\n".join([f"{title}\n", "```text", f"$ {' '.join(words)}", *lines, "```\n"])


def house() -> str:
    """The contracts that import-linter holds, each as a picture or a sentence."""
    rules = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return "\n".join(part for contract in rules["contracts"] for part in _contract(contract))


def _contract(contract: dict[str, Any]) -> Iterator[str]:
    yield f"### {contract['name']}\n"
    match contract["type"]:
        case "layers":
            for container in contract.get("containers", [""]):
                yield _layers(container, contract["layers"])
        case "forbidden":
            sources, forbidden = contract["source_modules"], contract["forbidden_modules"]
            verb = "import" if len(sources) > 1 else "imports"
            yield f"{_names(sources)} never {verb} {_names(forbidden)}.\n"
        case "independence":
            yield f"{_names(contract['modules'])} never import each other.\n"
        case "acyclic_siblings":
            yield f"No circles among the modules of any package in {_names(contract.get('ancestors', []))}.\n"
        case kind:
            log.warning("docs/hooks.py does not know how to show a contract of type %r", kind)


def _layers(container: str, layers: list[str]) -> str:
    """Layers from top to bottom: `|` parts modules that do not know each other, `:` modules that may."""
    rows = []
    for layer in layers:
        parts = [part.strip(" ()") for part in re.split(r"[|:]", layer)]
        rows.append("".join(f"<span><code>{escape(part)}</code></span>" for part in parts))
    caption = (
        f"<figcaption>{f'in <code>{escape(container)}</code>, ' if container else ''}higher imports lower</figcaption>"
    )
    return f'<figure class="layers">{"".join(f"<div>{row}</div>" for row in rows)}{caption}</figure>\n'


def _names(modules: list[str]) -> str:
    *first, last = [f"`{module}`" for module in modules]
    return f"{', '.join(first)} and {last}" if first else last
