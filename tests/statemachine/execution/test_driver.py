"""The driver alone: one thread holds, every other is refused at once, and nothing leaves it held."""

import threading

import pytest

from statemachine import IllegalMove
from statemachine.execution.driver import Driver


def test_what_is_held_gives_its_result_and_lets_go() -> None:
    driver = Driver()
    assert driver.hold("add", lambda: 1 + 1) == 2
    assert not driver.held
    assert driver.hold("look", lambda: driver.held) is True


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_is_raised_it_lets_go(error: type[BaseException]) -> None:
    driver = Driver()

    def work() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(error):
            driver.hold("break", work)
        assert not driver.held
        assert driver.wait(0)


def test_a_second_hold_is_refused_at_once_from_within_and_from_another_thread() -> None:
    driver, inside, go_on = Driver(), threading.Event(), threading.Event()
    with pytest.raises(
        IllegalMove, match=r"cannot move it: it is being driven by another thread or from within itself"
    ):
        driver.hold("hold", lambda: driver.hold("move it", lambda: None))
    thread = threading.Thread(target=lambda: driver.hold("hold", lambda: (inside.set(), go_on.wait(30))))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(IllegalMove, match="cannot move it"):
        driver.hold("move it", lambda: None)
    assert driver.held
    assert not driver.wait(0.01)
    go_on.set()
    assert driver.wait(30)
    thread.join(30)
    driver.hold("move it", lambda: None)


def test_of_many_threads_one_holds() -> None:
    driver, most, lock, held = Driver(), [0], threading.Lock(), [0]
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
    driver = Driver()
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
