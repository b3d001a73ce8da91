"""A program that moves a recorded run for ever, in one way, and tells when it draws, until somebody kills it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from statemachine_recorded import Draw, Walk, walk

from statemachine import JournalWriter, Run

WAYS = ("start", "resume", "until", "step", "iterate", "signal", "edit", "back", "fork")


class ToldDraw(Draw):
    def run(self, context: Walk) -> int:
        os.write(1, b"%d\n" % time.monotonic_ns())
        return super().run(context)


def move(way: str, path: Path) -> None:
    """Move a run for ever."""
    draw = ToldDraw("draw")
    run = Run(walk(draw), Walk(limit=10**9), journal=None if way == "fork" else JournalWriter(path), keep=True)
    if way == "fork":
        run = run.fork(journal=JournalWriter(path))
    while True:
        if way == "start":
            run.start()
        elif way in ("resume", "fork"):
            run.rest()
            run.resume()
        elif way == "until":
            run.until(lambda run: False)
        elif way == "step":
            run.step()
        elif way == "iterate":
            for _ in run:
                pass
        elif way == "signal":
            run.step()
            run.until(draw)
            run.signal("skip")
        elif way == "edit":
            run.step()
            run.edit("bonus", amount=1)
        elif way == "back":
            run.until(lambda run: run.step_count % 50 == 49)
            run.back(3)
            run.step()


def killed(way: str, path: Path, *, after: int = 1, lasting: int = 0) -> list[int]:
    """Kill such a program after so many draws, and so many ns from the second on; gives each draw's time in ns."""
    command = [sys.executable, "-m", "killed_walk", way, str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told: list[int] = []
        while len(told) < after or told[-1] - told[:2][-1] < lasting:
            told.append(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        return told + [int(line) for line in process.stdout.read().splitlines()]


if __name__ == "__main__":
    move(sys.argv[1], Path(sys.argv[2]))
