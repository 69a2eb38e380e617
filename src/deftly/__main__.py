"""`python -m deftly` is `deftly`: what torchrun starts, as `torchrun --nproc-per-node 2 -m deftly train NAME`."""

import os

from deftly.cli.main import main

if __name__ == "__main__":
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Each process would repeat that torch looks for parameters without a gradient, which is asked for. Read when torch is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    main()
