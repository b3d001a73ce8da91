"""What records: journals, replays and snapshots of runs, told of them by the recorder that `execution` describes."""
