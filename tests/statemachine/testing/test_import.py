"""Hypothesis is needed by nobody but those who test with it."""

import subprocess
import sys


def test_without_hypothesis_the_error_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import statemachine\n"
        "try: import statemachine.testing\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "statemachine.testing needs Hypothesis, which is not installed: pip install hypothesis\n"


def test_importing_statemachine_imports_no_hypothesis() -> None:
    code = "import statemachine, sys; print('hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
