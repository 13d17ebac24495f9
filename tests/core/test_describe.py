"""Digests change when what is declared changes, and only then."""

import datetime
import importlib.util
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.core.describe import describe, digest
from drivetrain.core.seams import Shard


@dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...] = ()
    note: str = field(default="", metadata={"declared": False})


class Plain:
    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, x: int) -> int:
        return x * self.width

    def method(self) -> int:
        return self.width


def scaled(factor: float) -> Any:
    def apply(x: float) -> float:
        return x * factor

    return apply


def bounded(low: float) -> Any:
    def clip(x: float, least: float = low, *, most: float = low + 1) -> float:
        return min(max(x, least), most)

    return clip


def test_plain_values_describe_themselves():
    value = {"a": [1, 2.5, None, True], "b": ("x",)}
    assert describe(value) == {"a": [1, 2.5, None, True], "b": ["x"]}


def test_a_dataclass_is_its_type_and_its_declared_fields():
    described = describe(Point(1.0, ("a",), note="n"))
    assert {k: v for k, v in described.items() if k != "code"} == {
        "type": "Point",
        "x": 1.0,
        "tags": ["a"],
    }
    assert digest(Point(1.0, note="a")) == digest(Point(1.0, note="b"))
    assert digest(Point(1.0)) != digest(Point(2.0))


@pytest.mark.parametrize("decorator", ["", "@dataclass(frozen=True)\n"])
def test_an_object_of_the_user_s_is_its_source_too(tmp_path: Path, decorator: str):
    """A source or a pass whose code was changed is another one, though its fields are the same."""
    text = f"from dataclasses import dataclass\n\n{decorator}class Own:\n"
    text += "    x: int = 1\n    def rows(self):\n        return {}\n"
    digests = set[str]()
    for number in (0, 1, 1):
        (tmp_path / f"own{len(digests)}.py").write_text(text.format(number))
        name = f"own{len(digests)}"
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        digests.add(digest(module.Own()))
    assert len(digests) == 2
    assert "code" not in describe(Shard()), "the package's own are known by its version"


def test_order_of_keys_and_of_sets_does_not_count():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"x", "y", "z"}) == digest({"z", "y", "x"})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(Plain, 64), partial(Plain, 128)),
        (partial(Plain, width=64), partial(Plain, width=128)),
        (partial(Plain, 64), partial(Point, 64)),
        (scaled(1.0), scaled(2.0)),
        (bounded(1.0), bounded(2.0)),
        (Plain(1), Plain(2)),
        (Plain(1).method, Plain(2).method),
        (Plain, Point),
        (len, max),
        (b"a", b"b"),
        (np.float32(1), np.float32(2)),
        (np.array([1, 2]), np.array([[1, 2]])),
        (np.array([1, 2]), np.array([1, 3])),
        (datetime.date(2013, 1, 1), datetime.date(2013, 1, 2)),
        (Path("a"), Path("b")),
        (1, "1"),
        (1, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_differs_is_told_apart(one: object, other: object):
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: partial(Plain, 64, extra=(1, 2)),
        lambda: scaled(1.5),
        lambda: bounded(1.5),
        lambda: Plain(3),
        lambda: Plain(3).method,
        lambda: np.arange(5.0),
        lambda: describe,
        lambda: {"path": Path("a/b"), "bytes": b"x", "module": np},
    ],
)
def test_what_is_made_twice_has_one_digest(make: Any):
    assert digest(make()) == digest(make())


def test_a_recursive_function_is_described():
    def factory() -> Any:
        def countdown(n: int) -> int:
            return countdown(n - 1) if n else 0

        return countdown

    assert digest(factory()) == digest(factory())


def test_functions_typed_at_a_prompt_are_told_apart():
    made = [eval(text) for text in ("lambda x: x + 1", "lambda x: x + 2", "lambda x: x + 1")]
    nested = [eval(f"lambda: [y * {n} for y in 'ab']") for n in (2, 3, 2)]
    for one, other, again in (made, nested):
        assert digest(one) == digest(again) != digest(other)


def test_a_value_without_a_description_is_refused():
    with pytest.raises(TypeError, match="a generator, has no canonical description"):
        digest(i for i in [1])


def test_a_dtype_of_torch_is_described():
    assert describe(torch.float32) == {"type": "dtype", "value": "float32"}
    assert digest(torch.float32) != digest(torch.bfloat16)


@pytest.mark.slow
def test_digests_are_the_same_in_every_process():
    code = (
        "from drivetrain.core.describe import digest\n"
        "print(digest({'b': {3, 1, 'x'}, 'a': (1.5, None), 'f': digest, 't': digest.__class__}))"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True
        )
        for seed in ("1", "2")
    ]
    assert run[0].stdout == run[1].stdout
    assert len(run[0].stdout.strip()) == 64
