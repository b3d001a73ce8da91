"""A table is proved sound or refused with all findings; two interpreters walk it alike."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine import (
    End,
    Guard,
    GuardError,
    InvalidMachine,
    Machine,
    Phase,
    PhaseError,
    Run,
    Signal,
    Status,
    Transition,
    guard,
)
from statemachine.definition.table import name_of
from statemachine.definition.variable import in_words
from statemachine.testing import Counter, Plan, plans
from statemachine.testing.machines import variable

STEPS = 60


def walk(machine: Machine[Counter], salt: int, interpreter: str) -> tuple[list, Counter, Status]:
    run = Run(machine, Counter(salt), interpreter=interpreter)
    for _ in range(STEPS):
        if run.status.ended:
            break
        run.step()
    return list(run.steps()), run.context, run.status


def signalled(machine: Machine[Counter], salt: int, interpreter: str) -> tuple[object, ...]:
    """A run that is sent a signal after each step, wherever it can be taken."""
    run, possible = Run(machine, Counter(salt), interpreter=interpreter), []
    for number in range(STEPS):
        if run.status.ended:
            break
        run.step()
        possible.append(run.possible)
        if "jump" in run.possible.signals:
            run.signal("jump")
        elif number % 3 == 0 and "count" in run.possible.signals:
            run.signal("count", number)
    return possible, list(run.steps()), run.events, run.context, run.status


@given(plans(), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_sound_machine_never_gets_stuck_and_both_interpreters_agree(plan: Plan, salt: int) -> None:
    machine = plan.build()
    compiled = walk(machine, salt, "compiled")
    library = walk(machine, salt, "transitions")
    assert compiled == library
    assert signalled(machine, salt, "compiled") == signalled(machine, salt, "transitions")
    steps, context, status = compiled
    assert status is (Status.DONE if steps and steps[-1].target == "end" else Status.PAUSED)
    assert context.visits == [step.phase for step in steps if step.outcome is not None or step.raised]
    assert [step.phase for step in steps[1:]] == [step.target for step in steps[: len(steps) - 1]]


@given(plans(sabotage=True))
@settings(max_examples=200, deadline=None)
def test_a_sabotaged_table_is_refused_and_the_finding_names_phase_and_row(plan: Plan) -> None:
    with pytest.raises(InvalidMachine) as refused:
        plan.build()
    findings = {(finding.kind, finding.phase): finding for finding in refused.value.findings}
    for kind, phases in (("stuck", plan.dropped), ("ambiguous", plan.doubled)):
        for number in phases:
            last = (variable(n) for n in plan.guards[number])  # the last row: every guard true
            values = in_words({each.name: each.values[-1] for each in last})
            finding = findings[kind, f"p{number}"]
            assert values in finding.message
            assert finding.remedy


@given(plans())
@settings(max_examples=50, deadline=None)
def test_the_transitions_machine_holds_the_same_table(plan: Plan) -> None:
    machine = plan.build()
    held, signals = machine.transitions_machine, {signal.name for signal in machine.signals}
    library = [way for event in held.events if event not in signals for way in held.get_transitions(event)]
    expected = {(t.source.name, t.target.name, t.condition, t.classes) for t in machine.transitions}
    found = {(t.source, t.dest, "" if t.guard is None else t.guard.name, (t.kind,) if t.kind else ()) for t in library}
    assert found == expected
    assert len(library) == len(machine.transitions)


@guard
def yes(context: object) -> bool:
    return True


@guard
def no(context: object) -> bool:
    return False


def kinds(*transitions: Transition, start: Phase, signals: tuple[Signal, ...] = ()) -> set[tuple[str, str]]:
    with pytest.raises(InvalidMachine) as refused:
        Machine("wrong", start=start, transitions=transitions, signals=signals)
    assert str(refused.value).count("\n") == len(refused.value.findings)
    return {(finding.kind, finding.phase) for finding in refused.value.findings}


def test_all_findings_come_together() -> None:
    a, b, lonely, trap, end = Phase("a"), Phase("b"), Phase("lonely"), Phase("trap"), End("end")
    found = kinds(
        Transition(a, b, yes),
        Transition(b, end),
        Transition(b, trap, yes),
        Transition(trap, trap),
        Transition(lonely, end),
        Transition(b, "nowhere", yes & ~yes),
        Transition(end, a),
        start=a,
        signals=(Signal("halt", to=end), Signal("halt", to=end)),
    )
    assert found == {
        ("stuck", "a"),
        ("ambiguous", "b"),
        ("no end", "trap"),
        ("unreachable", "lonely"),
        ("dangling", "nowhere"),
        ("never", "b"),
        ("final", "end"),
        ("ambiguous", "halt"),
    }


def test_duplicate_names_of_phases_and_guards() -> None:
    a, end = Phase("a"), End("end")
    other_yes = Guard("yes", lambda context: False)
    assert ("duplicate name", "a") in kinds(Transition(a, Phase("a")), Transition("a", end), start=a)
    assert ("duplicate name", "a") in kinds(Transition(a, end, yes), Transition(a, end, other_yes), start=a)


def test_a_phase_without_transitions_is_stuck() -> None:
    a, b, end = Phase("a"), Phase("b"), End("end")
    assert kinds(Transition(a, b, yes), Transition(a, end, ~yes), start=a) == {("stuck", "b"), ("no end", "b")}


def test_too_many_cases() -> None:
    many = [Guard(f"g{n}", lambda context: True) for n in range(11)]
    a, end = Phase("a"), End("end")
    every = many[0]
    for other in many[1:]:
        every = every & other
    found = kinds(Transition(a, end, every), Transition(a, a, ~every), start=a)
    assert found == {("too many cases", "a")}


def test_a_phase_with_library_callbacks_is_refused() -> None:
    class Hooked(Phase[object, None]):
        def enter(self, event_data: object) -> None:
            raise AssertionError

    hooked, end = Hooked(), End("end")
    assert kinds(Transition(hooked, end), start=hooked) == {("hook", "hooked")}


def test_a_machine_is_frozen() -> None:
    a, end = Phase("a"), End("end")
    machine = Machine("small", start=a, transitions=[Transition(a, end)])
    with pytest.raises(AttributeError):
        machine.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError, match="frozen"):
        machine.transitions_machine.add_transition("advance", "a", "a")
    assert machine.fingerprint == Machine("small", start=a, transitions=[Transition(a, end)]).fingerprint
    assert machine.fingerprint != Machine("small", start=a, transitions=[Transition(a, end, yes | ~yes)]).fingerprint


def test_insert_splices_a_phase_in_and_checks_again() -> None:
    a, b, end = Phase("a"), Phase("b"), End("end")
    machine = Machine(
        "loop", start=a, transitions=[Transition(a, b, yes), Transition(a, end, ~yes), Transition(b, end)]
    )
    between = Phase("between")
    longer = machine.insert(between, between=(a, "b"))
    run = Run(longer, object())
    run.start()
    assert [step.phase for step in run.steps()] == ["a", "between", "b"]
    assert "between" not in machine.phases
    assert next(step.guards for step in run.steps()) == {"yes": True}
    with pytest.raises(ValueError, match=r"no transition leads from 'b' to 'a'.*a -> b when yes"):
        machine.insert(between, between=(b, a))
    with pytest.raises(InvalidMachine, match="duplicate name"):
        machine.insert(Phase("b"), between=(a, b))


def test_insert_before_a_phase_splices_into_every_way_into_it() -> None:
    a, b, end = Phase("a"), Phase("b"), End("end")
    table = [Transition(a, b), Transition(b, b, yes), Transition(b, end, ~yes)]
    signals = [Signal("again", to=b), Signal("leave", to=end)]
    machine = Machine("loop", start=b, transitions=table[1:], signals=signals)
    first = Phase("first")
    longer = machine.insert(first, before=b)
    assert longer.start is first
    assert [*map(str, longer.transitions)] == ["b -> first when yes", "b -> end when ~yes", "first -> b"]
    assert [name_of(signal.to) for signal in longer.signals] == ["first", "end"]
    # With another start; and a phase before a phase that was inserted; and one that is there already.
    longer = Machine("loop", start=a, transitions=table, signals=signals).insert(first, before="b")
    assert longer.start is a
    assert [*map(str, longer.transitions)] == ["a -> first", "b -> first when yes", "b -> end when ~yes", "first -> b"]
    assert [*map(str, longer.insert(Phase("zeroth"), before=first).transitions)] == [
        "a -> zeroth", "b -> zeroth when yes", "b -> end when ~yes", "first -> b", "zeroth -> first",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no transition leads to 'b' in 'loop'; there are: "):
        longer.insert(first, before="b")
    with pytest.raises(ValueError, match="no transition leads to 'c'"):
        machine.insert(first, before="c")
    for where in ({}, {"between": (a, b), "before": b}):
        with pytest.raises(TypeError, match="say where"):
            machine.insert(first, **where)  # type: ignore[arg-type]


def test_a_signal_that_leaves_a_run_where_it_is_leads_into_no_phase() -> None:
    a, b, end = Phase("a"), Phase("b"), End("end")
    signals = [Signal("stay", to=b, sources=(b,)), Signal("back", to=b, sources=(a, b))]
    machine = Machine("short", start=a, transitions=[Transition(a, b), Transition(b, end)], signals=signals)
    longer = machine.insert(Phase("first"), before=b)
    assert [name_of(signal.to) for signal in longer.signals] == ["b", "first"]


def test_one_phase_may_be_inserted_at_several_places() -> None:
    a, b, end = Phase("a"), Phase("b"), End("end")
    table = [Transition(a, b), Transition(b, b, yes), Transition(b, end, ~yes)]
    first = Phase("first")
    longer = Machine("loop", start=a, transitions=table).insert(first, between=(a, b)).insert(first, between=(b, b))
    assert [*map(str, longer.transitions)] == ["a -> first", "b -> first when yes", "b -> end when ~yes", "first -> b"]


@given(plans(), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_what_is_inserted_before_a_phase_runs_whenever_that_runs(plan: Plan, salt: int) -> None:
    machine = plan.build()
    target = machine.start.name
    plain = [step.phase for step in walk(machine, salt, "compiled")[0]]
    for interpreter in ("compiled", "transitions"):
        phases = [step.phase for step in walk(machine.insert(Phase("first"), before=target), salt, interpreter)[0]]
        assert all(phases[n - 1] == "first" for n, name in enumerate(phases) if name == target)
        rest = [name for name in phases if name != "first"]
        assert rest == plain[: len(rest)]


@given(st.integers(0, 7))
def test_guards_compose_as_boolean_algebra(bits: int) -> None:
    a, b, c = (Guard(name, lambda context, bit=bit: bool(context >> bit & 1)) for bit, name in enumerate("abc"))
    values = {"a": bool(bits & 1), "b": bool(bits & 2), "c": bool(bits & 4)}
    composed = a & (b | ~c) | ~(a | b)
    expected = (values["a"] and (values["b"] or not values["c"])) or not (values["a"] or values["b"])
    assert composed(bits) is expected
    assert composed.holds(values) is expected
    assert composed.name == "a & (b | ~c) | ~(a | b)"
    assert composed.atoms == (a, b, c)


@pytest.mark.parametrize("interpreter", ["compiled", "transitions"])
@pytest.mark.parametrize("value", [5, "yes", None, [1], 1])
def test_a_guard_that_returns_no_bool_fails_the_run_in_both_interpreters(interpreter: str, value: object) -> None:
    odd = Guard("odd", lambda context: value)
    for when in (odd, odd & yes):
        a, end = Phase("a"), End("end")
        machine = Machine("odd", start=a, transitions=[Transition(a, end, when), Transition(a, a, ~when)])
        run = Run(machine, object(), interpreter=interpreter)
        with pytest.raises(PhaseError, match="guard 'odd' must return True or False") as failure:
            run.start()
        assert isinstance(failure.value.__cause__, GuardError)
        assert run.status is Status.FAILED


def test_importing_it_brings_no_model_library() -> None:
    code = (
        "import statemachine, sys; print([m for m in ('transformers', 'torch', 'cuda', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
