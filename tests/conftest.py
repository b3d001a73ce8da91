"""For all tests: Ctrl-C reaches the processes that they start, also where the tests run in the background."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what they start with &
    signal.signal(signal.SIGINT, signal.default_int_handler)
