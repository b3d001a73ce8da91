"""A chat: one run of a machine that waits for what is said next, and keeps its cache from turn to turn."""
