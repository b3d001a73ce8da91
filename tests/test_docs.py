"""Runs every code block of the README and the docs, in an empty folder, and compares what it prints where it is shown.

| block | what is done with it |
|---|---|
| `python` | executed; the blocks of a page share their names; with `title="x.py"` it can be imported, too |
| `text title="prints"` | what the Python block before it printed |
| `console` | runs each `$ command`, which succeeds unless `# exit status N` ends its line; its output follows |
| `sh` | installs or builds something: each of its commands is one that CI runs |
| `text` | nothing to run |

In output `...` stands for anything, and a number before a unit of time, size or speed for any number. The line in which
a command says which engine it took is another one on another machine, and counts only where a page shows one. A block
whose title begins with "not run" is skipped, in sight of the reader.
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import ModuleType

import pytest
from command_line import Command, phasewalk
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from gpu.tensorrt.available import missing

pytestmark = pytest.mark.slow

__all__ = ["phasewalk"]  # a fixture

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
NEEDED = {"tensorrt.md": missing}  # what says why a page cannot be run here
INFO = re.compile(r'(?P<language>\w*) *(?:title="(?P<title>[^"]*)")?(?P<rest>[^\n]*)\n')
UNITS = r"ns|µs|ms|s|minutes|bytes|kB|MB|GB|MB/s|GB/s|tokens/s|MB/token|%"
VARIES = re.compile(rf"\.\.\.|\d[\d.,]*(?= ?(?:{UNITS})(?![\w/]))")
NUMBER = r"\d[\d.,]*"
CHOICE = re.compile(r"^engine \S+: the fastest that runs here.*\n", re.MULTILINE)
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")


class Blocks:
    """Finds the code blocks of one page and runs them in order.

    `saved` is told under what name one was saved; `phasewalk` runs that command here, where it need not start anew.
    """

    def __init__(self, saved: Callable[[str], None] = lambda module: None, phasewalk: Command | None = None) -> None:
        self.saved = saved
        self.phasewalk = phasewalk
        self.printed: str | None = None  # by the Python block just before
        self.lexer = RawFencedCodeBlockLexer(INFO)
        self.python = PythonEvaluator()

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in self.lexer(document):
            region.parsed = region.lexemes["source"]
            region.evaluator = self.evaluate
            yield region

    def evaluate(self, block: Example) -> str | None:
        """Run a block; what it says is what is wrong."""
        language, title = block.region.lexemes["language"], block.region.lexemes["title"] or ""
        if not_run(block.region):
            return None
        printed, self.printed = self.printed, None
        match language:
            case "python":
                return self._run(block, title)
            case "console":
                return "\n".join(filter(None, (self._command(*part) for part in _commands(block.parsed)))) or None
            case "sh":
                return "\n".join(f"CI does not run: {line}" for line in _lines(block.parsed) if not _in_ci(line))
            case "text" if title == "prints":
                return _differs(block.parsed, printed or "")
            case "text" if not title:
                return None
        return f"no block is marked {language!r} {title!r}; see the beginning of {Path(__file__).name}"

    def _run(self, block: Example, title: str) -> None:
        if title.endswith(".py"):
            Path(title).write_text(block.parsed, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as output:
            self.python(block)
        self.printed = output.getvalue()
        if title.endswith(".py"):
            self.saved(PurePath(title).stem)

    def _command(self, command: str, expected: str) -> str | None:
        stated = re.search(r"# exit status (\d+)$", command)
        if self.phasewalk and command.startswith("phasewalk ") and not re.search(r"[|;&<>$]", command):
            status, out, err = self.phasewalk(*shlex.split(command, comments=True)[1:])
            first = CHOICE.match(err)
            told = first.end() if first else 0  # before the answer; all else comes after it
            found = err[:told] + out + err[told:]
        else:
            status, found = _in_shell(command)
        if status != (int(stated[1]) if stated else 0):
            return f"$ {command}\nexit status {status}:\n{found}"
        return _differs(expected, found) if expected else None


def not_run(region: Region) -> bool:
    return (region.lexemes["title"] or "").startswith("not run")


def _commands(source: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown."""
    assert source.startswith("$ "), "a console block begins with a command"
    for part in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def _in_shell(command: str) -> tuple[int, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "PATH": path}, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout


def _differs(expected: str, found: str) -> str | None:
    """What is wrong with some output; lines may end in spaces, and `VARIES` says what need not be the same."""
    if not CHOICE.search(expected):
        found = CHOICE.sub("", found)
    wanted, came = (("\n".join(line.rstrip() for line in text.strip("\n").splitlines())) for text in (expected, found))
    pattern, end = "", 0
    for match in VARIES.finditer(wanted):
        pattern += re.escape(wanted[end : match.start()]) + (".*" if match[0] == "..." else NUMBER)
        end = match.end()
    if re.fullmatch(pattern + re.escape(wanted[end:]), came, re.DOTALL):
        return None
    return f"expected:\n{wanted}\n\nbut printed:\n{came}"


def _lines(script: str) -> list[str]:
    return [part.strip() for line in script.splitlines() for part in line.split("&&") if part.strip()]


def _in_ci(command: str) -> bool:
    wanted = _words(command)
    return any(_words(line)[: len(wanted)] == wanted for line in _lines(CI))


def _words(command: str) -> list[str]:
    """A command without variables set before it, the folder of its program, and that of an environment it makes."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # half a line of a loop, say
        return []
    while words and re.match(r"\w+=", words[0]):
        del words[0]
    words[:1] = [PurePath(word).name for word in words[:1]]
    return words[:3] if words[1:3] == ["-m", "venv"] else words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phasewalk: Command) -> None:
    if (lacking := NEEDED.get(page.name, lambda: None)()) is not None:
        pytest.skip(lacking)
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    names = ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, names.__name__, names)  # where dataclasses look up their types
    blocks = Blocks(lambda module: monkeypatch.setitem(sys.modules, module, names), phasewalk)
    document = Document.parse(str(page), blocks)
    document.namespace = vars(names)
    for block in document.examples():
        block.evaluate()


def test_blocks_that_are_not_run_are_rare() -> None:
    regions = [region for page in PAGES for _, region in Document.parse(str(page), Blocks()).regions]
    skipped = [region for region in regions if not_run(region)]
    assert len(skipped) <= len(regions) // 10


@pytest.mark.parametrize(
    ("module", "page"),
    [("statemachine", "statemachine"), ("statemachine.testing", "testing"), ("phases", "phases"), ("gpu", "gpu")],
)
def test_the_reference_has_every_public_name(module: str, page: str) -> None:
    described = set(
        re.findall(r"^::: [\w.]+\.(\w+)", (ROOT / f"docs/reference/{page}.md").read_text("utf-8"), re.MULTILINE)
    )
    assert set(importlib.import_module(module).__all__) <= described


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("0.04 s of work", "1.2 s of work", True),
        ("32 steps", "33 steps", False),
        ("7.5 GB/s, 80 %", "19.25 GB/s, 7 %", True),
        ("a ... z", "a b\nc z", True),
        ("a ... z", "a b\nc", False),
        ("a", "a\n", True),
        ("a", "ab", False),
        ("a", "engine numpy: the fastest that runs here; not cuda: no\na", True),
        ("engine ...: the fastest that runs here...\na", "a", False),
        ("engine ...: the fastest that runs here...\na", "engine onnx: the fastest that runs here\na", True),
        ("a", "engine numpy: broken\na", False),
    ],
)
def test_what_may_vary(expected: str, found: str, same: bool) -> None:
    assert (_differs(expected, found) is None) is same
