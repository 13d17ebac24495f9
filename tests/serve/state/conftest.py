"""A bundle whose predictions are its windows, made rows, what they must be given; and films."""

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.core.tracks import Tracks
from drivetrain.core.window import Window, Windows

sys.path.insert(0, str(Path(__file__).parent))  # where what these tests share lies

import films

HOUR = 3_600_000_000
SCHEMA = Schema(
    (
        Field("at", "timestamp"),
        Field("card", "string"),
        Field("shop", "string"),
        Field("amount", "float64"),
        Field("settled", "timestamp"),
    )
)
COLUMNS = {
    "hourly": Window(by="card", stat="count", over="1h"),
    "mean": Window("amount", by="card", stat="mean", over="3h", known="settled"),
    "top": Window("amount", by="card", stat="max", over="24h", known="settled"),
    "last": Window("amount", by="card", stat="last", known="settled"),
    "shops": Window("shop", by="card", stat="distinct", over="24h"),
    "since": Window(by=("card", "shop"), stat="since", over="24h"),
}
TYPES = {"float64": TensorProto.DOUBLE, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
START = 1_700_000_000_000_000


def windows_of(columns=COLUMNS, lateness=6 * HOUR) -> Windows:
    return Windows("at", tuple(columns.items()), lateness)


def write_windowed(path: Path, columns=COLUMNS, lateness=6 * HOUR, weight=1.0) -> Bundle:
    """A bundle that answers its windows as they are, and ``far``, its one other column."""
    windows = windows_of(columns, lateness)
    filled = windows.fields(SCHEMA)
    inputs = Schema((Field("distance", "float32"), *filled))
    outputs = Schema((Field("far", "float32"), *(Field(f"got_{f.name}", f.dtype) for f in filled)))
    nodes = [helper.make_node("Mul", ["distance", "weight"], ["far"])]
    nodes += [helper.make_node("Identity", [f.name], [f"got_{f.name}"]) for f in filled]
    values = {
        side: [helper.make_tensor_value_info(f.name, TYPES[f.dtype], ["rows"]) for f in schema]
        for side, schema in (("in", inputs), ("out", outputs))
    }
    constant = helper.make_tensor("weight", TensorProto.FLOAT, [], [weight])
    graph = helper.make_graph(nodes, "windowed", values["in"], values["out"], [constant])
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opset)
    names = dict.fromkeys((*windows.asked, *windows.observed))
    manifest = Manifest(
        name="cards",
        inputs=inputs,
        outputs=outputs,
        windows=windows.to_json(),
        window_schema=SCHEMA.select(names),
    )
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def made_rows(rows: int, cards: int = 20, seed: int = 0) -> list[dict]:
    """Made events of a few hours, in order of ``at``; some are settled later, or never."""
    random = np.random.default_rng(seed)
    at = START + np.sort(random.integers(0, 12 * HOUR, rows))
    settled = at + random.integers(0, 2 * HOUR, rows)
    amount = random.normal(50, 20, rows).round(2)
    return [
        {
            "at": int(at[i]),
            "card": None if i % 31 == 5 else f"card {random.integers(cards)}",
            "shop": f"shop {random.integers(5)}",
            "amount": None if i % 17 == 3 else float(amount[i]),
            "settled": None if i % 13 == 7 else int(settled[i]),
        }
        for i in range(rows)
    ]


def offline(rows, columns=COLUMNS, lateness=6 * HOUR) -> list[dict]:
    """What each row is given, once all that was known before it is there."""
    tracks = Tracks(windows_of(columns, lateness), SCHEMA)
    found = tracks.replay(Batch.from_rows(rows, SCHEMA))
    return list(Batch(found).rows())


def asked(row, distance=1.5) -> dict:
    """The request of a made row."""
    return {"distance": distance, **{name: row[name] for name in ("at", "card", "shop")}}


def plain(prediction) -> dict:
    """The windows in an answer; what is missing is null, as JSON has it."""
    return {k.removeprefix("got_"): v for k, v in prediction.items() if k.startswith("got_")}


def same(found, expected) -> bool:
    """Whether an answer has the bits that it should have."""
    for name, value in expected.items():
        missing = value != value
        if found[name] is not None if missing else found[name] != value:
            return False
    return True


class Cards:
    """What these tests share."""

    write = staticmethod(write_windowed)
    rows = staticmethod(made_rows)
    offline = staticmethod(offline)
    asked = staticmethod(asked)
    plain = staticmethod(plain)
    same = staticmethod(same)
    columns = COLUMNS
    schema = SCHEMA
    windows = staticmethod(windows_of)
    start, hour = START, HOUR


@pytest.fixture(scope="session")
def cards() -> type[Cards]:
    """Bundles with windows, made rows and what they must be given."""
    return Cards


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One bundle with windows for all tests that change nothing."""
    return write_windowed(tmp_path_factory.mktemp("windowed") / "bundle")


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A factorization that learns."""
    return films.write(tmp_path_factory.mktemp("films") / "one")


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another training of it."""
    return films.write(tmp_path_factory.mktemp("films") / "two", seed=1)
