"""phasewalk cache: what was made once and is kept, so that nobody waits for it again; and how to be rid of it."""

from enum import StrEnum
from typing import Annotated

import typer

from phases.cli.screen import shown, stdout


class Kind(StrEnum):
    """The folders of the cache."""

    EXPORTS = "exports"
    KERNELS = "kernels"
    PLANS = "plans"
    TIMINGS = "timings"


def cache(
    kinds: Annotated[list[Kind] | None, typer.Argument(metavar="KIND", help="Only these; all if none.")] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Take them away; each is made again when it is needed.")
    ] = False,
) -> None:
    """Show what is kept in the cache folder, or clear it.

    phasewalk cache

    phasewalk cache exports --clear

    Nothing in there is the only copy of anything. XDG_CACHE_HOME moves the
    folder (LOCALAPPDATA on Windows). What a process has open stays with it.
    """
    from rich.table import Table

    from gpu import user_cache
    from gpu.memory import size

    table = Table("kind", "", "entries", "size", box=None)
    for kind in kinds or list(Kind):
        found = user_cache.clear(kind) if clear else user_cache.kept(kind)
        words = "cleared" if clear else user_cache.KINDS[kind]
        table.add_row(kind, words, str(found.entries), size(found.size))
    stdout().print(shown(str(user_cache.user_cache(""))), soft_wrap=True)
    stdout().print(table)
