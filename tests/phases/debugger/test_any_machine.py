"""Machines that have nothing to do with generations, in the line mode."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import approval
import charging
import crossroads
import desk
import odd_context
import pytest
from debugger_lines import said
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.debugger.commands import execute
from phases.debugger.machine_session import live, recorded
from phases.debugger.session import Session
from phases.debugger.view import view_of
from statemachine import End, Journal, Machine, Phase, Run, Signal, Status, Transition, Wait, verify


@pytest.fixture
def lights() -> Session[crossroads.Crossing]:
    return live(crossroads.machine, crossroads.new_context)


@pytest.fixture
def waits() -> Session[approval.Order]:
    return live(approval.machine, lambda: approval.Order(100))


def test_a_transcript(lights: Session[Any]) -> None:
    answer = said(lights, "step", "context", "step 2", "where", "goto 1", "machine", "run", "back 2", "guards")
    assert answer == [
        "    0 red -> green  3",
        "  seed     7",
        "* waiting  0 -> 3",
        "  passed   []",
        "    1 green -> red  ~jam & ~over  3",
        "    2 red -> green  0",
        "run 1  paused  at green  step 3 of 3",
        "run 1  paused  at green  step 1 of 3",
        "  red   ─1▶ green",
        "▶ green ┬─▶ green  jam & ~over",
        "        ├─▶ red  ~jam & ~over",
        "        ╰─▶ done  over",
        "  done",
        "  night",
        "at green",
        "stopped: done",
        "run 1  done  at done  step 10 of 10",
        "run 1  paused  at red  step 8 of 10",
        "red has no guards",
        "last step: green -> red  ~jam & ~over",
    ]


def test_conditions_speak_of_the_fields(lights: Session[Any]) -> None:
    assert said(lights, "break if waiting > 2", "run")[-1] == "run 1  paused  at green  step 1 of 1"
    answer = said(
        lights, "delete 1", "break if len(passed) == 2 and passed[0] == 3 and not seed != 7", "run", "context"
    )
    assert answer[-4] == "run 1  paused  at red  step 4 of 4"
    assert answer[-1] == "* passed   [3] -> [3, 0]"
    assert said(lights, "delete 2", "break if passed contains 2", "run")[-1].endswith("at red  step 6 of 6")
    for condition, complaint in (
        ("wating > 2", "there is no 'wating'; names: step, phase, seed, waiting, passed"),
        ("waiting.real > 2 @ 3", "not @ as in"),
        ("len(passed", "expected a condition such as seed > 2 or waiting > 2"),
        ("waiting() > 2", "expected a name, a number or a string in quotes, not 'waiting()'"),
        ("__import__('os') == 1", "expected a name"),
        ("waiting", "expected a comparison such as seed > 2"),
    ):
        assert (
            said(lights, f"break if {condition}")[0].startswith(f"error: {complaint}")
            or complaint in said(lights, f"break if {condition}")[0]
        )


def test_a_comparison_that_makes_no_sense_does_not_hold(lights: Session[Any]) -> None:
    said(lights, 'break if waiting == "3"', "break if passed > 2", "break if seed contains 7", "run")
    assert lights.run.status is Status.DONE


def test_signals_and_edits(lights: Session[Any]) -> None:
    assert said(lights, "signals") == ["* signal  off     any phase -> night", "* edit    arrive"]
    answer = said(lights, "step", 'edit arrive {"cars": 4}', "context", "events", "signal off", "signals", "timeline")
    assert answer[1:4] == ["edited arrive: 4", "run 1  paused  at green  step 1 of 1", "  seed     7"]
    assert answer[4] == "* waiting  3 -> 7"  # by the edit, which came after the step
    assert answer[6:9] == ["    1 edit arrive: 4", "sent off", "run 1  cancelled  at night  step 1 of 1"]
    assert answer[9] == "  signal  off     any phase -> night"
    assert answer[-3:] == ["      edit arrive: 4", "      signal off", ">    1 night"]


MISTAKES = [
    ("signal", "expected signal NAME"), ("signal on", "machine 'crossing' has no signal 'on'; there are: 'off'"),
    ("signal off {", "expected signal NAME JSON, but '{' is no JSON"), ("edit", "expected edit NAME"),
    ("edit depart", "has no edit 'depart'; there are: 'arrive'"), ("edit arrive 3", "the arguments by name, not 3"),
    ('edit arrive {"cars": 0}', "expected at least one car, not 0"), ("edit arrive {NaN}", "is no JSON"),
    ('edit arrive {"cars": NaN}', "NaN is no JSON"), ("edit arrive", "edit arrive failed: TypeError"),
    ('edit arrive {"carts": 1}', "edit arrive failed: TypeError"), ("answer", "expected answer JSON"),
    ("answer true", "cannot answer run"), ("late", "cannot time out run"), ("error", "nothing has failed"),
    ("context colour", "expected a field of the context, not 'colour'; fields: seed, waiting, passed"),
    ("compare", "expected the number of another run, compare N; others: none: fork makes one"),
    ("compare 1", "others: none"), ("force 3", "expected a command, not 'force'"), ("load nowhere", "cannot be read"),
    ("run 3", "expected run alone"), ("edit arrive " + "[" * 100_000, "is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(lights: Session[Any], line: str, message: str) -> None:
    answer = said(lights, line, "where")
    assert len(answer) == 2
    assert answer[0].startswith("error: ")
    assert message in answer[0]
    assert answer[1] == "run 1  ready  at red  step 0 of 0"


def test_a_run_that_waits_is_answered(waits: Session[Any]) -> None:
    stands = "run 1  waiting  at approve, until 1970-01-02 00:16:40 UTC  step 1 of 1"
    answer = said(waits, "run", "step", "signals", 'answer {"no": 1}', "answer", 'answer {"yes": true, "by": "me"}')
    assert answer[:3] == [
        "stopped: waits at approve for its answer",
        stands,
        "error: the run waits at approve for its answer, as in answer true",
    ]
    assert answer[3].startswith("* answer  approve   takes approval.Answer | None")
    assert answer[4] == "* signal  withdraw  price, approve -> refused"
    assert "is no answer to 'approve'" in answer[5]
    assert answer[6].startswith("error: expected answer JSON, as in answer true")
    assert answer[7:] == [
        "    1 approve -> ship  answered & approved  Answer(yes=True, by='me')",
        "run 1  paused  at ship  step 2 of 2",
    ]
    assert said(waits, "back", "late")[-1] == "run 1  cancelled  at refused  step 2 of 2"
    refused = said(waits, "goto 1", 'answer {"yes": true, "by": "the thief"}', "where")
    assert refused[1].startswith("error: the thief approves nothing") or "PermissionError" in refused[1]
    assert refused[2].startswith("run 1  waiting")


def test_a_snapshot_is_saved_and_loaded(lights: Session[Any], tmp_path: Path) -> None:
    answer = said(lights, "step 3", f"save {tmp_path / 'a.snap'}", "run", f"load {tmp_path / 'a.snap'}", "run", "runs")
    assert "run 2  paused  at green  step 3 of 3" in answer
    assert answer[-2:] == [
        "  run 1  done  step 10 of 10", "* run 2  done  step 10 of 10  loaded from a.snap",
    ]  # fmt: skip
    contexts = [branch.run.context for branch in lights.branches]
    assert contexts[0] == contexts[1]


def test_a_snapshot_of_a_run_that_began_otherwise_is_loaded(lights: Session[Any], tmp_path: Path) -> None:
    other = live(crossroads.machine, lambda: crossroads.Crossing(seed=8))
    said(other, "step 3", f"save {tmp_path / 'b.snap'}")
    said(lights, f"load {tmp_path / 'b.snap'}")
    assert lights.run.context == other.run.context
    assert lights.run.context.seed == 8


def test_a_snapshot_of_another_machine_is_refused(lights: Session[Any], waits: Session[Any], tmp_path: Path) -> None:
    said(waits, "run", f"save {tmp_path / 'c.snap'}")
    answer = said(lights, f"load {tmp_path / 'c.snap'}", "runs")
    assert answer[0].startswith("error: ")
    assert answer[1:] == ["* run 1  ready  step 0 of 0"]


def test_what_is_recorded_is_walked(tmp_path: Path) -> None:
    path = tmp_path / "lights.jsonl"
    lights = live(crossroads.machine, lambda: crossroads.Crossing(seed=9), path)
    said(lights, "step 3", 'edit arrive {"cars": 2}', "step 2", "back 1", "run")
    assert verify(Journal.open(path), Run(crossroads.machine, crossroads.Crossing(seed=9))).verified
    record = recorded(path, crossroads.machine, crossroads.new_context)  # which has another seed: the record's is taken
    assert said(record, "where") == [f"run 1  recorded  at red  step 0 of {lights.run.recorded_steps}"]
    for line in ("step 4", "step", "break if waiting == 0", "run", "run", "back 2", "goto 3"):
        said(record, line)
        lights.goto(record.run.step_count)
        assert record.run.context == lights.run.context
        for look in ("context", "guards", "machine", "events", "timeline 50"):
            assert said(record, look) == said(lights, look)
    said(record, "goto 3", "delete 1", "step 2")
    assert record.run.step_count == 5
    other = tmp_path / "x"
    for line in ("signal off", 'edit arrive {"cars": 2}', "answer 1", "late", "fork", f"save {other}", "load x"):
        assert said(record, line)[0].startswith("error: a record is only walked, so one cannot ")
    assert said(record, "run")[-2] == "stopped: the end of the record (done)"
    lights.close()


def test_the_record_of_another_context_says_so(tmp_path: Path, lights: Session[Any]) -> None:
    path = tmp_path / "order.jsonl"
    order = live(approval.machine, lambda: approval.Order(5), path)
    said(order, "run")
    order.close()
    record = recorded(path, crossroads.machine, crossroads.new_context)
    assert "cannot be played on" in view_of(record).notice


class Fails(Phase[dict[str, Any], int]):
    broken = True  # what is outside

    def run(self, context: dict[str, Any]) -> int:
        if self.broken:
            raise ConnectionError("the gateway\nis down: " + "long " * 300)
        return 1

    def apply(self, context: dict[str, Any], outcome: int) -> None:
        context["left"] = context["left"] - outcome


def test_a_failure_is_told_whole_and_tried_again() -> None:
    fails = Fails()
    machine = Machine("fails", fails, [Transition(fails, End("done"))])
    session = live(machine, lambda: {"left": 3})
    assert said(session, "run")[0].startswith("stopped: failed in fails: ConnectionError: the gateway is down: long")
    whole = said(session, "error")
    assert whole[0] == "phase 'fails' failed at step 0"
    assert any('raise ConnectionError("the gateway' in line for line in whole)
    assert whole[-2:] == ["ConnectionError: the gateway", "is down: " + "long " * 300]
    assert view_of(session).failed
    assert said(session, "step")[-1].startswith("stopped: failed in fails")
    fails.broken = False  # the gateway is up again
    assert said(session, "step", "context") == ["    0 fails -> done  1", "stopped: done", "* left  3 -> 2"]
    assert not view_of(session).failed


def test_odd_contexts_are_shown() -> None:
    session = live(odd_context.machine, odd_context.Odd)
    said(session, "step")
    shown = {line[2:].split()[0]: line for line in said(session, "context")}
    changed = {name for name, line in shown.items() if line.startswith("*")}
    assert changed == {"pixels", "plain", "steps"}
    assert shown["secretive"].endswith("<Secretive, whose repr raises RuntimeError>")
    assert "hunter2" not in "".join(said(session, "context", "context password", "context secretive"))
    assert "\x1b" not in "".join(said(session, "context", "context text"))
    assert said(session, "run")[-1].startswith("run 1  done")


@dataclass
class Uncopiable:
    lock: Any


class Broken:
    """A context that refuses to be looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError("keep out")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(
    "new_context",
    [lambda: Uncopiable(asyncio.Lock()), lambda: Uncopiable(n for n in ()), lambda: odd_context.deep(), Broken,
     lambda: 3, lambda: "text", lambda: [1, [2]], lambda: {1: 2}, lambda: {"step": 1, "len": 2, "a b": 3}, object],
)  # fmt: skip
def test_contexts_that_are_no_contexts_are_told_of(new_context: Callable[[], Any]) -> None:
    here = Phase[Any, None]("here")
    session = live(Machine("any", here, [Transition(here, End("done"))]), new_context)
    for line in ("context", "context x", "signals", "break if step == 3", "step", "context", "run", "back", "fork",
                 "compare", "guards", "timeline", "error", "help", "close"):  # fmt: skip
        execute(session, line)
        view_of(session)


def test_guards_deadlines_and_signals_that_raise_are_told_of() -> None:
    class Late(approval.Approve):
        def deadline(self, context: approval.Order) -> float:
            raise RuntimeError("no clock")

    class Never(approval.Approve):
        def deadline(self, context: approval.Order) -> float:
            return float("inf")

    for phase, words in ((Late("ask"), ", whose deadline raises RuntimeError"), (Never("ask"), ", until inf")):
        machine = Machine("late", phase, [Transition(phase, End("done"))])
        session = live(machine, lambda: approval.Order(1))
        said(session, "run")
        assert words in session.where()
        assert view_of(session).until == words


LINES = st.sampled_from(
    ["step", "step 3", "run", "back", "back 2", "goto 0", "goto 5", "fork", "switch", "close", "context", "signals",
     "events", "timeline", "guards", "machine", "break phase green", "break if waiting > 2", "delete 1", "compare",
     'edit arrive {"cars": 2}', "signal off", "runs", "error", "where"]
)  # fmt: skip


@given(st.lists(LINES, max_size=15))
@settings(max_examples=60, deadline=None)
def test_whatever_is_done_what_is_shown_is_true(lines: list[str]) -> None:
    session = live(crossroads.machine, crossroads.new_context)
    for line in lines:
        execute(session, line)
        view, run = view_of(session), session.run
        assert {field.name: field.value for field in view.fields} == {
            name: repr(value) for name, value in vars(run.context).items() if name != "passed" or len(value) <= 6
        } | ({} if len(run.context.passed) <= 6 else {"passed": view.fields[2].value})
        if run.step_count and not [event for event in run.events if event.number == run.step_count]:
            before = run.fork(run.step_count - 1)  # rests there before any event: those make no difference to a step
            for event in run.events:
                if event.number == run.step_count - 1 and event.kind == "edit":
                    before.edit_as_recorded(event.name, event.outcome, live=False)
            changed = {n for n, value in vars(run.context).items() if vars(before.context)[n] != value}
            assert {field.name for field in view.fields if field.before is not None} == changed
    session.close()


def test_machines_of_the_built_in_kind_can_be_seen_without_their_names() -> None:
    night = replace(crossroads.machine, name="x" * 300)
    session = live(night, crossroads.new_context)
    assert said(session, "step")[0].startswith("    0 red -> green")


def test_signals_carry_payloads_and_are_refused_in_words() -> None:
    session = live(desk.machine, desk.Text)
    said(session, "step 2")
    listed = said(session, "signals")
    assert any(line.startswith("  signal  approve") and "(Approval)" in line for line in listed)
    said(session, "run")
    assert any(line.startswith("* signal  approve") for line in said(session, "signals"))
    wrong = said(session, 'signal approve {"stars": "many"}', "where")
    assert wrong[0].startswith("error: ")
    assert wrong[1].startswith("run 1  waiting")
    sent = said(session, 'signal approve {"by": "me", "stars": 5}', "context", "events")
    assert sent[0] == "sent approve"
    assert any(line.startswith("* approvals") and "Approval(by='me', stars=5)" in line for line in sent)
    assert "signal approve: Approval(by='me', stars=5)" in sent[-1]


def test_what_was_raised_stands_beside_what_another_run_did() -> None:
    session = live(charging.machine, lambda: charging.Purchase(["GatewayDown", ""]))
    said(session, "step", "fork 0", "where")
    assert said(session, "switch 1", "timeline")[1].startswith("     0 charge -> back_off  tries_left  GatewayDown")
    beside = said(session, "compare")
    assert beside[0] == "run 1 and run 2 differ first at step 0"
    assert "charge -> back_off  GatewayDown" in beside[2]
    assert beside[2].endswith("    0 charge  paused")


def test_a_run_that_waits_for_signals_says_so() -> None:
    idle: Wait[Any, Any] = Wait("idle")
    waiting = Machine("idle", idle, [], signals=[Signal("leave", to=End("done")), Signal("stay", to=idle)])
    session = live(waiting, lambda: crossroads.new_context())
    told = said(session, "run", "run", "signal leave", "where")
    assert "stopped: waits at idle for a signal: leave, stay" in told
    assert "error: the run waits at idle for a signal: leave, stay" in told
    assert told[-1].startswith("run 1  done")


def test_names_with_spaces_stand_in_quotes() -> None:
    wait, off = Wait[crossroads.Crossing, None]("wait"), End("off")
    arrive = crossroads.machine.edit("arrive")
    spaced = Machine(
        "spaced", wait, [], [Signal("lights out", to=off), Signal("the 'boss' calls", to=wait), Signal("go", to=wait)],
        edits=[type(arrive)("more cars")],
    )  # fmt: skip
    session = live(spaced, crossroads.new_context)
    listed = said(session, "run", "signals")
    for name in ("'lights out'", "\"the 'boss' calls\"", "go", "'more cars'"):
        assert any(line[10:].startswith(f"{name} ") or line[10:] == name for line in listed), name
    answer = said(
        session, "signal go", "signal \"the 'boss' calls\"", "edit 'more cars' {\"cars\": 2}", "signal lights out",
        "signal 'lights out", "signal 'lights out'",
    )  # fmt: skip
    assert [line for line in answer if not line.startswith("run 1")] == [
        "sent go", "sent the 'boss' calls", "edited more cars: 2",
        "error: expected signal NAME JSON, but 'out' is no JSON: Expecting value: line 1 column 1 (char 0)",
        "error: expected signal NAME, or signal NAME JSON if it carries something, not \"'lights out\": its quotes do "
        "not match",
        "sent lights out",
    ]  # fmt: skip
    assert session.run.status is Status.DONE


def test_forks_are_recorded_beside_the_first_run(tmp_path: Path) -> None:
    session = live(crossroads.machine, crossroads.new_context, tmp_path / "run.jsonl")
    answer = said(session, "step 3", "fork", 'edit arrive {"cars": 4}', "run", "fork 2", "run", "runs")
    assert answer[-3] == "  run 1  paused  step 3 of 3"
    assert "fork of 1 at step 3, recorded in run-2.jsonl" in answer[-2]
    assert "fork of 2 at step 2, recorded in run-3.jsonl" in answer[-1]
    forks = {branch.number: branch.run for branch in session.branches}
    for number in (2, 3):
        again = Run(crossroads.machine, crossroads.new_context())
        assert verify(Journal.open(tmp_path / f"run-{number}.jsonl"), again).verified
        assert again.context == forks[number].context
    assert forks[2].context != forks[3].context
    (tmp_path / "run-4.jsonl").write_text("mine")
    assert "run-4.jsonl exists already" in said(session, "fork")[0]
    assert len(session.branches) == 3
    assert (tmp_path / "run-4.jsonl").read_text() == "mine"
    (tmp_path / "run-4.jsonl").unlink()
    assert said(session, "fork 99")[0].startswith("error: ")
    session.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-2.jsonl", "run-3.jsonl", "run.jsonl"]


def test_forks_of_a_run_that_is_not_recorded_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said(live(crossroads.machine, crossroads.new_context), "step", "fork", "run")
    assert not list(tmp_path.iterdir())
