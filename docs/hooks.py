"""What `mkdocs build` adds to the pages: text that would go stale if it were written down, files from elsewhere.

A line `<!-- command line -->` becomes the help of every command, `<!-- house -->` the contracts of pyproject.toml, and
`<!-- lines of examples/order.py: enter Charge machine -->` the definitions of these names in that file.
"""

import ast
import importlib.util
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
EXAMPLES = (
    "order",
    "agent",
    "saga",
    "elevator",
    "tcp",
    "traffic_lights",
    "look_ups",
    "favour",
)  # whose machines are drawn
LINES = re.compile(r"<!-- lines of (\S+): ([\w ]+) -->")
OUTSIDE = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"')

log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Lend the site what stands elsewhere in the repository; its links are then those of this folder."""
    for name, home in LENT.items():
        text = ROOT.joinpath(home).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    for name in PICTURES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name in EXAMPLES:
        files.append(File.generated(config, f"diagrams/{name}.svg", content=drawn(ROOT / f"examples/{name}.py")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is generated."""
    for marker, generate in (("<!-- command line -->", command_line), ("<!-- house -->", house)):
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return LINES.sub(lambda found: lines_of(ROOT / found[1], found[2].split()), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load something from the network."""
    for address in OUTSIDE.findall(output):
        log.warning("%s loads %s, but the site must work without a network", page.file.src_uri, address)
    return output


def drawn(path: Path) -> str:
    """The machine of a file as SVG; without Graphviz, a picture that says so."""
    from statemachine import GraphvizMissing, to_svg

    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        return to_svg(module.machine)
    except GraphvizMissing as missing:
        log.info("%s is not drawn: %s", path.name, missing)
        text = "<text x='8' y='24'>drawn where Graphviz is installed</text>"
        return f"<svg xmlns='http://www.w3.org/2000/svg' width='300' height='40'>{text}</svg>"
    finally:
        del sys.modules[path.stem]


def lines_of(path: Path, names: list[str]) -> str:
    """Definitions in a Python file, in the order in which they are asked for."""
    text = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
                first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
                found[name] = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    if lacking := [name for name in names if name not in found]:
        log.warning("%s defines no %s, which a page shows", path.name, " and no ".join(lacking))
    parts = [found[name] for name in names if name in found]
    return "\n".join([f'```python title="examples/{path.name}"', "\n\n\n".join(parts), "```"])


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
