"""Property tests for machines of your own: rules to run them under, random machines, and what a test never saw."""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "statemachine.testing needs Hypothesis, which is not installed: pip install hypothesis"
    ) from error

from statemachine.testing.coverage import Coverage, coverage
from statemachine.testing.machines import Counter, Plan, machines, plans
from statemachine.testing.rules import MachineRules, machine_rules, run_rules
from statemachine.testing.watch import BrokenRule

__all__ = [
    "BrokenRule",
    "Counter",
    "Coverage",
    "MachineRules",
    "Plan",
    "coverage",
    "machine_rules",
    "machines",
    "plans",
    "run_rules",
]
