"""The debugger's commands as lines of text: read by the line mode, and by the prompts of the full screen."""

from typing import Any

from phases.debugger import generation_commands as tokens
from phases.debugger import input_commands as inputs
from phases.debugger import machine_commands as runs
from phases.debugger import seeing_commands as seeing
from phases.debugger.command import Command, Lines, Quit
from phases.debugger.distribution import NoDistribution
from phases.debugger.errors import TELLING, DebuggerError
from phases.debugger.generation import GenerationSession
from phases.debugger.session import Session

MENDABLE = (*TELLING, NoDistribution)


def execute(session: Session[Any], line: str) -> Lines:
    """Do what a line says and give what there is to print, an error included.

    Raises
    ------
    Quit
        When it says quit.
    """
    try:
        return attempt(session, line)
    except MENDABLE as error:
        return [complaint(error)]


def attempt(session: Session[Any], line: str) -> Lines:
    """As `execute`, but what is wrong is raised, as one of MENDABLE."""
    word, _, rest = line.strip().partition(" ")
    if not word or word.startswith("#"):
        return []
    return _find(commands_of(session), word).act(session, rest.strip())


def complaint(error: Exception) -> str:
    """An error as a line."""
    return f"error: {' '.join(str(error).split())}"


def commands_of(session: Session[Any]) -> tuple[Command, ...]:
    """The commands for this kind of session."""
    return GENERATION if isinstance(session, GenerationSession) else MACHINE


def _find(commands: tuple[Command, ...], word: str) -> Command:
    """A command by its name or the beginning of it; of several, the one that stands first in the table."""
    for command in (*(c for c in commands if c.name == word), *(c for c in commands if c.name.startswith(word))):
        return command
    raise DebuggerError(
        f"expected a command, not {word!r}; commands: {', '.join(dict.fromkeys(c.name for c in commands))}"
    )


def _help(session: Session[Any], rest: str) -> Lines:
    commands, meanings = commands_of(session), session.vocabulary.meanings
    width, named = (max(map(len, words)) for words in ([c.usage for c in commands], meanings))
    return [
        *(f"{command.usage:<{width}}  {command.help}" for command in commands),
        "",
        "The beginning of a command will do. CONDITION compares names with numbers or strings, joined by and, or, not:",
        *(f"  {name:<{named}} {meaning}" for name, meaning in list(meanings.items())[:MOST_NAMES]),
        f"such as {', '.join(session.vocabulary.examples)}",
    ]


def _quit(session: Session[Any], rest: str) -> Lines:
    raise Quit


MOST_NAMES = 40  # that help explains

_STEP = Command("step", "step [N]", "take a step, or N", runs.step)
_RUN = "go on until a breakpoint or the end; one that failed is tried again"
_BACK = (
    Command("back", "back [N]", "go back a step, or N", runs.back),
    Command("goto", "goto STEP", "rest where the run rested after so many steps", runs.goto),
    Command("break", "break phase NAME", "stop before a phase", runs.break_),
    Command("break", "break guard NAME", "stop after a guard held (~NAME: did not hold)", runs.break_),
    Command("break", "break if CONDITION", "stop once it holds", runs.break_),
    Command("breaks", "breaks", "list the breakpoints", runs.breaks),
    Command("delete", "delete N", "take out a breakpoint", runs.delete),
)
_INPUTS = (
    Command("signal", "signal NAME [JSON]", "send a signal, with what it carries", inputs.signal),
    Command("answer", "answer JSON", "give a run that waits its answer", inputs.answer),
    Command("late", "late", "answer as if the deadline had passed", inputs.late),
    Command("edit", "edit NAME {JSON}", "make a change that the machine knows", inputs.edit),
)
_SIDE_BY_SIDE = (
    Command("fork", "fork [STEP]", "a second run with the same past; switches to it", runs.fork),
    Command("switch", "switch [N]", "look at another run", runs.switch),
    Command("close", "close", "close the run that is shown", runs.close),
    Command("runs", "runs", "list the runs", runs.runs),
    Command("compare", "compare [N]", "this run beside another, with their first difference", runs.compare),
)
_FILES = (
    Command("save", "save FILE", "write a snapshot, for load and phasewalk resume", runs.save),
    Command("load", "load FILE", "open a snapshot as another run", runs.load),
)
_SEEING = (
    Command("where", "where", "where the run rests", seeing.where),
    Command("machine", "machine", "draw the machine, with counts on its arrows", seeing.machine),
    Command("guards", "guards", "the guards of the phase that runs next", seeing.guards),
    Command("context", "context [NAME]", "the context and what the last step changed; one field whole", seeing.context),
    Command("signals", "signals", "what can come from outside; * is taken now", inputs.signals),
    Command("events", "events", "what has come from outside", inputs.events),
    Command("timeline", "timeline [N]", "the steps around here, with their times", seeing.timeline),
    Command("error", "error", "why the run failed, whole", seeing.error),
    Command("help", "help", "this list", _help),
    Command("quit", "quit", "leave", _quit),
)
MACHINE = (
    _STEP, Command("run", "run", _RUN, runs.run), *_BACK, *_INPUTS, *_SIDE_BY_SIDE, *_FILES, *_SEEING,
)  # fmt: skip
GENERATION = (
    _STEP,
    Command("next", "next [N]", "go on until the next token, or N tokens", tokens.next_),
    Command("run", "run", _RUN, tokens.run),
    *_BACK,
    Command("force", 'force TOKEN|"TEXT"', "make a token, or the tokens of a text, come next", tokens.force),
    Command("set", "set NAME NUMBER", "change temperature, top_k, top_p, min_p, max_new_tokens", tokens.set_),
    Command("append", 'append "TEXT"', "make the row go on with this text", tokens.append),
    *_SIDE_BY_SIDE,
    Command("row", "row N", "look at another row of the batch", tokens.row),
    *_FILES,
    Command("text", "text", "the text so far", tokens.text),
    Command("candidates", "candidates [N]", "what the token is drawn from, and what was removed", tokens.candidates),
    Command("buffers", "buffers", "the engine's buffers and how full the KV cache is", tokens.buffers),
    *_INPUTS,
    *_SEEING,
)
