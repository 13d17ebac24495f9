"""The declaration is checked when it is made."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from drivetrain.core.schema import Field, Schema
from drivetrain.core.system import System, check_forward


@dataclass(frozen=True)
class Column:
    name: str
    columns: tuple[str, ...] = ()


class Model:
    def forward(self, delay: Any, dense: Any, extra: Any = None, *rest: Any) -> Any: ...


def made(**changes: Any) -> System:
    parts: dict[str, Any] = {
        "name": "flights",
        "events": object(),
        "features": (Column("delay", ("dep_delay",)), Column("carrier", ("carrier", "origin"))),
        "model": Model,
        "targets": ("late",),
        "train": object(),
    }
    return System(**{**parts, **changes})


def test_columns_are_named_once_in_order_of_use():
    features = (Column("a", ("x", "y")), Column("delay", ("y", "z", "x")))
    assert made(features=features).columns == ("x", "y", "z")


@pytest.mark.parametrize("name", ["a", "7", "flights-2013", "a" * 64])
def test_good_names(name: str):
    assert made(name=name).name == name


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "../x", "é", "а", "a_b", "a\n", "a" * 65])
def test_bad_names(name: str):
    with pytest.raises(ValueError, match=r"System\.name: found"):
        made(name=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": Column("delay")}, r"System.features: .*a tuple, such as \(x,\)"),
        ({"features": ()}, "at least one feature"),
        ({"targets": "late"}, "System.targets: .*a tuple"),
        ({"targets": ("late", "index")}, "target 'index': that is the name of a block"),
        ({"features": (Column("delay"), Column("delay"))}, "'delay' is declared twice"),
        ({"features": (Column("delay"), Column("dense"))}, "feature 'dense': that name is taken"),
        ({"features": (Column("delay"), Column("late"))}, "feature 'late': that name is taken"),
        ({"features": (Column("delay", ("late",)),)}, "reads 'late', which is a target"),
        ({"features": (Column("dely"),)}, "unknown feature 'delay' in Model.forward.*'dely'"),
        (
            {"features": (Column("dely"),), "model": partial(partial(Model), 1)},
            "unknown feature 'delay' in Model.forward",
        ),
    ],
)
def test_a_mistake_is_told_when_it_is_declared(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_a_factory_that_is_no_class_is_checked_later():
    assert made(model=lambda schema: None).targets == ("late",)


def test_columns_are_held_against_the_events():
    names = ("dep_delay", "carrier", "origin", "late")
    schema = Schema(tuple(Field(name, "float32") for name in names))
    made().check(schema)
    with pytest.raises(ValueError, match=r"'origin' in feature Column\('carrier'\)"):
        made().check(schema.select(["dep_delay", "carrier", "late"]))
    with pytest.raises(ValueError, match="'late' in targets"):
        made().check(schema.select(["dep_delay", "carrier", "origin"]))


@pytest.mark.parametrize("name", ['say "when"', "C:\\\\delay", "delay\n", ""])
def test_a_column_that_no_request_could_bring_is_told_before_anything_is_learnt(name: str):
    system = made(features=(Column("delay", (name,)), Column("carrier")))
    schema = Schema(tuple(Field(column, "float32") for column in (name, "carrier", "late")))
    with pytest.raises(ValueError, match=r"the server is to be sent: found .*rename"):
        system.check(schema)


def test_the_digest_is_the_declarations():
    @dataclass(frozen=True)
    class Fit:
        lr: float = 0.1

    system = made(train=Fit(), events=None)
    assert system.digest == made(train=Fit(), events=None).digest
    assert system.digest != replace(system, train=Fit(lr=0.2)).digest  # type: ignore[arg-type]
    assert system.digest != replace(system, model=partial(Model, 1)).digest
    assert system.describe()["train"].items() >= {"type": "Fit", "lr": 0.1}.items()


class Narrow:
    def forward(self, delay: Any) -> Any: ...


class Wide:
    def forward(self, delay: Any, **rest: Any) -> Any: ...


class Block:
    def forward(self, index: Any) -> Any: ...


def test_a_feature_that_no_parameter_of_forward_takes_is_named() -> None:
    with pytest.raises(ValueError, match=r"Narrow\.forward: no parameter takes .*'carrier'"):
        check_forward(Narrow, ["delay", "carrier"])


@pytest.mark.parametrize("model", [Wide, Block])
def test_a_block_or_the_rest_takes_every_feature(model: Any) -> None:
    features = ("delay", "carrier", "weather")
    assert [name for name in features if refused(model, ["delay", name])] == []
    assert [name for name in features if refused(Narrow, ["delay", name])] == ["carrier", "weather"]


def refused(model: Any, features: list[str]) -> str:
    """Why a model's ``forward`` does not take these features, or nothing."""
    try:
        check_forward(model, features)
    except ValueError as error:
        return str(error)
    return ""


# -- strategies that are their model ---------------------------------------------------------------


@dataclass(frozen=True)
class Itself:
    """A strategy that is the model, reads targets itself and takes a raw column."""

    own_model = True
    reads: tuple[str, ...] = ("late",)
    columns: tuple[str, ...] = ("recent", "dep_delay")


def test_a_strategy_that_is_the_model_takes_none():
    system = made(model=None, train=Itself())
    assert system.columns == ("dep_delay", "carrier", "origin", "recent")
    assert system.describe()["model"] is None
    with pytest.raises(ValueError, match=r"System\.model: .* none, for Itself is the model"):
        made(train=Itself())
    with pytest.raises(ValueError, match=r"System\.model: found None, allowed: a factory"):
        made(model=None)


def test_what_a_strategy_reads_and_takes_is_checked_when_it_is_declared():
    with pytest.raises(ValueError, match=r"unknown target 'lat' in Itself.*'late'"):
        made(model=None, train=Itself(reads=("lat",)))
    with pytest.raises(ValueError, match="Itself reads 'late', which is a target"):
        made(model=None, train=Itself(columns=("late",)))
    system = made(model=None, train=Itself())
    names = ("dep_delay", "carrier", "origin", "late")
    fields = tuple(Field(name, "float32") for name in names)
    with pytest.raises(ValueError, match="unknown column 'recent' in Itself"):
        system.check(Schema(fields))
    system.check(Schema((*fields, Field("recent", "int64", (3,)))))
