"""Configs are closed: what they do not know is an error that names the nearest right key."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.config import MAX_CONFIG_BYTES, Config, deepest, known_fields, models_in, read_object
from deftly.types import UsageError
from guards import guards


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = pydantic.Field(1.0, gt=0)


class Drawing(Config):
    title: str = "untitled"
    learning_rate: float = 0.1
    shape: Annotated[Circle | Square, pydantic.Field(discriminator="kind")] = Circle()
    points: tuple[int, ...] = ()
    layers: tuple[Circle, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"zzz": 1}, "unknown key 'zzz'; known: layers, learning_rate, points, shape, title"),
        ({"shape": {"kind": "circle", "radios": 2}}, "unknown key 'shape.circle.radios'; did you mean 'radius'"),
        ({"layers": [{"radis": 2}]}, "unknown key 'layers.0.radis'; did you mean 'radius'"),
        ({"shape": {"kind": "square", "side": -1}}, "shape.square.side: Input should be greater than 0"),
        ({"learning_rate": "fast"}, "learning_rate: Input should be a valid number"),
        ({"learning_rate": float("nan")}, "learning_rate: Input should be a finite number"),
        ({"shape": {"kind": "star"}}, "'star'"),
    ],
)
def test_mistakes_are_named(values: dict, message: str):
    with pytest.raises(UsageError) as error:
        Drawing.parse(values, where="drawing.json")
    assert message in str(error.value)
    assert str(error.value).startswith("drawing.json: ")
    assert "\n" not in str(error.value)


def test_two_mistakes_are_two_lines():
    with pytest.raises(UsageError) as error:
        Drawing.parse({"titel": "x", "points": "x"}, where="here")
    assert len(str(error.value).splitlines()) == 2


def test_configs_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        Drawing().title = "new"  # type: ignore[misc]


def test_replace_is_validated_and_leaves_the_original():
    drawing = Drawing(points=(1, 2))
    assert drawing.replace(title="new", shape=Square(side=2)).shape == Square(side=2)
    assert drawing.title == "untitled"
    with pytest.raises(UsageError, match="did you mean 'title'"):
        drawing.replace(tittle="x")


@given(st.builds(Drawing, title=st.text(), points=st.lists(st.integers()).map(tuple), shape=st.builds(Circle, radius=st.floats(0, 1e9))))
def test_json_round_trip_is_exact_and_stable(drawing: Drawing):
    values = json.loads(drawing.to_json())
    assert values == drawing.to_dict()
    again = Drawing.parse(values, where="test")
    assert again == drawing
    assert again.to_json() == drawing.to_json()


def test_load_names_the_file(tmp_path):
    path = tmp_path / "drawing.json"
    path.write_text('{"title": "a", "poins": []}')
    with pytest.raises(UsageError, match=r"drawing\.json: unknown key 'poins'; did you mean 'points'"):
        Drawing.load(path)


@guards("config.size", "config.depth")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object, found list"),
        ("{", "not JSON"),
        ('{"a": 1' + " " * MAX_CONFIG_BYTES + "}", "more than a config may have"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested deeper than 64"),
        ('{"a":' * 100_000, "nested deeper than 64"),
    ],
)
def test_broken_and_hostile_files_are_refused_fast(tmp_path, text: str, message: str):
    path = tmp_path / "run.json"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(UsageError, match=message) as error:
        read_object(path)
    assert time.perf_counter() - start < 1
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_object(tmp_path / "none.json")


@given(st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("a"), inner, max_size=1)))
def test_depth_is_that_of_the_parsed_value(value: object):
    def depth(item: object) -> int:
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else None
        return 0 if inner is None else 1 + max((depth(part) for part in inner), default=0)

    assert deepest(json.dumps(value)) == depth(value)


def test_fields_of_every_variant_are_known():
    assert set(known_fields(Drawing, ("shape", "circle"))) == {"kind", "radius", "side"}
    assert models_in(Drawing.model_fields["layers"].annotation) == [Circle]


@pytest.mark.parametrize(
    ("data", "message"), [(b"\x89PNG\xff\x00", "not a text file in UTF-8"), (b'{"steps": ' + b"9" * 5000 + b"}", "not a config")]
)
def test_a_file_of_another_kind_is_one_line(tmp_path, data: bytes, message: str):
    path = tmp_path / "run.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        read_object(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
