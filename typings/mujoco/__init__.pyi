# mujoco's extension modules carry no types: without this every name in them is an error.
from typing import Any

def __getattr__(name: str) -> Any: ...
