"""Configs of the user's own, in a Python file beside the run: policies, heads and objectives that deftly does not have.

```
deftly train my.py:recipe        the file is code, and trusted: it is run
deftly evaluate RUN --code my.py
deftly.load(RUN, own="my.py")    or own=[MyPolicyConfig], where it is imported already
```
Only the user says which file is run. A checkpoint, a run.json or a policy.json holds a `kind` and fields, and never the name of code: a
kind that is not among those that were given is refused.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic

from deftly import storage
from deftly.config import Config, models_in
from deftly.types import UsageError

Own = Path | str | Sequence[type[Config]]
"""The file that defines them, or the classes themselves."""


def run_file(path: Path) -> ModuleType:
    """Run a Python file of the user's, with its folder at the end of the path. Raises `UsageError` where it is none, or fails."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a Python file of your own, such as my.py")
    name = f"deftly_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # pydantic looks annotations up there
    try:
        with blamed(path):
            spec.loader.exec_module(module)
    except Exception:
        del sys.modules[name]
        raise
    return module


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """What goes wrong inside of the user's file is told as theirs, with its line: a `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{path}:{line_of(error, path)}: {type(error).__name__}: {said}; mend the file, --traceback shows the whole"
        ) from error


def line_of(error: Exception, path: Path) -> int:
    """The last line of the file that an error went through."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 0
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == str(path)), 0)


def classes_of(own: Own) -> tuple[type[Config], ...]:
    """The configs with a `kind` that a file defines or imports from others of the user's; given classes as they are."""
    if not isinstance(own, Path | str):
        return tuple(own)
    return classes_of_module(run_file(Path(own)))


def classes_of_module(module: ModuleType) -> tuple[type[Config], ...]:
    """As `classes_of`; raises `UsageError` where two could be meant by one kind: a run would be read back as the other."""
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Config)]
    classes = tuple(value for value in dict.fromkeys(found) if is_own(value) and kind_of(value) is not None)
    named: dict[tuple[str | None, ...], type[Config]] = {}
    for one in classes:
        other = named.setdefault((kind_of(one), *_takes(one)), one)
        if other is not one:  # guard: own_code.twice
            raise UsageError(f"{module.__file__}: {other.__name__} and {one.__name__} are both of kind {kind_of(one)!r}; give each its own")
    return classes


def classes_in(config: Config) -> tuple[type[Config], ...]:
    """The user's own classes that a config is made of."""
    return tuple(dict.fromkeys(type(part) for part in _parts(config) if is_own(type(part))))


def hashes(classes: Iterable[type[Config]]) -> dict[str, str]:
    """Of the file that defines each, as it is now, by the name of the class; one that was typed at a prompt has none."""
    files = {one.__name__: getattr(sys.modules[one.__module__], "__file__", None) for one in classes}
    return {name: storage.sha256(Path(file)) for name, file in files.items() if file is not None and Path(file).is_file()}


def is_own(config: type[Config]) -> bool:
    return not config.__module__.startswith("deftly.")


def kind_of(config: type[pydantic.BaseModel]) -> str | None:
    """Its tag: the default of its field `kind`."""
    field = config.model_fields.get("kind")
    return field.default if field is not None and isinstance(field.default, str) else None


def _parts(value: Any) -> Iterator[Config]:
    if isinstance(value, Config):
        yield value
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)


def find(kind: Any, takes: Sequence[str], own: Iterable[type[Config]]) -> type[Config] | None:
    """The class of that kind whose `build` takes these arguments."""
    return next((one for one in own if kind_of(one) == kind and _takes(one) == [*takes]), None)


def _takes(config: type[Config]) -> list[str]:
    build = getattr(config, "build", None)
    return [name for name in inspect.signature(build).parameters if name != "self"] if build is not None else []


@dataclass(frozen=True)
class OrOwn:
    """Beside a union of configs in an annotation: configs of the user's own are fine too, if their `build` takes these arguments.

    An instance is taken as it is. Plain data needs `Config.parse(..., own=classes)`, and never leads to a class that is not among those.
    """

    takes: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        kinds = {kind_of(model) for model in models_in(source)}

        def validate(value: Any, inner: pydantic.ValidatorFunctionWrapHandler, info: pydantic.ValidationInfo) -> Any:
            if isinstance(value, Config) and is_own(type(value)):
                self._check(type(value), kinds)
                return value
            kind = value.get("kind") if isinstance(value, dict) else None
            if isinstance(kind, str) and kind not in kinds:  # guard: own_code.known
                found = find(kind, self.takes, (info.context or {}).get("own", ()))
                if found is None:
                    known = ", ".join(sorted(filter(None, kinds)))
                    raise ValueError(
                        f"there is no kind {kind[:80]!r} (known: {known}); if it is of your own code, name the file: --code my.py"
                    )
                return found.model_validate(value, context=info.context)
            return inner(value)

        def serialize(value: Any, inner: pydantic.SerializerFunctionWrapHandler) -> Any:
            return value.to_dict() if isinstance(value, Config) and is_own(type(value)) else inner(value)

        schema = pydantic.WrapSerializer(serialize, return_type=Any).__get_pydantic_core_schema__(source, handler)
        return pydantic.WrapValidator(validate).__get_pydantic_core_schema__(source, lambda _: schema)  # pyright: ignore[reportArgumentType]

    def _check(self, config: type[Config], kinds: set[str | None]) -> None:
        kind, takes = kind_of(config), _takes(config)
        if kind is None or kind in kinds:  # guard: own_code.kind
            raise ValueError(f'{config.__name__} needs a kind of its own, by which its run is read again: kind: Literal["mine"] = "mine"')
        if takes != [*self.takes]:  # guard: own_code.build
            raise ValueError(f"{config.__name__}.build takes ({', '.join(takes)}), where ({', '.join(self.takes)}) are given")


def narrowed(config: Config) -> Config:
    """This config with every union that leads to the user's own code narrowed to what it chose: what a command line's flags are made of."""
    fields: dict[str, Any] = {}
    values = {name: getattr(config, name) for name in type(config).model_fields}
    for name, field in type(config).model_fields.items():
        if isinstance(values[name], Config) and classes_in(values[name]):
            values[name] = narrowed(values[name])
            fields[name] = (type(values[name]), pydantic.Field(default=values[name], description=field.description))
    if not fields:
        return config
    kind = pydantic.create_model(type(config).__name__, __base__=type(config), __module__=type(config).__module__, **fields)
    return kind.model_validate(values)
