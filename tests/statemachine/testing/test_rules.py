"""The rules pass sound machines, and catch each planted fault with a message that says what to mend."""

import copy
import itertools
import random
from typing import Any

import pytest
from bag import Bag, Sound, rules_of
from hypothesis import settings
from hypothesis import strategies as st
from rule_checks import BRIEF, caught, hold, hold_and_see
from statemachine_recorded import Walk
from statemachine_recorded import machine as walk

from statemachine import Edit, Phase, Resources, guard
from statemachine.testing import machine_rules

pytestmark = pytest.mark.slow


def test_sound_machines_pass() -> None:
    hold(rules_of())
    hold(rules_of(pinned=lambda context: [context.buffer.ctypes.data]))
    changes = {"bonus": st.fixed_dictionaries({"amount": st.integers(-1, 5)})}
    contexts = st.builds(Walk, seed=st.integers(0, 999), limit=st.integers(1, 6))
    rules = machine_rules(walk, contexts, edits=changes, may_raise=IndexError)  # when it skips the first draw
    hold_and_see(rules, options=settings(BRIEF, max_examples=200))


def test_an_impure_guard() -> None:
    calls = itertools.count()
    impure = guard(lambda context: next(calls) % 7 == 0)
    impure.name = "enough"
    assert "guard 'enough' gave " in (message := caught(rules_of(full=impure)))
    assert message.endswith("for the same context: a guard must be pure")


def test_a_guard_that_changes_the_context() -> None:
    @guard
    def enough(context: Bag) -> bool:
        context.seed += 1
        return context.count >= 8

    message = caught(rules_of(full=enough))
    assert message.startswith("guard 'enough' changes field 'seed' (")
    assert message.endswith("): a guard must be pure")


def test_a_guard_that_gives_no_bool() -> None:
    @guard
    def enough(context: Bag) -> Any:
        return context.count // 8

    assert "guard 'enough' must return True or False, but returned 0 (int)" in caught(rules_of(full=enough))


def test_a_guard_that_is_not_total() -> None:
    @guard
    def lucky(context: Bag) -> bool:
        return context.drawn[-3] % 3 == 0

    message = caught(rules_of(luck=lucky))
    assert message.startswith("guard 'lucky' raised IndexError: list index out of range; a guard must have a value")


def test_a_buffer_that_is_bound_again() -> None:
    class Rebinding(Sound):
        def run(self, context: Bag) -> int:
            if context.count == 3:
                context.buffer = context.buffer.copy()
            return super().run(context)

    message = caught(rules_of(Rebinding()))
    assert message.startswith("phase 'draw' moved buffer 'buffer' from 0x")
    assert message.endswith(": bind it once and write into it")


def test_a_draw_without_a_seed() -> None:
    class Unseeded(Sound):
        def run(self, context: Bag) -> int:
            return random.randrange(1000)

    message = caught(rules_of(Unseeded()))
    assert "phase 'draw' gives another outcome" in message
    assert "when it runs again on the same context" in message
    assert "key what is random by the context" in message


def test_a_field_that_apply_forgets() -> None:
    class Forgetful(Sound):
        def run(self, context: Bag) -> int:
            context.count += 1
            return super().run(context)

        def apply(self, context: Bag, outcome: int) -> None:
            context.drawn.append(outcome)

    message = caught(rules_of(Forgetful()))
    assert message == "phase 'draw' changes field 'count' (0, then 1) in run(): move that into apply()"


def test_an_apply_that_draws() -> None:
    class Drawing(Sound):
        def apply(self, context: Bag, outcome: int) -> None:
            super().apply(context, outcome)
            context.seed = random.randrange(10**6)

    message = caught(rules_of(Drawing()))
    assert message.startswith("phase 'draw' makes something else of field 'seed' (")
    assert message.endswith("it may use nothing else; what it needs belongs into the outcome")


def test_an_apply_that_uses_the_buffer() -> None:
    class Peeking(Sound):
        def apply(self, context: Bag, outcome: int) -> None:
            super().apply(context, outcome)
            context.seed = int(context.buffer.sum())

    assert "changes field 'seed'" in caught(rules_of(Peeking()))


class Listed(Phase[Bag, list[int]]):
    def __init__(self) -> None:
        super().__init__("draw")

    def run(self, context: Bag) -> list[int]:
        return [context.count]


def test_an_outcome_that_apply_changes() -> None:
    class Changing(Listed):
        def apply(self, context: Bag, outcome: list[int]) -> None:
            outcome.append(7)
            context.count += 1

    assert caught(rules_of(Changing())) == "phase 'draw' changes its outcome in apply() ([0], then [0, 7]): copy it"


def test_an_outcome_that_the_context_keeps_and_changes_later() -> None:
    class Keeping(Listed):
        def apply(self, context: Bag, outcome: list[int]) -> None:
            if context.drawn:
                context.drawn.append(7)
            else:
                context.drawn = outcome
            context.count += 1

    message = caught(rules_of(Keeping()))
    assert "the outcome of step 0, phase 'draw', was changed after it was recorded ([0], then [0, 7" in message
    assert "let apply() enter a copy of it" in message


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [((1, 2), "comes back from a journal as [1, 2]: declare its type"), (float("nan"), "comes back from a journal as"),
     (object(), "cannot be recorded")],
)  # fmt: skip
def test_an_outcome_that_no_journal_can_hold(outcome: Any, complaint: str) -> None:
    class Odd(Phase[Bag, Any]):
        def __init__(self) -> None:
            super().__init__("draw")

        def run(self, context: Bag) -> Any:
            return outcome

        def apply(self, context: Bag, outcome: Any) -> None:
            context.count += 1

    assert complaint in caught(rules_of(Odd()))


def test_an_edit_that_changes_the_context_before_it_is_applied() -> None:
    class Hasty(Edit[Bag, int]):
        def run(self, context: Bag, **arguments: Any) -> int:
            context.seed += 1
            return 1

        def apply(self, context: Bag, outcome: int) -> None: ...

    rules = rules_of(known=[Hasty("hasty")], edits={"hasty": st.just({})})
    assert "edit 'hasty' changes field 'seed'" in caught(rules)


def test_resources_that_a_fork_shares() -> None:
    class Summing(Sound):
        """Its outcome depends on the buffer, which neither `fork` nor `sync` keeps in step."""

        def run(self, context: Bag) -> int:
            context.buffer[0] += 1
            return int(context.buffer[0])

    assert "phase 'draw' gives another outcome" in caught(rules_of(Summing()))


def test_resources_that_keep_in_step_pass() -> None:
    class Summing(Sound):
        def run(self, context: Bag) -> int:
            context.buffer[0] += 1
            return int(context.buffer[0])

    class Held(Resources[Bag]):
        def sync(self, context: Bag) -> None:
            context.buffer[0] = context.count

        def fork(self, context: Bag) -> Bag:
            return Bag(seed=context.seed, buffer=context.buffer.copy())

        def save(self, context: Bag) -> dict[str, Any]:
            return {"buffer": context.buffer}

        def load(self, context: Bag, arrays: Any) -> None:
            context.buffer[:] = arrays["buffer"]

    hold(rules_of(Summing(), resources=Held()))


def test_a_phase_that_raises() -> None:
    class Raising(Sound):
        def run(self, context: Bag) -> int:
            if context.count == 5:
                raise OSError("no more")
            return super().run(context)

    with pytest.raises(Exception, match=r"failed in phase 'draw' at step .*OSError: no more"):
        hold(rules_of(Raising()))
    hold(rules_of(Raising(), may_raise=OSError))


def test_every_context_is_closed() -> None:
    made: list[Bag] = []
    closed: list[Bag] = []

    def make() -> Bag:
        made.append(Bag())
        return made[-1]

    machine = rules_of().given.machine
    hold(machine_rules(machine, make, close=closed.append), settings(BRIEF, max_examples=5))
    assert {id(context) for context in made} <= {id(context) for context in closed}


def test_what_a_failed_replay_holds_is_given_back_at_once() -> None:
    calls: list[int] = []
    held: set[int] = set()

    class Fickle(Sound):
        def run(self, context: Bag) -> int:
            calls.append(context.count)
            if len(calls) > 3:
                raise OSError("not any more")
            return super().run(context)

    class Few(Resources[Bag]):
        def fork(self, context: Bag) -> Bag:
            assert len(held) < 2, "more than a fork and a third context are held at a time"
            fork = copy.deepcopy(context)
            held.add(id(fork))
            return fork

        def release(self, context: Bag) -> None:
            held.discard(id(context))

    def begin() -> Bag:
        calls.clear()
        return Bag()

    machine = rules_of(Fickle()).given.machine
    hold(machine_rules(machine, begin, resources=Few(), may_raise=OSError))
    assert not held
