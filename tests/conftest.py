"""What every test shares: one thread, no window, no cache, fixed examples."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests run side by side
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis

hypothesis.settings.register_profile("deftly", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("deftly")
