"""What every test shares: one thread, no window, no cache, fixed examples."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests run side by side
os.environ.setdefault("MPLBACKEND", "Agg")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so, and then Ctrl-C, which tests send, does nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis

hypothesis.settings.register_profile("deftly", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("deftly")
