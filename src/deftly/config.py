"""The base of every config: closed, frozen pydantic models that load from and save to JSON.

A config never builds anything by name lookup: each concrete config has its own ``build(...)``. No registry, no dotted imports.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

import pydantic

from deftly.types import UsageError

MAX_CONFIG_BYTES = 4 << 20
MAX_CONFIG_DEPTH = 64
MAX_MISTAKES, MAX_NAME = 20, 100  # that are explained; characters of a name that are shown


class Config(pydantic.BaseModel):
    """A closed (unknown keys are errors), immutable piece of configuration."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self).parse({**{name: getattr(self, name) for name in type(self).model_fields}, **changes}, where=type(self).__name__)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data (tuples become lists)."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """JSON text, stable: the same config gives the same bytes."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, values: dict[str, Any], where: str, own: Sequence[type[Config]] = ()) -> Self:
        """Validate plain data; an error is one line per mistake and names the nearest right key. `own` are the user's classes that it may
        lead to (`own_code.py`)."""
        try:
            return cls.model_validate(values, context={"own": own})
        except pydantic.ValidationError as error:
            raise UsageError(explain(cls, error, where)) from None

    @classmethod
    def load(cls, path: Path, own: Sequence[type[Config]] = ()) -> Self:
        """Read a JSON file written by `to_json`; raises `UsageError` in one line."""
        return cls.parse(read_object(path), str(path), own)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, refused when it is missing, too large, too deep, or not an object."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.stat().st_size > MAX_CONFIG_BYTES:  # guard: config.size
        raise UsageError(f"{path}: {path.stat().st_size} bytes is more than a config may have ({MAX_CONFIG_BYTES})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start}); a config is JSON") from None
    if deepest(text) > MAX_CONFIG_DEPTH:  # guard: config.depth
        raise UsageError(f"{path}: JSON nested deeper than {MAX_CONFIG_DEPTH} levels")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON (line {error.lineno}: {error.msg})") from None
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"{path}: not a config ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def deepest(text: str) -> int:
    """Nesting depth of JSON text, counted before parsing so that a depth bomb cannot exhaust the stack. Brackets in strings count too."""
    depth = best = 0
    for character in text:
        if character in "[{":
            depth += 1
            best = max(best, depth)
        elif character in "]}":
            depth -= 1
    return best


def explain(cls: type[pydantic.BaseModel], error: pydantic.ValidationError, where: str) -> str:
    """Pydantic's errors as short lines: where, what, and the nearest right name for an unknown key."""
    lines, items = [], error.errors()
    for item in items[:MAX_MISTAKES]:
        field = ".".join(str(part)[:MAX_NAME] for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = known_fields(cls, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1])[:MAX_NAME], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            lines.append(f"{where}: unknown key {field!r}; {hint}")
        else:
            got = "" if isinstance(item["input"], dict) else f" (got {str(item['input'])[:80]!r})"
            lines.append(f"{where}: {field + ': ' if field else ''}{item['msg'].removeprefix('Value error, ')}{got}")
    if len(items) > MAX_MISTAKES:
        lines.append(f"{where}: {len(items) - MAX_MISTAKES} more mistakes")
    return "\n".join(lines)


def known_fields(cls: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the (possibly nested) config that `path` leads to; of every variant where it is a union."""
    classes: list[type[pydantic.BaseModel]] = [cls]
    for part in path:
        found = [model for owner in classes if part in owner.model_fields for model in models_in(owner.model_fields[str(part)].annotation)]
        classes = found or classes  # a union's tag or a list index stands in the path without being a field
    return [name for owner in classes for name in owner.model_fields]


def models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """Every pydantic model mentioned in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
