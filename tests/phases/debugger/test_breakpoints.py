"""Runs stop at breakpoints, and nowhere else."""

from debugger_lines import said

from phases import Generator
from phases.debugger.generation import GenerationSession


def test_breakpoints_stop_where_they_should(session: GenerationSession) -> None:
    answer = said(session, "break phase decode", "run", "run", "delete 1", "break guard all_finished", "run", "breaks")
    assert answer[0] == "breakpoint 1: phase decode"
    assert answer[1:3] == [
        "stopped: breakpoint 1 (phase decode)", "run 1  paused  at decode  step 3 of 3  tokens 0",
    ]  # fmt: skip
    assert "run 1  paused  at decode  step 6 of 6  tokens 1" in answer
    assert answer[-3] == "stopped: breakpoint 2 (guard all_finished)"
    assert answer[-2] == "run 1  paused  at detokenize  step 25 of 25  tokens 8"
    assert answer[-1] == "breakpoint 2: guard all_finished"


def test_a_condition_is_looked_at_once_a_token(session: GenerationSession) -> None:
    said(session, "break if length == 3", "run")
    assert (session.run.phase.name, session.run.step_count) == ("sample", 11)
    assert said(session, "run")[-2] == "stopped: done"
    said(session, "delete 1", "goto 0", 'break if phase == "check_stop" and length > 1', "run")
    assert (session.run.phase.name, len(session.run.context.output_ids[0])) == ("check_stop", 2)


def test_conditions_on_probabilities_and_text_hold_where_they_say(
    session: GenerationSession, generator: Generator
) -> None:
    tokens, sure = [], []
    while not session.run.status.ended:
        session.next_token()
        if session.run.phase.name == "sample":
            shown = session.distribution()
            assert shown.spread
            sure.append(shown.spread.top1)
        tokens.append(session.run.context.output_ids[0][-1])
    session.goto(0)
    least = min(sure)
    session.break_at("if", f"top1 < {least + 1e-9}")
    session.run_on()
    assert len(session.run.context.output_ids[0]) == sure.index(least) + 1
    session.goto(0)
    session.breakpoints.clear()
    session.break_at("if", f"token == {generator.tokenizer.decode([tokens[4]])!r} and token_id == {tokens[4]}")
    session.run_on()
    assert session.run.context.output_ids[0] == tokens[: tokens.index(tokens[4]) + 1]


def test_step_and_next_stop_at_breakpoints(session: GenerationSession) -> None:
    session.break_at("phase", "decode")
    assert session.step(10) == "breakpoint 1 (phase decode)"
    assert session.run.step_count == 3
    assert session.next_token(5) == "breakpoint 1 (phase decode)"
    assert session.run.step_count == 6


def test_a_condition_on_the_text_holds_at_the_token_that_makes_it_so(session: GenerationSession) -> None:
    said(session, "run")
    tokens, decode = session.run.context.output_ids[0], session.run.context.bound_tokenizer.decode
    texts = [decode(tokens[: count + 1]) for count in range(len(tokens))]
    wanted = next(character for character in texts[-1] if character.isascii() and character not in texts[2])
    made = next(count for count, text in enumerate(texts) if wanted in text)
    session.goto(0)
    assert said(session, f"break if text contains {wanted!r}", "run")[-1].endswith(f"tokens {made + 1}")
    assert said(session, "run")[-2] == "stopped: done"  # it still contains it
    session.goto(0)
    assert said(session, "delete 1", f"break if not text contains {wanted!r} and length > 0", "run")[-1].endswith(
        f"tokens {1 if made else len(tokens)}"
    )
    said(session, "delete 2", 'break if text contains "no such text"', "goto 0")
    assert said(session, "run")[-2] == "stopped: done"
