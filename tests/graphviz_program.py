"""Says which tests need Graphviz's program, and skips them, visibly, where it is not installed."""

import shutil

import pytest

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program 'dot' is not installed")
