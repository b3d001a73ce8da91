"""The debugger's commands as lines of text: read by the line mode, and by the prompts of the full screen."""

from gpu import CapacityError, LogitsError, NoFreeRows
from phases.debugger import generation_commands as tokens
from phases.debugger import machine_commands as runs
from phases.debugger.command import Command, Lines, Quit
from phases.debugger.conditions import NUMBERS, TEXTS
from phases.debugger.distribution import NoDistribution
from phases.debugger.errors import DebuggerError
from phases.debugger.generation import GenerationSession
from statemachine import StateMachineError

MENDABLE = (ValueError, OSError, StateMachineError, NoDistribution, NoFreeRows, CapacityError, LogitsError)


def execute(session: GenerationSession, line: str) -> Lines:
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


def attempt(session: GenerationSession, line: str) -> Lines:
    """As `execute`, but what is wrong is raised, as one of MENDABLE."""
    word, _, rest = line.strip().partition(" ")
    if not word or word.startswith("#"):
        return []
    return _find(word).act(session, rest.strip())


def complaint(error: Exception) -> str:
    """An error as a line."""
    return f"error: {' '.join(str(error).split())}"


def _find(word: str) -> Command:
    """A command by its name or the beginning of it; of several, the one that stands first in the table."""
    for command in (*(c for c in COMMANDS if c.name == word), *(c for c in COMMANDS if c.name.startswith(word))):
        return command
    raise DebuggerError(
        f"expected a command, not {word!r}; commands: {', '.join(dict.fromkeys(c.name for c in COMMANDS))}"
    )


def _help(session: GenerationSession, rest: str) -> Lines:
    width = max(len(command.usage) for command in COMMANDS)
    return [
        *(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS),
        "",
        "The beginning of a command will do. CONDITION compares names with numbers or strings, joined by and, or, not:",
        *(f"  {name:<9} {meaning}" for name, meaning in (NUMBERS | TEXTS).items()),
    ]


def _quit(session: GenerationSession, rest: str) -> Lines:
    raise Quit


COMMANDS = (
    Command("step", "step [N]", "take a step, or N", runs.step),
    Command("next", "next [N]", "go on until the next token, or N tokens", tokens.next_),
    Command("run", "run", "go on until a breakpoint or the end", tokens.run),
    Command("back", "back [N]", "go back a step, or N", runs.back),
    Command("goto", "goto STEP", "rest where the run rested after so many steps", runs.goto),
    Command("break", "break phase NAME", "stop before a phase", runs.break_),
    Command("break", "break guard NAME", "stop after a guard held (~NAME: did not hold)", runs.break_),
    Command("break", "break if CONDITION", 'stop once it holds: top1 < 0.3, token == "\\n", length == 40', runs.break_),
    Command("breaks", "breaks", "list the breakpoints", runs.breaks),
    Command("delete", "delete N", "take out a breakpoint", runs.delete),
    Command("force", 'force TOKEN|"TEXT"', "make a token, or the tokens of a text, come next", tokens.force),
    Command("set", "set NAME NUMBER", "change temperature, top_k, top_p, min_p, max_new_tokens", tokens.set_),
    Command("append", 'append "TEXT"', "make the row go on with this text", tokens.append),
    Command("fork", "fork [STEP]", "a second run with the same past; switches to it", runs.fork),
    Command("switch", "switch [N]", "look at another run", runs.switch),
    Command("close", "close", "close the run that is shown", runs.close),
    Command("runs", "runs", "list the runs", runs.runs),
    Command("row", "row N", "look at another row of the batch", tokens.row),
    Command("save", "save FILE", "write a snapshot, for load and phasewalk resume", runs.save),
    Command("load", "load FILE", "open a snapshot as another run", tokens.load),
    Command("where", "where", "where the run rests", runs.where),
    Command("machine", "machine", "draw the machine, with counts on its arrows", runs.machine),
    Command("text", "text", "the text so far", tokens.text),
    Command("candidates", "candidates [N]", "what the token is drawn from, and what was removed", tokens.candidates),
    Command("guards", "guards", "the guards of the phase that runs next", runs.guards),
    Command("buffers", "buffers", "the engine's buffers and how full the KV cache is", tokens.buffers),
    Command("timeline", "timeline [N]", "the steps around here, with their times", runs.timeline),
    Command("help", "help", "this list", _help),
    Command("quit", "quit", "leave", _quit),
)  # fmt: skip
