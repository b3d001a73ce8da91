"""The debugger shows choices and what was raised, and stops at the values of a choice."""

import charging
import pytest
from dispatch import ready

from phases.debugger import machine_commands, seeing_commands
from phases.debugger.errors import DebuggerError
from phases.debugger.session import Session


def test_a_choice_is_shown_and_stopped_at() -> None:
    session = Session(ready(keep=True))
    assert seeing_commands.guards(session, "") == ["route: reply", "paid: False"]
    machine_commands.break_(session, "guard route = search")
    session.run_on()
    assert (session.run.step_count, session.run.phase.name) == (3, "search")
    assert seeing_commands.guards(session, "")[-1] == "last step: plan -> search  route = search & ~paid"
    session.run_on()
    assert session.run.step_count == 7
    expected = (
        r"expected a guard, not 'route'; guards: paid, route = reply, route = search, route = stop, route = tools"
    )
    with pytest.raises(DebuggerError, match=expected):
        session.break_at("guard", "route")


def test_what_was_raised_is_shown() -> None:
    session = Session(charging.ready("GatewayDown", ""))
    session.run_on()
    assert seeing_commands.timeline(session, "")[0].startswith(
        "     0 charge -> back_off  tries_left  GatewayDown: attempt 0  "
    )
    assert any("on GatewayDown when tries_left" in line for line in seeing_commands.machine(session, ""))
