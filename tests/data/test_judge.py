"""The independent judge: lerobot, in an environment of its own, agrees with us in both directions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/judge_lerobot.sh"


@pytest.mark.slow
def test_lerobot_reads_the_same_values_and_we_read_what_it_records(capfd):
    environment = {"DEFTLY_PYTHON": sys.executable, **os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(["bash", str(SCRIPT)], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    with capfd.disabled():
        print("\n" + result.stdout)
    assert result.returncode == 0
    assert "DIFFER" not in result.stdout
    assert result.stdout.count("read by lerobot") >= 1
    assert result.stdout.count("recorded by lerobot") == 2, "v3.0 and v2.1"
