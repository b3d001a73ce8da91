"""Refuses another package that goes by the name `statemachine`, before it makes a riddle of every import."""

import sys
from importlib.util import find_spec
from pathlib import Path


def refuse_namesake() -> None:
    """Say in one sentence that `import statemachine` finds another's package; looks, but imports nothing.

    Raises
    ------
    ImportError
        When it does. The command `phasewalk` prints the sentence and exits with status 1 instead.
    """
    spec = find_spec("statemachine")
    loader = spec.loader if spec else None
    source = getattr(loader, "get_source", lambda name: None)("statemachine") or ""
    if "statemachine.definition" in source:  # ours begins with its own rooms
        return
    found = f"the one found is another: {spec.origin or 'a folder without code'}" if spec else "there is none"
    message = (
        f"phasewalk needs its own package 'statemachine', but {found} (python-statemachine uses the same name); "
        f"install phasewalk in an environment without it"
    )
    if Path(sys.argv[0]).stem == "phasewalk":  # the command's script is importing us: nobody could catch the error
        sys.exit(f"phasewalk: {message}")
    raise ImportError(message, name="statemachine")
