"""The NumPy engine: the reference for every other one."""
