"""What a process costs beyond what it shares with others."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path


def private_bytes() -> int:
    """Memory of this process that no other one shares."""
    sizes: dict[str, int] = defaultdict(int)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        sizes[line.split(":")[0]] = int(line.split()[1])
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) << 10
