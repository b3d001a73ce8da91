"""What the debugger's line mode answers."""

import io
from typing import Any

from phases import SamplingParams
from phases.debugger.plain import converse
from phases.debugger.session import Session

PARAMS = SamplingParams(temperature=1.1, top_k=20, top_p=0.9, min_p=0.02, seed=5, max_new_tokens=8, stop_token_ids=())
PROMPT = "the quick fox"


def said(session: Session[Any], *lines: str) -> list[str]:
    """What the line mode answers to these lines, without its greeting."""
    answer = io.StringIO()
    converse(session, io.StringIO("".join(f"{line}\n" for line in lines)), answer)
    return answer.getvalue().splitlines()[1:]
