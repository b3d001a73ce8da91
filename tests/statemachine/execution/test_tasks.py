"""Runs in tasks of asyncio: driven beside others, in threads of their own, and paused when their task is cancelled."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import pytest
from approval import Answer
from approval import waiting as waiting_run

from statemachine import End, Machine, Phase, PhaseError, Run, Status, Transition, guard


@dataclass
class Clock:
    limit: int
    ticks: int = 0
    threads: set[int] = field(default_factory=set)


class Tick(Phase[Clock, int]):
    def run(self, context: Clock) -> int:
        if context.limit < 0:
            raise ZeroDivisionError("the limit")
        time.sleep(0.001)
        return threading.get_ident()

    def apply(self, context: Clock, outcome: int) -> None:
        context.ticks += 1
        context.threads.add(outcome)


@guard
def over(context: Clock) -> bool:
    return context.ticks >= context.limit


tick, end = Tick(), End[Clock]("end")
machine = Machine("clock", start=tick, transitions=[Transition(tick, tick, ~over), Transition(tick, end, over)])


def test_runs_are_driven_beside_one_another_off_the_loops_thread() -> None:
    runs = [Run(machine, Clock(5)) for _ in range(40)]  # more than asyncio's own threads

    async def drive() -> list[Status]:
        return await asyncio.gather(*(run.astart() for run in runs))

    assert asyncio.run(drive()) == [Status.DONE] * 40
    assert all(run.context.threads.isdisjoint({threading.get_ident()}) for run in runs)


def test_cancelling_the_task_pauses_the_run_and_it_can_be_resumed() -> None:
    run = Run(machine, Clock(10**9))

    async def drive() -> None:
        task = asyncio.create_task(run.astart())
        while run.context.ticks < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.status is Status.PAUSED  # when the task has ended, so has the drive
        run.context.limit = run.context.ticks + 2
        assert await run.aresume() is Status.DONE

    asyncio.run(drive())


@pytest.mark.parametrize("times", [1, 3])
def test_a_task_that_is_cancelled_before_its_thread_began_pauses_the_run_too(times: int) -> None:
    run = Run(machine, Clock(10**9))
    run.step()

    async def drive() -> None:
        task = asyncio.create_task(run.aresume())
        await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.status is Status.PAUSED

    asyncio.run(asyncio.wait_for(drive(), 30))


def test_an_asynchronous_loop_gives_each_step_and_may_be_left() -> None:
    run = Run(machine, Clock(6))

    async def drive() -> list[int]:
        numbers = []
        async for step in run:
            numbers.append(step.number)
            if step.number == 2:
                break
        assert run.status is Status.PAUSED
        return numbers + [step.number async for step in run]

    assert asyncio.run(drive()) == [0, 1, 2, 3, 4, 5]
    assert run.status is Status.DONE


def test_what_a_phase_raises_comes_out_of_the_task() -> None:
    async def drive() -> None:
        with pytest.raises(PhaseError, match="the limit"):
            await Run(machine, Clock(-1)).astart()

    asyncio.run(drive())


def test_a_run_that_waits_gives_its_task_back() -> None:
    run = waiting_run()

    async def approve() -> Status:
        await asyncio.sleep(0.01)
        run.answer(Answer(yes=True))
        return await run.aresume()

    assert asyncio.run(approve()) is Status.DONE
