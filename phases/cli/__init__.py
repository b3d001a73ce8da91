"""The command `phasewalk`: one subcommand a file, each a thin layer over what an application would call."""

from phases.cli.app import main

__all__ = ["main"]
