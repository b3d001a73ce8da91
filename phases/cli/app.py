"""Joins the subcommands."""

from typing import Annotated

import typer

from phases.cli.build import build
from phases.cli.cache import cache
from phases.cli.chat import chat
from phases.cli.check import check
from phases.cli.diagram import diagram
from phases.cli.doctor import doctor
from phases.cli.export import export
from phases.cli.perplexity import perplexity
from phases.cli.profile import profile
from phases.cli.replay import replay
from phases.cli.report import report
from phases.cli.resume import resume
from phases.cli.run import run
from phases.cli.step import step
from phases.cli.trace import trace

EPILOG = """
Exit status: 0 it worked, 1 it failed, 2 the command line was wrong, 3 a replay diverged, 4 a record is incomplete,
130 it was interrupted (Ctrl-C).

Try: phasewalk run "What does Prefill do?" --phases, or talk with the model: phasewalk chat
"""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(chat)
app.command()(replay)
app.command()(resume)
app.command()(step)
app.command()(trace)
app.command()(report)
app.command()(profile)
app.command()(perplexity)
app.command()(export)
app.command()(build)
app.command()(cache)
app.command()(check)
app.command()(diagram)
app.command()(doctor)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"phasewalk {version('phasewalk')}")
        raise typer.Exit


@app.callback()
def phasewalk(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """LLM text generation as an explicit state machine.

    Tokenize, Prefill, Sample, Decode, CheckStop and Detokenize, joined by guarded transitions: run them, watch them
    pass, check and draw the machine. Without --model, a small demo model that comes with the package answers.
    """
