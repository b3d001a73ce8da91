"""The driver alone: one thread holds, every other is refused at once, and nothing leaves it held."""

import signal
import threading

import pytest

from statemachine import IllegalMove
from statemachine.execution.driver import Driver


def test_what_is_held_gives_its_result_and_lets_go() -> None:
    driver = Driver("it")
    assert driver.hold("add", lambda: 1 + 1) == 2
    assert not driver.held
    assert driver.hold("look", lambda: driver.held) is True


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_is_raised_it_lets_go(error: type[BaseException]) -> None:
    driver = Driver("it")

    def work() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(error):
            driver.hold("break", work)
        assert not driver.held
        assert driver.wait(0)


def test_a_second_hold_is_refused_at_once_from_within_and_from_another_thread() -> None:
    driver, inside, go_on = Driver("it"), threading.Event(), threading.Event()
    with pytest.raises(
        IllegalMove, match=r"cannot move it: it is being driven by another thread or from within itself"
    ):
        driver.hold("hold", lambda: driver.hold("move", lambda: None))
    thread = threading.Thread(target=lambda: driver.hold("hold", lambda: (inside.set(), go_on.wait(30))))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(IllegalMove, match="cannot move it"):
        driver.hold("move", lambda: None)
    assert driver.held
    assert not driver.wait(0.01)
    go_on.set()
    assert driver.wait(30)
    thread.join(30)
    driver.hold("move", lambda: None)


def test_of_many_threads_one_holds() -> None:
    driver, most, lock, held = Driver("it"), [0], threading.Lock(), [0]
    begin = threading.Barrier(4)

    def work() -> None:
        held[0] += 1  # not atomic: two at once would lose one
        with lock:
            most[0] += 1

    def attempt() -> None:
        begin.wait(30)
        for _ in range(2000):
            try:
                driver.hold("count", work)
            except IllegalMove:
                continue

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert held == most
    assert held[0] > 0


def test_what_is_read_while_somebody_moves_is_not_believed() -> None:
    driver = Driver("it")
    assert driver.undisturbed(lambda: 3) == 3
    assert driver.hold("move", lambda: driver.undisturbed(lambda: 3)) is None
    assert driver.undisturbed(lambda: driver.hold("move", lambda: 3)) is None

    def torn() -> int:
        driver.hold("move", lambda: None)
        raise ValueError("half changed")

    def wrong() -> int:
        raise ValueError("wrong")

    assert driver.undisturbed(torn) is None
    with pytest.raises(ValueError, match="wrong"):
        driver.undisturbed(wrong)


def test_who_is_refused_wakes_nobody() -> None:
    driver, inside, go_on, woken = Driver("it"), threading.Event(), threading.Event(), threading.Event()
    holder = threading.Thread(target=lambda: driver.hold("hold", lambda: (inside.set(), go_on.wait(30))))
    holder.start()
    assert inside.wait(30)
    waiter = threading.Thread(target=lambda: (driver.wait(30), woken.set()))
    waiter.start()
    for _ in range(20):
        with pytest.raises(IllegalMove):
            driver.hold("move", lambda: None)
        assert not woken.wait(0.005)
    go_on.set()
    assert woken.wait(30)
    holder.join(30)
    waiter.join(30)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_real_interrupts_wherever_they_come_leave_it_free() -> None:
    driver, interrupted = Driver("it"), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for number in range(1000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + number * 1e-8)
                while True:
                    driver.hold("count", lambda: None)
            except KeyboardInterrupt:
                interrupted += 1
            assert not driver.held
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 1000
