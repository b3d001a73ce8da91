"""Random machines."""

from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from rule_checks import BRIEF, hold

from statemachine import Machine, Run
from statemachine.testing import Counter, machine_rules, machines


@given(machines())
@settings(BRIEF, max_examples=10, suppress_health_check=[HealthCheck.nested_given])
def test_random_machines_pass(machine: Machine[Counter]) -> None:
    hold(machine_rules(machine, st.builds(Counter, st.integers(0, 2**32))), settings(BRIEF, max_examples=5))


def test_find_gives_a_run_by_an_error_way_and_a_choice() -> None:
    def shows_both(machine: Machine[Counter]) -> bool:
        run = Run(machine, Counter(1))
        run.until(lambda run: run.step_count == 20)
        steps = list(run.steps())
        return any(step.raised for step in steps) and any("low" in step.guards.values() for step in steps)

    machine = find(machines(), shows_both, settings=settings(max_examples=2000, database=None))
    assert any(way.classes for way in machine.transitions)


def test_find_gives_a_machine_with_a_loop() -> None:
    machine = find(machines(), lambda machine: any(way.source is way.target for way in machine.transitions))
    assert machine.start.name == "p0"
