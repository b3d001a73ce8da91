"""What runs: one execution of a machine over one context, moved by one thread at a time, at home in its whole past."""
