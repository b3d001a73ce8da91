"""Requests that stand in a file, answered in batches into another one, which a killed process leaves whole enough."""
