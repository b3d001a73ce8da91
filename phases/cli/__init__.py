"""The command `phasewalk`: one subcommand a file, each a thin layer over what an application would call."""

from phases.cli.process import as_process

__all__ = ["main"]


def main() -> None:
    """Run the command line; never shows a traceback for what the user can mend."""

    def command() -> None:
        from phases.cli.app import app

        app()

    as_process(command)
