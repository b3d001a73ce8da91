"""Moves of a session: paused from outside, in any order, and without a trace in the tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from debugger_lines import PARAMS, PROMPT
from gate import PATIENCE, Gate
from hypothesis import given, settings
from hypothesis import strategies as st

from phases import Generator
from phases.debugger.commands import execute
from phases.debugger.generation import GenerationSession
from phases.debugger.generation_view import view_of


def test_pause_from_another_thread(
    session: GenerationSession, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(generator, monkeypatch)
    with ThreadPoolExecutor() as pool:
        driven = pool.submit(session.run_on)
        gate.wait()
        assert (session.progress(), session.tokens) == (("decode", 3), 0)
        session.pause()
        gate.open(100)
        assert driven.result(PATIENCE) == "paused"
    assert (session.run.phase.name, session.run.step_count) == ("check_stop", 4)
    assert session.run_on() == "done"


MOVES = st.sampled_from(
    ["step", "step 4", "next", "next 2", "run", "back", "back 3", "goto 0", "goto 7", "goto 12", "candidates",
     "buffers", "fork", "switch", "close", "timeline", "text", "guards", "machine", "break phase decode",
     "break if top1 < 0.9", "delete 1", "where", "context", "context request", "compare", "signals", "events",
     'break if text contains "e"']
)  # fmt: skip


@given(st.lists(MOVES, max_size=12))
@settings(max_examples=40, deadline=None)
def test_looking_and_walking_change_no_token(generator: Generator, lines: list[str]) -> None:
    expected = generator.generate(PROMPT, PARAMS).output_ids[0]
    session = GenerationSession.live(generator, generator.start(PROMPT, PARAMS, keep=True))
    try:
        for line in lines:
            execute(session, line)
            view_of(session)
        session.breakpoints.clear()
        for branch in session.branches:
            session.branches.switch(branch.number)
            if not session.run.status.ended:
                session.run_on()
            assert session.run.context.output_ids[0] == expected
    finally:
        session.close()
    assert generator.engine.kv_cache.free == 4
