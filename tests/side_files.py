"""Ways in which a file beside a run can be another than the one that was written, drawn by hypothesis."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from deftly.types import UsageError

OTHERS = [None, True, -1, 0, 1.5, math.inf, math.nan, 10**400, 5e-324, "", "abc", "\x1b[/b]\0\n", "\ud800", [], {}, [1], [[]], {"a": 1}]
GONE = object()
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> list[Place]:
    """Where something stands in JSON-able data, the whole included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for name, part in items for place in places(part, (*at, name)))]


def put(value: Any, place: Place, other: Any) -> Any:
    """`value` with something else at a place, or nothing where that is `GONE`."""
    if not place:
        return None if other is GONE else other
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and other is GONE:
        del copy[place[0]]
    else:
        copy[place[0]] = put(value[place[0]], place[1:], other)
    return copy


def refusal(read: Callable[[], object]) -> str:
    """What `read` says where it refuses, which is no other error than a `UsageError`; nothing where it does not."""
    try:
        read()
    except UsageError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def damaged(path: Path, data: st.DataObject) -> Iterator[None]:
    """The file with one value changed or missing, or with a byte that is no text, for the time of the block."""
    sound = path.read_bytes()
    try:
        path.write_bytes(damage(sound, path.suffix, data))
        yield
    finally:
        path.write_bytes(sound)


def damage(sound: bytes, suffix: str, data: st.DataObject) -> bytes:
    if suffix not in (".json", ".jsonl") or data.draw(st.integers(0, 9)) == 0:
        at = data.draw(st.integers(0, len(sound)))
        return (
            sound[:at] + data.draw(st.sampled_from([b"\xff", b"\0", b"[", b"9" * 5000, b"\n"])) + sound[at + data.draw(st.integers(0, 1)) :]
        )
    lines = sound.decode().splitlines() if suffix == ".jsonl" else [sound.decode()]
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    place = data.draw(st.sampled_from(places(value)))
    lines[number] = json.dumps(put(value, place, data.draw(st.sampled_from([*OTHERS, GONE]))))
    return ("\n".join(lines) + "\n").encode()
